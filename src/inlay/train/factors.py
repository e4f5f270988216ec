"""Random strengths of an Edit in training: which are drawn, and how a number, a list or a text says so.

Sampling the strength makes a trained vector steer over a range of strengths, with less spread between runs (RePS,
2505.20809).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from inlay.errors import TrainError


@runtime_checkable
class Factors(Protocol):
    """What draws strengths."""

    def draw(self, n: int, seed: int, step: int, which: int) -> Tensor:
        """Strengths of a mini-batch, float32 [n].

        They must depend on the arguments alone, so that a concept draws the same by itself and among others.

        Args:
            n: examples in the mini-batch.
            seed: of the run.
            step: the number of the mini-batch, counted by its concept.
            which: tells apart several draws for one example.
        """
        ...


@dataclass(frozen=True)
class Fixed:
    """One strength, always.

    Attributes:
        value: the strength.

    Raises:
        TrainError: it is not a finite number.
    """

    value: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", _number(self.value))

    def draw(self, n: int, seed: int, step: int, which: int) -> Tensor:
        """See `Factors.draw`."""
        return torch.full((n,), self.value)


@dataclass(frozen=True)
class Choice:
    """One of some strengths, each as likely as the others.

    Attributes:
        values: the strengths; one that is listed twice is twice as likely.

    Raises:
        TrainError: there are none, or one is not a finite number.
    """

    values: Sequence[float]

    def __post_init__(self) -> None:
        values = tuple(_number(value) for value in self.values)
        if not values:
            raise TrainError("factors: an empty list has no strength to choose; give at least one")
        object.__setattr__(self, "values", values)

    def draw(self, n: int, seed: int, step: int, which: int) -> Tensor:
        """See `Factors.draw`."""
        place = (_uniform(n, seed, step, which) * len(self.values)).long()
        return torch.tensor(self.values)[place]


@dataclass(frozen=True)
class Between:
    """A strength from low to below high, every one as likely as the others.

    Attributes:
        low: the least.
        high: what all are below.

    Raises:
        TrainError: low is not below high, or one of them is not a finite number.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        low, high = _number(self.low), _number(self.high)
        if not low < high:
            raise TrainError(f"Between({low:g}, {high:g}): low must be below high; for one strength give the number")
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)

    def draw(self, n: int, seed: int, step: int, which: int) -> Tensor:
        """See `Factors.draw`."""
        return (self.low + (self.high - self.low) * _uniform(n, seed, step, which)).float()


def factors(spec: Any) -> Factors:
    """Strengths as a caller gives them.

    Args:
        spec: a number; a list to choose from; a text such as `"2,4..20"` (2, 4, 6 and so on to 20, in steps of what
            lies between the two numbers before the dots, or of 1) or `"2,4..20,25,30"`; `{"between": [low, high]}`; or
            anything that can `draw`.

    Raises:
        TrainError: it is none of these.
    """
    if isinstance(spec, (Fixed, Choice, Between)) or (isinstance(spec, Factors) and not isinstance(spec, type)):
        return spec
    if isinstance(spec, str):
        values = _listed(spec)
        return Fixed(values[0]) if len(values) == 1 else Choice(values)
    if isinstance(spec, Mapping):
        ends = spec.get("between")
        if set(spec) != {"between"} or not isinstance(ends, Sequence) or len(ends) != 2:
            raise TrainError(f"factors={dict(spec)!r}: a mapping is {{'between': [low, high]}}")
        return Between(*ends)
    if isinstance(spec, Sequence):
        return Choice(tuple(spec))
    return Fixed(spec)


def _listed(text: str) -> list[float]:
    """The numbers of a text such as `"2,4..20"`."""
    values: list[float] = []
    for piece in text.split(","):
        first, dots, last = piece.partition("..")
        values.append(_number(first, text))
        if not dots:
            continue
        start, stop = values[-1], _number(last, text)
        by = start - values[-2] if len(values) > 1 else 1.0
        count = math.floor((stop - start) / by + 1e-9) if by else 0
        if count < 1:
            raise TrainError(f"factors={text!r}: steps of {by:g} do not lead from {start:g} to {stop:g}")
        values += [start + by * (i + 1) for i in range(count)]
    return values


def _number(value: Any, text: str | None = None) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        shown = f"{value!r:.60}" if text is None else f"{text!r}: {value!r}"
        raise TrainError(
            f"factors={shown} is no finite number: give a number, a list of numbers, '2,4..20' or Between(low, high)"
        )
    return number


def _uniform(n: int, seed: int, step: int, which: int) -> Tensor:
    """Numbers from 0 to below 1, float64 [n]; the first few do not depend on n."""
    digest = hashlib.sha256(f"factors {seed} {step} {which}".encode()).digest()
    draws = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(n, generator=draws, dtype=torch.float64)
