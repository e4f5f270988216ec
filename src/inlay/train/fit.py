"""Train one Edit, or one for each of many concepts at once, on a frozen model."""

from __future__ import annotations

import copy
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from inlay.errors import InlayError, TrainError
from inlay.interventions.bank import Bank
from inlay.interventions.edit import Edit
from inlay.model.fingerprint import fingerprint, said_of
from inlay.model.inputs import Row
from inlay.model.restored import restored
from inlay.train.banks import row, stacked
from inlay.train.checkpoint import RunFolder
from inlay.train.concept import Learning
from inlay.train.examples import Example, encode, examples
from inlay.train.factors import factors as sampler
from inlay.train.frozen import Frozen, lowest
from inlay.train.log import RunLog, Sink, sinks
from inlay.train.loop import Loop, Objective
from inlay.train.objectives import objective as named
from inlay.train.order import Order
from inlay.train.progress import Preview, bar
from inlay.train.recipe import Recipe
from inlay.train.trained import Trained

if TYPE_CHECKING:
    from inlay.model.model import Model


@dataclass(frozen=True)
class Setup:
    """What all concepts of a run have in common; `fit` says what each setting is."""

    objective: str | Objective
    recipe: Recipe
    factors: Any = None
    chat: bool | None = None
    end: bool = True
    max_tokens: int | None = None
    resume: bool = True
    device: str | torch.device | None = None
    autocast: str | torch.dtype | None = None
    at_once: int = 64
    save_every: int = 100

    def __post_init__(self) -> None:
        for name in ("max_tokens", "at_once", "save_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise TrainError(f"{name}={value}: give at least 1")


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
    """Train the parameters of an Edit on a frozen model.

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
    job = _Job(model, setup, {"": examples(data)}, {"": examples(held_out) if held_out else []}, out, log)
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
    job = _Job(model, setup, given, held, out, log)
    start = edit if callable(edit) and not isinstance(edit, Edit) else lambda name: copy.deepcopy(edit)
    return job.run(start, preview, preview_every, progress)


def _recipe(settings: Mapping[str, Any]) -> Recipe:
    unknown = set(settings) - set(Recipe.__dataclass_fields__)
    if unknown:
        known = ", ".join(Recipe.__dataclass_fields__)
        raise TrainError(f"{', '.join(sorted(unknown))}: no such setting; a recipe has {known}")
    return Recipe(**settings)


class _Job:
    """A run of groups of concepts, one group after the other."""

    def __init__(
        self,
        model: Model,
        setup: Setup,
        data: Mapping[str, Sequence[Example]],
        held_out: Mapping[str, Sequence[Example]],
        out: str | Path | None,
        log: Sequence[str | Sink],
    ) -> None:
        self.model, self.setup, self.data, self.held_out = model, setup, data, held_out
        self.objective: Any = named(setup.objective)
        self.sides: tuple[str, ...] = tuple(getattr(self.objective, "sides", ("chosen",)))
        self.references: tuple[str, ...] = tuple(getattr(self.objective, "references", ()))
        self.factors = None if setup.factors is None else sampler(setup.factors)
        self.names = list(data)
        self.many = self.names != [""]
        self.out = None if out is None else Path(out).expanduser()
        self.sinks = log
        self.folder: RunFolder | None = None

    def run(self, start: Callable[[str], Edit], preview: Any, preview_every: int, progress: bool) -> Trained:
        """Train every group, or take its finished concepts from the folder."""
        groups = [self.names[i : i + self.setup.at_once] for i in range(0, len(self.names), self.setup.at_once)]
        self.encoded = {name: self._encode(self.data[name], name) for name in self.names}
        self.held = {
            name: self._encode(some, name, "held-out examples") if some else {} for name, some in self.held_out.items()
        }
        starts = {name: start(name) for name in self.names}
        self._check(starts)
        if self.out is not None:
            self.folder = RunFolder(self.out, self._fingerprint(starts), self.names)
        preview_of = None if preview is None else Preview(self.model, preview, preview_every, self.setup.chat)
        finished: dict[str, Edit] = {}
        facts: dict[str, Any] = {}
        with restored(self.model.hf), torch.enable_grad():
            self.model.hf.requires_grad_(False).eval()
            with self._log() as log:
                for number, group in enumerate(groups):
                    done = self._group(number, group, starts, log, preview_of, progress)
                    for name, (edit, said) in done.items():
                        finished[name], facts[name] = edit, said
        edit = stacked([finished[name] for name in self.names]) if self.many else finished[""]
        edit.eval()
        settings = {"objective": repr(self.objective), "factors": repr(self.factors), **asdict(self.setup.recipe)}
        return Trained(edit, self.names, log, {**settings, "concepts": facts})

    def _check(self, starts: Mapping[str, Edit]) -> None:
        """Raise for what would otherwise show at the end of a run, or never."""
        if self.setup.recipe.patience is not None and not any(self.held_out.values()):
            raise TrainError("patience= counts epochs without a lower loss on held-out examples: give held_out= some")
        first = starts[self.names[0]]
        if self.out is not None:
            with tempfile.TemporaryDirectory() as folder:
                first.save(folder)
        banked = any(isinstance(part.intervention, Bank) for part in first.parts)
        if not self.many and not banked and any(one.row != 1 for one in self.data[""]):
            raise TrainError("some examples name a row of a Bank, and the Edit holds none")

    def _encode(self, data: Sequence[Example], name: str, what: str = "") -> dict[str, list[Row]]:
        setup = self.setup
        try:
            return encode(self.model, data, self.sides, end=setup.end, max_tokens=setup.max_tokens, chat=setup.chat)
        except InlayError as error:
            where = what + (f" of concept {name!r}" if name else "")
            raise type(error)(f"{where.strip()}: {error}" if where else str(error)) from error

    def _fingerprint(self, starts: Mapping[str, Edit]) -> str:
        """A hash of the model, the data as ids, every start, and all settings."""
        setup = replace(self.setup, objective="", factors=None, device=None, save_every=1)
        said = [said_of(self.objective).hex(), said_of(self.factors).hex(), str(asdict(setup)), json.dumps(self.names)]
        for name in self.names:
            for rows in (self.encoded[name], self.held[name]):
                said += [f"{side} {[(r.ids, r.prompt) for r in some]}" for side, some in rows.items()]
            said.append(str([(one.label, one.row) for one in (*self.data[name], *self.held_out[name])]))
            said.append(str([p.requires_grad for p in starts[name].parameters()]))
        said.append(fingerprint(self.model, [], [], [part for name in self.names for part in starts[name].parts]))
        return hashlib.sha256("\n".join(said).encode()).hexdigest()

    @contextmanager
    def _log(self) -> Iterator[RunLog]:
        path = None if self.out is None else self.out / "log.jsonl"
        log = RunLog(path, sinks(self.sinks, self.out))
        try:
            yield log
        finally:
            log.close()

    # -- one group of concepts ---------------------------------------------------------------------------------------

    def _group(
        self,
        number: int,
        group: Sequence[str],
        starts: Mapping[str, Edit],
        log: RunLog,
        preview: Preview | None,
        progress: bool,
    ) -> dict[str, tuple[Edit, dict[str, Any]]]:
        places = {name: self.names.index(name) for name in group}
        if self.folder is not None and all(self.folder.finished(place) for place in places.values()):
            done = {name: self.folder.load(place, self.model) for name, place in places.items()}
            return done if self.many else {"": (_taken_over(starts[""], done[""][0]), done[""][1])}
        edit = stacked([starts[name] for name in group]) if self.many else starts[""]
        edit = Edit.of(edit.parts, self.model.identity()).to(self.model.device)
        frozen = Frozen(
            self.model,
            lowest(self.model, edit) if self.setup.resume else None,
            self.setup.recipe.batch_tokens,
            self.setup.device,
        )
        concepts = [self._learning(name, index, frozen) for index, name in enumerate(group)]
        prepare = getattr(self.objective, "prepare", None)
        loop = Loop(frozen, edit, self.objective, concepts, self.setup.recipe, self.factors, self._dtype())
        if self.folder is not None:
            self.folder.restore(loop, number)
        log.drop(group, loop.done)
        with bar(progress, loop, len(frozen.sequences)) as advance:
            with loop.precision():
                self._fill(frozen, concepts, advance)
                if prepare is not None:
                    prepare(loop)
            while loop.live():
                rows = loop.step()
                if preview is not None and loop.done % preview.every == 0:
                    rows.append(preview.row(loop))
                log.add(rows)
                advance.step(rows)
                self._save(loop, number, places)
        edit.eval()
        return {
            concept.name: (row(edit, concept.index + 1) if self.many else edit, _facts(concept)) for concept in concepts
        }

    def _learning(self, name: str, index: int, frozen: Frozen) -> Learning:
        recipe, data = self.setup.recipe, self.data[name]
        order = Order.of(
            len(data), batch=recipe.batch, accumulate=recipe.accumulate, epochs=recipe.epochs, seed=recipe.seed
        )
        steps = len(order.steps) if recipe.max_steps is None else min(recipe.max_steps, len(order.steps))
        numbers, held = (_numbers(frozen, rows) for rows in (self.encoded[name], self.held[name]))
        return Learning(name, index, data, numbers, self.many, order, steps, self.held_out[name], held)

    def _fill(self, frozen: Frozen, concepts: Sequence[Learning], advance: Any) -> None:
        """Run what is frozen, before anything is trained."""
        for side in self.sides:
            mine = [n[side] for concept in concepts for n in (*concept.numbers, *concept.held_numbers)]
            frozen.keep(mine, logps=side in self.references, advance=advance.kept)

    def _save(self, loop: Loop, number: int, places: Mapping[str, int]) -> None:
        if self.folder is None:
            return
        for concept in loop.concepts:
            place = places[concept.name]
            if not concept.live(loop.done) and not self.folder.finished(place):
                mine = row(loop.edit, concept.index + 1) if self.many else loop.edit
                self.folder.finish(place, mine, self.model, _facts(concept))
        if loop.done % self.setup.save_every == 0 and loop.live():
            self.folder.save(loop, number)

    def _dtype(self) -> torch.dtype | None:
        wanted = self.setup.autocast
        if wanted is None or wanted is torch.bfloat16:
            return wanted
        if wanted != "bfloat16":
            raise TrainError(f"autocast={wanted!r}: 'bfloat16'; float16 would need its losses scaled")
        return torch.bfloat16


def _numbers(frozen: Frozen, rows: Mapping[str, list[Row]]) -> list[dict[str, int]]:
    """For each example the numbers of its sequences by side."""
    by_side = {side: frozen.add(some) for side, some in rows.items()}
    count = len(next(iter(by_side.values()), []))
    return [{side: numbers[i] for side, numbers in by_side.items()} for i in range(count)]


@torch.no_grad()
def _taken_over(edit: Edit, trained: Edit) -> Edit:
    """The Edit with the values of a trained one."""
    for mine, theirs in zip(edit.parameters(), trained.parameters(), strict=True):
        mine.copy_(theirs)
    return edit


def _facts(concept: Learning) -> dict[str, Any]:
    return {
        "examples": len(concept.examples),
        "steps": concept.steps,
        "stopped": concept.stopped,
        "held_out": concept.best,
        "diverged": concept.diverged,
    }
