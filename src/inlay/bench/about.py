"""What a run says of itself: what decides its rows, and what a reader of its numbers has to know."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import torch

from inlay._version import __version__
from inlay.bench.concept_set import ConceptSet
from inlay.bench.config import BenchConfig
from inlay.judges.judge import Judge
from inlay.model.fingerprint import weights

if TYPE_CHECKING:
    from inlay.model.model import Model

LIMITS = (
    "A result on a micro-world says that an implementation is right, that a method recovers what was planted and does "
    "not find what was not, what it costs, and how it fails as one knob turns. It does not say how strong a method is "
    "on a real model, nor how methods rank there: concepts of a model of this size are near-orthogonal and lexical, "
    "and a difference of means looks better on it than on Gemma."
)
OWN_JUDGE = "Scores by another judge, template or temperature than a publication's are not comparable with its numbers."


def facts(model: Model, concepts: ConceptSet, judge: Judge, config: BenchConfig) -> dict[str, Any]:
    """What decides the rows of a run; another run's differ in at least one."""
    return {
        "model": model.identity() | {"weights": weights(model)},
        "concepts": {"name": concepts.name, "digest": concepts.digest},
        "judge": judge.identity(),
        "config": config.facts(),
        "inlay": __version__,
    }


def info(
    decided: Mapping[str, Any],
    model: Model,
    concepts: ConceptSet,
    judge: Judge,
    seconds: Mapping[str, float],
    warnings: Sequence[str],
) -> dict[str, Any]:
    """What a result's `info` has: the facts, the judge's axes and cost, times, versions, units, warnings and limits."""
    return {
        "title": f"{decided['model']['name']} on {concepts.name}",
        "model": decided["model"],
        "concept_set": concepts.name,
        "config": decided["config"],
        "judge": {
            "identity": decided["judge"],
            "axes": {name: axis.meaning for name, axis in judge.axes.items()},
            "cost": str(getattr(judge, "cost", "")),
        },
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "versions": _versions(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s), {model.device}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "units": "factor x mean length of a training state at the Site",
        "warnings": list(warnings),
        "limits": LIMITS if concepts.world is not None else OWN_JUDGE,
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("inlay", "torch", "transformers", "scikit-learn"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
