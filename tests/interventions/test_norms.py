"""KeepNorm and Angular: lengths that stay, angles that are met, and what a wrapped intervention still does."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.interventions import tiny
from tests.interventions.tiny import EVEN, OTHER, WIDTH
from torch import Tensor, nn

from inlay import Add, Angular, Bank, Clamp, Edit, Function, KeepNorm, LowRank, Mean, Noise, Scale, Source, Swap, Zero
from inlay.errors import EditError, SiteError
from inlay.model.call import Call

SITE = "resid_post.1"


def _v(seed: int) -> Tensor:
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))


def _lengths(h: Tensor) -> Tensor:
    return h.norm(dim=-1)


# -- the length is kept ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_what_was_added_is_rescaled(family: str) -> None:
    import inlay

    hf, v = tiny.FAMILIES[family](), _v(0)
    with torch.no_grad():
        got = inlay.load(hf).forward(EVEN, edit=Edit(SITE, KeepNorm(Add(v)), strength=3.0)).logits

    def change(h: Tensor) -> Tensor:
        new = h + 3 * v
        return new * h.norm(dim=-1, keepdim=True) / new.norm(dim=-1, keepdim=True)

    torch.testing.assert_close(got, tiny.hooked(hf, EVEN, 1, change), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_lengths_stay(dtype: torch.dtype) -> None:
    h = torch.randn(2, 3, WIDTH).to(dtype)
    new = KeepNorm(Add(5 * _v(0)))(h)
    assert new.dtype == dtype
    torch.testing.assert_close(_lengths(new.double()), _lengths(h.double()), rtol=2 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_that_the_inner_one_leaves_keep_every_bit(dtype: torch.dtype) -> None:
    h = 10 * torch.randn(2, 30, WIDTH).to(dtype)
    clamp = KeepNorm(Clamp(_v(0), -5.0, 5.0))
    inside = (h.float() @ (_v(0) / _v(0).norm())).abs() <= 4.9
    assert 0 < int(inside.sum()) < inside.numel()
    assert torch.equal(clamp(h)[inside], h[inside]) and not torch.equal(clamp(h), h)
    assert torch.equal(KeepNorm(Add(_v(0)))(h, Call(strength=torch.tensor(0.0))), h)


def test_zero_stays_zero_and_its_gradient_finite() -> None:
    h = torch.randn(1, 2, WIDTH)
    assert torch.equal(KeepNorm(Zero())(h), torch.zeros_like(h))
    assert torch.equal(KeepNorm(Add(_v(0)))(torch.zeros(1, 1, WIDTH)), torch.zeros(1, 1, WIDTH))
    factor = nn.Parameter(torch.tensor(0.0))
    KeepNorm(Scale(factor))(h).sum().backward()
    assert bool(torch.isfinite(factor.grad))


INNER: dict[str, Any] = {
    "source": lambda: Swap(OTHER, dims=[1, 2, 3]),
    "low rank": lambda: LowRank(OTHER, WIDTH, 3),
    "pooled": lambda: Mean(Source(OTHER)),
    "positions": lambda: Noise(1.0, seed=3),
    "twice": lambda: KeepNorm(Add(_v(1))),
}


@pytest.mark.parametrize("make", INNER.values(), ids=INNER)
def test_any_intervention_is_wrapped_stored_and_stacked(make: Any, tmp_path: Path) -> None:
    model, made = tiny.model(), KeepNorm(make())
    states = tiny.states(model.hf, EVEN, 1)
    inner = model.read(EVEN, SITE, edit=Edit(SITE, make()))[SITE]
    got = model.read(EVEN, SITE, edit=Edit(SITE, made))[SITE]
    want = inner * (_lengths(states) / _lengths(inner))[..., None]
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    again = Edit.from_pretrained(Edit(SITE, made).save(tmp_path / "edit"))
    assert torch.equal(model.read(EVEN, SITE, edit=again)[SITE], got)
    row = model.read(EVEN, SITE, edit=Edit(SITE, Bank([made])), rows=[1, 0, 1, 1])[SITE]
    torch.testing.assert_close(row[[0, 2, 3]], got[[0, 2, 3]], rtol=1e-5, atol=1e-5)
    assert torch.equal(row[1], states[1])


def test_another_source_reaches_the_inner_one() -> None:
    made = KeepNorm(LowRank(None, WIDTH, 2))
    other = made.with_source(OTHER)
    assert isinstance(other.source, Source) and other.inner.raw is made.inner.raw and made.source is None
    with pytest.raises(EditError, match="LowRank has no source yet"):
        tiny.model().forward(EVEN, edit=Edit(SITE, made))


def test_functions_of_memory_stack_but_are_not_saved(tmp_path: Path) -> None:
    def twice(h: Tensor) -> Tensor:
        return 2 * h + 1

    bank = Bank([KeepNorm(Function(twice)), KeepNorm(Function(twice))])
    tiny.model().forward(EVEN, edit=Edit(SITE, bank), rows=[1, 2, 0, 1])
    with pytest.raises(EditError, match="cannot be saved"):
        Edit(SITE, bank).save(tmp_path / "edit")
    with pytest.raises(EditError, match="configured unlike item 0"):
        Bank([KeepNorm(Add(_v(0))), KeepNorm(Scale(2.0))])


def test_what_could_not_be_made_again_is_not_saved(tmp_path: Path) -> None:
    class Mine(Add):
        pass

    for made in (KeepNorm(Mine(_v(0))), Bank([Mine(_v(0))])):
        with pytest.raises(EditError, match="Mine has no `kind` of its own"):
            Edit(SITE, made).save(tmp_path / "edit")


def test_what_is_not_wrapped() -> None:
    with pytest.raises(EditError, match=r"make a Bank of them, Bank\(\[KeepNorm"):
        KeepNorm(Bank([Add(_v(0))]))
    with pytest.raises(EditError, match=r"KeepNorm\(inner\) is an intervention such as"):
        KeepNorm(_v(0))  # type: ignore[arg-type]
    with pytest.raises(SiteError, match="Add has width 32, and mlp_act"):
        tiny.model().forward(EVEN, edit=Edit("mlp_act.0", KeepNorm(Add(_v(0)))))


# -- the angle is met --------------------------------------------------------------------------------------------------


def _plane(h: Tensor) -> tuple[Tensor, Tensor]:
    """The coordinates in the plane of e0 and e1."""
    return h[..., 0], h[..., 1]


@pytest.mark.parametrize("degrees", [0.0, 45.0, 90.0, 180.0, 270.0, -30.0, 400.0])
def test_the_plane_is_turned_to_the_angle_and_nothing_else_moves(degrees: float) -> None:
    first, second = torch.eye(WIDTH, dtype=torch.float64)[:2]
    h = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    new = Angular(7 * first, first + 2 * second, degrees)(h)
    x, y = _plane(new)
    length = torch.hypot(*_plane(h))
    angle = math.radians(degrees)
    torch.testing.assert_close(x, length * math.cos(angle), rtol=0, atol=1e-12)
    torch.testing.assert_close(y, length * math.sin(angle), rtol=0, atol=1e-12)
    assert torch.equal(new[..., 2:], h[..., 2:])
    torch.testing.assert_close(_lengths(new), _lengths(h))


def test_on_any_plane_the_result_is_the_same_from_every_start() -> None:
    made = Angular(_v(0), _v(1), 60.0)
    h = torch.randn(4, WIDTH)[None]
    once = made(h)
    torch.testing.assert_close(made(once), once, rtol=0, atol=1e-5)
    torch.testing.assert_close(_lengths(once), _lengths(h))
    basis = torch.linalg.qr(torch.stack([_v(0), _v(1)], 1)).Q
    torch.testing.assert_close(once - once @ basis @ basis.T, h - h @ basis @ basis.T, rtol=0, atol=1e-5)
    cosine = (once @ _v(0)) / (_v(0).norm() * (once @ basis).norm(dim=-1))
    torch.testing.assert_close(cosine, torch.full_like(cosine, 0.5))


def test_adaptive_turns_only_states_that_have_the_feature() -> None:
    h = torch.randn(3, 20, WIDTH)
    plain, made = Angular(_v(0), _v(1), 120.0), Angular(_v(0), _v(1), 120.0, adaptive=True)
    has = h @ _v(0) > 0
    assert 0 < int(has.sum()) < has.numel()
    assert torch.equal(made(h)[~has], h[~has]) and torch.equal(made(h)[has], plain(h)[has])


def test_a_strength_is_the_share_of_the_way() -> None:
    h, made = torch.randn(1, 4, WIDTH), Angular(_v(0), _v(1), 75.0)
    torch.testing.assert_close(made(h, Call(strength=torch.tensor(0.25))), 0.25 * made(h) + 0.75 * h)


def test_every_row_has_its_own_angle(tmp_path: Path) -> None:
    model, items = tiny.model(), [Angular(_v(0), _v(1), 30.0), Angular(_v(0), _v(1), 150.0)]
    edit = Edit(SITE, Bank(items))
    again = Edit.from_pretrained(edit.save(tmp_path / "edit"))
    with torch.no_grad():
        got = model.forward(EVEN, edit=again, rows=[2, 1, 0, 2]).logits
        assert torch.equal(got, model.forward(EVEN, edit=edit, rows=[2, 1, 0, 2]).logits)
        for index, row in enumerate([2, 1, 0, 2]):
            alone = model.forward(EVEN, edit=Edit(SITE, items[row - 1])).logits if row else tiny.plain(model.hf, EVEN)
            torch.testing.assert_close(got[index], alone[index], rtol=1e-5, atol=1e-5)


def test_directions_that_span_no_plane_and_no_angle() -> None:
    with pytest.raises(EditError, match="the two directions are parallel"):
        Angular(_v(0), -2 * _v(0), 10.0)
    with pytest.raises(EditError, match="the directions have widths 32 and 3"):
        Angular(_v(0), torch.ones(3), 10.0)
    with pytest.raises(EditError, match=r"Angular\(degrees=inf\)"):
        Angular(_v(0), _v(1), float("inf"))
    with pytest.raises(EditError, match="has length 0"):
        Angular(torch.zeros(3), torch.ones(3), 10.0)
    assert repr(Angular(_v(0), _v(1), 30.0)) == "Angular(width=32, degrees=30, adaptive=False)"
