"""Grid: a labelled array of numbers over layers, tokens and components, with heatmaps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inlay.errors import CausalError, ExtraError, FolderError

try:
    import xarray as xr
    from xarray.plot.accessor import DataArrayPlotAccessor
except ImportError as error:
    raise ExtraError("labelled results need xarray: pip install 'inlay[causal]'") from error

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ACROSS = ("token", "head", "component")  # what lies along x, the first of these that there is


class Grid(xr.DataArray):  # type: ignore[no-untyped-call]  # xarray's __init_subclass__ has no annotations
    """An `xarray.DataArray` whose `plot()` draws heatmaps the way that the field does.

    Dimensions go by the design's words: `layer`, `token`, `head`, `component`, `pair`. Coordinates that are no
    dimension label these: `text` [token] holds the tokens' texts and becomes the ticks along x. `attrs["long_name"]`
    and `attrs["units"]` name the numbers on the colour bar, as xarray has it. All of xarray works on it; selecting,
    averaging and arithmetic give Grids again (`grid.sel(layer=5)`, `grid.mean("pair")`, `abs(grid)`), and `Grid(array)`
    makes one of a plain array.
    """

    __slots__ = ()

    @property
    def plot(self) -> _Plot:  # type: ignore[override]  # xarray's is a descriptor without a type of its own
        """Call it for heatmaps, see `_Plot.__call__`; xarray's own plots are its methods, as `grid.plot.line()`."""
        return _Plot(self)

    def save(self, path: str | Path) -> Path:
        """Write it as one JSON file that `Grid.open` reads, bit for bit.

        Raises:
            FolderError: the disk refuses.
        """
        path = Path(path)
        part = path.with_name(path.name + ".part")
        stored = {**self.to_dict(), "dtype": str(self.dtype)}
        try:
            part.write_text(json.dumps(stored), encoding="utf-8")
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise FolderError(f"the Grid could not be written to {path}: {error}") from error
        return path

    @classmethod
    def open(cls, path: str | Path) -> Grid:
        """What `save` wrote (`load` is xarray's, and fetches numbers that are not yet in memory).

        Raises:
            FolderError: there is no such file, or it holds no Grid.
        """
        try:
            stored = json.loads(Path(path).read_text(encoding="utf-8"))
            made = xr.DataArray.from_dict(stored).astype(stored["dtype"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FolderError(f"{path} holds no Grid that `save` wrote: {error}") from error
        return cls(made)


class _Plot(DataArrayPlotAccessor):
    """What `grid.plot` is."""

    __slots__ = ()

    def __call__(  # type: ignore[override]  # xarray's takes anything
        self, *, title: str = "", colours: str | None = None, limits: tuple[float, float] | None = None
    ) -> Figure:
        """Heatmaps: layers upwards, tokens (else heads, else components) along x, one panel for each of a third.

        All panels share one colour scale. Where the numbers have both signs, it is a diverging one with its middle
        at 0. Cells that hold NaN stay empty.

        Args:
            title: above the figure.
            colours: a matplotlib colour map.
            limits: the numbers at the ends of the colour scale; by default those that the Grid holds.

        Raises:
            CausalError: it has more than three dimensions, or less than two.
            ExtraError: matplotlib is not installed.
        """
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise ExtraError("heatmaps need matplotlib: pip install 'inlay[causal]'") from error
        grid = self._da.squeeze()
        if grid.ndim not in (2, 3):
            raise CausalError(
                f"a heatmap has 2 dimensions, or 3 with one panel for each of the third; this Grid has {grid.ndim}: "
                f"{dict(grid.sizes)}. Take one, grid.sel(...), or average, grid.mean('pair')"
            )
        up, across, panel = _axes(grid)
        panels = [grid] if panel is None else [grid.isel({panel: i}) for i in range(grid.sizes[panel])]
        low, high = limits or _limits(grid.values)
        wide = max(1.6, 0.32 * grid.sizes[across]) * len(panels) + 1.6
        tall = max(2.2, 0.22 * grid.sizes[up]) + 1.2
        figure, axes = plt.subplots(
            1, len(panels), figsize=(wide, tall), sharey=True, squeeze=False, layout="constrained"
        )
        colours = colours or ("RdBu_r" if low < 0 < high else "Blues" if high > 0 else "Blues_r")
        for ax, one in zip(axes[0], panels, strict=True):
            image = _heatmap(ax, one.transpose(up, across), colours, low, high)
            ax.set_title("" if panel is None else f"{one[panel].item()}", fontsize=10)
        axes[0][0].set_ylabel(up)
        label = str(grid.attrs.get("long_name", grid.name or ""))
        units = grid.attrs.get("units")
        label = f"{label}\n[{units}]" if units else label
        figure.colorbar(image, ax=list(axes[0]), label=label, fraction=0.5 / wide, pad=0.2 / wide, aspect=6 * tall)
        figure.suptitle(title)
        return figure


def _axes(grid: xr.DataArray) -> tuple[str, str, str | None]:
    """Which dimension goes up, which across, and which one has panels."""
    dims = [str(dim) for dim in grid.dims]
    rest = [dim for dim in dims if dim != "layer"]
    across = next((dim for dim in _ACROSS if dim in rest), rest[-1])
    rest.remove(across)
    up = "layer" if "layer" in dims else rest.pop()
    return up, across, rest[0] if rest else None


def _limits(values: np.ndarray[Any, Any]) -> tuple[float, float]:
    """The ends of the colour scale: alike on both sides of 0 where there are both signs, else from or up to 0."""
    if not np.isfinite(values).any():
        raise CausalError("the Grid holds no finite number to draw")
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if low < 0 < high:
        most = max(-low, high)
        return -most, most
    return (0.0, high or 1.0) if low >= 0 else (low, 0.0)


def _heatmap(ax: Axes, grid: xr.DataArray, colours: str, low: float, high: float) -> Any:
    """One panel of [up, across]; gives what the colour bar belongs to."""
    up, across = (str(dim) for dim in grid.dims)
    image = ax.imshow(grid.values, cmap=colours, vmin=low, vmax=high, origin="lower", aspect="auto")
    _ticks(ax.xaxis, _labels(grid, across))
    _ticks(ax.yaxis, _labels(grid, up))
    ax.tick_params(length=0, labelsize=8)
    if "text" not in grid.coords or across != "token":
        ax.set_xlabel(across)
    if any(len(label) > 2 for label in _labels(grid, across)):
        ax.tick_params(axis="x", rotation=90)
    return image


def _labels(grid: xr.DataArray, dim: str) -> list[str]:
    """What stands at the ticks of a dimension: the tokens' texts, else its own coordinates."""
    if dim == "token" and "text" in grid.coords and grid["text"].dims == ("token",):
        return [_shown(str(text)) for text in grid["text"].values]
    return [str(label) for label in grid[dim].values]


def _shown(text: str) -> str:
    """A token's text with its line breaks visible and its outer spaces gone, unless it is nothing else."""
    return text.strip(" ").replace("\n", "\\n").replace("\t", "\\t") or "␣" * bool(text)


def _ticks(axis: Any, labels: Sequence[str]) -> None:
    """Ticks with labels: all of texts, at most about 24 of numbers."""
    step = 1 if not labels[0].lstrip("-").isdigit() else -(-len(labels) // 24)
    axis.set_ticks(range(0, len(labels), step), labels[::step])
