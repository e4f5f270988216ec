"""What decides a run, and what its result says of itself."""

from __future__ import annotations

from dataclasses import replace

from tests.bench import small

import inlay
from inlay.bench.about import LIMITS, OWN_JUDGE, facts, info
from inlay.bench.config import BenchConfig


def test_each_part_of_a_run_decides_it() -> None:
    parts = (small.model(), small.concepts(), small.Judge(), BenchConfig.of())
    decided = facts(*parts)
    assert decided == facts(*parts) and decided["inlay"] == inlay.__version__
    half = inlay.load("tidepool", dtype="bfloat16")
    others = (
        (half, *parts[1:]),
        (parts[0], replace(small.concepts(), ask="say {concept}"), *parts[2:]),
        (*parts[:2], small.Judge(name="other"), parts[3]),
        (*parts[:3], BenchConfig.of(seed=1)),
    )
    for other, part in zip(others, ("model", "concepts", "judge", "config"), strict=True):
        assert {name for name, value in facts(*other).items() if value != decided[name]} == {part}


def test_limits_are_those_of_the_world_or_of_the_judge() -> None:
    for concepts, limits in ((small.concepts(), LIMITS), (replace(small.concepts(), world=None), OWN_JUDGE)):
        parts = (small.model(), concepts, small.Judge())
        said = info(facts(*parts, BenchConfig.of()), *parts, {"choosing": 1.234}, ["mind the gap"])
        assert (said["limits"], said["seconds"], said["warnings"]) == (limits, {"choosing": 1.2}, ["mind the gap"])
        assert said["units"] == "factor x mean length of a training state at the Site"
