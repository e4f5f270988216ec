"""Directions: unit vectors of concepts at a Site, in closed form or by a probe; they detect and steer."""

from __future__ import annotations

from inlay.directions.contrast import Contrast, Text
from inlay.directions.direction import Direction
from inlay.directions.find import find
from inlay.directions.folder import load, save
from inlay.directions.methods import METHODS
from inlay.directions.one import diff_mean, lat, lda, mean, pca, probe, random, token_probe
from inlay.directions.scoring import scores

__all__ = [
    "METHODS",
    "Contrast",
    "Direction",
    "Text",
    "diff_mean",
    "find",
    "lat",
    "lda",
    "load",
    "mean",
    "pca",
    "probe",
    "random",
    "save",
    "scores",
    "token_probe",
]
