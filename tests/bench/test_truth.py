"""What the bench finds where the truth is known, and that it runs on real weights and real data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import inlay
from inlay import bench


@pytest.mark.slow
def test_a_difference_of_means_detects_and_steers_tidepools_concepts(tmp_path: Path) -> None:
    """As in the acceptance table; above unsteered and random by more than chance, with prompting as the bar."""
    result = bench.run(
        inlay.load("tidepool"),
        ["diff_mean"],
        site=("resid_post.1", "resid_post.4"),
        factors=(0.3, 0.45, 0.6),
        max_new_tokens=36,
        out=tmp_path / "run",
    )
    detected = {row["method"]: row for row in result.detection_summary.iter_rows(named=True)}
    mine = detected["diff_mean"]
    assert mine["n"] == 30 and mine["auroc"] >= 0.95
    assert mine["auroc_hard"] < mine["auroc"]  # words that another concept has too are harder
    for name in ("length_chars", "length_tokens", "random", "style"):
        assert mine["auroc_lo"] > detected[name]["auroc_hi"]
    assert detected["bow"]["auroc"] >= 0.99  # a concept here is its words
    steered = {row["method"]: row for row in result.steering_summary.iter_rows(named=True)}
    mine = steered["diff_mean"]
    assert mine["overall"] >= 0.6 and mine["failed"] == 0
    assert mine["gain_unsteered_lo"] > 0 and mine["gain_random_lo"] > 0
    assert steered["unsteered"]["overall"] <= 0.1 and steered["prompt"]["overall"] >= 1.2
    assert 0 < mine["win_rate"] < 1
    assert (tmp_path / "run" / "report.html").stat().st_size < 3_000_000


@pytest.mark.slow
def test_real_weights_and_real_data(shared: Path, tmp_path: Path) -> None:
    model = inlay.load(shared / "data/models/stories260K")
    settings: dict[str, Any] = {"factors": (0.3, 1.0), "max_new_tokens": 16}
    result = bench.run(model, ["diff_mean"], shared / "data/axbench/mini", out=tmp_path / "run", **settings)
    detected = {row["method"]: row for row in result.detection_summary.iter_rows(named=True)}
    assert detected["bow"]["auroc"] == pytest.approx((1.0 + 0.891 + 0.922) / 3, abs=0.005)
    assert 0.4 < detected["diff_mean"]["auroc"] <= 1.0
    assert result.generations["fluency"].is_between(0.0, 2.0).all() and result.generations["failed"].null_count() > 0
    assert any("texts were cut to the model's context" in warning for warning in result.info["warnings"])
