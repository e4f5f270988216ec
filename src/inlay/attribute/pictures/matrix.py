"""Grids of numbers, as layer x token and step x token: a matplotlib figure, or an HTML table without matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from torch import Tensor

from inlay.attribute.pictures.colours import LIGHT, STEPS, step
from inlay.attribute.pictures.page import bar, page, picture, shade
from inlay.attribute.pictures.panels import ends, number
from inlay.attribute.pictures.visible import plain, visible
from inlay.errors import ExtraError, InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from inlay.attribute.token_scores import TokenScores


def matrix_figure(
    values: Tensor,
    rows: Sequence[str],
    columns: Sequence[str],
    caption: str,
    *,
    upward: bool = False,
    limit: float | None = None,
) -> Figure:
    """A heatmap for a paper.

    Args:
        values: [len(rows), len(columns)]; NaN, a cell without a number, is hatched.
        rows, columns: the labels, such as layers and tokens; tokens with their spaces, which are shown.
        caption: what stands at the colour bar: the quantity, the method, the baseline and the sign.
        upward: whether the first row is the lowest one, as layers are drawn.
        limit: the number at the ends of the colour scale; by default the largest size.

    Raises:
        InputError: the labels are not one for each row and column, there is no cell, or the limit is not above 0.
        ExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib.pyplot as plt
        from matplotlib.colors import ListedColormap
        from matplotlib.patches import Rectangle
    except ImportError as error:
        raise ExtraError("figures need matplotlib: pip install 'inlay[causal]'") from error
    cells = _cells(values, rows, columns)
    end = ends([value for row in cells for value in row], limit) or 1.0
    wide, tall = max(2.4, 0.24 * len(columns)) + 1.8, max(2.0, 0.2 * len(rows)) + 1.2
    figure, ax = plt.subplots(figsize=(wide, tall), layout="constrained")
    scale = ListedColormap([LIGHT.colour(place / STEPS) for place in range(-STEPS, STEPS + 1)], name="inlay")
    image = ax.imshow(
        cells, cmap=scale, vmin=-end, vmax=end, aspect="auto", origin="lower" if upward else "upper",
        interpolation="nearest",
    )  # fmt: skip
    for y, row in enumerate(cells):
        for x, value in enumerate(row):
            if math.isnan(value):
                ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, hatch="////", edgecolor="#cfd4da", lw=0))
    for axis, labels in ((ax.xaxis, columns), (ax.yaxis, rows)):
        axis.set_ticks(range(len(labels)), [_mathless(visible(label)) for label in labels])
    ax.tick_params(length=0, labelsize=8)
    if any(len(label) > 2 for label in columns):
        ax.tick_params(axis="x", rotation=90)
    colours = figure.colorbar(image, ax=ax, fraction=0.6 / wide, pad=0.15 / wide)
    colours.set_label(_mathless(plain(caption)), fontsize=8, wrap=True)
    colours.ax.tick_params(labelsize=8)
    return figure


def matrix_html(
    values: Tensor,
    rows: Sequence[str],
    columns: Sequence[str],
    caption: str,
    *,
    upward: bool = False,
    limit: float | None = None,
) -> str:
    """The same as a page that needs nothing beside it, neither matplotlib nor a script; a number shows on hover.

    Args:
        values, rows, columns, caption, upward, limit: see `matrix_figure`.

    Raises:
        InputError: the labels are not one for each row and column, there is no cell, or the limit is not above 0.
    """
    cells = _cells(values, rows, columns)
    end = ends([value for row in cells for value in row], limit)
    head = "".join(f'<th scope="col"><div><bdi>{escape(visible(label))}</bdi></div></th>' for label in columns)
    lines = [_line(label, row, columns, end) for label, row in zip(rows, cells, strict=True)]
    body = "\n".join(reversed(lines) if upward else lines)
    content = (
        f'<figure>\n<p class="legend">{escape(plain(caption))}. Orange: positive; blue: negative; hatched: no number. '
        f'Each cell shows its number on hover.</p>\n{bar(end)}\n<div class="wide"><table>\n'
        f"<thead><tr><th></th>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>\n</figure>"
    )
    used = [step(value, end) for row in cells for value in row if not math.isnan(value)]
    return page(plain(caption), picture(content, used))


def step_figure(scores: TokenScores, prompt: int = 0) -> Figure:
    """Which tokens each step of a response comes from, steps downwards.

    Raises:
        InputError: the scores are of no steps, or there is no such prompt.
        ExtraError: matplotlib is not installed.
    """
    return matrix_figure(*_of_steps(scores, prompt))


def step_html(scores: TokenScores, prompt: int = 0) -> str:
    """The same as `step_figure` as a page, without matplotlib.

    Raises:
        InputError: the scores are of no steps, or there is no such prompt.
    """
    return matrix_html(*_of_steps(scores, prompt))


def _of_steps(scores: TokenScores, prompt: int) -> tuple[Tensor, list[str], list[str], str]:
    values = scores.matrix(prompt)
    mine = [row for row, (owner, _) in enumerate(scores.steps or []) if owner == prompt]
    columns = max((scores.tokens[row] for row in mine), key=len)
    return values, [scores.target[row] for row in mine], columns, scores.caption


def _cells(values: Tensor, rows: Sequence[str], columns: Sequence[str]) -> list[list[float]]:
    if tuple(values.shape) != (len(rows), len(columns)) or not values.numel():
        raise InputError(
            f"values of shape {tuple(values.shape)} with {len(rows)} row and {len(columns)} column labels: "
            "give [rows, columns] with one label for each, and at least one cell"
        )
    cells: list[list[float]] = values.detach().double().cpu().tolist()
    return cells


def _line(label: str, row: list[float], columns: Sequence[str], limit: float) -> str:
    cells = ""
    for column, value in zip(columns, row, strict=True):
        unscored = math.isnan(value)
        said = "no number" if unscored else number(value)
        title = escape(f"{label!r}, {column!r}: {said}")
        cells += f'<td class="{"unscored" if unscored else shade(step(value, limit))}" title="{title}"></td>'
    return f'<tr><th scope="row"><bdi>{escape(visible(label))}</bdi></th>{cells}</tr>'


def _mathless(text: str) -> str:
    """Text in which matplotlib finds no formula."""
    return text.replace("$", r"\$")
