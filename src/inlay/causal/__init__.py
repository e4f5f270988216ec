"""Causal analysis: which parts of a model carry what, found by setting them and looking at what follows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inlay.causal.alignment import Alignment
from inlay.causal.causal_model import CausalModel
from inlay.causal.counterfactuals import Counterfactual, counterfactuals
from inlay.causal.das import das
from inlay.causal.grid import ablate_grid, patch_grid
from inlay.causal.iit import iit_loss, iit_training
from inlay.causal.interchange import GroupAccuracy, InterchangeAccuracy, interchange_accuracy
from inlay.causal.lens import LensReading, logit_lens
from inlay.causal.logit_attribution import accumulated, logit_attribution
from inlay.causal.metrics import (
    Metric,
    accuracy,
    kl_divergence,
    log_probability,
    logit_difference,
    normalised,
    probability,
)
from inlay.causal.path import path_grid, path_patch
from inlay.causal.tracing import causal_trace
from inlay.causal.tuned_lens import TunedLens

if TYPE_CHECKING:
    from inlay.causal.labelled import Grid

__all__ = [
    "Alignment",
    "CausalModel",
    "Counterfactual",
    "Grid",
    "GroupAccuracy",
    "InterchangeAccuracy",
    "LensReading",
    "Metric",
    "TunedLens",
    "ablate_grid",
    "accumulated",
    "accuracy",
    "causal_trace",
    "counterfactuals",
    "das",
    "iit_loss",
    "iit_training",
    "interchange_accuracy",
    "kl_divergence",
    "log_probability",
    "logit_attribution",
    "logit_difference",
    "logit_lens",
    "normalised",
    "patch_grid",
    "path_grid",
    "path_patch",
    "probability",
]


def __getattr__(name: str) -> Any:
    if name == "Grid":  # needs xarray, and what returns no labelled result does not
        from inlay.causal.labelled import Grid

        return Grid
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
