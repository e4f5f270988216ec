"""A corpus with a planted share of machine-written sentences, and the exact likelihood ratio of each.

Human text (P) and machine text (Q) are the world's own sentences, clauses chained by `and`. In front of some words a
flourish may stand: machines put one more often, and prefer some. All else is alike and cancels, so log Q/P of a
sentence is a sum over those places. An estimator that is given it is an oracle, and bounds every other one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from inlay.errors import WorldError
from inlay.world.draw import Draw
from inlay.world.grammar import Grammar

Open = Annotated[float, Field(gt=0.0, lt=1.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Counts = tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]


class ShareSpec(BaseModel):
    """What `share.yaml` says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    months: Annotated[int, Field(ge=1)]
    fields: dict[str, tuple[Share, Share]]
    authors: Annotated[int, Field(ge=1)]
    sentences: Counts
    clauses: Counts
    flourish: str
    before: str
    human: Open
    machine: Open
    tilt: float


@dataclass(frozen=True)
class Sentence:
    """One sentence of the corpus.

    Attributes:
        text: words, one space apart.
        month: from 0.
        field: one of the corpus's fields.
        author, document: of that field.
        machine: whether it was drawn from Q.
        llr_true: log Q/P of it, natural.
    """

    text: str
    month: int
    field: str
    author: str
    document: str
    machine: bool
    llr_true: float

    def json(self) -> str:
        """One line of JSON: sorted keys, ASCII."""
        return json.dumps(asdict(self), sort_keys=True)


class Corpus:
    """The generator.

    Args:
        grammar: the language.
        spec: its settings.
        key: what its lines belong to.

    Raises:
        WorldError: a class of the settings is not there.
    """

    def __init__(self, grammar: Grammar, spec: ShareSpec, key: str) -> None:
        self.grammar, self.spec, self.key = grammar, spec, key
        for name in (spec.flourish, spec.before):
            if name not in grammar.classes:
                raise WorldError(f"share.yaml: there is no word class {name!r}")
        self.words = grammar.classes[spec.flourish]
        steps = max(1, len(self.words) - 1)
        weights = [math.exp(spec.tilt * (2 * i / steps - 1)) for i in range(len(self.words))]
        self.odds = [weight / sum(weights) for weight in weights]

    def alpha(self, month: int, field: str) -> float:
        """The planted share of machine text: in a line from the field's first month to its last."""
        first, last = self.spec.fields[field]
        return first + (last - first) * month / max(1, self.spec.months - 1)

    def sentences(
        self,
        documents: int,
        by: Literal["document", "sentence"] = "document",
        alpha: float | Mapping[str, float] | None = None,
    ) -> Iterator[Sentence]:
        """Sentences of documents of each month and field.

        Args:
            documents: of each month and field.
            by: whether a whole document is a machine's or each sentence by itself.
            alpha: the share of machine text, for all or by field; the planted one of month and field by default.

        Raises:
            WorldError: documents < 0.
        """
        if documents < 0:
            raise WorldError(f"documents is {documents}; it counts, so 0 or more")
        return self._sentences(documents, by, alpha)

    def _sentences(self, documents: int, by: str, alpha: float | Mapping[str, float] | None) -> Iterator[Sentence]:
        for month in range(self.spec.months):
            for field in self.spec.fields:
                share = self.alpha(month, field) if alpha is None else alpha
                share = share[field] if isinstance(share, Mapping) else share
                for number in range(documents):
                    yield from self._document(month, field, number, by, share)

    def _document(self, month: int, field: str, number: int, by: str, share: float) -> Iterator[Sentence]:
        name = f"{field}/{month}/{number}"
        draw = Draw(self.key, "share", by, name)
        author = f"{field}-{draw.number(1, self.spec.authors)}"
        machine = draw.chance(share)
        for _ in range(draw.number(*self.spec.sentences)):
            machine = machine if by == "document" else draw.chance(share)
            words, llr = self.sentence(draw, machine)
            yield Sentence(" ".join(words), month, field, author, name, machine, llr)

    def sentence(self, draw: Draw, machine: bool) -> tuple[list[str], float]:
        """A sentence of P or Q, and log Q/P of it."""
        words: list[str] = []
        llr = 0.0
        for index in range(draw.number(*self.spec.clauses)):
            words += ["and"] * (index > 0)
            template = self.grammar.template(draw)
            said = self.grammar.draw(draw, template)
            for part, word in zip(template.parts[:-1], said, strict=False):
                if part[1:-1] == self.spec.before:
                    flourish, ratio = self._flourish(draw, machine)
                    words, llr = words + flourish, llr + ratio
                words.append(word)
        return [*words, "."], llr

    def _flourish(self, draw: Draw, machine: bool) -> tuple[list[str], float]:
        """What stands at one place, and log Q/P of it."""
        spec = self.spec
        if not draw.chance(spec.machine if machine else spec.human):
            return [], math.log((1 - spec.machine) / (1 - spec.human))
        index = draw.weighted(self.odds) if machine else draw.number(0, len(self.words) - 1)
        return [self.words[index]], math.log(spec.machine * self.odds[index] * len(self.words) / spec.human)


def read_share(path: Path) -> ShareSpec:
    """The settings of a `share.yaml`.

    Raises:
        WorldError: there is none, or it is not one.
    """
    if not path.exists():
        raise WorldError(f"{path} is missing, so this world has no corpus of a planted share")
    try:
        return ShareSpec.model_validate(yaml.safe_load(path.read_text()))
    except (yaml.YAMLError, ValidationError) as error:
        raise WorldError(f"{path}: {error}") from error
