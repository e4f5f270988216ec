"""A run of groups of concepts: what `fit` and `train_bank` do, one group of concepts after the other."""

from __future__ import annotations

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
from inlay.train.examples import Example, encode
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


class Job:
    """A run of groups of concepts, one group after the other.

    Args:
        model: the Model.
        setup: what all concepts have in common.
        data: the examples of each concept; one concept under an empty name is trained without a Bank.
        held_out: those that each is measured on, by the same names.
        out: a folder for the log, checkpoints and Edits.
        log: sinks, or their names.

    Attributes:
        encoded, held: each concept's sequences by side.
        groups: the names of the concepts that are trained together.

    Raises:
        TrainError, InlayError: settings or examples do not fit.
    """

    def __init__(
        self,
        model: Model,
        setup: Setup,
        data: Mapping[str, Sequence[Example]],
        held_out: Mapping[str, Sequence[Example]],
        out: str | Path | None = None,
        log: Sequence[str | Sink] = (),
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
        self.groups = [self.names[i : i + setup.at_once] for i in range(0, len(self.names), setup.at_once)]
        self.encoded = {name: self._encode(data[name], name) for name in self.names}
        self.held = {
            name: self._encode(some, name, "held-out examples") if some else {} for name, some in held_out.items()
        }

    def run(self, start: Callable[[str], Edit], preview: Any, preview_every: int, progress: bool) -> Trained:
        """Train every group, or take its finished concepts from the folder."""
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
                for number, group in enumerate(self.groups):
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
        frozen = self.frozen(edit)
        concepts = [self.learning(name, index, frozen) for index, name in enumerate(group)]
        loop = self.loop(frozen, edit, concepts)
        if self.folder is not None:
            self.folder.restore(loop, number)
        log.drop(group, loop.done)
        with bar(progress, loop, len(frozen.sequences)) as advance:
            with loop.precision():
                self.fill(loop, advance.kept)
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

    def frozen(self, edit: Edit) -> Frozen:
        """A store of what lies below an Edit."""
        cut = lowest(self.model, edit) if self.setup.resume else None
        return Frozen(self.model, cut, self.setup.recipe.batch_tokens, self.setup.device)

    def loop(self, frozen: Frozen, edit: Edit, concepts: Sequence[Learning]) -> Loop:
        """The loop that trains some concepts together."""
        return Loop(frozen, edit, self.objective, concepts, self.setup.recipe, self.factors, self._dtype())

    def learning(self, name: str, index: int, frozen: Frozen) -> Learning:
        """A concept before its first step, the `index`-th of its group."""
        recipe, data = self.setup.recipe, self.data[name]
        order = Order.of(
            len(data), batch=recipe.batch, accumulate=recipe.accumulate, epochs=recipe.epochs, seed=recipe.seed
        )
        steps = len(order.steps) if recipe.max_steps is None else min(recipe.max_steps, len(order.steps))
        numbers, held = (_numbers(frozen, rows) for rows in (self.encoded[name], self.held[name]))
        return Learning(name, index, data, numbers, self.many, order, steps, self.held_out[name], held)

    def fill(self, loop: Loop, advance: Callable[[int], None] = lambda done: None) -> None:
        """Run what is frozen, before anything is trained."""
        for side in self.sides:
            mine = [n[side] for concept in loop.concepts for n in (*concept.numbers, *concept.held_numbers)]
            loop.frozen.keep(mine, logps=side in self.references, advance=advance)
        prepare = getattr(self.objective, "prepare", None)
        if prepare is not None:
            prepare(loop)

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
