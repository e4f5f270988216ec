"""Places: which Sites and heads are set together, from where runs go on, and where the numbers come to lie."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.interventions import tiny

import inlay
from inlay.causal.cells import WHOLE
from inlay.causal.layout import Layout
from inlay.errors import CausalError, SiteError


@pytest.fixture(scope="module")
def model() -> inlay.Model:
    return tiny.model()


def settings(layout: Layout) -> list[list[str]]:
    """For each place what it sets, as text."""
    found: list[list[str]] = [[] for _ in range(len(layout))]
    for place, site, head in zip(layout.place.tolist(), layout.site.tolist(), layout.head.tolist(), strict=True):
        found[place].append(f"{layout.sites[site]}" + (f".h{head}" if layout.sites[site].name in "qkvz" else ""))
    return found


def test_each_site_is_a_place(model: inlay.Model) -> None:
    layout = Layout.each(model, ["mlp_out.*", "resid_post.-1"])
    assert settings(layout) == [["mlp_out.0"], ["mlp_out.1"], ["mlp_out.2"], ["resid_post.2"]]
    assert layout.labels == [("mlp_out", 0, 0), ("mlp_out", 1, 0), ("mlp_out", 2, 0), ("resid_post", 2, 0)]
    assert layout.start.tolist() == [0, 1, 2, 3] and layout.starts == [0, 1, 2, 3] and layout.most == 1
    assert not layout.headed


def test_each_head_is_a_place(model: inlay.Model) -> None:
    layout = Layout.each(model, ["z.0.h[3,1]", "z.1.h2", "z.1.h0", "z.0.h1"])
    assert settings(layout) == [["z.0.h3"], ["z.0.h1"], ["z.1.h2"], ["z.1.h0"]], "once each"
    assert layout.headed and layout.most == 2 and layout.labels[0] == ("z", 0, 3)
    assert len(Layout.each(model, "k.*")) == 3 * tiny.KV


def test_all_together_are_one_place(model: inlay.Model) -> None:
    layout = Layout.joint(model, ["z.2.h[0,1]", "mlp_out.1", "k.1"])
    assert settings(layout) == [["z.2.h0", "z.2.h1", "mlp_out.1", "k.1.h0", "k.1.h1"]]
    assert len(layout) == 1 and layout.start.tolist() == [1], "from the lowest"


@pytest.mark.parametrize("window, below, above", [(10, 4, 5), (1, 0, 0), (3, 1, 1), (2, 0, 1)])
def test_windows(window: int, below: int, above: int) -> None:
    """10 layers reach from 4 below to 5 above, cut at the ends; a residual stream is one state."""
    m = tiny.model(num_hidden_layers=14)
    layout = Layout.windows(m, ["mlp_out", "resid_post"], window)
    for layer, found in enumerate(settings(layout)[:14]):
        low, high = max(0, layer - below), min(13, layer + above)
        assert found == [f"mlp_out.{i}" for i in range(low, high + 1)]
        assert int(layout.start[layer]) == low
    assert settings(layout)[14:] == [[f"resid_post.{i}"] for i in range(14)]
    assert layout.start[14:].tolist() == list(range(1, 15))


def test_cells(model: inlay.Model) -> None:
    """Cell a K + k is place a in column k; what a Site sets is in order of cells."""
    layout = Layout.each(model, ["z.0.h1", "z.1.h3", "z.0.h2"])
    stored = {site: torch.randn(2, 5, tiny.HEADS, tiny.HEAD_WIDTH) for site in layout.sites}
    cells = layout.cells(2, stored, torch.arange(2), torch.arange(5))
    assert cells.column.tolist() == [0, 1] * 3 and cells.start.tolist() == [0, 0, 0, 0, 1, 1] and len(cells) == 6
    first, second = cells.writes
    assert first.cell.tolist() == [0, 1, 2, 3] and first.head.tolist() == [1, 1, 2, 2]
    assert second.cell.tolist() == [4, 5] and second.head.tolist() == [3, 3]
    assert first.values is stored[first.site] and str(second.site) == "z.1"


def test_numbers_lie_at_their_labels(model: inlay.Model) -> None:
    layout = Layout.each(model, ["q.2.h1", "z.0.h[0,3]", "z.2.h1"])
    values = np.arange(4 * 6, dtype=np.float32).reshape(4, 2, 3)
    axes, whole = layout.spread(values)
    assert axes == {"component": ["q", "z"], "layer": [0, 2], "head": [0, 1, 3]}
    assert whole.shape == (2, 2, 3, 2, 3)
    for place, (name, layer, head) in enumerate(layout.labels):
        at = axes["component"].index(name), axes["layer"].index(layer), axes["head"].index(head)
        assert np.array_equal(whole[at], values[place])
    assert np.isnan(whole).sum() == whole.size - values.size


def test_models_that_cannot_go_on() -> None:
    blind = inlay.Model(tiny.llama(), sites={"mlp_out": "model.layers.{layer}.mlp:out"})
    assert Layout.each(blind, "mlp_out.*").starts == [WHOLE]


def test_what_the_model_lacks(model: inlay.Model) -> None:
    for made in (Layout.each, Layout.joint):
        with pytest.raises(SiteError, match="has no Site 'router'"):
            made(model, "router.0")
    with pytest.raises(SiteError, match="has no Site 'router'"):
        Layout.windows(model, ["mlp_out", "router"], 3)


def test_sites_that_do_not_go_together(model: inlay.Model) -> None:
    with pytest.raises(CausalError, match=r"mlp_out\.0, z\.0: some of these Sites are made of heads and some are not"):
        Layout.each(model, ["mlp_out.0", "z.0"])
    with pytest.raises(CausalError, match=r"q\.0 is made of heads, and tracing restores whole states"):
        Layout.windows(model, ["mlp_out", "q"], 3)
    for made in (Layout.each, Layout.joint):
        with pytest.raises(CausalError, match="final_norm: cells are set at Sites of a layer"):
            made(model, "final_norm")
