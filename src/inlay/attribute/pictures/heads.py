"""The grid of heads: one number for each head of each layer, layers upwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from inlay.attribute.pictures.matrix import matrix_figure, matrix_html
from inlay.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def head_figure(
    values: Tensor, caption: str, *, layers: Sequence[str | int] | None = None, limit: float | None = None
) -> Figure:
    """A heatmap for a paper.

    Args:
        values: [layers, heads]; NaN where a layer has no such head.
        caption: see `matrix_figure`.
        layers: the names of the rows, such as Sites; by default the layers' numbers from 0.
        limit: the number at the ends of the colour scale; by default the largest size.

    Raises:
        InputError: values of another shape, or not one layer for each row.
        ExtraError: matplotlib is not installed.
    """
    return matrix_figure(values, *_labels(values, layers), caption, upward=True, limit=limit)


def head_html(
    values: Tensor, caption: str, *, layers: Sequence[str | int] | None = None, limit: float | None = None
) -> str:
    """The same as a page that needs nothing beside it; a head's number shows on hover.

    Args:
        values, caption, layers, limit: see `head_figure`.

    Raises:
        InputError: values of another shape, or not one layer for each row.
    """
    return matrix_html(values, *_labels(values, layers), caption, upward=True, limit=limit)


def _labels(values: Tensor, layers: Sequence[str | int] | None) -> tuple[list[str], list[str]]:
    """The names of rows and columns, heads as in the Site `z.5.h3`."""
    if values.dim() != 2:
        raise InputError(f"values of shape {tuple(values.shape)}: a grid of heads is [layers, heads]")
    numbers = range(len(values)) if layers is None else layers
    return [str(layer) for layer in numbers], [f"h{head}" for head in range(values.shape[1])]
