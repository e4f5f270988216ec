"""Steer, NullOut, TopKAdd, SetAlong and ReluGate: published numbers, naive formulas in float64, pads and Banks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.interventions import tiny
from tests.interventions.tiny import EVEN, RAGGED, WIDTH
from torch import Tensor, nn

from inlay import Add, Bank, Clamp, Edit, Intervention, LoReFT, NullOut, ReluGate, SetAlong, Steer, TopKAdd
from inlay.errors import EditError
from inlay.interventions import trained_families
from inlay.model.call import Call

SITE = "resid_post.1"


def _v(seed: int = 0, width: int = WIDTH) -> Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _h(seed: int = 9, rows: int = 3, tokens: int = 5) -> Tensor:
    return torch.randn(rows, tokens, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _close(a: Tensor, b: Tensor, by: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=by)


def _on(made: Intervention, states: list[tuple[float, ...]], **call: Any) -> Tensor:
    """What it makes of states, in float64."""
    h = torch.tensor([states], dtype=torch.float64)
    with torch.no_grad():
        return made(h, Call(**call))[0]


def _rows(*values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bias", "h", "want"),
    [(0.0, (3, 4), (-0.5, 0.5)), (1.0, (3, 4), (-1, 0)), (0.0, (-3, -4), (-3, -4))],
)
def test_null_out_by_the_table(bias: float, h: tuple[float, ...], want: tuple[float, ...]) -> None:
    w = torch.ones(2, dtype=torch.float64)
    got = _on(NullOut(w, bias), [h])
    _close(got, _rows(want))
    if want != h:
        _close((got @ w), torch.tensor([-bias], dtype=torch.float64))


@pytest.mark.parametrize("along", [-7.0, 0.0, 2.5])
def test_clamp_and_set_along_set_the_component_exactly(along: float) -> None:
    w = _v() / _v().norm()
    h = torch.cat([_h(), along * w.expand(1, 5, -1)])
    for target in (-3.0, 0.0, 2.0):
        strength = torch.tensor(target, dtype=torch.float64)
        with torch.no_grad():
            for new in (Clamp(w, target)(h), SetAlong(w)(h, Call(strength))):
                _close(new @ w, torch.full(h.shape[:2], target, dtype=torch.float64))
                _close(new - (new @ w)[..., None] * w, h - (h @ w)[..., None] * w)
    _close(SetAlong(w)(h).detach() @ w, torch.ones(h.shape[:2], dtype=torch.float64))


TABLE = [(1.0, 0.0), (2.0, 1.0), (0.0, 3.0), (-1.0, 1.0)]


def test_top_k_add_by_the_table() -> None:
    w = torch.tensor([0.6, 0.8], dtype=torch.float64)
    h = torch.tensor(TABLE, dtype=torch.float64)
    _close(torch.relu(h @ w), torch.tensor([0.6, 2.0, 2.4, 0.2], dtype=torch.float64))
    _close(_on(TopKAdd(w, 2), TABLE), h + 2.2 * w)
    half = torch.tensor(0.5, dtype=torch.float64)
    _close(_on(TopKAdd(w, 2), TABLE, strength=half), h + 1.1 * w)


@pytest.mark.parametrize(
    ("chosen", "k", "mean"),
    [
        ([1, 1, 0, 1], 2, (2.0 + 0.6) / 2),
        ([0, 0, 0, 1], 2, 0.2),
        ([0, 0, 0, 0], 2, 0.0),
        ([1, 1, 1, 1], 8, (0.6 + 2.0 + 2.4 + 0.2) / 4),
        ([1, 0, 0, 1], 8, (0.6 + 0.2) / 2),
    ],
)
def test_top_k_is_over_the_chosen_positions_and_over_fewer_where_there_are_not_k(
    chosen: list[int], k: int, mean: float
) -> None:
    w, mask = torch.tensor([0.6, 0.8], dtype=torch.float64), torch.tensor([chosen]).bool()
    _close(_on(TopKAdd(w, k), TABLE, chosen=mask), torch.tensor(TABLE, dtype=torch.float64) + mean * w)


def test_at_bias_0_steer_is_add_and_its_bias_is_an_offset_of_the_strength() -> None:
    v, h, s = _v(), _h(), torch.tensor([2.0, -1.0, 0.0], dtype=torch.float64).reshape(-1, 1, 1)
    with torch.no_grad():
        _close(Steer(v)(h, Call(s)), Add(v)(h, Call(s)))
        _close(Steer(v, 0.75)(h, Call(s)), h + (s + 0.75) * v)
        _close(Steer(v, 0.75)(h), h + 1.75 * v)


# -- gradients ---------------------------------------------------------------------------------------------------------

Naive = Callable[[dict[str, Tensor], Tensor, float], Tensor]


def _naive_null(p: dict[str, Tensor], h: Tensor, s: float) -> Tensor:
    return h - s * max(h @ p["vector"] + p["bias"], torch.zeros(())) / (p["vector"] @ p["vector"]) * p["vector"]


def _naive_gate(p: dict[str, Tensor], h: Tensor, s: float) -> Tensor:
    return h + s * max(h @ p["read"] + p["offset"], torch.zeros(())) * p["vector"]


CASES: dict[str, tuple[Callable[[], Intervention], Naive]] = {
    "steer": (lambda: Steer(_v(), 0.5), lambda p, h, s: h + (s + p["bias"]) * p["vector"]),
    "null out": (lambda: NullOut(_v(), 0.5), _naive_null),
    "set along": (lambda: SetAlong(_v()), lambda p, h, s: h + (s - h @ p["vector"]) * p["vector"]),
    "relu gate": (lambda: ReluGate(_v(), 0.5, _v(1)), _naive_gate),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_a_naive_formula(name: str) -> None:
    make, naive = CASES[name]
    made = make().double()
    state = {key: t.detach().clone().requires_grad_() for key, t in made.state().items()}
    mine, theirs = (_h().requires_grad_() for _ in range(2))
    strengths = [1.0, -0.5, 3.0]
    got = made(mine, Call(torch.tensor(strengths, dtype=torch.float64).reshape(-1, 1, 1)))
    want = torch.stack(
        [torch.stack([naive(state, x, s) for x in row]) for row, s in zip(theirs, strengths, strict=True)]
    )
    _close(got, want)
    for one in (got, want):
        (one * _h(4)).sum().backward()
    _close(mine.grad, theirs.grad)
    for key, tensor in made.named_parameters():
        _close(tensor.grad, state[key].grad, 1e-11)


def test_the_gradient_of_top_k_add_goes_through_the_mean_and_the_vector() -> None:
    made, chosen = TopKAdd(_v(), 2).double(), torch.tensor([[1, 1, 0, 1, 1], [0, 0, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
    w = made.vector.detach().clone().requires_grad_()
    mine, theirs = (_h().requires_grad_() for _ in range(2))
    got, rows = made(mine, Call(chosen=chosen)), []
    for h, real in zip(theirs, chosen, strict=True):
        z = sorted(
            ((x @ w).relu() for x, on in zip(h, real, strict=True) if on), key=lambda one: one.item(), reverse=True
        )[:2]
        rows.append(h + sum(z) / len(z) * w)
    want = torch.stack(rows)
    _close(got, want)
    for one in (got, want):
        (one * _h(4)).sum().backward()
    _close(mine.grad, theirs.grad)
    _close(made.vector.grad, w.grad)


def test_a_zero_vector_and_bias_are_no_edit_with_finite_gradients() -> None:
    made, h = NullOut(torch.zeros(WIDTH), 0.0), _h().float().requires_grad_()
    new = made(h)
    assert torch.equal(new, h)
    new.square().sum().backward()
    assert all(bool(torch.isfinite(t.grad).all()) for t in (h, made.vector, made.bias))


# -- null --------------------------------------------------------------------------------------------------------------


def test_the_null_of_steer_shares_its_tensors_mode_and_dropout() -> None:
    made = Steer(_v(), 0.5, dropout=0.25)
    null = made.null()
    assert type(null) is NullOut and null.vector is made.vector and null.bias is made.bias
    assert null.dropout == 0.25 and null.training and not made.eval().null().training
    with torch.no_grad():
        made.vector.fill_(1.0)
        _close(null.eval()(_h()), NullOut(made.vector.detach(), 0.5)(_h()))
        made.vector.fill_(float("nan"))
    made.null()  # one that has diverged is the trainer's to judge
    assert all(one.null() is None for one in (Add(_v()), NullOut(_v()), TopKAdd(_v()), LoReFT(WIDTH, 2)))


def test_the_null_of_a_bank_shares_its_tables_and_nulls_its_rows(tmp_path: Path) -> None:
    items = [Steer(_v(k).float(), 0.1 * k) for k in range(3)]
    bank = Bank(items)
    null = bank.null()
    assert isinstance(null, Bank) and null.state().keys() == bank.state().keys()
    assert all(null.state()[name] is table for name, table in bank.state().items())
    assert type(null.template) is NullOut and type(bank.template) is Steer and Bank([Add(_v())]).null() is None
    model = tiny.model()
    with torch.no_grad():
        got = model.forward(EVEN, edit=Edit(SITE, null), rows=[2, 0, 3, 1]).logits
        for index, row in enumerate([2, 0, 3, 1]):
            edit = Edit(SITE, items[row - 1].null()) if row else None
            torch.testing.assert_close(got[index], model.forward(EVEN, edit=edit).logits[index], rtol=1e-5, atol=1e-5)
    again = Edit.from_pretrained(Edit(SITE, null).save(tmp_path / "edit")).parts[0].intervention
    assert type(again.template) is NullOut and torch.equal(again.state()["vector"], null.state()["vector"])
    model.forward(EVEN, edit=Edit(SITE, null), rows=[1, 0, 1, 2]).logits[:, -1, 5].sum().backward()
    grad = bank.state()["vector"].grad
    assert bool(grad[1].any()) and bool(grad[2].any()) and not bool(grad[[0, 3]].any())


# -- constraints, parameters -------------------------------------------------------------------------------------------


def test_constraints_are_those_of_the_kind_also_in_a_bank() -> None:
    for made in (TopKAdd(_v()), SetAlong(_v())):
        bank = Bank([made, copy.deepcopy(made)])
        assert dict(made.constraints) == dict(bank.constraints) == {"vector": "unit"}
        _close(made.vector.norm(), torch.tensor(1.0, dtype=torch.float64))
        _close(made.vector * _v().norm(), _v())
    assert not Steer(_v()).constraints and not Bank([Add(_v())]).constraints


def test_a_parameter_is_taken_as_it_is_and_anything_else_becomes_one() -> None:
    v, b = nn.Parameter(torch.randn(WIDTH)), nn.Parameter(torch.tensor(0.5))
    made = Steer(v, b)
    assert made.vector is v and made.bias is b and ReluGate(v, b, v).vector is v
    for given in (torch.randn(WIDTH), torch.randn(WIDTH).tolist(), nn.Parameter(torch.randn(WIDTH).bfloat16())):
        made = Steer(given)
        assert isinstance(made.vector, nn.Parameter) and made.vector.dtype == torch.float32 and made.vector is not given
    assert TopKAdd(v).vector is not v
    made.to(torch.bfloat16)
    assert made.vector.dtype == torch.float32
    assert sum(p.numel() for p in made.parameters()) == WIDTH + 1


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Steer(torch.zeros(2, 2)), r"Steer\(vector\) is one vector"),
        (lambda: Steer(_v(), float("inf")), r"Steer\(bias\) is one finite number"),
        (lambda: Steer(_v(), dropout=-0.1), "dropout=-0.1"),
        (lambda: TopKAdd(_v(), 0), "k=0"),
        (lambda: TopKAdd(torch.zeros(4)), "length 0"),
        (lambda: ReluGate(_v(), 0.0, _v(0, 8)), "has width 32, and its vector 8"),
        (lambda: Bank([TopKAdd(_v(), 2), TopKAdd(_v(), 3)]), "configured unlike"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(make: Callable[[], Any], match: str) -> None:
    with pytest.raises(EditError, match=match):
        make()


# -- in a model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", ["all", "prompt[1:]", "first2+last1"])
def test_top_k_add_of_padded_rows_is_that_of_each_alone(tokens: str) -> None:
    model, made = tiny.model(), TopKAdd(_v().float(), 2)
    rows = [row for row in RAGGED if tokens != "first2+last1" or len(row) > 2]
    with torch.no_grad():
        got = model.forward(rows, edit=Edit(SITE, made, tokens=tokens)).logits
        for index, row in enumerate(rows):
            alone = model.forward([row], edit=Edit(SITE, made, tokens=tokens)).logits[0]
            torch.testing.assert_close(got[index, : len(row)], alone, rtol=1e-4, atol=1e-5)
        bank = model.forward(rows, edit=Edit(SITE, Bank([made, made]), tokens=tokens), rows=[1, 2, 1, 2][: len(rows)])
    torch.testing.assert_close(bank.logits, got, rtol=1e-4, atol=1e-5)


def test_top_k_add_in_a_model_equals_the_formula_in_a_hook() -> None:
    hf, w = tiny.llama(), _v().float() / _v().float().norm()

    def change(h: Tensor) -> Tensor:
        z = (h[:, 1:] @ w).relu().topk(2).values.mean(1)
        return torch.cat([h[:, :1], h[:, 1:] + z[:, None, None] * w], 1)

    with torch.no_grad():
        got = tiny.model().forward(EVEN, edit=Edit(SITE, TopKAdd(w, 2), tokens="prompt[1:]")).logits
    torch.testing.assert_close(got, tiny.hooked(hf, EVEN, 1, change), rtol=1e-5, atol=1e-5)


def test_in_cached_decoding_a_new_token_sees_itself_alone() -> None:
    model, w = tiny.model(), _v().float() / _v().float().norm()
    seen: list[Tensor] = []

    def change(h: Tensor) -> Tensor:
        seen.append(h)
        return h + (h @ w).relu().topk(min(2, h.shape[1])).values.mean(1)[:, None, None] * w

    options = {"max_new_tokens": 4, "do_sample": False}
    got = model.generate([EVEN[0]], edit=Edit(SITE, TopKAdd(w, 2)), **options)
    with tiny.hook(tiny.block(model.hf, 1), change):
        want = model.generate([EVEN[0]], **options)
    assert got == want and [h.shape[1] for h in seen] == [4, 1, 1, 1]
    assert got != model.generate([EVEN[0]], **options)


def test_half_precision_states_are_judged_in_float32() -> None:
    h = (100 * _h()).to(torch.bfloat16)
    w = (_v() / _v().norm()).float()
    with torch.no_grad():
        for got, want in (
            (TopKAdd(w, 2)(h), h.float() + (h.float() @ w).relu().topk(2).values.mean(1)[:, None, None] * w),
            (SetAlong(w)(h), h.float() + (1 - h.float() @ w)[..., None] * w),
            (NullOut(w)(h), h.float() - (h.float() @ w).relu()[..., None] * w),
        ):
            assert got.dtype == torch.bfloat16
            change = (want - h.float()).to(torch.bfloat16)
            torch.testing.assert_close(got, h + change, rtol=0, atol=0.02 * float(change.abs().max()))


def test_top_mean_takes_its_gradient_to_the_greatest_alone() -> None:
    z = torch.tensor([[3.0, 1.0, 2.0, 9.0]], requires_grad=True)
    mean = trained_families.top_mean(z, 2, torch.tensor([[True, True, True, False]]))
    mean.sum().backward()
    assert float(mean) == 2.5 and z.grad.tolist() == [[0.5, 0.0, 0.5, 0.0]]
