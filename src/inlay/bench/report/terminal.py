"""The leaderboards of a bench run as tables for a terminal of 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inlay.bench.report.tables import interval, number, ranked
from inlay.bench.result import BenchResult

if TYPE_CHECKING:
    from rich.table import Table

# Field, head, whether its interval follows, format.
_STEERING = (
    ("overall", "overall", True, ".3f"),
    ("concept", "conc.", False, ".3f"),
    ("instruction", "instr.", False, ".3f"),
    ("fluency", "flu.", False, ".3f"),
    ("factor_global", "factor", False, "g"),
    ("gain_unsteered", "gain", False, "+.3f"),
    ("win_rate", "win", False, ".3f"),
)
_DETECTION = (
    ("auroc", "AUROC", True, ".3f"),
    ("auroc_hard", "hard", True, ".3f"),
    ("accuracy", "acc.", False, ".3f"),
    ("f1", "F1", False, ".3f"),
)


def tables(result: BenchResult) -> list[Table]:
    """The leaderboards, steering first; one that was not run is left out.

    Rows go from best to worst; baselines and controls are dimmed. `hard` is the AUROC against look-alikes, `factor` the
    one chosen for all concepts, `gain` the overall score above unsteered, `win` the share of replies better than
    prompting's. Under the table stands how many replies could not be judged, where there are any.
    """
    parts = (
        ("Steering (overall, 0 to 2; 95 % intervals over concepts)", result.steering_summary, "overall", _STEERING),
        ("Detection (AUROC; 95 % intervals over concepts)", result.detection_summary, "auroc", _DETECTION),
    )
    return [_table(title, ranked(summary, first), columns) for title, summary, first, columns in parts if len(summary)]


def _table(title: str, rows: list[dict[str, Any]], columns: tuple[tuple[str, str, bool, str], ...]) -> Table:
    from rich.box import SIMPLE
    from rich.table import Column, Table
    from rich.text import Text

    table = Table(
        Column("method", no_wrap=True, overflow="ellipsis", max_width=13),
        title=Text(title),
        title_justify="left",
        title_style="bold",
        box=SIMPLE,
        padding=0,
        caption=_failed(rows),
        caption_justify="left",
        pad_edge=False,
    )
    for _, head, ranged, _ in columns:
        table.add_column(head, justify="right", no_wrap=True)
        if ranged:
            table.add_column("95 %", no_wrap=True)
    for row in rows:
        cells = [row["method"]]
        for field, _, ranged, style in columns:
            cells.append(number(row[field], style))
            cells += [interval(row, field)] if ranged else []
        table.add_row(*map(Text, cells), style="" if row["kind"] == "method" else "dim")
    return table


def _failed(rows: list[dict[str, Any]]) -> str | None:
    """What was left out, if anything was."""
    failed = sum(row.get("failed") or 0 for row in rows)
    return f"{failed} replies could not be judged and are in no mean." if failed else None
