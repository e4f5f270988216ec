"""What a training will do and need, before it is started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from inlay.interventions.edit import Edit
from inlay.model.inputs import Row
from inlay.train.frozen import lowest, reach
from inlay.train.order import Order
from inlay.train.recipe import Recipe

if TYPE_CHECKING:
    from inlay.model.model import Model


@dataclass(frozen=True)
class Plan:
    """A training in numbers.

    Attributes:
        concepts: how many are trained, and at once.
        at_once: how many of them together.
        examples: of all concepts.
        steps: of the concept that has the most, and of all groups of concepts, one after the other.
        parameters: trainable ones of one concept.
        base: parameters of the model.
        sequences: distinct sequences.
        tokens: of all of them.
        starts_at: the state that every forward starts from, `""` where it starts from the ids.
        blocks: blocks that a training forward runs, of all blocks.
        state_bytes: what kept states need, of the largest group.
        train_bytes: what the parameters, their gradients and moments need, of the largest group.
        base_bytes: what the model's weights need.
    """

    concepts: int
    at_once: int
    examples: int
    steps: int
    parameters: int
    base: int
    sequences: int
    tokens: int
    starts_at: str
    blocks: tuple[int, int]
    state_bytes: int
    train_bytes: int
    base_bytes: int

    def __str__(self) -> str:
        run, every = self.blocks
        together = f", {self.at_once} at once" if self.concepts > self.at_once else ""
        start = f"from kept {self.starts_at}: {run} of {every} blocks" if self.starts_at else f"all {every} blocks"
        return "\n".join(
            (
                f"concepts    {self.concepts}{together}",
                f"examples    {self.examples} ({self.sequences} distinct sequences, {self.tokens} tokens)",
                f"steps       {self.steps}",
                f"parameters  {self.parameters} a concept, {100 * self.parameters / self.base:.4f} % of {self.base}",
                f"forward     {start}",
                f"memory      {_size(self.base_bytes)} weights, {_size(self.state_bytes)} kept states, "
                f"{_size(self.train_bytes)} parameters, gradients and moments; beside these a forward and its graph",
            )
        )


def planned(
    model: Model,
    edit: Edit,
    sequences: Mapping[str, Sequence[Row]],
    counts: Mapping[str, int],
    recipe: Recipe,
    *,
    resume: bool,
    at_once: int,
) -> Plan:
    """The plan of a training.

    Args:
        model: the Model.
        edit: what one concept trains.
        sequences: every concept's sequences, of all sides.
        counts: every concept's number of examples.
        recipe: how.
        resume: whether states below the Edit are kept.
        at_once: how many concepts are trained together.
    """
    cut = lowest(model, edit) if resume else None
    names = list(counts)
    groups = [names[i : i + at_once] for i in range(0, len(names), at_once)]
    trained = sum(p.numel() for p in edit.parameters() if p.requires_grad)
    base = list(model.base.parameters())
    width = next((p.element_size() for p in base if p.is_floating_point()), 4)
    kept = max(sum(len(row.ids) for row in {row for name in group for row in sequences[name]}) for group in groups)
    every = {row for rows in sequences.values() for row in rows}
    below = 0 if cut is None else (reach(model, cut) + 1) // 2
    return Plan(
        concepts=len(names),
        at_once=min(at_once, len(names)),
        examples=sum(counts.values()),
        steps=sum(max(_steps(counts[name], recipe) for name in group) for group in groups),
        parameters=trained,
        base=sum(p.numel() for p in base),
        sequences=len(every),
        tokens=sum(len(row.ids) for row in every),
        starts_at="" if cut is None else str(cut),
        blocks=(model.layers - below, model.layers),
        state_bytes=0 if cut is None else kept * model.width * width,
        train_bytes=4 * 4 * trained * max(len(group) for group in groups),
        base_bytes=sum(_bytes(p) for p in base),
    )


def _steps(count: int, recipe: Recipe) -> int:
    order = Order.of(count, batch=recipe.batch, accumulate=recipe.accumulate, epochs=recipe.epochs, seed=recipe.seed)
    return len(order.steps) if recipe.max_steps is None else min(recipe.max_steps, len(order.steps))


def _bytes(parameter: nn.Parameter) -> int:
    return parameter.numel() * parameter.element_size()


def _size(count: int) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count = round(count / 1000)
    return f"{count / 1000:.1f} GB" if count >= 1000 else f"{count} MB"
