"""Affine: the formula, and that each transport carries over what it says it does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inlay import RED, Affine
from inlay.errors import EditError
from inlay.model.call import Call

D = 5


def _states(seed: int, count: int = 200, width: int = D) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(count, width, generator=generator) @ torch.randn(width, width, generator=generator)
    return (mixed + torch.randn(width, generator=generator)).double()


def _close(have: Tensor, want: Tensor, by: float = 1e-4) -> None:
    torch.testing.assert_close(have.double(), want.double(), rtol=0, atol=by)


def _on(made: Affine, h: Tensor) -> Tensor:
    return made(h[None])[0]


@pytest.mark.parametrize("by", [torch.randn(D, D, dtype=torch.float64), torch.randn(D, dtype=torch.float64)])
def test_the_formula(by: Tensor) -> None:
    bias, h = torch.randn(D, dtype=torch.float64), torch.randn(2, 3, D, dtype=torch.float64)
    want = (h @ by if by.ndim == 2 else h * by) + bias
    _close(Affine(by, bias)(h), want, 1e-12)
    _close(Affine(by)(h), want - bias, 1e-12)
    _close(Affine(by, bias)(h, Call(strength=torch.tensor(0.25))), 0.25 * want + 0.75 * h, 1e-12)


def test_what_is_a_parameter_trains() -> None:
    by, bias = nn.Parameter(torch.eye(D)), nn.Parameter(torch.zeros(D))
    made = Affine(by, bias)
    made(torch.ones(1, 2, D)).sum().backward()
    _close(by.grad, torch.full((D, D), 2.0))
    _close(bias.grad, torch.full((D,), 2.0))


# -- transport ---------------------------------------------------------------------------------------------------------


def test_the_mean_is_carried_over() -> None:
    before, after = _states(0), _states(1, count=70)
    moved = _on(Affine.transport(before, after, "mean"), before)
    _close(moved.mean(0), after.mean(0))
    _close(moved - moved.mean(0), before - before.mean(0))


def test_gaussian_transport_carries_mean_and_covariance_over() -> None:
    before, after = _states(0), _states(1, count=150)
    moved = _on(Affine.transport(before, after, ridge=0.0), before)
    _close(moved.mean(0), after.mean(0))
    _close(torch.cov(moved.T, correction=0), torch.cov(after.T, correction=0), 1e-3)


def test_gaussian_transport_is_the_shortest_way() -> None:
    """Its matrix is symmetric and positive: of all maps with these moments the one that moves the states least."""
    before, after = _states(0), _states(1)
    made = Affine.transport(before, after, ridge=0.0)
    matrix = made.state()["matrix"].double()
    _close(matrix, matrix.T)
    assert float(torch.linalg.eigvalsh(matrix).min()) > 0
    first, second = (torch.cov(side.T, correction=0) for side in (before, after))

    def root(m: Tensor, power: float) -> Tensor:
        values, vectors = torch.linalg.eigh(m)
        return vectors @ torch.diag(values.clamp(min=0) ** power) @ vectors.T

    cost = (_on(made, before) - before).square().sum(-1).mean()
    shift = (after.mean(0) - before.mean(0)).square().sum()
    bures = (first + second - 2 * root(root(first, 0.5) @ second @ root(first, 0.5), 0.5)).trace()
    _close(cost, shift + bures, 1e-3)
    other = root(first, -0.5) @ root(second, 0.5)  # also matches the covariance
    moved = (before - before.mean(0)) @ other + after.mean(0)
    assert float((moved - before).square().sum(-1).mean()) > float(cost) + 1e-3


def test_a_transport_to_itself_is_the_identity() -> None:
    states = _states(0)
    for how in ("mean", "per_dimension", "gaussian"):
        _close(_on(Affine.transport(states, states, how), states), states)


def test_a_ridge_carries_fewer_states_than_dimensions() -> None:
    before, after = _states(0, count=8, width=20), _states(1, count=8, width=20)
    moved = _on(Affine.transport(before, after), before)
    assert bool(torch.isfinite(moved).all())
    _close(moved.mean(0), after.mean(0), 1e-3)


def test_per_dimension_it_is_least_squares_on_sorted_samples() -> None:
    before, after = _states(0), _states(1)
    made = Affine.transport(before, after.flip(0), "per_dimension")
    for j in range(D):
        x, y = before[:, j].sort().values, after[:, j].sort().values
        design = torch.stack([x, torch.ones_like(x)], 1)
        slope, intercept = torch.linalg.lstsq(design, y[:, None]).solution.flatten()
        _close(made.state()["scale"][j], slope)
        _close(made.state()["bias"][j], intercept)


def test_per_dimension_unequal_samples_are_matched_by_quantiles() -> None:
    before = _states(0, count=99)
    after = torch.lerp(*(before.sort(0).values.repeat_interleave(2, 0)[i : i + 197] for i in (0, 1)), 0.5)
    made = Affine.transport(before, 2 * after + 1, "per_dimension")
    _close(made.state()["scale"], torch.full((D,), 2.0), 0.03)
    _close(made.state()["bias"], torch.ones(D), 0.1)


def test_a_dimension_that_never_varies_is_shifted() -> None:
    before, after = _states(0), _states(1)
    before[:, 2] = 3.0
    made = Affine.transport(before, after, "per_dimension")
    assert float(made.state()["scale"][2]) == 1.0
    _close(_on(made, before)[:, 2], after[:, 2].mean().expand(200))


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_repr() -> None:
    assert repr(Affine(torch.ones(3))) == "Affine(width=3, scale)"
    assert repr(Affine(torch.eye(3))) == "Affine(width=3, matrix)"


@pytest.mark.parametrize("by", [torch.ones(2, 3), torch.ones(()), torch.ones(2, 2, 2), torch.ones(0)])
def test_what_is_no_map(by: Tensor) -> None:
    with pytest.raises(EditError, match=r"Affine\(by\) is \[width, width\] or \[width\]"):
        Affine(by)


def test_values_and_widths_that_do_not_fit() -> None:
    with pytest.raises(EditError, match="NaN or infinite"):
        Affine(torch.full((3,), float("nan")))
    with pytest.raises(EditError, match=r"Affine\(bias\) has width 2, and the map 3"):
        Affine(torch.eye(3), torch.ones(2))


@pytest.mark.parametrize(
    ("before", "after", "more", "says"),
    [
        (torch.ones(4, 3), torch.ones(4, 3), {"how": "sinkhorn"}, "one of 'mean', 'per_dimension', 'gaussian'"),
        (torch.ones(4, 3), torch.ones(4, 2), {}, r"not \[4, 3\] and \[4, 2\]"),
        (torch.ones(1, 3), torch.ones(4, 3), {}, "two or more states"),
        (torch.ones(4, 3), torch.full((4, 3), float("inf")), {}, "NaN or infinite"),
    ],
)
def test_what_cannot_be_transported(before: Tensor, after: Tensor, more: dict[str, Any], says: str) -> None:
    with pytest.raises(EditError, match=says):
        Affine.transport(before, after, **more)


def test_red_scales_and_shifts_and_starts_as_no_edit() -> None:
    made, h = RED(D).double(), torch.randn(2, 3, D, dtype=torch.float64)
    assert torch.equal(made(h), h) and sum(p.numel() for p in made.parameters()) == 2 * D
    state = {name: torch.randn(D, dtype=torch.float64, requires_grad=True) for name in ("scale", "bias")}
    with torch.no_grad():
        for name, tensor in made.named_parameters():
            tensor.copy_(state[name])
    strength = torch.tensor([2.0, -1.0], dtype=torch.float64).reshape(-1, 1, 1)
    got = made(h, Call(strength))
    want = h + strength * ((state["scale"] - 1) * h + state["bias"])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    for one in (got, want):
        one.square().sum().backward()
    for name, tensor in made.named_parameters():
        torch.testing.assert_close(tensor.grad, state[name].grad, rtol=0, atol=1e-10)
    half = RED(D).to(torch.bfloat16)
    assert half.scale.dtype == torch.float32 and torch.equal(half(h.bfloat16()), h.bfloat16())
    with pytest.raises(EditError, match="width=0"):
        RED(0)
