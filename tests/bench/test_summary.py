"""From rows to tables, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from inlay.bench.metrics import interval
from inlay.bench.plan import Choice, Picked
from inlay.bench.summary import detection_summary, dose, kind_of, steering_summary, steering_table


def row(method: str, concept: int, prompt: int, overall: float | None, factor: float = 0.0, site: str = "a") -> Any:
    scores = {"overall": overall, "concept": overall, "instruction": 2.0, "fluency": None if overall is None else 1.0}
    where = {"site": site if factor else "", "factor": factor}
    return {"method": method, "concept_id": concept, "prompt_id": prompt, **where, **scores}


PICKED = Picked(
    {("pca", 0): Choice("a", 1.0), ("pca", 1): Choice("b", 2.0), **{("random", c): Choice("a", 1.0) for c in (0, 1)}},
    {"pca": Choice("a", 1.0), "random": Choice("a", 1.0)},
)
REPORT = [
    *(row("unsteered", c, p, 0.0) for c in (0, 1) for p in (2, 3)),
    *(row("prompt", 0, 2, 1.0), row("prompt", 0, 3, 1.5), row("prompt", 1, 2, 2.0), row("prompt", 1, 3, None)),
    *(row("pca", 0, 2, 1.0 + 1e-9, 1.0), row("pca", 0, 3, 2.0, 1.0)),  # a tie and a win
    *(row("pca", 1, 2, 1.2, 2.0, "b"), row("pca", 1, 3, 1.2, 2.0, "b")),  # a loss, and nothing to compare with
    *(row("pca", 1, 2, 0.4, 1.0), row("pca", 1, 3, None, 1.0)),
    *(row("random", c, p, 0.2, 1.0) for c in (0, 1) for p in (2, 3)),
]
CHOOSE = [
    *(row("pca", 0, 0, 1.0, 1.0), row("pca", 0, 1, None, 1.0), row("pca", 1, 0, 0.5, 1.0), row("pca", 1, 1, 0.7, 1.0)),
    *(row("pca", 0, 0, None, 2.0), row("pca", 0, 1, None, 2.0), row("pca", 1, 0, 2.0, 2.0, "b")),
    *(row(m, c, 0, 0.0) for m in ("unsteered", "prompt") for c in (0, 1)),
]


def table(by_choice: str = "concept") -> dict[tuple[str, int], dict[str, Any]]:
    found = steering_table(CHOOSE, REPORT, PICKED, by_choice)
    assert len(found) == 8
    return {(one["method"], one["concept_id"]): one for one in found}


def test_a_methods_row_is_at_its_own_choice() -> None:
    found = table()
    assert found["pca", 0]["overall"] == pytest.approx(1.5) and found["pca", 1]["overall"] == pytest.approx(1.2)
    assert (found["pca", 1]["site"], found["pca", 1]["factor"]) == ("b", 2.0)
    assert found["pca", 1]["overall_global"] == pytest.approx(0.4)  # the failed one is no 0
    assert found["pca", 0]["overall_global"] == found["pca", 0]["overall"]
    assert (found["pca", 0]["instruction"], found["pca", 0]["fluency"]) == (2.0, 1.0)
    plain = found["unsteered", 0]
    assert (plain["overall"], plain["site"], plain["factor"], plain["kind"]) == (0.0, None, 0.0, "baseline")


def test_a_global_choice_fills_every_row_at_it() -> None:
    found = table("global")
    assert found["pca", 1]["overall"] == found["pca", 1]["overall_global"] == pytest.approx(0.4)
    assert (found["pca", 1]["site"], found["pca", 1]["factor"]) == ("a", 1.0)
    assert found["random", 0] == table()["random", 0]


def test_win_rates_against_prompting() -> None:
    found = table()
    assert found["pca", 0]["win_rate"] == 0.75  # a tie is half a win
    assert found["pca", 1]["win_rate"] == 0.0  # a prompt whose rating failed is compared with nothing
    assert found["prompt", 0]["win_rate"] is None
    assert table("global")["pca", 1]["win_rate"] == 0.0


def test_failures_are_counted() -> None:
    found = table()
    assert found["pca", 0]["failed"] == 3  # all while choosing
    assert found["pca", 1]["failed"] == table("global")["pca", 1]["failed"] == 1  # at the shared choice
    assert found["prompt", 1]["failed"] == 1 and found["prompt", 1]["overall"] == 2.0


def test_means_over_concepts_and_paired_gains() -> None:
    rows = list(table().values())
    found = steering_summary(rows, PICKED, seed=5)
    assert [one["method"] for one in found] == ["prompt", "pca", "random", "unsteered"]
    by = {one["method"]: one for one in found}
    pca = by["pca"]
    assert pca["overall"] == pytest.approx(1.35) and pca["overall_global"] == pytest.approx((1.5 + 0.4) / 2)
    assert (pca["overall_lo"], pca["overall_hi"]) == pytest.approx(interval([1.5, 1.2], 5))
    assert pca["gain_unsteered"] == pytest.approx(1.35) and pca["gain_random"] == pytest.approx(1.15)
    assert (pca["gain_random_lo"], pca["gain_random_hi"]) == pytest.approx(interval([1.3, 1.0], 5))
    assert (pca["n"], pca["failed"], pca["win_rate"]) == (2, 4, pytest.approx(0.375))
    assert (pca["site_global"], pca["factor_global"]) == ("a", 1.0)
    assert by["unsteered"]["gain_unsteered"] is None and by["random"]["gain_random"] is None
    assert by["random"]["gain_unsteered"] == pytest.approx(0.2)
    assert by["prompt"]["win_rate"] is None and by["prompt"]["factor_global"] is None


def test_a_method_whose_every_rating_failed() -> None:
    report = [
        row(m, 0, 2, None if m == "pca" else 0.5, 0.0 if m in ("unsteered", "prompt") else 1.0)
        for m in ("unsteered", "prompt", "pca", "random")
    ]
    found = steering_summary(steering_table([], report, PICKED), PICKED, 0)
    last = next(one for one in found if one["method"] == "pca")
    assert last["overall"] is last["overall_lo"] is last["gain_random"] is last["win_rate"] is None
    assert (last["n"], last["failed"]) == (0, 1)


def test_dose_is_a_mean_over_concepts() -> None:
    found = {(one["method"], one["site"], one["factor"]): one for one in dose(CHOOSE, 0)}
    assert set(found) == {("pca", "a", 1.0), ("pca", "a", 2.0), ("pca", "b", 2.0)}  # nothing without a factor
    first = found["pca", "a", 1.0]
    assert first["overall"] == pytest.approx((1.0 + 0.6) / 2) and first["kind"] == "method"
    assert (first["overall_lo"], first["overall_hi"]) == pytest.approx(interval([1.0, 0.6], 0))
    assert found["pca", "a", 2.0]["overall"] is found["pca", "a", 2.0]["overall_lo"] is None


def detected(method: str, concept: int, auroc: float, hard: float | None, site: str | None = "a") -> dict[str, Any]:
    found = {"method": method, "kind": kind_of(method), "site": site, "concept_id": concept, "auroc": auroc}
    return found | {"auroc_hard": hard, "auroc_all": auroc - 0.1, "accuracy": 0.5, "f1": 0.25 * (1 + concept)}


def test_the_summary_of_detection() -> None:
    rows = [detected("bow", 0, 0.6, 0.4, None), detected("bow", 1, 0.7, 0.4, None)]
    rows += [detected("pca", 0, 0.9, None), detected("pca", 1, 0.8, 0.7, "b")]
    pca, bow = detection_summary(rows, 2)
    assert (pca["method"], pca["n"], pca["n_hard"], pca["site"]) == ("pca", 2, 1, "2 sites")
    assert pca["auroc"] == pytest.approx(0.85) and pca["auroc_hard"] == 0.7 and pca["f1"] == 0.375
    assert (pca["auroc_lo"], pca["auroc_hi"]) == interval([0.9, 0.8], 2)
    assert (bow["kind"], bow["site"], bow["auroc_all"]) == ("baseline", None, pytest.approx(0.55))
    (easy,) = detection_summary(rows[2:3], 2)
    assert easy["auroc_hard"] is easy["auroc_hard_lo"] is None and easy["site"] == "a"
    assert detection_summary([], 0) == steering_summary([], PICKED, 0) == dose([], 0) == []


def test_kinds() -> None:
    assert [kind_of(m) for m in ("diff_mean", "random", "prompt", "unsteered", "bow")] == [
        "method",
        "control",
        "baseline",
        "baseline",
        "baseline",
    ]
