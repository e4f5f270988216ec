"""The numbers of a report as rows of text: what the page and the terminal print."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inlay.bench.report.palette import Entry, palette
from inlay.bench.report.points import side_effects
from inlay.bench.result import BenchResult

if TYPE_CHECKING:
    import polars as pl

NONE = "-"


@dataclass(frozen=True)
class Column:
    """A column of a summary table: its head, the field it shows, and how.

    Attributes:
        head: what stands above it.
        field: the field; its interval is in `{field}_lo` and `{field}_hi`.
        note: a sentence about it.
        interval: whether the interval is shown behind the number.
        style: a format spec; three digits by default.
    """

    head: str
    field: str
    note: str
    interval: bool = False
    style: str = ".3f"


STEERING = (
    Column("n", "n", "concepts", style="d"),
    Column("overall", "overall", "harmonic mean of the three axes, at the factor chosen for each concept", True),
    Column("concept", "concept", "how far the concept is there, 0 to 2"),
    Column("instruction", "instruction", "how far the reply does what was asked, 0 to 2"),
    Column("fluency", "fluency", "how far it is good language, 0 to 2"),
    Column("factor", "factor_global", "the one factor chosen for all concepts, at the Site shown", style="g"),
    Column("overall, one factor", "overall_global", "overall at that one factor", True),
    Column("gain over unsteered", "gain_unsteered", "paired difference of overall", True),
    Column("gain over random", "gain_random", "paired difference of overall to a random direction", True),
    Column("win rate", "win_rate", "share of replies better than prompting's; a tie is a half"),
    Column("KL", "kl", "side effect: divergence from the unedited model on its own replies, nats a token"),
    Column("log-prob drop", "logprob_drop", "side effect: how much less likely those replies become, nats a token"),
    Column("failed", "failed", "replies that could not be judged; they are in no mean", style="d"),
)
DETECTION = (
    Column("n", "n", "concepts", style="d"),
    Column("AUROC", "auroc", "texts with the concept against texts without", True),
    Column("AUROC hard", "auroc_hard", "against texts with look-alike words", True),
    Column("n hard", "n_hard", "concepts that have look-alikes", style="d"),
    Column("AUROC all", "auroc_all", "against both", True),
    Column("accuracy", "accuracy", "mean over the two classes at Youden's threshold"),
    Column("F1", "f1", "at the same scores' best threshold"),
)


@dataclass(frozen=True)
class Table:
    """A table to print: its columns, and its rows, best first, as text."""

    columns: Sequence[Column]
    rows: list[tuple[Entry, str, list[tuple[str, str]]]]


def number(value: float | None, style: str = ".3f") -> str:
    """A number as text: three digits by default, a dash for `None`."""
    return NONE if value is None else format(value, style)


def interval(row: dict[str, Any], field: str) -> str:
    """`[lo, hi]` of a field, empty where it has none."""
    low, high = row[f"{field}_lo"], row[f"{field}_hi"]
    return "" if low is None or high is None else f"[{low:.3f}, {high:.3f}]"


def ranked(summary: pl.DataFrame, field: str) -> list[dict[str, Any]]:
    """The rows of a summary, the best in a field first."""
    return (
        []
        if summary.is_empty()
        else summary.sort(field, descending=True, nulls_last=True, maintain_order=True).to_dicts()
    )


def numbers(result: BenchResult) -> dict[str, Table]:
    """Every number of the two summaries; a part that was not run is left out."""
    kl, drop = side_effects(result), side_effects(result, "logprob_drop")
    steering = [
        row | {"site": row["site_global"], "kl": kl.get(row["method"]), "logprob_drop": drop.get(row["method"])}
        for row in ranked(result.steering_summary, "overall")
    ]
    parts = {"steering": (STEERING, steering), "detection": (DETECTION, ranked(result.detection_summary, "auroc"))}
    entries = palette(result)
    return {
        name: Table(columns, [(entries[row["method"]], row["site"] or "", _cells(columns, row)) for row in rows])
        for name, (columns, rows) in parts.items()
        if rows
    }


def _cells(columns: Sequence[Column], row: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (number(row[column.field], column.style), interval(row, column.field) if column.interval else "")
        for column in columns
    ]


def tiles(result: BenchResult) -> list[dict[str, str]]:
    """The few numbers that a reader looks for first."""
    made = []
    steering = ranked(result.steering_summary, "overall")
    detection = ranked(result.detection_summary, "auroc")
    looked = (
        ("Best steering", steering, "overall", lambda row: row["kind"] == "method"),
        ("Prompting, the bar to beat", steering, "overall", lambda row: row["method"] == "prompt"),
        ("Best detector", detection, "auroc", lambda row: row["kind"] == "method"),
        ("Best trivial detector", detection, "auroc", lambda row: row["kind"] == "baseline"),
    )
    for title, rows, field, wanted in looked:
        row = next(filter(wanted, rows), None)
        if row is not None:
            what = "overall" if field == "overall" else "AUROC"
            values = {"value": number(row[field]), "interval": interval(row, field), "what": what}
            made.append({"title": title, "method": row["method"]} | values)
    return made


def heat(result: BenchResult) -> dict[str, dict[str, Any]]:
    """Concept x method, sorted by the mean over methods: `steering` (overall) and `detection` (AUROC).

    Each has `methods` (entries, the best first) and `rows`: the concept's name, its mean, and for each method the
    number and how dark its cell is, 0 to 1.
    """
    parts = {
        "steering": (result.steering, result.steering_summary, "overall", 0.0, 2.0),
        "detection": (result.detection, result.detection_summary, "auroc", 0.5, 1.0),
    }
    return {
        name: _heat(result, frame, [row["method"] for row in ranked(summary, field)], field, (low, high))
        for name, (frame, summary, field, low, high) in parts.items()
        if not frame.is_empty()
    }


def _heat(
    result: BenchResult, frame: pl.DataFrame, methods: list[str], field: str, span: tuple[float, float]
) -> dict[str, Any]:
    entries = palette(result)
    low, high = span
    values = {(row["method"], row["concept_id"]): row[field] for row in frame.iter_rows(named=True)}
    rows = []
    for concept, name in result.concepts.select("concept_id", "name").iter_rows():
        cells = [values.get((method, concept)) for method in methods]
        known = [
            cell
            for cell, method in zip(cells, methods, strict=True)
            if cell is not None and _is_method(entries, method)
        ]
        mean = sum(known) / len(known) if known else None
        shades = [None if cell is None else min(1.0, max(0.0, (cell - low) / (high - low))) for cell in cells]
        rows.append({"name": name, "mean": mean, "cells": list(zip(cells, shades, strict=True))})
    rows.sort(key=lambda row: -(row["mean"] if row["mean"] is not None else -1))
    return {"methods": [entries[method] for method in methods], "rows": rows}


def _is_method(entries: dict[str, Entry], method: str) -> bool:
    return entries[method].kind == "method"


def settings(info: dict[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """What was run, as titled lists of names and values; nested settings get dotted names."""
    judge = info.get("judge") or {}
    parts = {
        "Model": _flat(info.get("model") or {}),
        "Settings": _flat(info.get("config") or {}),
        "Judge": _flat(judge.get("identity") or {}),
        "What the axes mean": _flat(judge.get("axes") or {}),
        "Seconds": [(name, f"{value:.1f}") for name, value in (info.get("seconds") or {}).items()],
        "Versions": _flat(info.get("versions") or {}),
    }
    return {title: rows for title, rows in parts.items() if rows}


def _flat(values: dict[str, Any], before: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in values.items():
        if isinstance(value, dict) and value:
            rows += _flat(value, f"{before}{name}.")
        elif isinstance(value, str):
            rows.append((f"{before}{name}", value))
        elif isinstance(value, list | tuple) and all(isinstance(item, str | int | float) for item in value):
            rows.append((f"{before}{name}", ", ".join(map(str, value)) or NONE))
        else:
            rows.append((f"{before}{name}", NONE if value is None else json.dumps(value, default=str)))
    return rows
