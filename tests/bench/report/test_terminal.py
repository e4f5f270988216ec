from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table
from tests.bench.report.synthetic import result

from inlay.bench.report.terminal import tables


def _printed(table: Table) -> str:
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def _cells(table: Table) -> list[list[str]]:
    return [list(map(str, row)) for row in zip(*(column.cells for column in table.columns), strict=True)]


def test_rows_are_the_summaries_best_first() -> None:
    given = result()
    steering, detection = tables(given)
    ranked = given.steering_summary.sort("overall", descending=True)
    assert [row[0] for row in _cells(steering)] == ranked["method"].to_list()
    first = ranked.row(0, named=True)
    assert _cells(steering)[0][1:3] == [
        f"{first['overall']:.3f}",
        f"[{first['overall_lo']:.3f}, {first['overall_hi']:.3f}]",
    ]
    aurocs = [float(row[1]) for row in _cells(detection)]
    assert aurocs == sorted(aurocs, reverse=True) and len(aurocs) == given.detection_summary.height


def test_what_is_no_method_is_dimmed() -> None:
    given = result()
    for table, summary in zip(tables(given), (given.steering_summary, given.detection_summary), strict=True):
        kinds = dict(summary.select("method", "kind").iter_rows())
        for cells, row in zip(_cells(table), table.rows, strict=True):
            assert row.style == ("" if kinds[cells[0]] == "method" else "dim")


def test_no_line_is_cut_or_wrapped_at_80_columns() -> None:
    given = result(methods=12)
    for table in tables(given):
        printed = _printed(table)
        for row in _cells(table):
            (line,) = [line for line in printed.splitlines() if line.split()[:1] == [row[0]]]
            assert line.split() == " ".join(row).split()


def test_a_long_name_is_shortened_and_no_number_is() -> None:
    given = result(concepts=2, methods=1)
    named = given.steering_summary.with_columns(
        method="a_method_with_a_very_long_name_" + given.steering_summary["method"]
    )
    (table,) = tables(type(given)(**(vars(given) | {"steering_summary": named, "detection_summary": named.clear()})))
    lines = [line for line in _printed(table).splitlines() if line.strip().startswith("a_method")]
    assert len(lines) == named.height
    for line, row in zip(lines, _cells(table), strict=True):
        assert line.split()[1:] == " ".join(row[1:]).split() and "…" in line.split()[0]


@pytest.mark.parametrize(("part", "title"), [("steering", "Detection"), ("detection", "Steering")])
def test_a_part_that_was_not_run_has_no_table(part: str, title: str) -> None:
    (table,) = tables(result(concepts=1, methods=1, **{part: False}))
    assert str(table.title).startswith(title)


def test_failed_judgements_are_told() -> None:
    given = result()
    failed = given.steering_summary["failed"].sum()
    assert failed > 0
    steering, detection = tables(given)
    assert steering.caption == f"{failed} replies could not be judged and are in no mean." and detection.caption is None
