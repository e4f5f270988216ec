"""Run a bench: directions, detection, steering, side effects, tables; every finished row is kept."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.bench import plan, summary
from inlay.bench.about import facts, info
from inlay.bench.concept_set import ConceptSet, Row
from inlay.bench.config import BenchConfig
from inlay.bench.default_judge import judges_for
from inlay.bench.detection import detect
from inlay.bench.journal import Journal, alone, claim
from inlay.bench.result import BenchResult
from inlay.bench.side_effects import side_effects
from inlay.bench.site_choice import best_sites
from inlay.bench.steering import Advance, Cell, Steering
from inlay.bench.texts import texts_of
from inlay.directions.contrast import Text
from inlay.directions.direction import Direction
from inlay.directions.find import find, options_of
from inlay.directions.folder import load, save
from inlay.errors import BenchError
from inlay.judges.judge import Judge

if TYPE_CHECKING:
    from inlay.model.model import Model

_COMPLETE = "complete"  # the key that ends a table which is written at once


def run(
    model: Model,
    methods: Sequence[str] | None = None,
    concepts: ConceptSet | str | Path = "tidepool",
    *,
    judge: Judge | None = None,
    out: str | Path | None = None,
    progress: bool = False,
    **settings: Any,
) -> BenchResult:
    """Find directions of concepts by several methods, and measure what each detects and steers.

    Rows that any reader needs beside a method's are always there: length, style and bag of words for detection;
    unsteered, prompted and random for steering. One half of the prompts chooses Site and strength, the other reports.

    Args:
        model: the Model.
        methods: names in `directions.METHODS`; the closed-form ones and the probes by default.
        concepts: a ConceptSet, or what `ConceptSet.load` takes.
        judge: scores `concept`, `instruction` and `fluency`, each 0 to 2; see `judges_for` for the default.
        out: a folder to which every finished row is written. A killed run goes on where it was when it is called again,
            and refuses a changed setting, model, concept set or judge. Tables and report are written there too.
        progress: show progress bars.
        **settings: see `BenchConfig`.

    Returns:
        The tables, also under `out`.

    Raises:
        BenchError: a setting or the concept set is not what it should be.
        ResumeError: `out` holds a run of other settings.
        InlayError: model, directions or judge fail.
    """
    given = settings if methods is None else settings | {"methods": tuple(methods)}
    config = BenchConfig.of(**given)
    made = concepts if isinstance(concepts, ConceptSet) else ConceptSet.load(concepts)
    warnings = made.check()
    judge = judge or judges_for(model, made)
    if lacking := [axis for axis in ("concept", "instruction", "fluency") if axis not in judge.axes]:
        raise BenchError(f"the judge has no axis {lacking[0]!r}; combine it with one that has: judges.combined(...)")
    options_of(config.all_methods, config.settings)  # what cannot be run is refused before anything is written
    model.sites().expand(config.sites(model.layers))
    if config.steer:
        plan.halves(made, config.split)
        _fits(model, made, config)
    folder = None if out is None else Path(out).expanduser()
    decided = facts(model, made, judge, config)
    with alone(folder):
        if folder is not None:
            claim(folder, decided)
        found = _Run(model, made, judge, config, folder, warnings, progress)
        tables = found.tables()
        result = BenchResult.of(info(decided, model, made, judge, found.seconds, warnings), **tables)
        if folder is not None:
            result.save(folder / "tables")
            result.save_report(folder / "report.html")
    return result


class _Run:
    """The steps of one run, timed."""

    def __init__(
        self,
        model: Model,
        concepts: ConceptSet,
        judge: Judge,
        config: BenchConfig,
        folder: Path | None,
        warnings: list[str],
        progress: bool,
    ) -> None:
        self.model, self.concepts, self.judge, self.config = model, concepts, judge, config
        self.folder, self.warnings, self.progress = folder, warnings, progress
        self.seconds: dict[str, float] = {}

    def tables(self) -> dict[str, Any]:
        """The rows of every table that the configuration asks for."""
        rows = [*self.concepts.train, *self.concepts.eval]
        texts, cut = texts_of(self.model, rows)
        if cut:
            self.warnings.append(f"{cut} of {len(texts)} texts were cut to the model's context")
        with self._timed("directions"):
            directions = self._directions(texts)
        tables: dict[str, Any] = {"concepts": self._concepts()}
        if self.config.detect:
            with self._timed("detection"):
                found = self._detect(directions, texts)
            tables |= {"detection": found, "detection_summary": summary.detection_summary(found, self.config.seed)}
        if self.config.steer:
            tables |= self._steer(directions)
        return tables

    def _directions(self, texts: dict[Row, Text]) -> list[Direction]:
        config, folder = self.config, None if self.folder is None else self.folder / "directions"
        if folder is not None and (folder / "directions.json").exists():
            return load(folder, self.model)  # those that the rows on disk were made with
        contrasts = [self.concepts.contrast(c, texts) for c in self.concepts.concepts]
        found = find(
            self.model,
            contrasts,
            config.all_methods,
            config.sites(self.model.layers),
            tokens=config.tokens,
            seed=config.seed,
            settings=config.settings,
            batch_tokens=config.batch_tokens,
        )
        if folder is not None:
            save(found, folder)
        return found

    def _detect(self, directions: list[Direction], texts: dict[Row, Text]) -> list[dict[str, Any]]:
        journal = Journal(None if self.folder is None else self.folder / "detection.jsonl")
        if _COMPLETE not in journal:
            config = self.config
            sites = None
            if len({d.site for d in directions}) > 1:
                sites = best_sites(self.model, self.concepts, texts, config)
            found = detect(
                self.model,
                self.concepts,
                directions,
                texts,
                sites=sites,
                tokens=config.tokens,
                batch_tokens=config.batch_tokens,
            )
            keyed = {f"{row['method']}/{row['concept_id']}": row for row in found}
            journal.append({"key": key, **row} for key, row in keyed.items() if key not in journal)
            journal.append([{"key": _COMPLETE}])
        kept = (row for key, row in journal.rows.items() if key != _COMPLETE)
        return [{name: value for name, value in row.items() if name != "key"} for row in kept]

    def _steer(self, directions: list[Direction]) -> dict[str, Any]:
        of = plan.halves(self.concepts, self.config.split)
        names = ("replies", "ratings")
        journals = [Journal(None if self.folder is None else self.folder / f"{name}.jsonl") for name in names]
        steering = Steering(self.model, self.concepts, directions, self.judge, self.config, *journals)
        choose = plan.choosing(self.concepts, directions, self.config.grid, of)
        with self._timed("choosing"):
            self._cells(steering, choose, "choosing factors")
        chosen = [steering.row(cell) for cell in choose]
        picked = plan.pick(chosen)
        report = plan.reporting(self.concepts, picked, of)
        with self._timed("reporting"):
            self._cells(steering, report, "reporting")
        reported = [steering.row(cell) for cell in report]
        table = summary.steering_table(chosen, reported, picked, self.config.pick)
        tables: dict[str, Any] = {
            "steering": table,
            "steering_summary": summary.steering_summary(table, picked, self.config.seed),
            "dose": summary.dose(chosen, self.config.seed),
            "generations": [
                {"row": n, "kind": summary.kind_of(row["method"]), "half": half, **row, "site": row["site"] or None}
                for n, (half, row) in enumerate(
                    [*(("choose", row) for row in chosen), *(("report", row) for row in reported)]
                )
            ],
        }
        if self.config.side_effects:
            with self._timed("side effects"):
                tables["side_effects"] = side_effects(self.model, steering, picked, of)
        return tables

    def _cells(self, steering: Steering, cells: list[Cell], what: str) -> None:
        left = sum(cell.key not in steering.replies for cell in cells)
        with _bar(self.progress, what, left) as advance:
            steering.run(cells, advance)

    def _concepts(self) -> list[dict[str, Any]]:
        names = {"n_positive": "positive", "n_negative": "negative", "n_hard": "hard negative"}
        return [
            {"concept_id": c.id, "name": c.name, "genre": c.genre, "lexicon": list(c.lexicon)}
            | {column: len(self.concepts.of(c, "eval", category)) for column, category in names.items()}
            for c in self.concepts.concepts
        ]

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[what] = time.perf_counter() - start


def _fits(model: Model, concepts: ConceptSet, config: BenchConfig) -> None:
    """Raise where a prompt, asked for its concept, leaves no room for a reply.

    Raises:
        BenchError: so it is; the message names the concept and the prompt.
    """
    limit = model.encoder.limit
    if limit is None:
        return
    for concept in concepts.concepts:
        prompts = concepts.prompts[concept.id]
        asked = [concepts.asked(concept, prompt, simple) for prompt in prompts for simple in (False, True)]
        for index, row in enumerate(model.encoder.without_limit().rows(asked)):
            if len(row.ids) + config.max_new_tokens > limit:
                raise BenchError(
                    f"{concepts.name}: prompt {prompts[index // 2]!r:.60} of concept {concept.id}, asked for it, has "
                    f"{len(row.ids)} tokens, and with {config.max_new_tokens} new ones the model's context of {limit} "
                    "is too short: give shorter prompts, or fewer new tokens"
                )


@contextmanager
def _bar(show: bool, what: str, total: int) -> Iterator[Advance]:
    if not show or not total:
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)
