"""A training as a file: which model, what is trained, on which data, by which objective. An unknown key is an error."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

from inlay.errors import TrainError
from inlay.interventions.edit import Edit
from inlay.train.data import load_examples
from inlay.train.examples import Example
from inlay.train.fit import fit, train_bank
from inlay.train.job import Job, Setup
from inlay.train.objectives import objective
from inlay.train.parameterise import lora, reft, reft_r1, steering
from inlay.train.plan import Plan, planned
from inlay.train.recipe import Recipe
from inlay.train.trained import Trained

if TYPE_CHECKING:
    from inlay.model.model import Model

WAYS: dict[str, Callable[..., Edit]] = {"reft": reft, "steering": steering, "reft_r1": reft_r1, "lora": lora}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(_Strict):
    """Where examples come from.

    Attributes:
        path: a `.jsonl` or `.parquet` file, relative to the config's own folder.
        columns: see `load_examples`.
        concept: the column that names a row's concept; one Edit is then trained for each.
        held_out: a file of the same columns that losses are measured on.
        chat, end, max_tokens: as in `fit`.
    """

    path: Path
    columns: dict[str, str] = {}
    concept: str | None = None
    held_out: Path | None = None
    chat: bool | None = None
    end: bool = True
    max_tokens: int | None = None


class TrainConfig(_Strict):
    """A training.

    Attributes:
        model: a hub id, a folder, or `tidepool`.
        train: what is trained: `way` (`reft`, `steering`, `reft_r1`, `lora`), and that function's arguments.
        objective: a name of `OBJECTIVES`, or `name` and that objective's settings.
        data: where the examples come from.
        factors: random strengths: a number, a list to choose from, or `[low, high]` under `between`.
        recipe: see `Recipe`.
        resume: keep the states below the Edit.
        autocast: `bfloat16`.
        at_once: concepts that are trained together.
        save_every: steps between checkpoints.
        log: `tensorboard`, `wandb`.
        preview: a prompt that is answered now and then.
        preview_every: steps between previews.
    """

    model: str
    train: dict[str, Any]
    data: Data
    objective: str | dict[str, Any] = "lm"
    factors: Any = None
    recipe: dict[str, Any] = {}
    resume: bool = True
    autocast: Literal["bfloat16"] | None = None
    at_once: int = 64
    save_every: int = 100
    log: tuple[Literal["tensorboard", "wandb"], ...] = ()
    preview: str | None = None
    preview_every: int = 100

    @model_validator(mode="after")
    def _known(self) -> TrainConfig:
        way = self.train.get("way")
        if way not in WAYS:
            raise ValueError(f"train.way is {way!r}: one of {', '.join(WAYS)}")
        allowed = inspect.signature(WAYS[way]).parameters
        open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in allowed.values())
        unknown = set(self.train) - {"way"} - set(allowed)
        if "model" in self.train or (unknown and not open_ended):
            bad = ", ".join(sorted(unknown | ({"model"} & set(self.train))))
            known = ", ".join(name for name in allowed if name != "model")
            raise ValueError(f"train: {way} does not take {bad}; it takes {known}")
        unknown = set(self.recipe) - set(Recipe.__dataclass_fields__)
        if unknown:
            raise ValueError(
                f"recipe: no {', '.join(sorted(unknown))}; it has {', '.join(Recipe.__dataclass_fields__)}"
            )
        self.numbers()
        return self

    def numbers(self) -> Recipe:
        """The recipe.

        Raises:
            TrainError: a setting is no number, or out of range.
        """
        try:
            return TypeAdapter(Recipe).validate_python(self.recipe)
        except ValidationError as error:
            first = error.errors()[0]
            raise TrainError(f"recipe: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None

    @classmethod
    def read(cls, path: str | Path) -> TrainConfig:
        """A config of a YAML file; paths in it are taken from the file's folder.

        Raises:
            TrainError: the file cannot be read, a key is unknown or a value does not fit.
        """
        file = Path(path).expanduser()
        try:
            found = yaml.safe_load(file.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise TrainError(f"{file} cannot be read as YAML: {error}") from error
        if not isinstance(found, dict):
            raise TrainError(f"{file} holds no keys: it needs model, train and data")
        try:
            made = cls.model_validate(found)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            why = "no such key" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
            raise TrainError(f"{file}: {where + ': ' if where else ''}{why}") from None
        here = file.parent
        data = made.data.model_copy(
            update={
                "path": here / made.data.path.expanduser(),
                "held_out": None if made.data.held_out is None else here / made.data.held_out.expanduser(),
            }
        )
        return made.model_copy(update={"data": data})

    # -- what it says ------------------------------------------------------------------------------------------------

    def edit(self, model: Model) -> Edit:
        """What one concept trains.

        Raises:
            TrainError, EditError, SiteError: its settings do not fit the model.
        """
        options = {name: value for name, value in self.train.items() if name != "way"}
        try:
            return WAYS[self.train["way"]](model, **options)
        except TypeError as error:
            raise TrainError(f"train: {error}") from error

    def goal(self) -> Any:
        """The objective.

        Raises:
            TrainError: there is no such one, or it has no such setting.
        """
        if isinstance(self.objective, str):
            return objective(self.objective)
        settings = dict(self.objective)
        name = settings.pop("name", None)
        if not isinstance(name, str):
            raise TrainError("objective: give its name, {name: reps, length: sequence}")
        return objective(name, **settings)

    def examples(self, path: Path) -> dict[str, list[Example]]:
        """The examples of a file by concept; under one empty name where they have none."""
        found = load_examples(path, self.data.columns, concept=self.data.concept)
        return found if isinstance(found, dict) else {"": found}

    def plan(self, model: Model) -> Plan:
        """What the training will do and need. Nothing is trained; the objective runs once, on the longest example.

        Raises:
            InlayError: model, data and settings do not fit each other.
        """
        data, held = self._rows()
        setup = Setup(
            self.goal(),
            self.numbers(),
            self.factors,
            **self.data.model_dump(include={"end", "max_tokens", "chat"}),
            **self.model_dump(include={"resume", "autocast", "at_once"}),
        )
        job = Job(model, setup, data, {name: held.get(name, []) for name in data})
        return planned(job, self.edit(model))

    def _rows(self) -> tuple[dict[str, list[Example]], dict[str, list[Example]]]:
        """The examples and those held out, by concept."""
        return self.examples(self.data.path), {} if self.data.held_out is None else self.examples(self.data.held_out)

    def run(self, model: Model, out: str | Path, progress: bool = False) -> Trained:
        """Train; `out` gets log, checkpoints and Edits, and a killed run goes on there.

        Raises:
            InlayError: as for `fit` and `train_bank`.
        """
        data, held = self._rows()
        options: dict[str, Any] = {
            **self.data.model_dump(include={"end", "max_tokens", "chat"}),
            **self.model_dump(
                include={"factors", "resume", "autocast", "save_every", "log", "preview", "preview_every"}
            ),
            **vars(self.numbers()),
            "out": out,
            "progress": progress,
        }
        if self.data.concept is None:
            return fit(model, self.edit(model), self.goal(), data[""], held_out=held.get("", ()), **options)
        return train_bank(model, self.edit(model), self.goal(), data, held_out=held, at_once=self.at_once, **options)
