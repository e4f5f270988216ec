"""Each text is read once, in whatever batch, and what is kept are the states of its own tokens."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.directions import by_hand
from tests.directions.by_hand import SITE, model, rows_read, sentences, states
from tests.model import chat

import inlay
from inlay.directions import Contrast, gather, scores
from inlay.directions.gather import States
from inlay.errors import DirectionError, InlayError, TokensError
from inlay.model.sites import Site

ONE = Contrast.of("one", ["the sea"], ["a gull and a star"])


def gathered(contrasts: Any, site: str = SITE, tokens: Any = "all", **more: Any) -> Any:
    return gather.gather(model(), contrasts, [Site.parse(site)], tokens, **more)


@pytest.mark.parametrize("batch_tokens", [1, 40, 8192])
def test_sums_counts_lengths_and_states(batch_tokens: int) -> None:
    texts = sentences(9, seed=3)
    got = gathered([Contrast.of("one", texts[:4], texts[4:])], keep=True, batch_tokens=batch_tokens)
    assert (got.positives, got.negatives) == ([[0, 1, 2, 3]], [[4, 5, 6, 7, 8]])
    found, wanted = got.states[Site.parse(SITE)], by_hand.kept(texts)
    assert found.counts.tolist() == [len(h) for h in wanted]
    torch.testing.assert_close(found.sums, torch.stack([h.double().sum(0) for h in wanted]), atol=1e-4, rtol=1e-5)
    lengths = torch.stack([h.double().norm(dim=-1).sum() for h in wanted])
    torch.testing.assert_close(found.lengths, lengths, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(found.of([7, 0]), torch.cat([wanted[7], wanted[0]]), atol=1e-5, rtol=1e-5)


def test_each_distinct_text_is_read_once() -> None:
    contrasts = by_hand.concepts(4)
    with rows_read() as seen:
        got = gathered([*contrasts, contrasts[0]])
    texts = {t.prompt for c in contrasts for t in (*c.positives, *c.negatives)}
    assert sorted(seen) == sorted(tuple(chat.ids(f"<user> {text} <end> <assistant>")) for text in texts)
    assert all(numbers == got.negatives[0] for numbers in got.negatives)
    assert got.positives[0] == got.positives[4] and len({tuple(p) for p in got.positives}) == 4


def test_an_answer_makes_another_text() -> None:
    with rows_read() as seen:
        got = gathered([Contrast.of("one", ["a", ("a", "sea"), "a"], [("a", "wind"), ("a", "sea")])])
    assert got.positives == [[0, 1, 0]] and got.negatives == [[2, 1]] and len(seen) == 3


def test_equal_chats_are_one_text() -> None:
    turns = [{"role": "user", "content": "a"}]
    again = [{"content": "a", "role": "user"}]
    assert gathered([Contrast.of("one", [turns], [again, "sea"])]).negatives == [[0, 1]]


def test_more_texts_than_are_read_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gathered(by_hand.concepts(3), keep=True).states[Site.parse(SITE)]
    monkeypatch.setattr(gather, "CHUNK", 4)
    parts = gathered(by_hand.concepts(3), keep=True).states[Site.parse(SITE)]
    for name in ("sums", "counts", "lengths", "tokens"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("tokens", "cut"),
    [
        ("all", slice(1, None)),
        ("response", slice(-2, None)),
        ("last", slice(3, 4)),
        ("prompt", slice(0, 4)),
        (0, slice(0, 1)),
        ("response[0]", slice(4, 5)),
        ("first2+response", [0, 1, 4, 5]),
    ],
)
def test_which_tokens_are_used(tokens: Any, cut: Any) -> None:
    """`<user> sea <end> <assistant> deep blue`: only `all` leaves out the template's first token."""
    contrast = Contrast.of("one", [("sea", "deep blue")], [("the old sea", "cold")])
    found = gathered([contrast], tokens=tokens, keep=True).states[Site.parse(SITE)].of([0])
    torch.testing.assert_close(found, states("sea", "deep blue")[cut], atol=1e-5, rtol=1e-5)


