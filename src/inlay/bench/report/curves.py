"""Dose and response: what a factor does to the scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inlay.bench.report.drawing import AXES, Drawn, coloured, data, own_colour, rows_of
from inlay.bench.report.palette import Entry
from inlay.bench.result import BenchResult

if TYPE_CHECKING:
    import polars as pl

_BANDS = 4  # with more curves than this, bands hide each other and are drawn fainter


def dose_curves(result: BenchResult, entries: dict[str, Entry], axis: str) -> Drawn | None:
    """Score against factor: a curve a method, a ring at its global factor, a dashed line for a baseline.

    A baseline has no factor: its line is its mean of the summary.
    """
    import altair as alt

    if result.dose.is_empty():
        return None
    curves = coloured(rows_of(dose_rows(result)), entries)
    steady = coloured(rows_of(result.steering_summary.select("method", "kind", *AXES)), entries)
    steady = [row for row in steady if row["kind"] == "baseline"]
    chosen = dict(result.steering_summary.select("method", "factor_global").iter_rows())
    for row in curves:
        row["chosen"] = row["factor"] == chosen.get(row["method"])
    hidden = alt.param(name="hidden", value=[])
    x = alt.X("factor:Q", title="Factor", axis=alt.Axis(tickCount=6))
    y = alt.Y(
        f"{axis}:Q", title=f"{axis.capitalize()}, 0 to 2", scale=alt.Scale(domain=[0, 2]), axis=alt.Axis(tickCount=5)
    )
    tooltip = ["method:N", "site:N", "factor:Q", *(alt.Tooltip(f"{name}:Q", format=".3f") for name in AXES)]
    shown = "indexof(hidden, datum.method) < 0"
    base = alt.Chart(data(curves)).transform_filter(shown).encode(x=x, y=y, color=own_colour(), detail="method:N")
    dashes = alt.condition("datum.kind == 'method'", alt.value([1, 0]), alt.value([2, 3]))
    line = base.mark_line(strokeWidth=2, interpolate="monotone").encode(strokeDash=dashes)
    layers = [
        alt.Chart(data(steady))
        .transform_filter(shown)
        .mark_rule(strokeDash=[5, 4], strokeWidth=1.4)
        .encode(y=y, color=own_colour(), tooltip=tooltip),
        line,
        base.mark_point(size=26, filled=True, opacity=1).encode(tooltip=tooltip),
        base.transform_filter("datum.chosen").mark_point(size=150, filled=False, strokeWidth=2).encode(tooltip=tooltip),
    ]
    if axis == "overall":
        shown_now = f"{len({row['method'] for row in curves})} - length(hidden)"
        opacity = alt.expr(f"{shown_now} <= {_BANDS} ? 0.15 : 0.045")
        band = base.mark_area(opacity=opacity, interpolate="monotone").encode(y="overall_lo:Q", y2="overall_hi:Q")
        layers.insert(0, band)
    chart = alt.layer(*layers).add_params(hidden)
    height = 330 if axis == "overall" else 190
    return chart.properties(width="container", height=height, description=f"{axis.capitalize()} score against factor")


def dose_rows(result: BenchResult) -> pl.DataFrame:
    """The dose rows of each method at its one Site: the one chosen for all concepts, else that of its best row."""
    import polars as pl

    if result.dose.is_empty():
        return result.dose
    shared = result.steering_summary.select("method", "site_global")
    rows = result.dose.filter(pl.col("kind") != "baseline").join(shared, on="method", how="left")
    best = pl.col("site").sort_by("overall", descending=True, nulls_last=True).first().over("method")
    kept = rows.filter(pl.col("site").eq_missing(pl.coalesce("site_global", best)))
    return kept.drop("site_global").sort("method", "factor")
