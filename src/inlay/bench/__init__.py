"""Bench: detection and steering of concepts by many methods, measured on one scale and shown in a report (AxBench)."""

from __future__ import annotations

from inlay.bench.baselines import bow
from inlay.bench.concept_set import Concept, ConceptSet, Row
from inlay.bench.config import BenchConfig
from inlay.bench.default_judge import judge_by_words, judges_for
from inlay.bench.detection import detect
from inlay.bench.metrics import auroc, overall, pick_factor
from inlay.bench.result import BenchResult
from inlay.bench.run import run

__all__ = [
    "BenchConfig",
    "BenchResult",
    "Concept",
    "ConceptSet",
    "Row",
    "auroc",
    "bow",
    "detect",
    "judge_by_words",
    "judges_for",
    "overall",
    "pick_factor",
    "run",
]
