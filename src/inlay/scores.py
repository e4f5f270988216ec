"""Scores: what a judge says of many texts on one axis, with its range and its meaning."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean


@dataclass(frozen=True)
class Scores:
    """One axis of many texts.

    Attributes:
        values: one a text; `None` where the axis does not apply, or where judging it failed.
        lo, hi: the axis's range.
        meaning: what it says, in a sentence.
        raw: what the judge itself said, such as a chat model's reply or a log-probability; empty where there is no
            more to say than the value.
        failed: for each text, why it could not be judged, `None` where it was; empty where nothing can fail. A failed
            text has no value: it is counted, and never taken for 0.

    Raises:
        ValueError: `raw` or `failed` has another length than `values`, or a failed text has a value.
    """

    values: list[float | None]
    lo: float
    hi: float
    meaning: str
    raw: list[str] = field(default_factory=list)
    failed: list[str | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name, given in (("raw", self.raw), ("failed", self.failed)):
            if given and len(given) != len(self.values):
                raise ValueError(f"{len(given)} of {name} for {len(self.values)} values")
        for value, why in zip(self.values, self.failed, strict=False):
            if why is not None and value is not None:
                raise ValueError(f"a text that could not be judged ({why}) has the value {value}")

    @property
    def mean(self) -> float | None:
        """The mean over the texts that have a value, `None` where none has."""
        known = [value for value in self.values if value is not None]
        return fmean(known) if known else None

    @property
    def failures(self) -> int:
        """How many texts could not be judged."""
        return sum(why is not None for why in self.failed)
