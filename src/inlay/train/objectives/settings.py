"""Checks of an objective's settings."""

from __future__ import annotations

import math
from typing import Any

from inlay.errors import TrainError


def at_least(least: float, **settings: Any) -> None:
    """Raise where a setting is not a finite number of at least `least`.

    Raises:
        TrainError: it is not.
    """
    for name, value in settings.items():
        number = isinstance(value, (int, float)) and math.isfinite(value)
        if not number or value < least:
            raise TrainError(f"{name}={value!r}: give a number of at least {least:g}")


def positive(**settings: Any) -> None:
    """Raise where a setting is not a finite number above 0.

    Raises:
        TrainError: it is not.
    """
    for name, value in settings.items():
        if not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise TrainError(f"{name}={value!r}: give a number above 0")
