"""A concept in training: its examples, their order, and how far it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from inlay.train.examples import Example
from inlay.train.frozen import Frozen
from inlay.train.order import Order
from inlay.train.step import Group, Item


@dataclass
class Learning:
    """One concept while it is trained.

    Attributes:
        name: the concept's.
        index: its place among those that are trained together, from 0.
        examples: what it learns from.
        numbers: for each example its sequences by side, as `Frozen` numbers them.
        banked: whether its parameters are row `index + 1` of the Edit's Banks.
        order: its steps.
        steps: how many of them it takes.
        held_out: examples that it is measured on, and their sequences.
        stopped: after how many steps it was stopped, `None` while it goes on.
        best, since: the lowest loss on held-out examples so far, and the epochs since.
        kept: its parameters at that time, by table.
        epoch: the losses of the epoch under way.
        diverged: whether it was stopped because its loss was not finite.
    """

    name: str
    index: int
    examples: Sequence[Example]
    numbers: list[dict[str, int]]
    banked: bool
    order: Order
    steps: int
    held_out: Sequence[Example] = ()
    held_numbers: list[dict[str, int]] = field(default_factory=list)
    stopped: int | None = None
    best: float | None = None
    since: int = 0
    kept: dict[str, Tensor] = field(default_factory=dict)
    epoch: list[float] = field(default_factory=list)
    diverged: bool = False

    def live(self, step: int) -> bool:
        """Whether it has a step of this number."""
        return self.stopped is None and step < self.steps

    def items(self, step: int, frozen: Frozen) -> list[Item]:
        """The examples of one of its steps."""
        batches = self.order.steps[step]
        first, made = self.order.first(step), []
        for offset, batch in enumerate(batches):
            progress = step / self.steps
            made += self._group(frozen, self.examples, self.numbers, batch, first + offset, 1 / len(batches), progress)
        return made

    def held_items(self, frozen: Frozen) -> list[Item]:
        """The held-out examples, as one mini-batch."""
        every = list(range(len(self.held_out)))
        return self._group(frozen, self.held_out, self.held_numbers, every, 0, 1.0, 0.0)

    def _group(
        self,
        frozen: Frozen,
        examples: Sequence[Example],
        numbers: Sequence[dict[str, int]],
        batch: Sequence[int],
        number: int,
        share: float,
        progress: float,
    ) -> list[Item]:
        tokens = {side: sum(_responded(frozen, numbers[i][side]) for i in batch) for side in numbers[batch[0]]}
        group = Group(self.index, number, len(batch), tokens, share, progress)
        return [
            Item(group, place, numbers[i], self.index + 1 if self.banked else examples[i].row, examples[i].label)
            for place, i in enumerate(batch)
        ]


def _responded(frozen: Frozen, number: int) -> int:
    row = frozen.sequences[number]
    return len(row.ids) - row.prompt
