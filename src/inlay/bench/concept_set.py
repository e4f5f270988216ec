"""ConceptSet: concepts with training rows, evaluation rows and steering prompts, in AxBench's terms."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from inlay.bench.baselines import styled
from inlay.bench.metrics import auroc
from inlay.directions.contrast import Contrast, Text
from inlay.errors import BenchError

if TYPE_CHECKING:
    from inlay.world.world import World

PARTS = ("train", "eval")
SHARED = -1  # the concept id of negatives that all concepts of a genre share
CATEGORIES = ("positive", "negative", "hard negative")
SIMPLE_ASK = 'Your answer must include content related to "{concept}", even if it does not make sense.'


@dataclass(frozen=True)
class Concept:
    """What is looked for and steered to.

    Attributes:
        id: its number, from 0.
        name: in words.
        genre: `text`, `code`, `math`, or a world's own.
        lexicon: words that are the concept: given, or else derived from the training texts.
        derived: whether they are derived, and so also of the writer's style.
        ask: a sentence that asks a model for it; the set's own by default.
    """

    id: int
    name: str
    genre: str = "text"
    lexicon: tuple[str, ...] = ()
    ask: str = ""
    derived: bool = False


@dataclass(frozen=True)
class Row:
    """One text of a concept.

    Attributes:
        concept_id: whose; -1 is a negative that all concepts of its genre share.
        category: one of `CATEGORIES`.
        input: the instruction; empty for free text.
        output: the response.
        genre: of the concept.
    """

    concept_id: int
    category: str
    input: str
    output: str
    genre: str = "text"


@dataclass(frozen=True)
class ConceptSet:
    """Concepts and their data.

    Attributes:
        name: of the set.
        concepts: in order.
        train: rows that directions, baselines and scales are fitted on.
        eval: rows that detection is measured on.
        prompts: for each concept id, the instructions that steering is measured on.
        ask: how a prompt asks for a concept, with `{concept}`.
        world: the World that it is of, whose judge knows the truth.
    """

    name: str
    concepts: tuple[Concept, ...]
    train: tuple[Row, ...]
    eval: tuple[Row, ...]
    prompts: dict[int, list[str]] = field(default_factory=dict)
    ask: str = SIMPLE_ASK
    world: World | None = field(default=None, repr=False, compare=False)

    @classmethod
    def load(cls, source: str | Path, **options: Any) -> ConceptSet:
        """See `sources.load`."""
        from inlay.bench.sources import load

        return load(source, **options)

    def of(self, concept: Concept, part: str, category: str) -> list[Row]:
        """Rows of a concept; negatives are its own, or else those that its genre shares.

        Args:
            concept: one of the set's.
            part: `"train"` or `"eval"`.
            category: one of `CATEGORIES`.
        """
        own = self._index[part].get((concept.id, category), [])
        if category != "negative":
            return own
        return own or self._index[part].get((SHARED, concept.genre), [])

    @cached_property
    def _index(self) -> dict[str, dict[tuple[int, str], list[Row]]]:
        found: dict[str, dict[tuple[int, str], list[Row]]] = {"train": {}, "eval": {}}
        for part, rows in (("train", self.train), ("eval", self.eval)):
            for row in rows:
                key = (row.concept_id, row.category if row.concept_id >= 0 else row.genre)
                found[part].setdefault(key, []).append(row)
        return found

    def contrast(self, concept: Concept, texts: dict[Row, Text]) -> Contrast:
        """The training texts of a concept.

        Args:
            concept: one of the set's.
            texts: how each row is read by the model.
        """
        sides = [[texts[row] for row in self.of(concept, "train", c)] for c in ("positive", "negative")]
        return Contrast.of(concept.name, *sides)

    def asked(self, concept: Concept, prompt: str, simple: bool = False) -> str:
        """An instruction that also asks for the concept, in its own words; `simple` in the set's."""
        ask = self.ask.format(concept=concept.name) if simple or not concept.ask else concept.ask
        return f"{prompt} {ask}" if self.world else f"{ask}\n\nQuestion: {prompt}"

    def first(self, n: int) -> ConceptSet:
        """The set with its first n concepts.

        Raises:
            BenchError: n < 1.
        """
        if n < 1:
            raise BenchError(f"limit={n}: a run needs at least one concept")
        kept = self.concepts[:n]
        ids = {SHARED, *(c.id for c in kept)}
        rows = [tuple(row for row in part if row.concept_id in ids) for part in (self.train, self.eval)]
        return replace(self, concepts=kept, train=rows[0], eval=rows[1])

    @property
    def digest(self) -> str:
        """A hash of everything in it."""
        whole = [
            [asdict(c) for c in self.concepts],
            [asdict(r) for r in (*self.train, *self.eval)],
            sorted(self.prompts.items()),
            self.ask,
        ]
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()

    def check(self) -> list[str]:
        """What is wrong or doubtful about it, in sentences.

        Style and length gaps are those of AxBench's own data ("no bold markdown" alone tells its training positives
        from negatives with an AUROC of .91 to .98).

        Raises:
            BenchError: there are no concepts, two share a name or an id, or one lacks training positives or negatives.
        """
        if not self.concepts:
            raise BenchError(f"{self.name} has no concepts")
        for of in ("id", "name"):
            counts = Counter(getattr(c, of) for c in self.concepts)
            if twice := [repr(shared) for shared, count in counts.items() if count > 1]:
                raise BenchError(f"{self.name}: two concepts have the {of} {twice[0]}; give each its own")
        for concept in self.concepts:
            for category in ("positive", "negative"):
                if not self.of(concept, "train", category):
                    raise BenchError(
                        f"{self.name}: concept {concept.id} ({concept.name!r}) has no training rows of category "
                        f"{category!r}; give some, or leave the concept out"
                    )
        found = []
        for part in ("train", "eval"):
            for what, measure in (("length", lambda row: float(len(row.output))), ("style", lambda row: -styled(row))):
                values = [self._gap(c, part, measure) for c in self.concepts]
                known = [value for value in values if value is not None]
                if known and abs(fmean(known) - 0.5) > 0.15:
                    found.append(
                        f"{part} rows: {what} alone tells positives from negatives, mean AUROC {fmean(known):.3f}; "
                        "a detector is worth what it adds to that"
                    )
        bare = {category: self._bare(category) for category in CATEGORIES}
        if max(bare.values()) - min(bare.values()) > 0.1:
            said = ", ".join(f"{share:.0%} of {category}s" for category, share in bare.items())
            found.append(f"rows without an instruction are read as a user's words, not as a reply: {said} have none")
        if derived := sum(c.derived for c in self.concepts):
            found.append(
                f"{derived} of {len(self.concepts)} lexicons are derived from training texts; a judge of words scores "
                "their writer's style along: compare with the unsteered row, or give lexicons"
            )
        if missing := [c.id for c in self.concepts if not self.of(c, "eval", "positive")]:
            found.append(f"{len(missing)} concept(s) have no evaluation positives, so no detection: {missing[:5]}")
        return found

    def _bare(self, category: str) -> float:
        mine = [not row.input for part in (self.train, self.eval) for row in part if row.category == category]
        return fmean(mine) if mine else 0.0

    def _gap(self, concept: Concept, part: str, measure: Any) -> float | None:
        sides = [[measure(row) for row in self.of(concept, part, c)] for c in ("positive", "negative")]
        return auroc(*sides) if all(sides) else None
