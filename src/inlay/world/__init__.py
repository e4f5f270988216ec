"""Micro-worlds with ground truth: a generator, an exact judge, and the models that are trained on them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.world.acceptance import Report, check
from inlay.world.concept import Concept
from inlay.world.config import TrainConfig, read_config
from inlay.world.line import Line, Span
from inlay.world.scores import Scorer
from inlay.world.world import World

if TYPE_CHECKING:
    from inlay.world.training import train

__all__ = [
    "Concept",
    "Line",
    "Report",
    "Scorer",
    "Span",
    "TrainConfig",
    "World",
    "check",
    "load",
    "read_config",
    "tidepool",
    "train",
]


def __getattr__(name: str) -> Any:
    if name != "train":
        raise AttributeError(f"module 'inlay.world' has no attribute {name!r}")
    from inlay.world.training import train  # loads torch

    return train


def tidepool(seed: int = 0) -> World:
    """The world that ships with inlay.

    Args:
        seed: the seed of its lines.
    """
    return World(Path(__file__).parent / "tidepool", seed)


def load(folder: str | Path, seed: int = 0) -> World:
    """A world of your own, from its folder.

    Args:
        folder: holds `world.yaml`, `words/`, `templates/` and `concepts.jsonl`.
        seed: the seed of its lines.

    Raises:
        WorldError: a file is missing or broken.
    """
    return World(folder, seed)
