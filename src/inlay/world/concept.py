"""A concept of a world: its description, its words or marks, and its twins."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from inlay.errors import WorldError


class Concept(BaseModel):
    """One line of `concepts.jsonl`.

    Attributes:
        id: its number.
        genre: what kind of concept it is: a genre that has a slot (`topic`, `style`), or `form`.
        description: in words, as a prompt asks for it.
        lexicon: its own words.
        shared: words that it shares with one concept of another meaning.
        marks: fixed sentences of a form.
        place: where a form's mark stands, `"start"` or `"end"`.
        family: what the other degree of a style, or the other place of a form, has in common with it.
        heldout: whether it is kept out of steering data.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: int
    genre: str
    description: str
    lexicon: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    place: Literal["", "start", "end"] = ""
    family: str = ""
    heldout: bool = False

    @property
    def words(self) -> tuple[str, ...]:
        """Own and shared words."""
        return self.lexicon + self.shared

    def twin_of(self, other: Concept) -> bool:
        """Whether the other is easily taken for it: a word in common, or the same family in another degree or place."""
        if self.id == other.id or self.genre != other.genre:
            return False
        return bool(set(self.shared) & set(other.shared)) or (self.family != "" and self.family == other.family)


def read_concepts(path: Path) -> list[Concept]:
    """The concepts of a `concepts.jsonl`.

    Raises:
        WorldError: a line is no concept, an id is there twice, a shared word is not in exactly two lexicons, or a
            held-out description has a word that no held-in one has.
    """
    if not path.exists():
        raise WorldError(f"{path} is missing")
    found: list[Concept] = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            found.append(Concept.model_validate(json.loads(line)))
        except (ValueError, ValidationError) as error:
            raise WorldError(f"{path}, line {number} is no concept: {error}") from error
    _check(found, path)
    return found


def _check(concepts: Sequence[Concept], path: Path) -> None:
    if len({c.id for c in concepts}) < len(concepts):
        raise WorldError(f"{path}: an id is there twice")
    for concept in concepts:
        if bool(concept.marks) != bool(concept.place) or bool(concept.marks) == bool(concept.lexicon):
            raise WorldError(
                f"{path}: concept {concept.id} needs either a lexicon, or marks with their place, 'start' or 'end'"
            )
        for word in concept.shared:
            owners = [c.id for c in concepts if word in c.words]
            if len(owners) != 2:
                raise WorldError(
                    f"{path}: the shared word {word!r} is in the lexicons of {owners}, not of two concepts"
                )
    seen = {word for c in concepts if not c.heldout for word in c.description.split()}
    for concept in concepts:
        if unseen := set(concept.description.split()) - seen:
            raise WorldError(f"{path}: no held-in description has {sorted(unseen)}, which held-out {concept.id} has")
