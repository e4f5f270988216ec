"""The scatter charts: effect against side effect, and concept by concept."""

from __future__ import annotations

from typing import Any

from inlay.bench.report.drawing import INK, MUTED, Drawn, coloured, data, own_colour, rows_of
from inlay.bench.report.palette import Entry, palette
from inlay.bench.result import BenchResult


def side_effects(result: BenchResult, name: str = "kl") -> dict[str, float]:
    """The mean of a side effect of each method, in nats a token, over the concepts."""
    if result.side_effects.is_empty():
        return {}
    known = result.side_effects.select("method", name).drop_nulls()
    return dict(known.group_by("method", maintain_order=True).mean().iter_rows())


def pairs(result: BenchResult, chart: str) -> dict[str, list[dict[str, Any]]]:
    """The points of `"scatter"` or `"hard"`, a list for each method that has both of its numbers."""
    if result.detection.is_empty() or (chart == "scatter" and result.steering.is_empty()):
        return {}
    found = result.detection.filter(result.detection["kind"] != "control")
    if chart == "scatter":
        steered = result.steering.select("method", "concept_id", "overall")
        found = found.join(steered, on=["method", "concept_id"]).rename({"auroc": "x", "overall": "y"})
    else:
        found = found.rename({"auroc": "x", "auroc_hard": "y"})
    found = found.drop_nulls(["x", "y"]).join(result.concepts.select("concept_id", "name"), on="concept_id")
    points: dict[str, list[dict[str, Any]]] = {}
    for row in rows_of(found.select("method", "name", "x", "y")):
        points.setdefault(row["method"], []).append(row)
    return {method: points[method] for method in palette(result) if method in points}


def tradeoff(result: BenchResult, entries: dict[str, Entry]) -> Drawn | None:
    """Overall score against KL divergence, a point a method, and a line at what prompting reaches."""
    import altair as alt

    effects = side_effects(result)
    if not effects or result.steering_summary.is_empty():
        return None
    scored = coloured(rows_of(result.steering_summary), entries)
    fields = ("method", "colour", "overall", "overall_lo", "overall_hi")
    scored = [{field: row[field] for field in fields} for row in scored if row["overall"] is not None]
    rows = [row | {"kl": round(effects[row["method"]], 4)} for row in scored if row["method"] in effects]
    if not rows:
        return None
    few = alt.Axis(tickCount=6)
    loose = alt.Scale(zero=False, padding=14)
    x = alt.X("kl:Q", title="Side effect: KL to the unedited model, nats a token", scale=loose, axis=few)
    y = alt.Y("overall:Q", title="Overall, 0 to 2", scale=loose, axis=few)
    base = alt.Chart(data(rows)).encode(x=x, y=y, color=own_colour())
    prompt = alt.Chart(data([row for row in scored if row["method"] == "prompt"])).encode(y=y)
    bar = prompt.mark_rule(strokeDash=[4, 3], strokeWidth=1.2, color=MUTED)
    word = prompt.mark_text(align="left", dx=5, dy=-7, fontSize=11, fontStyle="italic", color=MUTED)
    word = word.encode(x=alt.value(0), text=alt.value("prompting, the bar to beat"))
    tooltip = ["method:N", alt.Tooltip("kl:Q", format=".3f"), alt.Tooltip("overall:Q", format=".3f")]
    interval = base.mark_rule(strokeWidth=2, opacity=0.35).encode(y=alt.Y("overall_lo:Q"), y2="overall_hi:Q")
    name = base.mark_text(align="left", dx=9, fontSize=12).encode(text="method:N", color=alt.value(INK))
    chart = alt.layer(
        bar, word, interval, base.mark_point(size=90, filled=True, opacity=1).encode(tooltip=tooltip), name
    )
    text = "Overall steering score of each method against its side effect"
    return chart.properties(width="container", height=300, description=text)


def scatter(result: BenchResult, entries: dict[str, Entry]) -> Drawn | None:
    """Detection against steering, a point a concept, for one method at a time."""
    points = pairs(result, "scatter")
    titles = ("Detection AUROC", "Steering overall, 0 to 2")
    return _points(points, entries, titles, (0, 2), "Detection against steering, one point a concept")


def hard(result: BenchResult, entries: dict[str, Entry]) -> Drawn | None:
    """AUROC against negatives and against look-alikes, a point a concept, for one method at a time."""
    import altair as alt

    points = pairs(result, "hard")
    titles = ("AUROC against negatives", "AUROC against look-alikes")
    chart = _points(points, entries, titles, None, "Easy against hard detection, one point a concept")
    if chart is None:
        return None
    ends = alt.Chart(data([{"x": value, "y": value} for value in (0, 1)]))
    diagonal = ends.mark_line(strokeDash=[4, 3], strokeWidth=1.2, color=MUTED, clip=True).encode(x="x:Q", y="y:Q")
    both = alt.layer(diagonal, chart)
    return both.properties(width="container", height=300, description=chart.description)


def _points(
    points: dict[str, list[dict[str, Any]]],
    entries: dict[str, Entry],
    titles: tuple[str, str],
    height: tuple[float, float] | None,
    description: str,
) -> Drawn | None:
    import altair as alt

    if not points:
        return None
    rows = [row | {"colour": entries[method].colour} for method, part in points.items() for row in part]
    low = max(0.0, min(0.5, *(row["x"] for row in rows)) - 0.02)
    across = alt.Scale(domain=[low, 1.02], nice=False)
    lowest = max(0.0, min(0.5, *(row["y"] for row in rows)) - 0.02)
    up = alt.Scale(domain=list(height) if height else [lowest, 1.02], nice=False)
    names = [alt.Tooltip("name:N", title="concept"), "method:N"]
    numbers = [alt.Tooltip(f"{field}:Q", title=title, format=".3f") for field, title in zip("xy", titles, strict=True)]
    base = alt.Chart(data(rows)).transform_filter("datum.method == method")
    dots = base.mark_point(size=65, filled=True, opacity=0.75, clip=True).encode(
        x=alt.X("x:Q", title=titles[0], scale=across),
        y=alt.Y("y:Q", title=titles[1], scale=up),
        color=own_colour(),
        tooltip=names + numbers,
    )
    chosen = alt.param(name="method", value=next(iter(points)))
    chart = alt.layer(dots).add_params(chosen)
    return chart.properties(width="container", height=300, description=description)
