"""What a Direction does to the residual stream is its formula; its strength counts in lengths of a state."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from tests.directions.by_hand import SITE, model, sentences
from torch import Tensor

import inlay
from inlay import Edit, directions
from inlay.directions import Direction
from inlay.errors import DirectionError, EditError, SiteError

YES, NO = sentences(6, seed=1), sentences(6, seed=2)
PROMPTS = sentences(4, seed=3)


def harbor(**more: Any) -> Direction:
    return directions.diff_mean(model(), YES, NO, SITE, concept="harbor", **more)


def states(edit: Edit | None = None, **more: Any) -> tuple[Tensor, Tensor]:
    """States [rows, tokens, width] of the prompts, and which are real."""
    acts = model().read(PROMPTS, SITE, edit=edit, **more)
    assert acts.mask is not None
    return acts[SITE], acts.mask


def after(change: Any) -> Tensor:
    """The plain states, changed by hand; zeros on padding as in a read."""
    h, real = states()
    changed: Tensor = change(h).masked_fill(~real[..., None], 0)
    return changed


@pytest.mark.parametrize("strength", [-2.0, 0.5, 1.0, 4.0])
def test_add(strength: float) -> None:
    d = harbor()
    wanted = after(lambda h: h + strength * d.scale * d.vector)
    torch.testing.assert_close(states(d.add(strength))[0], wanted, atol=1e-4, rtol=1e-5)


def test_add_by_default_adds_a_vector_as_long_as_a_state() -> None:
    d = harbor()
    h, real = states()
    change = (states(d.add())[0] - h)[real]
    torch.testing.assert_close(change.norm(dim=-1), torch.full((len(change),), d.scale), atol=1e-3, rtol=1e-4)
    assert 0.3 < d.scale / float(h[real].norm(dim=-1).mean()) < 3, "in the Site's own units"


def test_strengths_multiply() -> None:
    d = harbor()
    three = states(d.add(3.0))[0]
    for edit, strength in ((d.add(), 3.0), (d.add(1.5), 2.0), (d.add(-1.0), -3.0), (d.add().with_strength(3.0), 1.0)):
        torch.testing.assert_close(states(edit, strength=strength)[0], three, atol=1e-4, rtol=1e-5)


def test_ablate() -> None:
    d = harbor()
    left, real = states(d.ablate())
    torch.testing.assert_close(left, after(lambda h: h - (h @ d.vector)[..., None] * d.vector), atol=1e-4, rtol=1e-5)
    assert float((left @ d.vector)[real].abs().max()) < 1e-4


@pytest.mark.parametrize(("low", "high"), [(0.2, None), (-0.05, 0.05), (0.0, float("inf"))])
def test_clamp(low: float, high: float | None) -> None:
    d = harbor()
    top = low if high is None else high

    def change(h: Tensor) -> Tensor:
        along = h @ d.vector
        return h + (along.clamp(low * d.scale, top * d.scale) - along)[..., None] * d.vector

    found, real = states(d.clamp(low, high))
    torch.testing.assert_close(found, after(change), atol=1e-4, rtol=1e-5)
    along = (found @ d.vector)[real] / d.scale
    assert float(along.min()) > low - 1e-4 and float(along.max()) < top + 1e-4
    assert float((found - states()[0]).abs().max()) > 0.1, "some states were outside"


@pytest.mark.parametrize(
    "make", [lambda d, t: d.add(2.0, t), lambda d, t: d.ablate(t), lambda d, t: d.clamp(1, None, t)]
)
def test_which_tokens_are_edited(make: Any) -> None:
    h, real = states()
    changed = (states(make(harbor(), "last"))[0] - h).norm(dim=-1) > 1e-4
    last = real.sum(1) - 1
    assert changed.sum(1).tolist() == [1] * len(PROMPTS) and changed[range(len(PROMPTS)), last].all()


def test_a_direction_of_one_head_edits_that_head() -> None:
    d = directions.diff_mean(model(), YES, NO, "z.1.h2")
    before, after_ = (model().read(PROMPTS, "z.1", edit=edit)["z.1"] for edit in (None, d.add()))
    assert (before - after_).abs().amax((0, 1, 3)).gt(1e-3).tolist() == [False, False, True, False]


def test_score_is_scores_with_its_own_model() -> None:
    d = harbor()
    for pool in ("max", "mean", "last"):
        wanted = directions.scores(model(), PROMPTS, [d], pool, tokens="prompt")[0]
        torch.testing.assert_close(d.score(PROMPTS, pool, tokens="prompt"), wanted)
    for row, wanted in zip(d.score(PROMPTS, None), directions.scores(model(), PROMPTS, [d], None), strict=True):
        torch.testing.assert_close(row, wanted[:, 0])
        assert row.ndim == 1


def test_steering_raises_the_score_by_the_strength() -> None:
    d = harbor()
    h, real = states(d.add(2.0))
    found = [row[keep][1:] @ d.vector for row, keep in zip(h, real, strict=True)]
    wanted = d.score(PROMPTS, "mean") + 2 * d.scale
    torch.testing.assert_close(torch.stack([t.mean() for t in found]), wanted, atol=1e-3, rtol=1e-4)


def test_a_vector_of_any_length_becomes_one_of_length_one() -> None:
    given = torch.tensor([3.0, 0.0, 4.0], dtype=torch.float64)
    d = Direction(given, inlay.Site.parse("resid_post.0"), 2.0, "mine")
    assert d.vector.dtype == torch.float32 and d.width == 3
    torch.testing.assert_close(d.vector, torch.tensor([0.6, 0.0, 0.8]))
    assert given.tolist() == [3.0, 0.0, 4.0]
    assert Direction(given, "resid_post.0", 2.0, "mine").site == d.site  # type: ignore[arg-type]
    assert torch.equal(dataclasses.replace(d, scale=1.0).vector, d.vector)


def test_cosine() -> None:
    d = Direction(torch.tensor([3.0, 4.0]), inlay.Site.parse("embed"), 1.0, "mine")
    assert d.cosine(torch.tensor([2.0, 0.0])) == pytest.approx(0.6)
    assert d.cosine(Direction(torch.tensor([-3.0, -4.0]), d.site, 9.0, "other")) == pytest.approx(-1)


# -- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_is_positive(scale: float) -> None:
    with pytest.raises(DirectionError, match=f"a Direction's scale is {scale}; it is a length, so a positive number"):
        Direction(torch.ones(3), inlay.Site.parse("embed"), scale, "mine")


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (torch.zeros(3), r"Direction\(sea\) has length 0"),
        (torch.tensor([1.0, float("nan")]), r"Direction\(sea\)"),
        (torch.ones(2, 2), r"Direction\(sea\)"),
    ],
)
def test_what_is_no_vector(vector: Tensor, message: str) -> None:
    with pytest.raises(EditError, match=message):
        Direction(vector, inlay.Site.parse("embed"), 1.0, "mine", "sea")


def test_what_is_no_site() -> None:
    with pytest.raises(SiteError, match="no Site is called"):
        Direction(torch.ones(3), "residual.3", 1.0, "mine")  # type: ignore[arg-type]


def test_without_a_model_it_cannot_score() -> None:
    lost = dataclasses.replace(harbor(), model=None)
    with pytest.raises(DirectionError, match=r"no model to read with: load it with one, or use scores\(model, ..\)"):
        lost.score(PROMPTS)
    assert states(lost.add())[0].isfinite().all(), "an edit needs none"


def test_another_width_is_refused_before_the_forward() -> None:
    wide = Direction(torch.ones(40), inlay.Site.parse(SITE), 1.0, "mine")
    with pytest.raises(SiteError, match="40"):
        states(wide.add())
