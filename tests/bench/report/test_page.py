from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tests.bench.report.page import Page, rows_of
from tests.bench.report.synthetic import result

from inlay.bench import report
from inlay.bench.result import BenchResult
from inlay.errors import ExtraError, FolderError

SECTIONS = {"leaderboard", "numbers", "dose", "tradeoff", "concepts", "examples", "run"}


@pytest.fixture(scope="module")
def found() -> BenchResult:
    return result()


@pytest.fixture(scope="module")
def page(found: BenchResult) -> Page:
    return Page(report.render(found))


def _keys(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value) | {key for part in value.values() for key in _keys(part)}
    return {key for part in value for key in _keys(part)} if isinstance(value, list) else set()


def test_nothing_in_the_page_asks_for_another_file(page: Page) -> None:
    for tag, attrs in page.tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "video", "audio")
        assert not {"src", "srcset", "data", "action", "poster"} & set(attrs), (tag, attrs)
        assert (attrs.get("href") or "#").startswith("#"), (tag, attrs)
    (style,) = page.raw["style"]
    assert "url(" not in style and "@import" not in style
    assert "fetch(" not in page.raw["script"][2] and "import" not in page.raw["script"][2]
    assert "url" not in _keys(page.specs)
    policies = [attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policies and str(policies[0]).startswith("default-src 'none'") and "connect-src" not in str(policies[0])


def _cell(row: dict[str, Any], name: str) -> str:
    if row[name] is None:
        return "-"
    low, high = row[f"{name}_lo"], row[f"{name}_hi"]
    return f"{row[name]:.3f} [{low:.3f}, {high:.3f}]"


def test_every_number_of_the_steering_summary_is_in_its_table(found: BenchResult, page: Page) -> None:
    means = found.side_effects.group_by("method").agg(pl.col("kl", "logprob_drop").mean())
    effects = {method: [f"{kl:.3f}", f"{drop:.3f}"] for method, kl, drop in means.iter_rows()}
    rows = {row[0]: row[1:] for row in page.tables[0][1:]}
    assert len(rows) == found.steering_summary.height
    for row in found.steering_summary.iter_rows(named=True):
        tag = "" if row["kind"] == "method" else row["kind"]
        wanted = [row["site_global"] or "-", str(row["n"]), _cell(row, "overall")]
        wanted += [f"{row[axis]:.3f}" for axis in ("concept", "instruction", "fluency")]
        wanted += ["-" if row["factor_global"] is None else f"{row['factor_global']:g}", _cell(row, "overall_global")]
        wanted += [_cell(row, "gain_unsteered"), _cell(row, "gain_random")]
        wanted += ["-" if row["win_rate"] is None else f"{row['win_rate']:.3f}"]
        wanted += [*effects.get(row["method"], ["-", "-"]), str(row["failed"])]
        assert rows[row["method"] + tag] == wanted


def test_every_number_of_the_detection_summary_is_in_its_table(found: BenchResult, page: Page) -> None:
    rows = {row[0]: row[1:] for row in page.tables[1][1:]}
    assert len(rows) == found.detection_summary.height
    for row in found.detection_summary.iter_rows(named=True):
        tag = "" if row["kind"] == "method" else row["kind"]
        wanted = [row["site"] or "-", str(row["n"]), _cell(row, "auroc"), _cell(row, "auroc_hard"), str(row["n_hard"])]
        wanted += [_cell(row, "auroc_all"), f"{row['accuracy']:.3f}", f"{row['f1']:.3f}"]
        assert rows[row["method"] + tag] == wanted


@pytest.mark.parametrize(("table", "name", "field"), [(2, "steering", "overall"), (3, "detection", "auroc")])
def test_every_concept_and_method_has_its_cell(
    found: BenchResult, page: Page, table: int, name: str, field: str
) -> None:
    head, *rows = page.tables[table]
    names = dict(found.concepts.select("name", "concept_id").iter_rows())
    known = {(row["method"], row["concept_id"]): row for row in getattr(found, name).iter_rows(named=True)}
    assert {row[0] for row in rows} == set(names)
    for row in rows:
        for method, cell in zip(head[2:], row[2:], strict=True):
            assert cell == f"{known[method, names[row[0]]][field]:.3f}"
        own = [known[m, names[row[0]]][field] for m in head[2:] if known[m, names[row[0]]]["kind"] == "method"]
        assert row[1] == f"{sum(own) / len(own):.3f}"
    assert [float(row[1]) for row in rows] == sorted((float(row[1]) for row in rows), reverse=True)


def test_what_was_run_is_all_said(found: BenchResult, page: Page) -> None:
    said = {row[0]: row[1] for table in page.tables[4:] for row in table if len(row) == 2}
    assert said["steering.factors"] == "0.2, 0.5" and said["methods"] == "diff_mean, pca"
    assert said["fit"] == "12.3" and said["torch"] == "2.13.0" and said["revision"] == "-"
    assert said["concept"] == found.info["judge"]["axes"]["concept"]
    for text in (*found.info["warnings"], found.info["limits"], found.info["machine"], found.info["units"]):
        assert text in page.text


def test_a_whole_run_has_every_section(page: Page) -> None:
    assert page.ids() >= SECTIONS
    places = {attrs["data-chart"] for _, attrs in page.tags if "data-chart" in attrs}
    assert places == set(page.specs) and len(places) == 9


@pytest.mark.parametrize(
    ("left", "sections", "charts"),
    [
        ({"steering": False}, {"leaderboard", "numbers", "concepts", "run"}, {"detection", "hard"}),
        ({"detection": False}, SECTIONS, {"steering", "tradeoff", "dose_overall"}),
        ({"steering": False, "detection": False}, {"run"}, set()),
    ],
)
def test_what_was_not_run_leaves_no_trace(left: dict[str, bool], sections: set[str], charts: set[str]) -> None:
    page = Page(report.render(result(concepts=2, methods=2, **left)))
    assert page.ids() & SECTIONS == sections
    assert set(page.specs) >= charts
    assert "scatter" not in page.specs


def test_tables_without_columns_count_as_not_run() -> None:
    empty = pl.DataFrame()
    names = ("detection", "detection_summary", "generations", "steering", "steering_summary", "dose", "side_effects")
    nothing = replace(result(concepts=1, methods=1), **dict.fromkeys(names, empty))
    assert Page(report.render(nothing)).ids() & SECTIONS == {"run"}


def test_a_method_that_could_not_be_judged_is_listed_without_a_score() -> None:
    given = result(concepts=2, methods=2)
    blank = pl.when(pl.col("method") != "pca")
    gone = [blank.then(pl.col(name)).alias(name) for name in ("overall", "overall_lo", "overall_hi")]
    page = Page(report.render(replace(given, steering_summary=given.steering_summary.with_columns(gone))))
    row = page.tables[0][-1]
    assert row[0] == "pca" and row[3] == "-"
    assert "pca" not in {drawn["method"] for drawn in rows_of(page.specs["steering"])}


EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)> {{ 7 * 7 }} <!-- '\"&"


