"""A Grid is an xarray array in every respect, its heatmaps show the numbers where they belong, and it can be saved."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import xarray as xr

matplotlib.use("agg")

import matplotlib.pyplot as plt

import inlay
from inlay import causal
from inlay.causal import Grid
from inlay.errors import CausalError, ExtraError, FolderError

TEXTS = ["The", " Space", "\n", " "]


@pytest.fixture(autouse=True)
def _no_open_figures():
    yield
    plt.close("all")


def grid(*shape: int, sign: bool = True) -> Grid:
    """component x layer x token, or layer x token."""
    dims = ("component", "layer", "token")[-len(shape) :]
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    names = {"component": ["resid_post", "mlp_out", "attn_out"], "layer": list(range(9)), "token": list(range(4))}
    coords = {dim: names[dim][:size] for dim, size in zip(dims, shape, strict=True)}
    attrs = {"long_name": "logit difference", "units": "nats"}
    made = Grid(values if sign else abs(values), dims=dims, coords=coords, name="difference", attrs=attrs)
    return made.assign_coords(text=("token", TEXTS[: shape[-1]]))


def images(figure: plt.Figure) -> list[tuple[plt.Axes, np.ndarray]]:
    """The panels that hold an image, left to right, with its numbers."""
    return [(ax, ax.images[0].get_array().filled(np.nan)) for ax in figure.axes if ax.images]


def labels(axis: object) -> list[str]:
    return [tick.get_text() for tick in axis.get_ticklabels()]


def test_operations_of_xarray_give_grids() -> None:
    g = grid(3, 5, 4)
    for one in (g.sel(layer=2), g.isel(token=slice(2)), g.mean("token"), g - 1, abs(g), g.T, Grid(g.where(g > 0))):
        assert type(one) is Grid
    assert g.sel(component="mlp_out", layer=2, token=1).item() == g.values[1, 2, 1]
    assert g.mean("token").attrs["long_name"] == "logit difference"
    assert isinstance(g, xr.DataArray)


@pytest.mark.parametrize("of", ["2-D", "one of 3-D"])
def test_a_heatmap_has_layers_upwards_and_texts_along_x(of: str) -> None:
    g = grid(5, 4) if of == "2-D" else grid(3, 5, 4).sel(component="mlp_out")
    figure = g.transpose("token", "layer").plot(title="a title")
    ((ax, shown),) = images(figure)
    assert np.array_equal(shown, g.values) and ax.images[0].origin == "lower"
    assert labels(ax.xaxis) == ["The", "Space", "\\n", "␣"] and labels(ax.yaxis) == ["0", "1", "2", "3", "4"]
    assert ax.get_ylabel() == "layer" and figure.get_suptitle() == "a title"
    assert any(other.get_ylabel() == "logit difference\n[nats]" for other in figure.axes)


def test_panels_share_one_scale_with_its_middle_at_0() -> None:
    g = grid(3, 5, 4)
    panels = images(g.plot())
    assert [ax.get_title() for ax, _ in panels] == ["resid_post", "mlp_out", "attn_out"]
    most = float(abs(g).max())
    for index, (ax, shown) in enumerate(panels):
        assert np.array_equal(shown, g.values[index])
        assert ax.images[0].get_clim() == (-most, most) and ax.images[0].get_cmap().name == "RdBu_r"


def test_one_sign_gets_a_scale_from_0() -> None:
    g = grid(5, 4, sign=False)
    for one, limits, colours in ((g, (0, float(g.max())), "Blues"), (-g, (-float(g.max()), 0), "Blues_r")):
        ((ax, _),) = images(one.plot())
        assert ax.images[0].get_clim() == limits and ax.images[0].get_cmap().name == colours
    ((ax, _),) = images(g.plot(limits=(0, 1), colours="viridis"))
    assert ax.images[0].get_clim() == (0, 1) and ax.images[0].get_cmap().name == "viridis"
    ((ax, _),) = images((g * 0).plot())
    assert ax.images[0].get_clim() == (0, 1), "a scale even where all is 0"


def test_heads_and_components_go_along_x_where_there_are_no_tokens() -> None:
    heads = Grid(np.ones((2, 30)), dims=("head", "layer"), coords={"head": [3, 5], "layer": range(30)})
    ((ax, shown),) = images(heads.plot())
    assert shown.shape == (30, 2) and ax.get_xlabel() == "head" and labels(ax.xaxis) == ["3", "5"]
    assert labels(ax.yaxis) == [str(i) for i in range(0, 30, 2)], "every second of many"
    ((ax, _),) = images(grid(3, 5, 4).mean("token").plot())
    assert ax.get_xlabel() == "component" and labels(ax.xaxis) == ["resid_post", "mlp_out", "attn_out"]
    ((ax, shown),) = images(grid(3, 5, 4).sel(layer=1).plot())
    assert shown.shape == (3, 4) and ax.get_ylabel() == "component"


def test_empty_cells_stay_empty() -> None:
    g = grid(5, 4)
    g[2, 1] = np.nan
    ((_, shown),) = images(g.plot())
    assert np.isnan(shown[2, 1]) and np.isnan(shown).sum() == 1


def test_what_cannot_be_drawn() -> None:
    with pytest.raises(CausalError, match=r"this Grid has 4: .*'pair': 2.*grid.mean\('pair'\)"):
        grid(3, 5, 4).expand_dims(pair=2).plot()
    with pytest.raises(CausalError, match="this Grid has 1"):
        grid(5, 4).sel(layer=0).plot()
    with pytest.raises(CausalError, match="no finite number"):
        (grid(5, 4) * np.nan).plot()


def test_plots_of_xarray_are_there() -> None:
    (line,) = grid(5, 4).sel(layer=0).plot.line()
    assert np.array_equal(line.get_ydata(), grid(5, 4).values[0])


def test_saved_and_opened_is_the_same(tmp_path: Path) -> None:
    g = grid(3, 5, 4).assign_coords(clean=0.25)
    g[0, 0, 0] = np.nan
    path = g.save(tmp_path / "grid.json")
    back = Grid.open(path)
    assert type(back) is Grid and back.identical(g) and back.dtype == g.dtype
    assert [p.name for p in tmp_path.iterdir()] == ["grid.json"]


def test_files_that_are_no_grids(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match=r"missing\.json holds no Grid"):
        Grid.open(tmp_path / "missing.json")
    for text in ("{", "[1]", json.dumps({"data": [1.0]})):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(FolderError, match="holds no Grid that `save` wrote"):
            Grid.open(tmp_path / "bad.json")
    with pytest.raises(FolderError, match="could not be written"):
        grid(5, 4).save(tmp_path / "no" / "grid.json")


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ExtraError, match=r"need matplotlib: pip install 'inlay\[causal\]'"):
        grid(5, 4).plot()


def test_without_xarray_the_room_opens_and_only_grids_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("inlay.causal")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(inlay, "causal", None, raising=False)  # importing sets it; this puts it back
    monkeypatch.setitem(sys.modules, "xarray", None)
    room = importlib.import_module("inlay.causal")
    assert room is not causal
    with pytest.raises(ExtraError, match=r"labelled results need xarray: pip install 'inlay\[causal\]'"):
        _ = room.Grid
