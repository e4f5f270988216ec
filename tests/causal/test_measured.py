"""Batches of numbers become one labelled array, each number under its own labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.interventions import tiny

import inlay
from inlay.causal.columns import Rows, columns
from inlay.causal.layout import Layout
from inlay.causal.measured import Piece, together
from inlay.causal.metrics import Ends, probability

PROMPTS = [[5, 9], [40, 3, 21], [8]]


@pytest.fixture(scope="module")
def model() -> inlay.Model:
    return inlay.load(tiny.llama(), tokenizer=tiny.words())


def piece(model: inlay.Model, numbers: list[int], layout: Layout) -> Piece:
    """Cell (place a, column k) of prompt p is 100 p + 10 a + k; its ends are p and -p."""
    rows = Rows.of(model, PROMPTS, None).pick(numbers)
    where = columns(model, rows, rows, "all")
    at = torch.tensor(numbers) * 100.0
    values = at + torch.arange(len(layout))[:, None, None] * 10 + torch.arange(len(where))[:, None]
    values = values.masked_fill(~where.base.any(2), torch.nan)
    return Piece(rows, where, values, torch.tensor(numbers).float(), -torch.tensor(numbers).float())


def test_pieces_in_any_order(model: inlay.Model) -> None:
    layout = Layout.each(model, ["mlp_out.2", "mlp_out.0", "attn_out.0"])
    pieces = [piece(model, [1], layout), piece(model, [2, 0], layout)]
    g = together(model, layout, pieces, "all", ("a name", "a unit"), "prompt", seed=4)
    assert g.dims == ("component", "layer", "token", "prompt") and g.shape == (2, 2, 3, 3)
    for place, (name, layer) in enumerate([("mlp_out", 2), ("mlp_out", 0), ("attn_out", 0)]):
        for p, prompt in enumerate(PROMPTS):
            found = g.sel(component=name, layer=layer, prompt=p).values
            wanted = [100 * p + 10 * place + k if k < len(prompt) else np.nan for k in range(3)]
            np.testing.assert_array_equal(found, wanted)
    assert g.sel(component="attn_out", layer=2).isnull().all(), "no such place"
    assert g["clean"].values.tolist() == [0, 1, 2] and g["corrupted"].values.tolist() == [0, -1, -2]
    assert g["text"].values.tolist() == [["w5", "w9", ""], ["w40", "w3", "w21"], ["w8", "", ""]]
    assert g.attrs == {"seed": 4, "long_name": "a name", "units": "a unit", "model": model.name}


def test_what_there_is_one_of_is_no_dimension(model: inlay.Model) -> None:
    layout = Layout.each(model, "z.1.h[0,2]")
    one = piece(model, [0], layout)
    alone = Piece(Rows.of(model, PROMPTS[:1], None), one.columns, one.values, one.clean, None)
    g = together(model, layout, [alone], {"first": 0, "second": 1}, ("a name", ""))
    assert g.dims == ("layer", "head", "token") and g["token"].values.tolist() == ["first", "second"]
    assert g["component"] == "z" and "text" not in g.coords and "corrupted" not in g.coords and "pair" not in g.coords
    assert g["head"].values.tolist() == [0, 2] and g["clean"].shape == ()


def test_the_ends_are_measured(model: inlay.Model) -> None:
    layout, rows = Layout.each(model, "mlp_out.1"), Rows.of(model, PROMPTS, None)
    ends = Ends([0, 1, 2], 3, torch.randn(3, 64), torch.randn(3, 64))
    measure = probability([1, 2, 3]).bind(model, ends)
    found = Piece.of(rows, columns(model, rows, rows, "all"), torch.zeros(len(layout), 3, 3), ends, measure)
    assert ends.corrupted is not None and found.corrupted is not None
    torch.testing.assert_close(found.clean, ends.clean.softmax(-1)[[0, 1, 2], [1, 2, 3]])
    torch.testing.assert_close(found.corrupted, ends.corrupted.softmax(-1)[[0, 1, 2], [1, 2, 3]])
    alone = Piece.of(rows, found.columns, found.values, Ends([0, 1, 2], 3, ends.clean), measure)
    assert alone.corrupted is None
