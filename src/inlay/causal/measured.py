"""What was measured at the places of a grid, batch by batch, and the labelled array that it becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from inlay.causal.columns import Columns, Rows
from inlay.causal.metrics import Ends, Measure
from inlay.model.chosen import token_text

if TYPE_CHECKING:
    from inlay.causal.labelled import Grid
    from inlay.causal.layout import Layout
    from inlay.model.model import Model


@dataclass(frozen=True)
class Piece:
    """What was measured in a batch of n base runs.

    Attributes:
        rows: the base runs.
        columns: their token columns, K.
        values: float32 [A, K, n].
        clean: the metric of the clean runs, float32 [n].
        corrupted: the metric of the corrupted ones, where there are such.
    """

    rows: Rows
    columns: Columns
    values: Tensor
    clean: Tensor
    corrupted: Tensor | None

    @classmethod
    def of(cls, rows: Rows, columns: Columns, values: Tensor, ends: Ends, measure: Measure) -> Piece:
        """Of what was found at a layout's places, with the metric of the ends."""
        every = torch.arange(len(rows))
        clean, corrupted = (None if end is None else measure(end, every).cpu() for end in (ends.clean, ends.corrupted))
        assert clean is not None
        return cls(rows, columns, values, clean, corrupted)


def together(
    model: Model,
    layout: Layout,
    pieces: Sequence[Piece],
    tokens: Any,
    metric: tuple[str, str],
    dim: str = "pair",
    **attrs: Any,
) -> Grid:
    """All pieces as one labelled array; see `patch_grid` for its dimensions.

    Args:
        model: the Model.
        layout: what the places are.
        pieces: what was measured, of all base runs.
        tokens: as in `patch_grid`.
        metric: name and units of what was measured.
        dim: what the base runs are called, `pair` or `prompt`.
        **attrs: for the array's attributes.
    """
    from inlay.causal.labelled import Grid

    name, units = metric
    runs, wide = pieces[0].rows.total, max(len(piece.columns) for piece in pieces)
    values = torch.full((len(layout), wide, runs), torch.nan)
    for piece in pieces:
        values[:, : len(piece.columns), list(piece.rows.numbers)] = piece.values
    axes, whole = layout.spread(values.numpy())
    axes |= {"token": list(tokens) if isinstance(tokens, Mapping) else list(range(wide)), dim: list(range(runs))}
    coords: dict[str, Any] = {**axes, "clean": (dim, _in_order([(p.rows, p.clean) for p in pieces]))}
    corrupted = [(p.rows, p.corrupted) for p in pieces if p.corrupted is not None]
    if corrupted:
        coords["corrupted"] = (dim, _in_order(corrupted))
    if not isinstance(tokens, Mapping):
        coords["text"] = ((dim, "token"), _texts(model, pieces, runs, wide))
    attrs |= {"long_name": name, "units": units, "model": model.name}
    grid = Grid(whole, dims=tuple(axes), coords=coords, name=name, attrs=attrs)
    grid = grid if layout.headed else grid.isel(head=0, drop=True)
    grid = grid if runs > 1 else grid.isel({dim: 0}).drop_vars(dim)
    return grid if len(axes["component"]) > 1 else grid.isel(component=0)


def _in_order(found: Sequence[tuple[Rows, Tensor]]) -> np.ndarray[Any, Any]:
    """Numbers of batches of base runs in the order of all base runs."""
    order = torch.tensor([number for rows, _ in found for number in rows.numbers]).argsort()
    return torch.cat([values for _, values in found])[order].numpy()


def _texts(model: Model, pieces: Sequence[Piece], runs: int, wide: int) -> np.ndarray[Any, Any]:
    """The text of each column's token, str [runs, K]; ids where the model has no tokenizer."""
    texts = np.full((runs, wide), "", dtype=object)
    for piece in pieces:
        for column, index, slot in piece.columns.base.nonzero().tolist():
            texts[piece.rows.numbers[index], column] = token_text(model, piece.rows.items[index].ids[slot])
    return texts.astype(str)
