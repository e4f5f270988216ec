"""Train one Edit, or one for each of many concepts at once, on a frozen model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from inlay.errors import TrainError
from inlay.interventions.edit import Edit
from inlay.train.examples import Example, examples
from inlay.train.job import Job, Setup
from inlay.train.log import Sink
from inlay.train.loop import Objective
from inlay.train.recipe import Recipe
from inlay.train.trained import Trained

if TYPE_CHECKING:
    from inlay.model.model import Model


def fit(
    model: Model,
    edit: Edit,
    objective: str | Objective,
    data: Sequence[Example | Mapping[str, Any]],
    *,
    held_out: Sequence[Example | Mapping[str, Any]] = (),
    factors: Any = None,
    chat: bool | None = None,
    end: bool = True,
    max_tokens: int | None = None,
    resume: bool = True,
    device: str | torch.device | None = None,
    autocast: str | torch.dtype | None = None,
    out: str | Path | None = None,
    save_every: int = 100,
    log: Sequence[str | Sink] = (),
    preview: Any = None,
    preview_every: int = 100,
    progress: bool = False,
    **recipe: Any,
) -> Trained:
    """Train the parameters of an Edit on a frozen language model; a classifier is trained as an `EditedModel`.

    The Edit is trained in place, and given back; the model's modes, gradients and `requires_grad` are afterwards what
    they were. Its parameters are best kept in float32 whatever the model's dtype is, as all of inlay's trainable
    interventions keep them.

    Args:
        model: the Model.
        edit: an Edit with trainable parameters: `reft(model)`, `steering(model, site)`, or one of your own. Of an Edit
            of Banks each example trains the row that it names (`Example.row`).
        objective: a name of `OBJECTIVES` (`"lm"`, `"reps"`, ...), one of these objects with settings of its own, or a
            function of a `Step` that gives each example's contribution to the loss.
        data: the examples; see `load_examples` for files and datasets.
        held_out: examples that the loss is measured on after every epoch; the parameters that did best are kept.
        factors: random strengths in training: a list to choose from, `Between(low, high)`, one number, or any
            `Factors`; 1 by default.
        chat: whether plain strings are user turns.
        end: put the tokenizer's end-of-sequence token behind every response of text.
        max_tokens: the most tokens of an example's sequence; a longer one is an error (`fitting` leaves them out).
        resume: run the blocks below the Edit once for each sequence and keep their states.
        device: where kept states lie; by default the model's, `"cpu"` where that has not the memory.
        autocast: `"bfloat16"`, which all forwards then are computed in.
        out: a folder for the log, checkpoints and the Edit; a killed run started again goes on there.
        save_every: steps between checkpoints.
        log: `"tensorboard"`, `"wandb"`, or sinks of your own.
        preview: a prompt that is answered under the Edit now and then, for the log; of concepts that are trained
            together the first one's.
        preview_every: steps between previews.
        progress: show a progress bar.
        **recipe: the numbers of the run; see `Recipe`.

    Raises:
        TrainError: data, Edit, objective and settings do not fit each other, or the training diverged.
        ResumeError: `out` holds a run of other settings, data or another model.
        InlayError: prompts, Sites or Tokens do not fit the model.
    """
    setup = Setup(objective, _recipe(recipe), factors, chat, end, max_tokens, resume, device, autocast, 1, save_every)
    job = Job(model, setup, {"": examples(data)}, {"": examples(held_out) if held_out else []}, out, log)
    return job.run(lambda name: edit, preview, preview_every, progress)


def train_bank(
    model: Model,
    edit: Edit | Callable[[str], Edit],
    objective: str | Objective,
    data: Mapping[str, Sequence[Example | Mapping[str, Any]]],
    *,
    held_out: Mapping[str, Sequence[Example | Mapping[str, Any]]] | None = None,
    factors: Any = None,
    chat: bool | None = None,
    end: bool = True,
    max_tokens: int | None = None,
    resume: bool = True,
    device: str | torch.device | None = None,
    autocast: str | torch.dtype | None = None,
    at_once: int = 64,
    out: str | Path | None = None,
    save_every: int = 100,
    log: Sequence[str | Sink] = (),
    preview: Any = None,
    preview_every: int = 100,
    progress: bool = False,
    **recipe: Any,
) -> Trained:
    """Train one Edit for each of many concepts, rows of all of them in every batch.

    The result is what training each concept alone with `fit` gives, to float tolerance: each has its own shuffle,
    random draws, loss, clipping, optimiser state, learning rate and early stop.

    Args:
        model: the Model.
        edit: the Edit that every concept starts from, of which copies are trained; or a function of a concept's name
            that makes one.
        objective: as for `fit`.
        data: the examples of each concept by name.
        held_out: those that each is measured on.
        at_once: how many concepts are trained together; the states of their sequences are kept at the same time.
        out: as for `fit`; the Edit of a finished concept is kept at once, and a group of which all are finished is not
            trained again.
        factors, chat, end, max_tokens, resume, device: as for `fit`.
        autocast, save_every, log, preview, preview_every, progress, **recipe: as for `fit`.

    Raises:
        TrainError, ResumeError, InlayError: as for `fit`. A concept that diverges is stopped and named in the facts;
            the others go on.
    """
    if not data:
        raise TrainError("there are no concepts to train: give at least one, {name: examples}")
    unknown = set(held_out or ()) - set(data)
    if unknown:
        raise TrainError(f"held_out= names {', '.join(map(repr, sorted(unknown)))}, and data= has no such concept")
    setup = Setup(
        objective, _recipe(recipe), factors, chat, end, max_tokens, resume, device, autocast, at_once, save_every
    )
    given = {name: examples(rows) for name, rows in data.items()}
    held = {name: examples(held_out[name]) if held_out and held_out.get(name) else [] for name in data}
    job = Job(model, setup, given, held, out, log)
    start = edit if callable(edit) and not isinstance(edit, Edit) else lambda name: copy.deepcopy(edit)
    return job.run(start, preview, preview_every, progress)


def _recipe(settings: Mapping[str, Any]) -> Recipe:
    unknown = set(settings) - set(Recipe.__dataclass_fields__)
    if unknown:
        known = ", ".join(Recipe.__dataclass_fields__)
        raise TrainError(f"{', '.join(sorted(unknown))}: no such setting; a recipe has {known}")
    return Recipe(**settings)
