from __future__ import annotations

import math
import sys
from collections.abc import Iterator

import matplotlib
import pytest
import torch
from tests.attribute.pictures.scored import Document, needs_nothing, scored
from torch import Tensor

matplotlib.use("agg")

import matplotlib.pyplot as plt
from matplotlib.colors import to_hex

from inlay.attribute.pictures.colours import LIGHT, STEPS, step
from inlay.attribute.pictures.matrix import matrix_figure, matrix_html, step_figure, step_html
from inlay.attribute.pictures.page import shade
from inlay.attribute.pictures.panels import number
from inlay.attribute.pictures.visible import visible
from inlay.errors import ExtraError, InputError

ROWS = ["0", "1", "2"]
COLUMNS = ["<b>", " $a$", "\n", "&"]
CAPTION = "logit_diff by <gim>, baseline space; positive: it raises the number"


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    plt.close("all")


def _values() -> Tensor:
    values = torch.linspace(-2.0, 1.0, 12).reshape(3, 4)
    values[1, 2] = math.nan
    return values


@pytest.mark.parametrize("upward", [False, True])
def test_table(upward: bool) -> None:
    values = _values()
    html = matrix_html(values, ROWS, COLUMNS, CAPTION, upward=upward)
    needs_nothing(html)
    page = Document(html)
    order = list(range(3))[:: -1 if upward else 1]
    assert page.heads == ["", *map(visible, COLUMNS), *(ROWS[row] for row in order)]
    for row, found in zip(order, page.cells[1:], strict=True):
        for column, (classes, title) in enumerate(found):
            value = values[row, column].item()
            unscored = math.isnan(value)
            assert classes == ("unscored" if unscored else shade(step(value, 2.0)))
            assert title == f"{ROWS[row]!r}, {COLUMNS[column]!r}: {'no number' if unscored else number(value)}"
    assert CAPTION in page.text and "-2" in page.text and "+2" in page.text


@pytest.mark.parametrize("upward", [False, True])
def test_figure(upward: bool) -> None:
    values = _values()
    figure = matrix_figure(values, ROWS, COLUMNS, CAPTION, upward=upward)
    figure.canvas.draw()
    axes, colours = figure.axes
    (image,) = axes.images
    assert image.get_array().filled(math.nan).tolist()[0] == pytest.approx(values[0].tolist())
    assert image.get_clim() == (-2.0, 2.0) and image.origin == ("lower" if upward else "upper")
    for value in (-2.0, -0.6, 0.0, 0.3, 2.0):
        bins = [math.floor((value + 2) / 4 * (2 * STEPS + 1)), 2 * STEPS]
        assert to_hex(image.to_rgba(value)) == LIGHT.colour((min(bins) - STEPS) / STEPS)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["<b>", r"·\$a\$", "⏎", "&"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ROWS
    (hatched,) = axes.patches
    assert (hatched.get_x(), hatched.get_y()) == (1.5, 0.5)
    assert colours.get_ylabel() == CAPTION


def test_a_limit_is_kept_and_values_beyond_it_have_the_colour_of_the_end() -> None:
    html = matrix_html(_values(), ROWS, COLUMNS, CAPTION, limit=0.5)
    assert Document(html).cells[1][0][0] == shade(-STEPS)
    assert matrix_figure(_values(), ROWS, COLUMNS, CAPTION, limit=0.5).axes[0].images[0].get_clim() == (-0.5, 0.5)
    zeros = torch.zeros(3, 4)
    assert "all 0" in Document(matrix_html(zeros, ROWS, COLUMNS, CAPTION)).text
    assert matrix_figure(zeros, ROWS, COLUMNS, CAPTION).axes[0].images[0].get_clim() == (-1.0, 1.0)


@pytest.mark.parametrize("draw", [matrix_html, matrix_figure])
def test_refusals(draw: object) -> None:
    assert callable(draw)
    with pytest.raises(InputError, match=r"shape \(3, 4\) with 2 row and 4 column labels"):
        draw(_values(), ROWS[:2], COLUMNS, CAPTION)
    with pytest.raises(InputError, match="at least one cell"):
        draw(torch.zeros(0, 4), [], COLUMNS, CAPTION)
    with pytest.raises(InputError, match="limit=-1"):
        draw(_values(), ROWS, COLUMNS, CAPTION, limit=-1.0)


def test_without_matplotlib_tables_are_drawn_and_figures_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ExtraError, match=r"need matplotlib: pip install 'inlay\[causal\]'"):
        matrix_figure(_values(), ROWS, COLUMNS, CAPTION)
    assert matrix_html(_values(), ROWS, COLUMNS, CAPTION)


def test_steps_of_a_response() -> None:
    tokens = [["<bos>", "a"], ["<bos>", "a", " b"], ["<bos>", "c"]]
    given = scored(tokens, steps=[(0, 0), (0, 1), (1, 0)], target=[" b", " c", " d"])
    page = Document(step_html(given))
    assert page.heads == ["", "<bos>", "a", "·b", "·b", "·c"]
    assert [len(row) for row in page.cells[1:]] == [3, 3] and page.cells[1][2][0] == "unscored"
    axes = step_figure(given, 1).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["<bos>", "c"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["·d"]
    with pytest.raises(InputError, match="there is no prompt 2"):
        step_html(given, 2)
    with pytest.raises(InputError, match="per_step=True"):
        step_html(scored(tokens))
