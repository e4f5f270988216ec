"""Divergence of an edited model from itself, against plain torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.bench import small
from tests.model.tiny import block, changed

from inlay.bench.config import BenchConfig
from inlay.bench.journal import Journal
from inlay.bench.plan import Choice, Halves, Picked
from inlay.bench.side_effects import side_effects
from inlay.bench.steering import Cell, Steering
from inlay.directions.direction import Direction

SITES = ("resid_post.2", "resid_post.4")
OF = {0: Halves(range(2), range(2, 4)), 2: Halves(range(2), range(2, 4))}
SAID = {(0, 2): "the cat was big .", (0, 3): "it was", (2, 2): "the anchor fell .", (2, 3): ""}


def found(own: dict[tuple[str, int], Choice], said: Any = None, **settings: Any) -> list[dict[str, Any]]:
    replies = Journal(None)
    replies.append({"key": Cell("unsteered", c, p).key, "text": text} for (c, p), text in (said or SAID).items())
    parts = (small.model(), small.concepts(), small.directions(*SITES), small.Judge(), BenchConfig.of(**settings))
    return side_effects(small.model(), Steering(*parts, replies, Journal(None)), Picked(own, {}), OF)


def by_hand(direction: Direction, factor: float, layer: int, texts: list[tuple[str, str]]) -> tuple[float, float]:
    """KL(plain || edited) and the fall of log-probability, a token of the replies, row by row without padding."""
    model, kl, fall, tokens = small.model(), 0.0, 0.0, 0
    for prompt, text in texts:
        chat = [{"role": "user", "content": prompt}]
        rendered = model.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        before, after = (model.tokenizer(part, add_special_tokens=False)["input_ids"] for part in (rendered, text))
        ids = torch.tensor([[*before, *after]])
        asked = (torch.arange(ids.shape[1]) >= 2)[:, None]  # bos and user are left as they are
        with torch.no_grad():
            plain = model.hf(ids).logits[0].double().log_softmax(-1)
            added = asked * factor * direction.scale * direction.vector
            with changed(block(model.hf, layer), lambda h, added=added: h + added):
                edited = model.hf(ids).logits[0].double().log_softmax(-1)
        for place in range(len(before) - 1, ids.shape[1] - 1):
            p, q = plain[place], edited[place]
            kl += float((p.exp() * (p - q)).sum())
            fall += float(p[ids[0, place + 1]] - q[ids[0, place + 1]])
            tokens += 1
    return kl / tokens, fall / tokens


@pytest.mark.parametrize("batch_rows", [1, 128])
def test_divergence_by_hand(batch_rows: int) -> None:
    own = {("diff_mean", 0): Choice(SITES[0], 1.0), ("random", 2): Choice(SITES[1], 0.4)}
    rows = found(own, batch_rows=batch_rows)
    prompts = small.concepts().prompts
    by = {(d.method, d.concept, str(d.site)): d for d in small.directions(*SITES)}
    names = {c.id: c.name for c in small.concepts().concepts}
    assert [(r["method"], r["concept_id"], r["site"], r["factor"]) for r in rows] == [
        ("diff_mean", 0, SITES[0], 1.0),
        ("random", 2, SITES[1], 0.4),
    ]
    for row, layer in zip(rows, (2, 4), strict=True):
        concept = row["concept_id"]
        direction = by[row["method"], names[concept], row["site"]]
        texts = [(prompts[concept][p], SAID[concept, p]) for p in (2, 3)]
        kl, fall = by_hand(direction, row["factor"], layer, [pair for pair in texts if pair[1]])
        assert row["kl"] == pytest.approx(kl, rel=1e-3, abs=1e-5) and row["kl"] > 1e-4
        assert row["logprob_drop"] == pytest.approx(fall, rel=1e-3, abs=1e-5)


def test_an_edit_that_does_nothing_has_no_side_effect() -> None:
    (row,) = found({("diff_mean", 0): Choice(SITES[0], 1e-9)})
    assert row["kl"] == pytest.approx(0.0, abs=1e-6) and row["logprob_drop"] == pytest.approx(0.0, abs=1e-5)


def test_a_stronger_edit_diverges_more() -> None:
    weak, strong = (found({("diff_mean", 0): Choice(SITES[0], f)})[0]["kl"] for f in (0.2, 2.0))
    assert 0 < weak < strong


def test_replies_without_a_token_are_left_out() -> None:
    assert found({("diff_mean", 0): Choice(SITES[0], 1.0)}, dict.fromkeys(SAID, "")) == []
