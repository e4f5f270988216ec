"""Logits at the last tokens, with and without a model that can leave out the others."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from tests.causal import planted
from tests.interventions import tiny

import inlay
from inlay.model.last_logits import last_logits


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_they_are_those_of_whole_forwards(family: str) -> None:
    hf = tiny.FAMILIES[family]()
    model, last = inlay.load(hf), torch.tensor([len(row) - 1 for row in tiny.RAGGED])
    heads: list[tuple[int, ...]] = []
    handle = hf.lm_head.register_forward_hook(lambda _, args, __: heads.append(tuple(args[0].shape)))
    with torch.no_grad():
        found, output = last_logits(model, last, partial(model.forward, tiny.RAGGED))
    handle.remove()
    want = tiny.plain(hf, tiny.RAGGED)[torch.arange(4), last]
    torch.testing.assert_close(found, want, rtol=0, atol=1e-5)
    assert heads == [(4, 4, tiny.WIDTH)], "4 distinct last slots of 7"
    assert output.mask.sum(1).tolist() == [len(row) for row in tiny.RAGGED]


def test_half_precision_comes_as_float32_and_double_stays() -> None:
    for dtype, wanted in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        model = inlay.load(tiny.llama(dtype=dtype))
        with torch.no_grad():
            found, _ = last_logits(model, torch.tensor([1]), partial(model.forward, [[3, 4]]))
        assert found.dtype == wanted


def test_a_module_that_gives_all_logits() -> None:
    model, given = planted.equality(), []

    def forward(**more: Any) -> inlay.model.Output:
        given.append(more)
        return model.forward([[1, 1, 2, 3], [4, 5, 6, 7]])

    found, output = last_logits(model, torch.tensor([3, 3]), forward)
    assert given == [{}] and torch.equal(found, output.logits[:, 3])
