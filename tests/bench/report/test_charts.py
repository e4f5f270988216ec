from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest
from tests.bench.report.page import rows_of
from tests.bench.report.synthetic import result

from inlay.bench.report.charts import charts
from inlay.bench.report.curves import dose_rows
from inlay.bench.report.palette import palette

SIZES = [(1, 1), (6, 4), (12, 12)]


@pytest.mark.parametrize(("concepts", "methods"), SIZES)
def test_every_chart_can_be_drawn(concepts: int, methods: int) -> None:
    vl_convert = pytest.importorskip("vl_convert")
    drawn = charts(result(concepts=concepts, methods=methods))
    # One concept has no look-alikes.
    assert len(drawn) == (8 if concepts == 1 else 9)
    for name, spec in drawn.items():
        svg = vl_convert.vegalite_to_svg(spec | {"width": 400})
        assert svg.startswith("<svg") and spec["description"], name


def test_a_method_has_one_colour_in_all_charts() -> None:
    given = result(methods=12)
    found: dict[str, set[str]] = {}
    for row in rows_of(charts(given)):
        if "colour" in row:
            found.setdefault(row["method"], set()).add(row["colour"])
    entries = palette(given)
    assert found == {method: {entry.colour} for method, entry in entries.items()}
    own = [entry.colour for entry in entries.values() if entry.kind == "method"]
    assert len(set(own)) == len(own) == 12
    assert not set(own) & {entry.colour for entry in entries.values() if entry.kind != "method"}


def test_baselines_and_controls_are_named_as_such() -> None:
    labels = {entry.label for entry in palette(result(methods=1)).values()}
    assert {"diff_mean", "prompt (baseline)", "random (control)", "bow (baseline)"} <= labels


def test_the_curve_is_ringed_at_the_global_factor() -> None:
    given = result(methods=3)
    rows = [row for row in rows_of(charts(given)["dose_overall"]) if row.get("chosen")]
    wanted = dict(given.steering_summary.select("method", "factor_global").iter_rows())
    assert rows
    assert {row["method"] for row in rows} == {"diff_mean", "pca", "lat", "random"}
    for row in rows:
        assert row["factor"] == wanted[row["method"]]


def test_a_curve_is_at_the_one_site_of_its_method() -> None:
    given = result(methods=3)
    assert set(given.dose["site"]) == {"resid_post.3", "resid_post.5"}
    curves = dose_rows(given)
    assert set(curves["site"]) == {"resid_post.3"} and curves.height == given.dose.height // 2
    alone = given.steering_summary.with_columns(site_global=pl.lit(None, pl.String))
    # Without a shared choice it is the Site of the best row.
    assert dose_rows(replace(given, steering_summary=alone)).equals(curves)


def test_a_baseline_is_a_line_at_its_summary() -> None:
    given = result(methods=1)
    means = dict(given.steering_summary.select("method", "overall").iter_rows())
    rows = [row for row in rows_of(charts(given)["dose_overall"]) if row["kind"] == "baseline"]
    assert {row["method"]: row["overall"] for row in rows} == {
        method: round(means[method], 4) for method in ("prompt", "unsteered")
    }
