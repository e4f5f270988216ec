"""The closed-form arithmetic against algebra: every function beside its formula written out in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from inlay.interventions import families

R, T, D = 3, 5, 7
Params = dict[str, Tensor]


def _unit(generator: torch.Generator) -> Tensor:
    v = torch.randn(D, generator=generator, dtype=torch.float64)
    return v / v.norm()


def _basis(generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(D, 3, generator=generator, dtype=torch.float64)).Q


def _vector(generator: torch.Generator) -> Tensor:
    return torch.randn(D, generator=generator, dtype=torch.float64)


def _number(generator: torch.Generator) -> Tensor:
    return torch.randn((), generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """One function of `families` and its formula for a single state x [d]."""

    call: Callable[[Tensor, Params, Tensor | None], Tensor]
    formula: Callable[[Tensor, Params], Tensor]
    draw: dict[str, Callable[[torch.Generator], Tensor]]

    def params(self, seed: int = 0) -> Params:
        generator = torch.Generator().manual_seed(seed)
        return {name: one(generator) for name, one in self.draw.items()}

    def expect(self, h: Tensor, p: Params) -> Tensor:
        """The formula at every row and position, one at a time, in float64."""
        wide = h.double()
        out = torch.empty_like(wide)
        for r in range(h.shape[0]):
            for t in range(h.shape[1]):
                out[r, t] = self.formula(wide[r, t], p)
        return out


def _clamped(x: Tensor, p: Params) -> Tensor:
    along = sum(float(a) * float(b) for a, b in zip(x, p["unit"], strict=True))
    wanted = min(max(along, float(p["low"])), float(p["high"]))
    return x + (wanted - along) * p["unit"]


def _inside(x: Tensor, p: Params) -> Tensor:
    total = torch.zeros(D, dtype=torch.float64)
    for column in p["basis"].T:
        total = total + torch.dot(x, column) * column
    return total


CASES: dict[str, Case] = {
    "add": Case(
        lambda h, p, s: families.add(h, p["vector"], s),
        lambda x, p: x + p["vector"],
        {"vector": _vector},
    ),
    "replace": Case(
        lambda h, p, s: families.replace(h, p["vector"], s),
        lambda x, p: p["vector"],
        {"vector": _vector},
    ),
    "scale": Case(
        lambda h, p, s: families.scale(h, p["factor"], s),
        lambda x, p: float(p["factor"]) * x,
        {"factor": _number},
    ),
    "clamp to a range": Case(
        lambda h, p, s: families.clamp(h, p["unit"], p["low"], p["high"], s),
        _clamped,
        {"unit": _unit, "low": lambda g: -0.2 + 0.0 * _number(g), "high": lambda g: 0.4 + 0.0 * _number(g)},
    ),
    "clamp to a value": Case(
        lambda h, p, s: families.clamp(h, p["unit"], p["low"], p["high"], s),
        _clamped,
        {"unit": _unit, "low": lambda g: 1.5 + 0.0 * _number(g), "high": lambda g: 1.5 + 0.0 * _number(g)},
    ),
    "project out": Case(
        lambda h, p, s: families.project(h, p["basis"], False, s),
        lambda x, p: x - _inside(x, p),
        {"basis": _basis},
    ),
    "project onto": Case(
        lambda h, p, s: families.project(h, p["basis"], True, s),
        _inside,
        {"basis": _basis},
    ),
}
each = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
STRENGTHS = (0.0, 0.25, 0.5, 1.0, 2.0, -1.0)
exact = {"rtol": 0.0, "atol": 1e-12}


def _h(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(R, T, D, generator=torch.Generator().manual_seed(11), dtype=torch.float64).to(dtype)


def _per_row(params: list[Params]) -> Params:
    """Parameters of R rows, in the shapes that a Bank gathers: [R, 1, d], [R, 1, 1] and [R, d, r]."""
    stacked = {}
    for name in params[0]:
        rows = torch.stack([p[name] for p in params])
        stacked[name] = rows.reshape(R, *[1] * max(0, 3 - rows.ndim), *rows.shape[1:])
    return stacked


@each
def test_equals_the_formula(case: Case) -> None:
    h, p = _h(), case.params()
    torch.testing.assert_close(case.call(h, p, None), case.expect(h, p), **exact)


@each
@pytest.mark.parametrize("strength", STRENGTHS)
def test_strength_scales_the_change(case: Case, strength: float) -> None:
    h, p = _h(), case.params()
    want = h + strength * (case.expect(h, p) - h)
    got = case.call(h, p, torch.tensor(strength, dtype=torch.float64))
    torch.testing.assert_close(got, want, **exact)


@each
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_strength_0_and_1_are_exact(case: Case, dtype: torch.dtype) -> None:
    h, p = _h(dtype), case.params()
    assert torch.equal(case.call(h, p, torch.tensor(0.0)), h)
    assert torch.equal(case.call(h, p, torch.tensor(1.0)), case.call(h, p, None))


@each
def test_parameters_of_every_row_equal_a_loop_over_rows(case: Case) -> None:
    h, params = _h(), [case.params(seed) for seed in range(R)]
    got = case.call(h, _per_row(params), None)
    for row in range(R):
        torch.testing.assert_close(got[row : row + 1], case.expect(h[row : row + 1], params[row]), **exact)


@each
def test_a_strength_for_every_row_equals_a_loop_over_rows(case: Case) -> None:
    h, p = _h(), case.params()
    strengths = torch.tensor([0.0, 0.7, -2.0], dtype=torch.float64)
    got = case.call(h, p, strengths.reshape(-1, 1, 1))
    for row, strength in enumerate(strengths):
        mine = h[row : row + 1]
        torch.testing.assert_close(got[row : row + 1], mine + strength * (case.expect(mine, p) - mine), **exact)
    assert torch.equal(got[0], h[0])


@each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_keeps_the_dtype_and_its_precision(case: Case, dtype: torch.dtype) -> None:
    h, p = _h(dtype), case.params()
    for strength in (None, torch.tensor(0.5), torch.full((R, 1, 1), 0.5)):
        got = case.call(h, p, strength)
        assert got.dtype == dtype
        full = case.expect(h, p)
        want = full if strength is None else h.double() + 0.5 * (full - h.double())
        # a few roundings of numbers as large as the state, the change and the result
        size = max(float(h.abs().max()), float(full.abs().max()), 1.5)
        torch.testing.assert_close(got.double(), want, rtol=0.0, atol=3 * torch.finfo(dtype).eps * size)


@each
def test_writes_nothing_in_place(case: Case) -> None:
    h, p, s = _h(), case.params(), torch.tensor(0.3)
    before = h.clone(), {name: t.clone() for name, t in p.items()}, s.clone()
    for strength in (None, s):
        case.call(h, p, strength)
        assert torch.equal(h, before[0]) and torch.equal(s, before[2])
        assert all(torch.equal(t, before[1][name]) for name, t in p.items())


@each
@pytest.mark.parametrize("banked", [False, True])
def test_gradients_of_state_and_parameters(case: Case, banked: bool) -> None:
    h = _h().requires_grad_()
    p = _per_row([case.params(seed) for seed in range(R)]) if banked else case.params()
    names = list(p)
    tensors = [p[name].clone().requires_grad_() for name in names]
    strength = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)

    def call(h: Tensor, strength: Tensor, *tensors: Tensor) -> Tensor:
        return case.call(h, dict(zip(names, tensors, strict=True)), strength)

    if case is CASES["clamp to a value"]:  # low = high is a kink of the clip: only its state and strength are smooth
        tensors = [t.detach() for t in tensors]
    assert torch.autograd.gradcheck(call, (h, strength, *tensors))


# -- blend and within --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_blend_is_exact_at_both_ends(dtype: torch.dtype) -> None:
    h, new = _h(dtype), torch.randn(R, T, D).to(dtype) * 100
    assert torch.equal(families.blend(h, new, torch.tensor(0.0)), h)
    assert torch.equal(families.blend(h, new, torch.tensor(1.0)), new)
    assert families.blend(h, new) is new


def test_blend_is_linear_in_between() -> None:
    h, new = _h(), torch.randn(R, T, D, dtype=torch.float64)
    for s in (0.1, 0.5, 0.9, 3.0, -0.5):
        torch.testing.assert_close(families.blend(h, new, torch.tensor(s)), h + s * (new - h), rtol=0, atol=1e-6)
        wide = torch.tensor(s, dtype=torch.float64)
        torch.testing.assert_close(families.blend(h, new, wide), h + s * (new - h), **exact)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_within_leaves_other_dimensions_bit_identical(dtype: torch.dtype) -> None:
    h = _h(dtype)
    h[0, 0, 0], h[1, 1, 1] = -0.0, float("inf")
    new = torch.full_like(h, float("nan"))
    new[..., [2, 5]] = 7.0
    got = families.within(h, new, torch.tensor([5, 2]))
    others = [0, 1, 3, 4, 6]
    assert torch.equal(got[..., others], h[..., others])
    assert bool(torch.signbit(got[0, 0, 0]))
    assert bool((got[..., [2, 5]] == 7).all())
    assert got.dtype == dtype


def test_within_takes_dimensions_of_every_row() -> None:
    h, new = _h(), torch.randn(R, T, D, dtype=torch.float64)
    dims = torch.tensor([[0, 1], [6, 3], [2, 2]])
    got = families.within(h, new, dims[:, None])
    for row in range(R):
        want = h[row].clone()
        for dim in dims[row]:
            want[:, dim] = new[row, :, dim]
        assert torch.equal(got[row], want)


def test_within_passes_gradients_where_it_writes() -> None:
    h, new = _h().requires_grad_(), torch.randn(R, T, D, dtype=torch.float64, requires_grad=True)
    families.within(h, new, torch.tensor([1, 4])).sum().backward()
    chosen = torch.zeros(D)
    chosen[[1, 4]] = 1
    assert torch.equal(new.grad, chosen.expand(R, T, D).double())
    assert torch.equal(h.grad, (1 - chosen).expand(R, T, D).double())


# -- clamp and project -------------------------------------------------------------------------------------------------


@given(low=st.floats(-3, 3), wide=st.floats(0, 3), seed=st.integers(0, 10**6))
def test_clamp_lands_inside_and_moves_along_the_direction_only(low: float, wide: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    unit = _unit(generator)
    h = 2 * torch.randn(R, T, D, generator=generator, dtype=torch.float64)
    high = low + wide
    bounds = torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64)
    got = families.clamp(h, unit, *bounds)
    along, was = got @ unit, h @ unit
    assert bool((along >= low - 1e-12).all()) and bool((along <= high + 1e-12).all())
    change = got - h
    torch.testing.assert_close(change, (change @ unit)[..., None] * unit, **exact)
    untouched = (was >= low + 1e-12) & (was <= high - 1e-12)
    assert torch.equal(got[untouched], h[untouched])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_clamp_leaves_states_inside_the_range_bit_identical(dtype: torch.dtype) -> None:
    h, unit = _h(dtype), _unit(torch.Generator().manual_seed(1))
    got = families.clamp(h, unit, torch.tensor(-100.0), torch.tensor(100.0))
    assert torch.equal(got, h)


def test_project_removes_what_it_keeps() -> None:
    h, v = _h(), _basis(torch.Generator().manual_seed(2))
    kept, removed = families.project(h, v, True), families.project(h, v, False)
    torch.testing.assert_close(kept + removed, h, **exact)
    torch.testing.assert_close(removed @ v, torch.zeros(R, T, 3, dtype=torch.float64), **exact)
    torch.testing.assert_close((kept * removed).sum(-1), torch.zeros(R, T, dtype=torch.float64), **exact)
    for keep, once in ((True, kept), (False, removed)):
        torch.testing.assert_close(families.project(once, v, keep), once, **exact)


def test_project_depends_on_the_subspace_and_not_on_its_basis() -> None:
    generator = torch.Generator().manual_seed(3)
    h, v = _h(), _basis(generator)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64)).Q
    for keep in (True, False):
        torch.testing.assert_close(families.project(h, v @ turn, keep), families.project(h, v, keep), **exact)


def test_project_on_the_whole_space() -> None:
    h, whole = _h(), torch.linalg.qr(torch.randn(D, D, dtype=torch.float64)).Q
    torch.testing.assert_close(families.project(h, whole, True), h, **exact)
    torch.testing.assert_close(families.project(h, whole, False), torch.zeros_like(h), **exact)


# -- normal ------------------------------------------------------------------------------------------------------------

CPU = torch.device("cpu")


def _normal(seed: int | list[int], positions: list[list[int]] | range, width: int) -> Tensor:
    at = torch.tensor([list(positions)] if isinstance(positions, range) else positions)
    seeds = torch.tensor(seed)
    return families.normal(seeds if seeds.ndim == 0 else seeds.reshape(-1, 1, 1), at, width, CPU)


@pytest.mark.parametrize("seed", [0, 1, -1, 12345, 2**63 - 1, -(2**63)])
def test_normal_is_standard_normal(seed: int) -> None:
    x = _normal(seed, range(500), 1000).flatten().double()
    n = x.numel()
    assert bool(torch.isfinite(x).all())
    # five standard errors of each moment's estimate
    assert abs(float(x.mean())) < 5 / math.sqrt(n)
    assert abs(float(x.var()) - 1) < 5 * math.sqrt(2 / n)
    assert abs(float((x**3).mean())) < 5 * math.sqrt(15 / n)
    assert abs(float((x**4).mean()) - 3) < 5 * math.sqrt(96 / n)
    # Kolmogorov-Smirnov: the distance exceeds 1.95 / sqrt(n) in one of a thousand samples
    ordered = x.sort().values
    rank = torch.arange(n, dtype=torch.float64)
    cdf = torch.special.ndtr(ordered)
    distance = torch.maximum(cdf - rank / n, (rank + 1) / n - cdf).max()
    assert float(distance) < 1.95 / math.sqrt(n)


@pytest.mark.parametrize("axis", ["dimension", "position", "seed"])
def test_normal_is_independent_along(axis: str) -> None:
    if axis == "seed":
        x = _normal(list(range(64)), range(64), 128).transpose(0, 2)
    else:
        x = _normal(7, range(512), 512)[0]
        x = x if axis == "dimension" else x.T
    for lag in (1, 2, 3, 8):
        a, b = x[..., :-lag].flatten().double(), x[..., lag:].flatten().double()
        for left, right in ((a, b), (a**2, b**2)):  # the squares catch what only scales together
            r = float(torch.corrcoef(torch.stack([left, right]))[0, 1])
            assert abs(r) < 5 / math.sqrt(len(a)), lag


def test_normal_depends_on_seed_position_and_dimension_alone() -> None:
    whole = _normal(3, range(20), 16)
    assert torch.equal(_normal(3, range(20), 64)[..., :16], whole)
    assert torch.equal(_normal(3, [[4, 19, 0]], 16), whole[:, [4, 19, 0]])
    rows = _normal(3, [[0, 1, 2], [0, 0, 1]], 16)  # the second row's first slot is padding
    assert torch.equal(rows[1, 1:], rows[0, :2])
    assert whole.dtype == torch.float32


def test_normal_differs_between_seeds_positions_and_dimensions() -> None:
    x = _normal(list(range(40)), range(40), 40)
    assert len(x.flatten().unique()) > 0.999 * x.numel()


def test_normal_with_a_seed_for_every_row_equals_a_loop_over_rows() -> None:
    seeds = [5, -9, 2**40]
    together = _normal(seeds, [[0, 1], [5, 6], [2, 3]], 8)
    for row, (seed, at) in enumerate(zip(seeds, ([0, 1], [5, 6], [2, 3]), strict=True)):
        assert torch.equal(together[row : row + 1], _normal(seed, [at], 8))
    one_position_row = _normal(seeds, range(4), 8)
    assert one_position_row.shape == (3, 4, 8)
    assert torch.equal(one_position_row[1:2], _normal(-9, range(4), 8))
