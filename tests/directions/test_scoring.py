"""Scores are projections of each text's own tokens, whatever is beside it, and they detect tidepool's concepts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sklearn.metrics import roc_auc_score
from tests.directions import by_hand
from tests.directions.by_hand import SITE, concepts, model, rows_read, sentences
from tests.model import chat
from torch import Tensor

import inlay
from inlay.directions import Contrast, Direction, find, gather, scores
from inlay.errors import DirectionError, SiteError
from inlay.world import Line

TEXTS = sentences(11, seed=40)
POOLS: dict[str, Any] = {"max": lambda t: t.max(), "mean": lambda t: t.mean(), "last": lambda t: t[-1]}


def several() -> list[Direction]:
    """Directions of two Sites, in turn."""
    found = find(model(), concepts(3), ["diff_mean", "random"], ["resid_post.0", SITE])
    return [*found[::2], *found[1::2]]


def by_loop(directions: list[Direction]) -> list[list[Tensor]]:
    """For each direction and text the token scores, from plain forwards."""
    found = []
    for d in directions:
        assert d.site.layer is not None
        found.append([h @ d.vector for h in by_hand.kept(TEXTS, d.site.layer)])
    return found


@pytest.mark.parametrize("batch_tokens", [1, 50, 8192])
@pytest.mark.parametrize("pool", POOLS)
def test_a_naive_loop(pool: str, batch_tokens: int) -> None:
    found = scores(model(), TEXTS, several(), pool, batch_tokens=batch_tokens)
    wanted = torch.stack([torch.stack([POOLS[pool](t) for t in row]) for row in by_loop(several())])
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-5)
    assert found.dtype == torch.float32 and found.shape == (12, 11) and found.is_contiguous()


@pytest.mark.parametrize("batch_tokens", [1, 8192])
def test_every_token(batch_tokens: int) -> None:
    found = scores(model(), TEXTS, several(), None, batch_tokens=batch_tokens)
    rows = by_loop(several())
    assert len(found) == len(TEXTS)
    for index, tokens in enumerate(found):
        wanted = torch.stack([row[index] for row in rows], dim=1)
        torch.testing.assert_close(tokens, wanted, atol=1e-4, rtol=1e-5)


def test_many_texts_and_directions_are_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "CHUNK", 4)
    whole = scores(model(), TEXTS, several())
    alone = torch.stack([torch.cat([scores(model(), [text], [d])[0] for text in TEXTS]) for d in several()])
    torch.testing.assert_close(whole, alone, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(scores(model(), TEXTS[::-1], several()).flip(1), whole, atol=1e-4, rtol=1e-5)


def test_each_text_is_read_once_for_all_directions() -> None:
    directions = several()
    with rows_read() as seen:
        scores(model(), TEXTS, directions)
    assert sorted(seen) == sorted(tuple(chat.ids(f"<user> {text} <end> <assistant>")) for text in TEXTS)


@pytest.mark.parametrize(
    ("tokens", "cut"), [("response", slice(-2, None)), ("last", slice(3, 4)), ("all", slice(1, None)), (0, slice(0, 1))]
)
@pytest.mark.parametrize("pool", ["max", "mean", "last"])
def test_which_tokens_are_scored(tokens: Any, cut: slice, pool: str) -> None:
    """The second text is longer, so that the first one is padded."""
    direction = find(model(), concepts(1), site=SITE)[0]
    pair = [("sea", "deep blue"), ("the old sea", "cold night and rain")]
    found = scores(model(), pair, [direction], pool, tokens=tokens)[0, 0]
    along = by_hand.states("sea", "deep blue")[cut] @ direction.vector
    torch.testing.assert_close(found, POOLS[pool](along), atol=1e-4, rtol=1e-5)


def test_padding_never_wins() -> None:
    """Where every score is below 0, a padding's 0 would be the maximum; where above, it would pull the mean down."""
    low = -torch.stack([h.mean(0) for h in by_hand.kept(TEXTS)]).mean(0)
    short, long = min(TEXTS, key=len), max(TEXTS, key=len)
    direction = Direction(low, by_hand.model().sites().expand(SITE)[0], 1.0, "mean")
    for pool in ("max", "mean", "last"):
        alone = scores(model(), [short], [direction], pool)
        beside = scores(model(), [short, long], [direction], pool)[:, :1]
        torch.testing.assert_close(beside, alone, atol=1e-4, rtol=1e-5)