def test_several_sites_in_one_forward() -> None:
    sites = model().sites().expand(["resid_post.0", SITE, "z.1.h2"])
    with rows_read() as seen:
        got = gather.gather(model(), [ONE], sites)
    assert list(got.states) == sites and len(seen) == 2
    for layer, site in enumerate(sites[:2]):
        wanted = torch.stack([h.double().sum(0) for h in by_hand.kept(["the sea", "a gull and a star"], layer)])
        torch.testing.assert_close(got.states[site].sums, wanted, atol=1e-4, rtol=1e-5)
    assert got.states[sites[2]].sums.shape == (2, chat.WIDTH // chat.HEADS)


# -- what cannot be --------------------------------------------------------------------------------------------------


def test_no_concepts() -> None:
    with pytest.raises(DirectionError, match="no concepts: give at least one contrast"):
        gathered([])


@pytest.mark.parametrize("negatives", [["a", "sea"], ["sea", "a"]])
def test_the_same_texts_on_both_sides(negatives: list[str]) -> None:
    same = Contrast.of("harbor", ["a", "sea"], negatives)
    with rows_read() as seen, pytest.raises(DirectionError, match="harbor: positives and negatives are the same texts"):
        gathered([ONE, same])
    assert not seen, "known before the model runs"


@pytest.mark.parametrize(("site", "head"), [("z.0", "z.0.h0"), ("q.1", "q.1.h0"), ("z.2.h[1,3]", "z.2.h0")])
def test_a_site_made_of_heads(site: str, head: str) -> None:
    with pytest.raises(DirectionError, match="is made of heads, and a direction lies in one: ") as caught:
        gathered([ONE], site)
    assert str(caught.value).startswith(f"{site} is") and str(caught.value).endswith(f": {head}")


def test_a_site_without_a_width() -> None:
    with pytest.raises(DirectionError, match=r"pattern\.0\.h1 is as wide as a text is long"):
        gathered([ONE], "pattern.0.h1")


def test_a_text_without_such_a_token() -> None:
    contrast = Contrast.of("one", [("the sea", "blue")], ["a gull"])
    with pytest.raises(
        DirectionError, match=r"text 1 has no token in response: Text\(prompt='a gull', response=None\)"
    ):
        gathered([contrast], tokens="response")
    with pytest.raises(TokensError, match="row 1 has no such position"):
        gathered([contrast], tokens="response[0]")


@pytest.mark.parametrize("tokens", [torch.ones(2, 4, dtype=torch.bool), torch.tensor([[1]])])
def test_tokens_as_a_tensor(tokens: Any) -> None:
    with pytest.raises(DirectionError, match="a tensor belongs to one batch; give Tokens that hold for every text"):
        gathered([ONE], tokens=tokens)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_state_that_is_no_number(value: float) -> None:
    hf = copy.deepcopy(model().hf)
    hf.model.embed_tokens.weight.data[chat.ids("gull")[0]] = value
    broken = inlay.load(hf, tokenizer=chat.tokenizer())
    message = r"a state at resid_post\.1 is NaN or infinite; load the model in float32 or bfloat16"
    with pytest.raises(DirectionError, match=message):
        gather.gather(broken, [ONE], [Site.parse(SITE)])
    found = inlay.directions.diff_mean(model(), ["the sea"], ["a star"], SITE)
    with pytest.raises(DirectionError, match=message):
        scores(broken, ["a gull"], [found])
    assert scores(broken, ["a star"], [found]).isfinite().all(), "another text is untouched"


def test_what_the_model_itself_refuses() -> None:
    for contrast, site in ((Contrast.of("one", ["sea " * 100], ["a"]), SITE), (ONE, "resid_post.7")):
        with pytest.raises(InlayError, match=r"context holds 64|out of range"):
            gathered([contrast], site)


def test_states_that_were_not_kept() -> None:
    bare = States(torch.zeros(1, 2), torch.ones(1, dtype=torch.long), torch.zeros(1))
    with pytest.raises(DirectionError, match="not kept: a Method that takes them says so by tokens=True"):
        bare.of([0])
