"""The two leaderboards: a row a method, its mean as a dot on its interval."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inlay.bench.report.drawing import INK, MUTED, Drawn, data, own_colour, rows_of
from inlay.bench.report.palette import Entry
from inlay.bench.result import BenchResult

if TYPE_CHECKING:
    import altair as alt
    import polars as pl


def steering_board(result: BenchResult, entries: dict[str, Entry]) -> Drawn | None:
    """Overall score of each method, and a line at what prompting reaches."""
    import altair as alt

    rows = _board_rows(result.steering_summary, entries, "overall")
    if not rows:
        return None
    top = max(0.1, *(row["hi"] for row in rows))
    scale = alt.Scale(domain=[0, top], nice=False)
    layers = _board(rows, "Overall score, 0 to 2", scale, zero=True)
    bar = [row for row in rows if row["method"] == "prompt"]
    if bar:
        rule = alt.Chart(data(bar)).encode(x=alt.X("value:Q", scale=scale))
        layers.insert(0, rule.mark_rule(strokeDash=[4, 3], strokeWidth=1.2, color=MUTED))
        layers.insert(1, _over(rule, "prompting, the bar to beat", left=bar[0]["value"] > top / 2))
    return _sized(layers, len(rows), "Leaderboard of steering: overall score of each method with its 95 % interval")


def detection_board(result: BenchResult, entries: dict[str, Entry]) -> Drawn | None:
    """AUROC of each detector, a diamond at its AUROC against look-alikes, and a line at chance."""
    import altair as alt

    rows = _board_rows(result.detection_summary, entries, "auroc")
    if not rows:
        return None
    marks = [value for row in rows for value in (row["lo"], row["hard"]) if value is not None]
    low = min(0.45, *marks)
    scale = alt.Scale(domain=[max(0, low - 0.02), 1.005], nice=False, clamp=True)
    chance = alt.Chart(data([{"value": 0.5}])).encode(x=alt.X("value:Q", scale=scale))
    layers = [
        chance.mark_rule(strokeDash=[4, 3], strokeWidth=1.2, color=MUTED),
        _over(chance, "chance", left=False),
        *_board(rows, "AUROC (◆ against look-alikes)", scale, zero=False),
    ]
    hard = [row for row in rows if row["hard"] is not None]
    if hard:
        base = alt.Chart(data(hard)).mark_point(shape="diamond", size=48, filled=True, opacity=0.85)
        layers.insert(3, base.encode(x=alt.X("hard:Q", scale=scale), y=_label_axis(rows), color=own_colour()))
    return _sized(layers, len(rows), "Leaderboard of detection: AUROC of each detector with its 95 % interval")


def _over(rule: alt.Chart, text: str, left: bool) -> alt.Chart:
    """A word over a vertical line, on its left or right."""
    import altair as alt

    dx = 3 if left else -3
    word = rule.mark_text(align="right" if left else "left", dx=dx, fontSize=11, fontStyle="italic", color=MUTED)
    made: alt.Chart = word.encode(text=alt.value(text), y=alt.value(-9))
    return made


def _board_rows(frame: pl.DataFrame, entries: dict[str, Entry], name: str) -> list[dict[str, Any]]:
    """The rows that have a value, best first, each with its interval (the value itself where it has none)."""
    made = []
    for row in rows_of(frame):
        value, entry = row[name], entries[row["method"]]
        if value is not None:
            ends = {end: value if row[f"{name}_{end}"] is None else row[f"{name}_{end}"] for end in ("lo", "hi")}
            about = {"method": entry.method, "label": entry.label, "kind": entry.kind, "colour": entry.colour}
            made.append(about | {"value": value, "hard": row.get(f"{name}_hard")} | ends)
    return sorted(made, key=lambda row: -row["value"])


def _board(rows: list[dict[str, Any]], title: str, scale: alt.Scale, zero: bool) -> list[alt.Chart]:
    """A row a method: its interval as a soft bar, its mean as a dot (hollow for what is no method), its number."""
    import altair as alt

    axis = alt.Axis(values=[0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]) if not zero else alt.Axis(tickCount=5)
    base = alt.Chart(data(rows)).encode(
        x=alt.X("value:Q", title=title, scale=scale, axis=axis), y=_label_axis(rows), color=own_colour()
    )
    tooltip = ["label:N", "kind:N", *(alt.Tooltip(f"{name}:Q", format=".3f") for name in ("value", "lo", "hi"))]
    interval = base.mark_bar(height=9, cornerRadius=4.5, opacity=0.3).encode(x=alt.X("lo:Q", title=title), x2="hi:Q")
    filled = base.transform_filter("datum.kind == 'method'").mark_point(size=85, filled=True, opacity=1)
    hollow = base.transform_filter("datum.kind != 'method'").mark_point(size=70, filled=False, strokeWidth=1.8)
    number = base.mark_text(align="left", dx=10, fontSize=12).encode(
        x=alt.value("width"), text=alt.Text("value:Q", format=".3f"), color=alt.value(INK)
    )
    stems = [base.mark_bar(height=1.5, opacity=0.35).encode(x2=alt.datum(0))] if zero else []
    return [*stems, interval, filled.encode(tooltip=tooltip), hollow.encode(tooltip=tooltip), number]


def _label_axis(rows: list[dict[str, Any]]) -> alt.Y:
    import altair as alt

    axis = alt.Axis(grid=False, ticks=False, labelPadding=10, labelLimit=190, labelFontSize=12.5, title=None)
    return alt.Y("label:N", sort=[row["label"] for row in rows], axis=axis)


def _sized(layers: list[alt.Chart], rows: int, description: str) -> Drawn:
    import altair as alt

    room = {"left": 4, "right": 52, "top": 4, "bottom": 4}  # on the right for the numbers
    chart = alt.layer(*layers)
    return chart.properties(width="container", height=27 * rows, padding=room, description=description)
