"""Train interchanges: rows of one group of variables in a step, a mask that cools, a gradient above the Site alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from inlay.causal.stored_runs import StoredRuns
from inlay.errors import CausalError
from inlay.interventions.base import Intervention
from inlay.interventions.masks import Masked, set_temperature


@dataclass(frozen=True)
class Recipe:
    """How an alignment is trained; `das` says what each setting is.

    Raises:
        CausalError: a setting is out of range.
    """

    epochs: int
    batch: int
    lr: float
    mask_lr: float
    warmup: float
    penalty: float
    cool_to: float | None
    seed: int

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1:
            raise CausalError(f"epochs={self.epochs} and batch={self.batch} must be at least 1")
        for name in ("lr", "mask_lr", "cool_to"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise CausalError(f"{name}={value}: give a positive number")
        if not 0 <= self.penalty < float("inf"):
            raise CausalError(f"penalty={self.penalty} is a weight, 0 or a positive number")
        if not 0 <= self.warmup < 1:
            raise CausalError(f"warmup={self.warmup} is a share of the steps, from 0 to below 1")

    def rate(self, step: int, steps: int, falls: bool) -> float:
        """The factor on a learning rate at a step."""
        rising = int(self.warmup * steps)
        if step < rising:
            return (step + 1) / (rising + 1)
        return (steps - step) / (steps - rising) if falls else 1.0

    def heat(self, start: float, step: int, steps: int) -> float:
        """A mask's temperature at a step."""
        end = start / 500 if self.cool_to is None else self.cool_to
        return start + (end - start) * step / max(1, steps - 1)


def train(
    runs: StoredRuns, interventions: Sequence[Intervention], recipe: Recipe, progress: bool
) -> dict[str, list[float]]:
    """Train interventions in place on the counterfactual labels; gives the history of an `Alignment`.

    Args:
        runs: the data.
        interventions: what is trained: one, or several with parameters in common; of masks one at most.
        recipe: how.
        progress: show a progress bar.

    Raises:
        CausalError: there is nothing to train, or the training diverged.
    """
    batches = _batches(runs, recipe)
    optimiser = _optimiser(interventions, recipe)
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimiser, [partial(recipe.rate, steps=len(batches), falls=group["falls"]) for group in optimiser.param_groups]
    )
    mask = next((one for one in interventions if isinstance(one, Masked)), None)
    start = 0.0 if mask is None else float(mask.state()["temperature"])
    seen: dict[str, list[Tensor]] = {}
    for one in interventions:
        one.train()
    with _bar(progress, len(batches)) as advance:
        for step, rows in enumerate(batches):
            optimiser.zero_grad()
            if mask is not None:
                set_temperature(mask, recipe.heat(start, step, len(batches)))
            found = {"loss": _gradients(runs, rows)}
            if mask is not None:
                share = mask.share()
                (recipe.penalty * share).backward()
                found |= {"share": share.detach(), "temperature": mask.state()["temperature"].clone()}
            optimiser.step()
            rates.step()
            for name, value in found.items():
                seen.setdefault(name, []).append(value)
            advance(1)
    optimiser.zero_grad()
    for one in interventions:
        one.eval()
    history = {name: torch.stack(values).tolist() for name, values in seen.items()}
    if not all(bool(p.isfinite().all()) for one in interventions for p in one.parameters()):
        raise CausalError(f"the training diverged, and the last loss is {history['loss'][-1]}; lower lr={recipe.lr}")
    return history


def _batches(runs: StoredRuns, recipe: Recipe) -> list[list[int]]:
    """The rows of every step: all rows once an epoch, and in a step rows that set the same variables."""
    draws = torch.Generator().manual_seed(recipe.seed)
    every: list[list[int]] = []
    for _ in range(recipe.epochs):
        epoch = []
        for rows in runs.groups.values():
            order = torch.randperm(len(rows), generator=draws)
            epoch += [[rows[i] for i in some] for some in order.split(recipe.batch)]
        every += [epoch[i] for i in torch.randperm(len(epoch), generator=draws)]
    return every


def _optimiser(interventions: Sequence[Intervention], recipe: Recipe) -> torch.optim.Adam:
    """Adam over each parameter once; a mask's own have a rate of theirs that does not fall."""
    groups: dict[nn.Parameter, dict[str, Any]] = {}
    for one in interventions:
        for name, parameter in one.named_parameters():
            if parameter.requires_grad:
                mask = isinstance(one, Masked) and name != "raw"
                groups[parameter] = {
                    "params": [parameter],
                    "lr": recipe.mask_lr if mask else recipe.lr,
                    "falls": not mask,
                }
    if not groups:
        raise CausalError(
            f"{type(interventions[0]).__name__} has no trainable parameters, so there is nothing to align"
        )
    return torch.optim.Adam(list(groups.values()))


def _gradients(runs: StoredRuns, rows: list[int]) -> Tensor:
    """Add to `.grad` the gradient of the mean cross-entropy of some rows' labels, and give it."""
    losses = []
    for some in runs.batches(rows):
        logits = runs.logits(some, runs.edit(some))
        loss = cross_entropy(logits, runs.labels[some].to(logits.device), reduction="sum") / len(rows)
        loss.backward()
        losses.append(loss.detach())
    return torch.stack(losses).sum()


@contextmanager
def _bar(show: bool, steps: int) -> Iterator[Callable[[int], None]]:
    if not show:
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("aligning", total=steps)
        yield lambda done: bar.advance(task, done)
