"""What a training keeps in memory, measured on its longest example."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inlay.interventions.edit import Edit
from inlay.model.restored import restored
from inlay.train.banks import stacked
from inlay.train.order import Order
from inlay.train.step import Step

if TYPE_CHECKING:
    from inlay.train.job import Job


@dataclass(frozen=True)
class Footprint:
    """What one example keeps.

    Attributes:
        padded: its tokens in a forward, of all sides, each as long as its longest.
        tokens: of its distinct sequences.
        graph: bytes that the objective's forwards keep for the backward.
        store: bytes of the frozen model's states, activations and log-probs that are kept to the end.
    """

    padded: int
    tokens: int
    graph: int
    store: int


def footprint(job: Job, start: Edit) -> Footprint:
    """Run the objective once, on the longest example of a Job, and count what is kept.

    Args:
        job: the Job.
        start: what one concept trains.

    Raises:
        InlayError: the objective, the Edit and the example do not fit each other.
    """
    longest = {name: _longest(job, name) for name in job.names}
    name = max(longest, key=lambda one: longest[one][1])
    edit = stacked([start]) if job.many else start
    edit = Edit.of(edit.parts, job.model.identity()).to(job.model.device)
    frozen, index = job.frozen(edit), longest[name][0]
    all_of_it = job.learning(name, 0, frozen)
    numbers = all_of_it.numbers[index]
    alone = replace(
        all_of_it,
        examples=[job.data[name][index]],
        numbers=[numbers],
        order=Order.of(1, batch=1, accumulate=1, epochs=1, seed=0),
        steps=1,
        held_out=(),
        held_numbers=[],
    )
    loop = job.loop(frozen, edit, [alone])
    with restored(job.model.hf), torch.enable_grad(), loop.precision():
        job.model.hf.requires_grad_(False).eval()
        edit.train()
        job.fill(loop)
        step = Step(frozen, edit, alone.items(0, frozen), job.factors, job.setup.recipe.seed)
        with _saved() as graph:
            job.objective(step)
        own = _storages([*job.model.hf.parameters(), *job.model.hf.buffers(), *edit.parameters(), *frozen.kept()])
        kept = sum(size for place, size in _storages(graph).items() if place not in own)
    lengths = {n: len(frozen.sequences[n].ids) for n in numbers.values()}
    edit.eval()
    return Footprint(
        padded=len(numbers) * max(lengths.values()),
        tokens=sum(lengths.values()),
        graph=kept,
        store=sum(tensor.nbytes for tensor in frozen.kept()),
    )


def _longest(job: Job, name: str) -> tuple[int, int]:
    """The number of a concept's longest example, and the length of its longest sequence."""
    lengths = [max(len(row.ids) for row in rows) for rows in zip(*job.encoded[name].values(), strict=True)]
    return max(enumerate(lengths), key=lambda pair: pair[1])


@contextmanager
def _saved() -> Iterator[list[Tensor]]:
    """Collects every tensor that autograd keeps for a backward."""
    found: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        found.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found


def _storages(tensors: list[Tensor]) -> dict[int, int]:
    """The bytes of each distinct storage, by its address."""
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
