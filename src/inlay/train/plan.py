"""What a training will do and need, before it is started."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from inlay.interventions.edit import Edit
from inlay.model.inputs import Row
from inlay.train.footprint import footprint
from inlay.train.frozen import lowest, reach

if TYPE_CHECKING:
    from inlay.train.job import Job


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
        base_bytes: what the model's weights need.
        store_bytes: what is kept of the frozen model to the end, of the largest group: states below the Edit,
            log-probs, and the activations that the objective compares with.
        train_bytes: what the parameters, their gradients and moments need, of the largest group.
        graph_bytes: what the largest forward of a step keeps for the backward.
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
    base_bytes: int
    store_bytes: int
    train_bytes: int
    graph_bytes: int

    def __str__(self) -> str:
        run, every = self.blocks
        together = f", {self.at_once} at once" if self.concepts > self.at_once else ""
        memory = (self.base_bytes, self.store_bytes, self.train_bytes, self.graph_bytes)
        start = f"from kept {self.starts_at}: {run} of {every} blocks" if self.starts_at else f"all {every} blocks"
        return "\n".join(
            (
                f"concepts    {self.concepts}{together}",
                f"examples    {self.examples} ({self.sequences} distinct sequences, {self.tokens} tokens)",
                f"steps       {self.steps}",
                f"parameters  {self.parameters} a concept, {100 * self.parameters / self.base:.4f} % of {self.base}",
                f"forward     {start}",
                f"memory      about {_size(sum(memory))}: {_size(memory[0])} weights, {_size(memory[1])} kept of the "
                f"frozen model, {_size(memory[2])} parameters, gradients and moments, "
                f"{_size(memory[3])} for a backward",
            )
        )


def planned(job: Job, start: Edit) -> Plan:
    """The plan of a training. The objective is run on its longest example, to see what that keeps.

    Args:
        job: the Job.
        start: what one concept trains.

    Raises:
        InlayError: model, Edit, objective and examples do not fit each other.
    """
    model, setup, recipe = job.model, job.setup, job.setup.recipe
    cut = lowest(model, start) if setup.resume else None
    below = 0 if cut is None else (reach(model, cut) + 1) // 2
    trained = sum(p.numel() for p in start.parameters() if p.requires_grad)
    base = list(model.base.parameters())
    sequences = {
        name: {row for sides in (job.encoded[name], job.held[name]) for rows in sides.values() for row in rows}
        for name in job.names
    }
    groups = [set().union(*(sequences[name] for name in group)) for group in job.groups]
    steps = {name: job.learning(name, 0, job.frozen(start)).steps for name in job.names}
    most = max(len(group) for group in job.groups)
    one = footprint(job, start)
    together = min(max(1, recipe.batch_tokens // one.padded), recipe.batch * recipe.accumulate * most)
    return Plan(
        concepts=len(job.names),
        at_once=most,
        examples=sum(len(data) for data in job.data.values()),
        steps=sum(max(steps[name] for name in group) for group in job.groups),
        parameters=trained,
        base=sum(p.numel() for p in base),
        sequences=len(set().union(*groups)),
        tokens=_tokens(set().union(*groups)),
        starts_at="" if cut is None else str(cut),
        blocks=(model.layers - below, model.layers),
        base_bytes=sum(_bytes(p) for p in base),
        store_bytes=round(one.store * max(map(_tokens, groups)) / one.tokens),
        train_bytes=4 * 4 * trained * most,
        graph_bytes=one.graph * together,
    )


def _tokens(rows: set[Row]) -> int:
    return sum(len(row.ids) for row in rows)


def _bytes(parameter: nn.Parameter) -> int:
    return parameter.numel() * parameter.element_size()


def _size(count: int) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count = round(count / 1000)
    return f"{count / 1000:.1f} GB" if count >= 1000 else f"{count} MB"
