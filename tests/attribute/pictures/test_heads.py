from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import pytest
import torch
from tests.attribute.pictures.scored import Document

matplotlib.use("agg")

import matplotlib.pyplot as plt

from inlay.attribute.pictures.heads import head_figure, head_html
from inlay.attribute.pictures.panels import number
from inlay.errors import InputError

CAPTION = "logit_diff by gim, baseline space; positive: it raises the number"


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    plt.close("all")


def test_layers_go_upwards_and_heads_across() -> None:
    values = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    page = Document(head_html(values, CAPTION))
    assert page.heads == ["", "h0", "h1", "h2", "1", "0"]  # layers upwards
    assert page.cells[1][2][1] == f"'1', 'h2': {number(values[1, 2].item())}"
    assert Document(head_html(values, CAPTION, layers=["z.4", "z.7"])).heads[-2:] == ["z.7", "z.4"]
    axes = head_figure(values, CAPTION, layers=[4, 7]).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["4", "7"] and axes.images[0].origin == "lower"
    with pytest.raises(InputError, match=r"a grid of heads is \[layers, heads\]"):
        head_html(values[0], CAPTION)
    with pytest.raises(InputError, match="1 row and 3 column labels"):
        head_html(values, CAPTION, layers=[4])
