"""What the charts of a report share: colours of text and grid, rows as JSON takes them, and the look."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from inlay.bench.report.palette import Entry

if TYPE_CHECKING:
    import altair as alt
    import polars as pl

Drawn: TypeAlias = "alt.LayerChart | alt.FacetChart"
"""What `altair.layer` makes."""
AXES = ("overall", "concept", "instruction", "fluency")
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
# The page recolours exactly these three in the dark: template.css names them.
INK, MUTED, GRID = "#1c2128", "#5f6876", "#e4e7eb"


def own_colour() -> alt.Color:
    """The colour that each row names."""
    import altair as alt

    return alt.Color("colour:N", scale=None)


def rows_of(frame: pl.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON takes them: four digits, and `None` for what is not finite."""
    return [{name: _short(value) for name, value in row.items()} for row in frame.to_dicts()]


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4) if abs(value) < float("inf") else None
    return value


def coloured(rows: list[dict[str, Any]], entries: dict[str, Entry]) -> list[dict[str, Any]]:
    """The rows with their method's colour and kind."""
    return [row | {"colour": entries[row["method"]].colour, "kind": entries[row["method"]].kind} for row in rows]


def data(rows: list[dict[str, Any]]) -> alt.Data:
    """Rows as a chart's data."""
    import altair as alt

    return alt.Data(values=rows)  # type: ignore[no-untyped-call]


def themed(chart: Drawn) -> Drawn:
    """The chart in the report's look."""
    themed: Drawn = (
        chart.configure(background="transparent", font=FONT, padding=4)
        .configure_view(stroke=None)
        .configure_axis(
            domain=False, ticks=False, labelPadding=7, titlePadding=10, labelColor=MUTED, titleColor=MUTED,
            gridColor=GRID, labelFontSize=11.5, titleFontSize=12, titleFontWeight="normal",
        )
    )  # fmt: skip
    return themed
