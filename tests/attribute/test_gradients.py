"""Methods of gradients beside plain autograd, row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.attribute.asking import asked, difference, ends, slope, table
from tests.interventions import tiny
from torch import Tensor

import inlay
from inlay.attribute import gradients as methods
from inlay.errors import InputError

ROWS = range(len(tiny.RAGGED))


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> inlay.Model:
    made: Any = tiny.llama if request.param == "llama" else tiny.gpt2
    return inlay.load(made(dtype=torch.float64, attn_implementation="sdpa").requires_grad_(False))


def padded(model: inlay.Model, rows: list[Tensor]) -> Tensor:
    longest = max(map(len, rows))
    return torch.stack([torch.nn.functional.pad(row, (0, longest - len(row))) for row in rows]).float()


def test_gradient_times_change(model: inlay.Model) -> None:
    wanted = []
    for row in ROWS:
        x, b = ends(model, row)
        wanted.append(((x - b) * slope(model, x, row)).sum(-1))
    for budget in (8192, 9):
        found = methods.times_change(asked(model, batch_tokens=budget))
        torch.testing.assert_close(found, padded(model, wanted), rtol=1e-5, atol=1e-6)


def test_saliency(model: inlay.Model) -> None:
    wanted = padded(model, [slope(model, ends(model, row)[0], row).norm(dim=-1) for row in ROWS])
    torch.testing.assert_close(methods.saliency(asked(model)), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", ["gauss", "midpoint", "trapezoid"])
def test_integrated_gradients(model: inlay.Model, rule: Any) -> None:
    n = 7
    points = {
        "gauss": [((t + 1) / 2, w / 2) for t, w in zip(*np.polynomial.legendre.leggauss(n), strict=True)],
        "midpoint": [((k + 0.5) / n, 1 / n) for k in range(n)],
        "trapezoid": [(k / (n - 1), (0.5 if k in (0, n - 1) else 1) / (n - 1)) for k in range(n)],
    }[rule]
    wanted = []
    for row in ROWS:
        x, b = ends(model, row)
        total = sum(w * slope(model, b + t * (x - b), row) for t, w in points)
        wanted.append(((x - b) * total).sum(-1))
    for budget in (8192, 11):
        found = methods.integrated(asked(model, batch_tokens=budget), n=n, rule=rule)
        torch.testing.assert_close(found, padded(model, wanted), rtol=1e-5, atol=1e-5)


def test_integrated_gradients_add_up(model: inlay.Model) -> None:
    one = asked(model)
    change = one.all_values(base=False) - one.all_values(base=True)
    gaps = [(methods.integrated(one, n=n).sum(1) - change).abs().max() for n in (10, 300)]
    assert gaps[1] < 1e-3 and gaps[1] < gaps[0]


def test_one_feature_at_a_time_is_what_leaving_it_out_costs(model: inlay.Model) -> None:
    one = asked(model, rows=[tiny.RAGGED[0]], target=5, foil=40, by=["first2", "last2"])
    found = methods.sequential_integrated(one, n=300)
    x, b = ends(model, 0)
    whole = difference(model, x, 0)
    for slots in ([0, 1], [3, 4]):
        without = x.clone()
        without[slots] = b[slots]
        assert float(found[0, slots].sum()) == pytest.approx(float(whole - difference(model, without, 0)), abs=1e-3)
    assert float(found[0, 2]) == 0


def test_smoothed_gradients(model: inlay.Model) -> None:
    plain = methods.times_change(asked(model))
    torch.testing.assert_close(methods.smoothgrad(asked(model), samples=2, noise=0), plain)
    noisy = [methods.smoothgrad(asked(model, seed=seed), samples=3) for seed in (1, 1, 2)]
    assert torch.equal(noisy[0], noisy[1]) and not torch.equal(noisy[0], noisy[2])


@pytest.mark.slow
def test_random_points_of_the_path_have_the_integral_as_their_mean(model: inlay.Model) -> None:
    rows = [tiny.RAGGED[3]]
    draws = torch.stack(
        [methods.gradient_shap(asked(model, rows, seed=s, target=33, foil=40), samples=4)[0] for s in range(60)]
    )
    wanted = methods.integrated(asked(model, rows, target=33, foil=40), n=200)[0]
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - wanted).abs() < 4 * error + 1e-6).all()


@pytest.mark.parametrize("rule", ["gauss", "midpoint", "trapezoid"])
def test_points_of_a_path(rule: Any) -> None:
    t, w = map(np.array, methods.path_points(6, rule))
    assert w.sum() == pytest.approx(1) and (w * t).sum() == pytest.approx(0.5)
    if rule == "gauss":
        assert (w * t**11).sum() == pytest.approx(1 / 12)


def test_what_has_no_points() -> None:
    for n, rule, said in ((0, "gauss", "n=0"), (1, "trapezoid", "at least 2"), (3, "simpson", "gauss, midpoint")):
        with pytest.raises(InputError, match=said):
            methods.path_points(n, rule)  # type: ignore[arg-type]


def test_nothing_is_left_on_the_model(model: inlay.Model) -> None:
    attributes = [dict(module.__dict__) for module in model.hf.modules()]
    methods.times_change(asked(model))
    assert all(list(now.__dict__) == list(was) for now, was in zip(model.hf.modules(), attributes, strict=True))
    assert all(p.grad is None for p in model.hf.parameters()) and "forward" not in table(model).__dict__
