"""The training loop: mini-batches of all live concepts in one step, and what belongs to each kept apart."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from inlay.errors import TrainError
from inlay.interventions.edit import Edit
from inlay.train.adamw import RowAdamW, Table
from inlay.train.concept import Learning
from inlay.train.frozen import Frozen
from inlay.train.recipe import Recipe
from inlay.train.step import Item, Step

if TYPE_CHECKING:
    from inlay.train.factors import Factors

Objective = Callable[[Step], Tensor]


class Loop:
    """Trains the parameters of an Edit in place.

    Args:
        frozen: the sequences and the frozen model.
        edit: what is trained.
        objective: gives every example's contribution to its concept's loss.
        concepts: who learns; several need an Edit of Banks.
        recipe: how.
        factors: random strengths.
        autocast: the dtype that the model's forwards are computed in, `None` for its own.

    Attributes:
        done: how many steps were taken.
    """

    def __init__(
        self,
        frozen: Frozen,
        edit: Edit,
        objective: Objective,
        concepts: Sequence[Learning],
        recipe: Recipe,
        factors: Factors | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.frozen, self.edit, self.objective = frozen, edit, objective
        self.concepts, self.recipe, self.factors, self.autocast = list(concepts), recipe, factors, autocast
        self.tables = tables(edit, self.concepts[0].banked)
        self.optimiser = RowAdamW(
            self.tables,
            len(self.concepts),
            betas=recipe.betas,
            eps=recipe.eps,
            weight_decay=recipe.weight_decay,
            clip=recipe.clip,
        )
        self.done = 0

    @property
    def total(self) -> int:
        """The steps of the concept that has the most."""
        return max(concept.steps for concept in self.concepts)

    def live(self) -> list[Learning]:
        """The concepts that have another step."""
        return [concept for concept in self.concepts if concept.live(self.done)]

    def step(self) -> list[dict[str, Any]]:
        """One step of every live concept; gives the rows of the log.

        Raises:
            TrainError: the loss of the only concept is not finite, or does not depend on what is trained.
        """
        live = self.live()
        items = [item for concept in live for item in concept.items(self.done, self.frozen)]
        self.edit.train()
        self.optimiser.zero_grad()
        losses, strengths = torch.zeros(len(self.concepts)), torch.zeros(len(self.concepts))
        for some in self._parts(items):
            step = self._made(some, training=True)
            with self.precision():
                values = self.objective(step)
            if not values.requires_grad:
                raise TrainError("the loss does not depend on what is trained: it has no gradient")
            values.sum().backward()
            losses.index_add_(0, step.concepts.cpu(), values.detach().float().cpu())
            strengths.index_add_(0, step.concepts.cpu(), step.per_row(step.factors()).cpu())
        rates = {concept.index: self.recipe.rate(self.done, concept.steps) for concept in live}
        sound = [index for index in rates if math.isfinite(losses[index])]
        norms = dict.fromkeys(rates, math.nan)
        if sound:
            found = self.optimiser.step(sound, [rates[index] for index in sound])
            norms |= dict(zip(sound, found.tolist(), strict=True))
        self.done += 1
        rows = []
        for concept in live:
            rate, norm = rates[concept.index], norms[concept.index]
            loss = float(losses[concept.index])
            about = {"concept": concept.name, "step": self.done - 1}
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self._diverged(concept, loss, norm)
                rows.append(about | {"diverged": True})
                continue
            concept.epoch.append(loss)
            rows.append(about | {"loss": loss, "norm": norm, "lr": rate, "factor": float(strengths[concept.index])})
            if self.done in concept.order.ends or self.done == concept.steps:
                rows.append(about | self._epoch(concept))
            if not concept.live(self.done):
                self._finish(concept)
        return rows

    def _diverged(self, concept: Learning, loss: float, norm: float) -> None:
        """Stop one concept among others; nothing of the step has reached its parameters.

        Raises:
            TrainError: it is the only one.
        """
        if not concept.banked:
            raise TrainError(
                f"the training diverged at step {self.done - 1}: the loss is {loss} and the gradient's norm {norm}; "
                f"lower lr={self.recipe.lr}"
            )
        concept.diverged = True
        self._finish(concept)

    def _made(self, items: Sequence[Item], training: bool) -> Step:
        return Step(self.frozen, self.edit, items, self.factors, self.recipe.seed, training)

    def precision(self) -> AbstractContextManager[Any]:
        """Where forwards run in the wanted dtype."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.frozen.model.device.type, self.autocast)

    def _parts(self, items: Sequence[Item]) -> Iterator[list[Item]]:
        """The items in parts of at most `batch_tokens` padded tokens a forward, longest first."""
        sides = len(items[0].numbers)
        lengths = {id(item): max(len(self.frozen.sequences[n].ids) for n in item.numbers.values()) for item in items}
        part: list[Item] = []
        for item in sorted(items, key=lambda item: -lengths[id(item)]):
            if part and (len(part) + 1) * sides * lengths[id(part[0])] > self.recipe.batch_tokens:
                yield part
                part = []
            part.append(item)
        yield part

    # -- the end of an epoch, and of a concept -----------------------------------------------------------------------

    def _epoch(self, concept: Learning) -> dict[str, Any]:
        """Measure a concept, and stop it where the recipe says so."""
        number = bisect_left(concept.order.ends, self.done) + 1
        mean, concept.epoch = sum(concept.epoch) / len(concept.epoch), []
        row: dict[str, Any] = {"epoch": number, "mean_loss": mean}
        if self.recipe.stop_below is not None and mean < self.recipe.stop_below:
            concept.stopped = self.done
        if concept.held_out:
            row["held_out"] = self.measure(concept)
            if math.isfinite(row["held_out"]) and (concept.best is None or row["held_out"] < concept.best):
                concept.best, concept.since = row["held_out"], 0
                concept.kept = {name: self._own(concept, name).clone() for name in self.tables}
            else:
                concept.since += 1
            if self.recipe.patience is not None and concept.since >= self.recipe.patience:
                concept.stopped = self.done
        return row

    @torch.no_grad()
    def measure(self, concept: Learning) -> float:
        """The loss on a concept's held-out examples, with the same random strengths every time."""
        self.edit.eval()
        found = 0.0
        for some in self._parts(concept.held_items(self.frozen)):
            with self.precision():
                found += float(self.objective(self._made(some, training=False)).sum())
        return found

    @torch.no_grad()
    def _own(self, concept: Learning, name: str) -> Tensor:
        table = self.tables[name]
        return table.rows(table.parameter)[concept.index]

    @torch.no_grad()
    def _finish(self, concept: Learning) -> None:
        """Put back the parameters that did best on held-out examples."""
        concept.stopped = self.done
        for name, values in concept.kept.items():
            self._own(concept, name).copy_(values)
        concept.kept = {}


def tables(edit: Edit, banked: bool) -> dict[str, Table]:
    """The trainable tensors of an Edit, each once, by a name that its parts give it.

    Raises:
        TrainError: there are none, or one is in half precision.
    """
    found: dict[str, Table] = {}
    seen: set[int] = set()
    for index, intervention in enumerate(edit.interventions):
        assert isinstance(intervention, nn.Module)
        for name, tensor in intervention.state().items():  # type: ignore[operator]
            if isinstance(tensor, nn.Parameter) and tensor.requires_grad and id(tensor) not in seen:
                if tensor.dtype not in (torch.float32, torch.float64):
                    raise TrainError(
                        f"{name!r} of {type(intervention).__name__} is {tensor.dtype}, in which small steps are lost: "
                        "edit.float() keeps it in float32, whatever the model's dtype is"
                    )
                seen.add(id(tensor))
                constraint = dict(intervention.constraints).get(name)  # type: ignore[arg-type]
                free = constraint is None
                found[f"{index}.{name}"] = Table(tensor, banked, free, constraint == "unit")
    if not found:
        raise TrainError(f"{edit!r:.160} has no trainable parameters: give it an intervention that has some")
    return found