def test_a_negative_layer_is_the_same_site() -> None:
    (found,) = find(model(), concepts(1), site=SITE)
    again = Direction(found.vector, inlay.Site.parse("resid_post.-2"), 1.0, "diff_mean")
    both = scores(model(), TEXTS, [found, again])
    assert torch.equal(both[0], both[1])


# -- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["sum", "", 0])
def test_an_unknown_pool(pool: Any) -> None:
    with pytest.raises(DirectionError, match=r"pool=.*: give 'max', 'mean', 'last' or None"):
        scores(model(), TEXTS, several(), pool)


def test_nothing_to_score() -> None:
    with pytest.raises(DirectionError, match="nothing to score: 0 texts, 12 directions"):
        scores(model(), [], several())
    with pytest.raises(DirectionError, match="nothing to score: 11 texts, 0 directions"):
        scores(model(), TEXTS, [])


def test_a_direction_of_another_model() -> None:
    wide = Direction(torch.ones(40), inlay.Site.parse(SITE), 1.0, "mean")
    with pytest.raises(DirectionError, match=r"resid_post\.1 is 32 wide, and a direction for it 40"):
        scores(model(), TEXTS, [wide])
    with pytest.raises(DirectionError, match=r"resid_post\.1 is 32 wide, and a direction for it 40"):
        scores(model(), TEXTS, [*several(), wide])
    raw = inlay.Site.parse("module:model.layers.1.mlp.gate_proj:out")
    with pytest.raises(DirectionError, match=r"gate_proj:out is 48 wide, and a direction for it 40"):
        scores(
            model(), TEXTS, [Direction(torch.ones(48), raw, 1.0, "mean"), Direction(torch.ones(40), raw, 1.0, "mean")]
        )
    with pytest.raises(DirectionError, match=r"gate_proj:out is 48 wide, and a direction for it 40"):
        scores(model(), TEXTS, [Direction(torch.ones(40), raw, 1.0, "mean")])
    deep = Direction(torch.ones(32), inlay.Site.parse("resid_post.20"), 1.0, "mean")
    with pytest.raises(SiteError, match="layer 20 is out of range"):
        scores(model(), TEXTS, [deep])


# -- tidepool --------------------------------------------------------------------------------------------------------


def test_tidepools_concepts_are_detected() -> None:
    """DiffMean tells replies with a concept from their twins; chance and length do not; look-alikes are harder."""
    tide, world = inlay.load("tidepool"), inlay.world.tidepool(seed=0)
    concepts = [c for c in world.concepts(heldout=False) if any(c.twin_of(other) for other in world.concepts())][:5]

    def chats(lines: list[Line]) -> list[Any]:
        return [line.messages for line in lines]

    contrasts, tests, hard = [], [], []
    for c in concepts:
        train, test = world.pairs(c, 24), world.pairs(c, 24, split="test")
        contrasts.append(Contrast.of(c.description, chats([p for p, _ in train]), chats([n for _, n in train])))
        tests.append([line for side in zip(*test, strict=True) for line in side])
        hard.append(chats(world.hard_negatives(c, 24)))
    found = find(tide, contrasts, ["diff_mean", "random"], "resid_post.1")
    every = [text for lines in tests for text in chats(lines)]
    along = scores(tide, every, found).reshape(2, 5, 5, 48)
    harder = scores(tide, [text for texts in hard for text in texts], found).reshape(2, 5, 5, 24)
    labels = [1] * 24 + [0] * 24

    def mean(of: Any) -> float:
        return float(sum(roc_auc_score(labels, of(k)) for k in range(5)) / 5)

    easy = mean(lambda k: along[0, k, k])
    assert easy >= 0.9
    assert mean(lambda k: along[1, k, k]) < 0.75
    assert abs(mean(lambda k: [len(line.tokens) for line in tests[k]]) - 0.5) < 0.2
    assert 0.6 < mean(lambda k: torch.cat([along[0, k, k, :24], harder[0, k, k]])) <= easy
