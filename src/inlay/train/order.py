"""In which order a concept's examples are seen: its own shuffle, mini-batches, steps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch


@dataclass(frozen=True)
class Order:
    """The steps of one concept.

    Attributes:
        steps: for each step its mini-batches, for each of these the numbers of its examples.
        ends: after how many steps each epoch ends.
    """

    steps: list[list[list[int]]]
    ends: list[int]

    @classmethod
    def of(cls, count: int, *, batch: int, accumulate: int, epochs: int, seed: int) -> Order:
        """Shuffle `count` examples anew in every epoch, with one generator that runs on over the epochs.

        The last mini-batch of an epoch may be smaller, and its last step may have fewer mini-batches.
        """
        draws = torch.Generator().manual_seed(seed)
        steps: list[list[list[int]]] = []
        ends = []
        for _ in range(epochs):
            batches = [some.tolist() for some in torch.randperm(count, generator=draws).split(batch)]
            steps += [batches[i : i + accumulate] for i in range(0, len(batches), accumulate)]
            ends.append(len(steps))
        return cls(steps, ends)

    def first(self, step: int) -> int:
        """How many mini-batches come before a step."""
        return self._before[step]

    @cached_property
    def _before(self) -> list[int]:
        return list(accumulate((len(batches) for batches in self.steps), initial=0))
