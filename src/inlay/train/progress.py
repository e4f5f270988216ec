"""What a user sees while a training runs: a bar with the loss, and now and then a reply under the Edit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from inlay.errors import TrainError
from inlay.train.loop import Loop

if TYPE_CHECKING:
    from rich.progress import Progress

    from inlay.model.model import Model


class Bar:
    """Counts sequences that the frozen model has run, then steps; silent without a `Progress`."""

    def __init__(self, shown: Progress | None, loop: Loop, sequences: int) -> None:
        self.shown, self.task = shown, None
        if shown is not None:
            self.first = shown.add_task("frozen model", total=sequences)
            self.task = shown.add_task("training", total=loop.total, completed=loop.done)

    def kept(self, count: int) -> None:
        """Some sequences were run."""
        if self.shown is not None:
            self.shown.advance(self.first, count)

    def step(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """A step was taken, which gave these rows of the log."""
        losses = [row["loss"] for row in rows if "loss" in row]
        if self.shown is None or self.task is None:
            return
        self.shown.advance(self.task)
        if losses:
            many = f", {len(losses)} concepts" if len(losses) > 1 else ""
            self.shown.update(self.task, description=f"loss {sum(losses) / len(losses):.3f}{many}")
        for row in rows:
            if "preview" in row:
                self.shown.console.print(f"step {row['step']}: {row['preview']}", markup=False, highlight=False)


@contextmanager
def bar(show: bool, loop: Loop, sequences: int) -> Iterator[Bar]:
    """A bar for one loop."""
    if not show:
        yield Bar(None, loop, sequences)
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as shown:
        yield Bar(shown, loop, sequences)


class Preview:
    """A prompt that is answered under the Edit now and then.

    Args:
        model: the Model.
        prompt: the prompt.
        every: steps between two answers.
        chat: whether a plain string is a user turn.

    Raises:
        TrainError: `every` is below 1.
    """

    def __init__(self, model: Model, prompt: Any, every: int, chat: bool | None) -> None:
        if every < 1:
            raise TrainError(f"preview_every={every}: give at least 1")
        self.model, self.prompt, self.every, self.chat = model, prompt, every, chat

    @torch.no_grad()
    def row(self, loop: Loop) -> dict[str, Any]:
        """The answer under the first concept's Edit, at the mean of some random strengths, as a row of the log."""
        concept = loop.concepts[0]
        loop.edit.eval()
        strength = 1.0 if loop.factors is None else float(loop.factors.draw(64, loop.recipe.seed, loop.done, 0).mean())
        text = self.model.generate(
            [self.prompt],
            edit=loop.edit,
            rows=[1] if any(part.intervention.banked for part in loop.edit.parts) else None,
            strength=strength,
            chat=self.chat,
            max_new_tokens=32,
            do_sample=False,
        )[0]
        return {"concept": concept.name, "step": loop.done - 1, "preview": text}
