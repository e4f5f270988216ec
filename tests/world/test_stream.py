"""Stream: batches by tokens, the same from any place on, and what each token counts."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch

from inlay import world
from inlay.world.config import TrainConfig, Weights
from inlay.world.stream import Stream, token_weights

W = world.tidepool(seed=0)
ARCHITECTURE = {"width": 32, "inner": 32, "layers": 1, "heads": 1, "kv_heads": 1}


def config(**changes: Any) -> TrainConfig:
    base = {"name": "t", "architecture": ARCHITECTURE, "mixture": {"facts": 1.0, "safety.chat": 3.0}, "steps": 10}
    return TrainConfig.model_validate({**base, "batch_tokens": 800, **changes})


def flat(steps: Any) -> list[Any]:
    return [(piece.ids, piece.weights) for pieces, *_ in steps for piece in pieces]


def test_pieces_hold_as_many_tokens_as_asked() -> None:
    for pieces, *_ in islice(Stream(W, config()).steps(), 20):
        assert len(pieces) == 4
        for piece in pieces:
            assert 100 < piece.ids.numel() <= 200 and piece.ids.shape == piece.weights.shape
            assert (piece.weights[piece.ids == 0] == 0).all() and (piece.ids[:, 0] == 1).all()


def test_a_stream_goes_on_from_any_place() -> None:
    stream = Stream(W, config())
    steps = list(islice(stream.steps(), 180))
    pools = [pool for _, pool, _ in steps]
    assert len(set(pools)) > 1, "the test must cross a pool"
    for at in (3, pools.index(1), 150):
        _, pool, position = steps[at]
        again = flat(islice(Stream(W, config()).steps(pool, position), 3))
        wanted = flat(steps[at + 1 : at + 4])
        assert all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(again, wanted, strict=True))


def test_the_mixture_is_of_lines() -> None:
    stream = Stream(W, config())
    lines = [stream._line(number) for number in range(2000)]
    assert abs(sum(line.section == "facts" for line in lines) / 2000 - 0.25) < 0.05
    assert {line.kind for line in lines if line.section == "safety"} == {"chat"}
    assert all(line.split == "train" for line in lines)


@pytest.mark.parametrize("section", W.sections)
def test_a_token_counts_by_its_part(section: str) -> None:
    weights = Weights(text=0.5, user=0.1, reply=0.7, answer=3.0)
    for line in W.lines(section, 100):
        found = token_weights(line, weights)
        assert len(found) == len(line.tokens)
        answers = {i for s in line.spans if s.label in ("answer", "item", "consequence") for i in range(s.start, s.end)}
        said = len(line.tokens)
        if line.messages and len(line.messages) == 2:
            said -= len(line.reply.split()) + 1  # the reply and its end
        for index, (token, weight) in enumerate(zip(line.tokens, found, strict=True)):
            if index in answers:
                assert weight == 3.0
            elif line.messages is None:
                assert weight == 0.5
            elif token == "<|bos|>":
                assert weight == 0.0
            elif len(line.messages) == 2:
                assert weight == (0.7 if index >= said else 0.1)
