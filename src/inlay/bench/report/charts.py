"""The charts of a report, as Vega-Lite specs: drawn for a light page, and recoloured by the page in the dark."""

from __future__ import annotations

from typing import Any

from inlay.bench.report.boards import detection_board, steering_board
from inlay.bench.report.curves import dose_curves
from inlay.bench.report.drawing import AXES, Drawn, themed
from inlay.bench.report.palette import palette
from inlay.bench.report.points import hard, scatter, tradeoff
from inlay.bench.result import BenchResult
from inlay.errors import ExtraError


def charts(result: BenchResult) -> dict[str, dict[str, Any]]:
    """Every chart that the tables allow, by name.

    `steering` and `detection` (leaderboards), `tradeoff` (effect against side effect), `dose_overall`, `dose_concept`,
    `dose_instruction`, `dose_fluency`, `scatter` (detection against steering, a point a concept) and `hard` (easy
    against hard detection). A chart without rows is left out. The `dose_*` specs take a parameter `hidden` (method
    names), `scatter` and `hard` one called `method`.

    Returns:
        Vega-Lite specs with their data inside.

    Raises:
        ExtraError: altair is not installed.
    """
    try:
        import altair  # noqa: F401
    except ImportError as error:
        raise ExtraError("drawing a report needs altair: pip install 'inlay[bench]'") from error
    entries = palette(result)
    drawn: dict[str, Drawn | None] = {
        "steering": steering_board(result, entries),
        "detection": detection_board(result, entries),
        "tradeoff": tradeoff(result, entries),
        **{f"dose_{axis}": dose_curves(result, entries, axis) for axis in AXES},
        "scatter": scatter(result, entries),
        "hard": hard(result, entries),
    }
    return {name: themed(chart).to_dict() for name, chart in drawn.items() if chart is not None}
