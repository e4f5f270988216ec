"""The positions that are labelled are those that a read took."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from tests.interventions import tiny

import inlay
from inlay.causal.selected import Selected

RESPONSES = ["w3 w4", "w60", "w9 w9 w9", "w1"]
SPECS: dict[str, Any] = {
    "all": "all",
    "last": "last",
    "first2+last1": "first2+last1",
    "list": [0, -1],
    "span": "span('w60')+first",
    "own positions": torch.tensor([[1], [2], [3], [0]]),
    "mask": torch.tensor([[1, 0, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0], [1] * 7, [0, 1, 0, 0, 0, 0, 0]]).bool(),
}


@cache
def model() -> inlay.Model:
    return inlay.load(tiny.llama(), tokenizer=tiny.words())


def rows() -> list[list[int]]:
    return [[*row, 60] if 60 not in row else list(row) for row in tiny.RAGGED]


@pytest.mark.parametrize("tokens", SPECS.values(), ids=SPECS)
def test_texts_and_positions_are_those_of_the_states(tokens: Any) -> None:
    prompts = rows() if isinstance(tokens, str) else tiny.RAGGED
    acts = model().read(prompts, "embed", tokens)
    found = Selected.of(model(), prompts, tokens, acts, {})
    table, states = model().hf.model.embed_tokens.weight, found.flat(acts["embed"])
    k = 0
    for row, (texts, at) in enumerate(zip(found.texts, found.position.tolist(), strict=True)):
        for text, position in zip(texts, at, strict=True):
            assert (text == "") == (position == -1)
            if text:
                assert torch.equal(states[k], table[int(text[1:])])
                assert prompts[row][position] == int(text[1:])
                assert found.prompt[k] == row
                k += 1
    assert k == len(states) == len(found.prompt)


@pytest.mark.parametrize("tokens", ["response", "response[0]", "response[1:]+last", "prompt", "all"])
def test_marked_responses(tokens: str) -> None:
    prompts, reading = tiny.text(tiny.RAGGED), {"responses": RESPONSES}
    acts = model().read(prompts, "embed", tokens, **reading)
    found = Selected.of(model(), prompts, tokens, acts, reading)
    table, states = model().hf.model.embed_tokens.weight, found.flat(acts["embed"])
    said = [text for texts in found.texts for text in texts if text]
    assert torch.equal(states, table[torch.tensor([int(text[1:]) for text in said])])


def test_a_grid_of_several_positions() -> None:
    acts = model().read(tiny.RAGGED, "embed", "all")
    found = Selected.of(model(), tiny.RAGGED, "all", acts, {})
    values = torch.arange(2.0 * len(found.prompt)).unflatten(0, (-1, 2))
    grid = found.grid(values, {"layer": [3, 5]}, "numbers", "nats")
    assert grid.dims == ("prompt", "token", "layer") and dict(grid.sizes) == {"prompt": 4, "token": 7, "layer": 2}
    assert grid.sel(layer=5).values[0].tolist()[:5] == [1, 3, 5, 7, 9] and np.isnan(grid.values[0, 5:]).all()
    assert grid["text"].values[1].tolist() == ["w40", "w3", "w21", "", "", "", ""]
    assert grid["position"].values[1].tolist() == [0, 1, 2, -1, -1, -1, -1]
    assert grid.attrs == {"long_name": "numbers", "units": "nats"}


def test_a_grid_of_one_position_a_row_has_no_tokens() -> None:
    acts = model().read(tiny.RAGGED, "embed", "last")
    found = Selected.of(model(), tiny.RAGGED, "last", acts, {})
    grid = found.grid(np.array([["a"], ["b"], ["c"], ["d"]]), {"place": [1]}, "words", "")
    assert grid.dims == ("prompt", "place") and grid.attrs == {"long_name": "words"}
    assert grid["text"].values.tolist() == ["w2", "w21", "w4", "w50"] and grid.values[:, 0].tolist() == list("abcd")


def test_without_a_tokenizer_tokens_are_ids() -> None:
    bare = tiny.model()
    found = Selected.of(bare, tiny.RAGGED, "last", bare.read(tiny.RAGGED, "embed", "last"), {})
    assert found.texts == [["2"], ["21"], ["4"], ["50"]]