def test_texts_cannot_break_out() -> None:
    given = result(concepts=2, methods=1)
    plain = Page(report.render(given))
    named = given.concepts.with_columns(name=pl.lit(EVIL) + pl.col("concept_id").cast(pl.String))
    words = pl.Series("lexicon", [[EVIL, "lane"]] * 2)
    texts = given.generations.with_columns(text=pl.lit(EVIL), prompt=pl.lit(EVIL))
    info = given.info | {"title": EVIL, "warnings": [EVIL], "limits": EVIL, "machine": EVIL}
    evil = Page(report.render(replace(given, concepts=named.with_columns(words), generations=texts, info=info)))
    for tag in ("script", "img", "style", "section", "article"):
        assert evil.count(tag) == plain.count(tag)
    assert evil.count("img") == 0
    assert EVIL in evil.text and "49" not in evil.text.split("Examples")[1].split("What was run")[0]
    assert evil.marked[1:] == [EVIL] * (len(evil.marked) - 1) and len(evil.marked) > 1
    assert EVIL + "0" in {point["name"] for point in rows_of(evil.specs["scatter"])}


def test_a_page_of_the_usual_size_stays_small() -> None:
    text = report.render(result(concepts=30, methods=8))
    assert len(text.encode()) < 3_000_000
    assert "30 of 30 concepts" in text


def test_write_leaves_one_whole_file(tmp_path: Path) -> None:
    given = result(concepts=1, methods=1)
    target = tmp_path / "new" / "report.html"
    assert report.write(given, target) == target
    assert target.read_text() == report.render(given)
    assert [file.name for file in target.parent.iterdir()] == ["report.html"]


def test_a_place_that_cannot_be_written_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match=r"could not be written to .*file"):
        report.write(result(concepts=1, methods=1), tmp_path / "file" / "report.html")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FolderError, match="folder"):
        report.write(result(concepts=1, methods=1), tmp_path / "folder")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("library", ["altair", "jinja2", "vl_convert"])
def test_an_absent_library_names_the_extra(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ExtraError, match=r"inlay\[bench\]"):
        report.render(result(concepts=1, methods=1))


def test_the_summary_counts_what_was_run() -> None:
    given = result(concepts=1, methods=1)
    assert report.summary(given) == (
        "1 concept: 1 method, 4 baselines and 2 controls detect in 72 texts; 1 method, 2 baselines and 1 control steer "
        f"{given.generations.height} replies."
    )
