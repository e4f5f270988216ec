"""Faithfulness: methods beside chance and beside the best that there is, as a table.

Legend: M methods with the two rows of reference, C metrics, R rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING, Any

from torch import Tensor

from inlay.attribute.metrics.columns import Column
from inlay.errors import ExtraError, InputError

if TYPE_CHECKING:
    import polars


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """Metrics of methods.

    Attributes:
        methods: the names, `"random"` and `"oracle"` last, M of them.
        columns: the metrics, C of them.
        values: float64 [M, C, R]; NaN where a metric is not defined.
        sizes: how many features of each row may be replaced.
        caption: what was measured, and what the oracle is.
    """

    methods: list[str]
    columns: list[Column]
    values: Tensor
    sizes: list[int]
    caption: str

    def of(self, method: str, metric: str) -> Tensor:
        """A method's values, float64 [R].

        Raises:
            InputError: there is no such method or metric.
        """
        names = [one.name for one in self.columns]
        if method not in self.methods or metric not in names:
            raise InputError(f"{method!r}, {metric!r}: one of {', '.join(self.methods)} and one of {', '.join(names)}")
        return self.values[self.methods.index(method), names.index(metric)]

    @property
    def undefined(self) -> dict[str, int]:
        """For each metric on how many rows it is not defined for some method; these are in no mean."""
        lacking = self.values[:-2].isnan().any(0).sum(1).tolist()
        return {one.name: int(count) for one, count in zip(self.columns, lacking, strict=True)}

    def frame(self) -> polars.DataFrame:
        """A line for each method with the mean of each metric over the rows where it is defined, null where none is.

        Raises:
            ExtraError: polars is not installed.
        """
        schema = {"method": "String"} | {one.name: "Float64" for one in self.columns}
        means = self.values.nanmean(2).tolist()
        return _frame([(method, *map(_shown, some)) for method, some in zip(self.methods, means, strict=True)], schema)

    def rows(self) -> polars.DataFrame:
        """A line for each method, row and metric: method, row, features, metric, value; null where it is not defined.

        Raises:
            ExtraError: polars is not installed.
        """
        schema = {"method": "String", "row": "Int64", "features": "Int64", "metric": "String", "value": "Float64"}
        values = self.values.tolist()
        lines = [
            (method, row, size, column.name, _shown(values[i][j][row]))
            for i, method in enumerate(self.methods)
            for row, size in enumerate(self.sizes)
            for j, column in enumerate(self.columns)
        ]
        return _frame(lines, schema)

    def __str__(self) -> str:
        lines = [["method", *(f"{one.name} {'up' if one.up else 'down'}" for one in self.columns)]]
        for method, some in zip(self.methods, self.values.nanmean(2).tolist(), strict=True):
            lines.append([method, *("-" if isnan(value) else f"{value:.3f}" for value in some)])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = [
            "  ".join([name.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(cells, widths[1:], strict=True))])
            for name, *cells in lines
        ]
        left_out = [f"{name} on {count} of {len(self.sizes)} rows" for name, count in self.undefined.items() if count]
        notes = [f"{one.name}: {one.note}" for one in self.columns if one.note]
        if left_out:
            notes.append(f"not defined, and in no mean: {', '.join(left_out)}")
        return "\n".join([self.caption, *table, *notes])


def _shown(value: float) -> float | None:
    return None if isnan(value) else value


def _frame(lines: Sequence[tuple[Any, ...]], schema: Mapping[str, str]) -> polars.DataFrame:
    try:
        import polars
    except ImportError as error:
        raise ExtraError("frames need polars: pip install 'inlay[data]'") from error
    return polars.DataFrame(lines, schema={name: getattr(polars, kind) for name, kind in schema.items()}, orient="row")
