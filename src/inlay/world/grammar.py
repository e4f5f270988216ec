"""The language of a world: word classes, sentence templates, and recognition of sentences by class."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from inlay.errors import WorldError
from inlay.world.draw import Draw

ENDS = (".", "?", "!")


@dataclass(frozen=True)
class Template:
    """A sentence with slots, such as `the {A} {N} {VT} the {N} .`.

    Attributes:
        parts: words, and slots as `{CLASS}`.
        weight: how often it is drawn, relative to the others.
    """

    parts: tuple[str, ...]
    weight: float = 1.0

    @classmethod
    def parse(cls, text: str, weight: float = 1.0) -> Template:
        """From text, parts one space apart."""
        return cls(tuple(text.split()), weight)

    @property
    def slots(self) -> list[str]:
        """The classes of its slots, in order."""
        return [part[1:-1] for part in self.parts if part.startswith("{")]

    def fill(self, words: Iterable[str]) -> list[str]:
        """The sentence with its slots filled, in order."""
        left = iter(words)
        return [next(left) if part.startswith("{") else part for part in self.parts]


@dataclass(frozen=True)
class Leaning:
    """What words a text leans to: a share of the slots of one class comes from a lexicon.

    Attributes:
        slot: the class.
        words: the lexicon.
        rate: the share.
    """

    slot: str
    words: tuple[str, ...]
    rate: float


class Grammar:
    """Word classes and templates.

    Args:
        classes: class name to its words; a word belongs to one class.
        lexical: class name to words of the class that plain slots take rarely: the lexicons of all concepts.
        sentences: the templates of free text.
        literals: further words, in sentences of their own.
        stray: the share of a lexical class's slots that takes a lexicon's word where nothing leans to one.

    Raises:
        WorldError: a word is in two classes, a template has an unknown slot, or two templates look the same.
    """

    def __init__(
        self,
        classes: Mapping[str, Sequence[str]],
        lexical: Mapping[str, Sequence[str]],
        sentences: Sequence[Template],
        literals: Iterable[str] = (),
        stray: float = 0.12,
    ) -> None:
        self.classes = {name: tuple(words) for name, words in classes.items()}
        self.lexical = {name: tuple(dict.fromkeys(words)) for name, words in lexical.items()}
        self.sentences, self.stray = list(sentences), stray
        self.class_of: dict[str, str] = {}
        for name in (*self.classes, *self.lexical):
            for word in (*self.classes.get(name, ()), *self.lexical.get(name, ())):
                if self.class_of.setdefault(word, name) != name:
                    raise WorldError(f"{word!r} is in the classes {self.class_of[word]} and {name}; a word has one")
        for name, words in self.classes.items():
            for word in words:
                if word in self.lexical.get(name, ()):
                    raise WorldError(f"{word!r} is a plain word of class {name} and in a concept's lexicon")
        self.literals = tuple(sorted({w for w in literals if w not in self.class_of} | self._glue(self.sentences)))
        self.known = self._shapes(self.sentences)
        self._check_fills(self.sentences)
        if len(self.known) < len(self.sentences):
            raise WorldError(
                "two sentence templates have the same classes in the same order, and no text tells them apart"
            )

    def words(self, name: str) -> tuple[str, ...]:
        """The plain words of a class.

        Raises:
            WorldError: there is no such class.
        """
        if name not in self.classes:
            raise WorldError(f"there is no word class {name!r}; there are: {', '.join(self.classes)}")
        return self.classes[name]

    def _glue(self, templates: Iterable[Template]) -> set[str]:
        for template in templates:
            for slot in template.slots:
                if slot not in self.classes:
                    raise WorldError(f"template {' '.join(template.parts)!r}: there is no word class {slot!r}")
        every = (part for t in templates for part in t.parts if not part.startswith("{"))
        return {word for word in every if word not in self.class_of}

    def _check_fills(self, templates: Iterable[Template]) -> None:
        for template in templates:
            for slot, count in Counter(template.slots).items():
                if count > len(set(self.classes[slot])):
                    raise WorldError(
                        f"template {' '.join(template.parts)!r} has {count} slots of class {slot}, which has "
                        f"{len(set(self.classes[slot]))} plain words, and a sentence says none twice"
                    )

    def shape(self, words: Sequence[str]) -> tuple[str, ...]:
        """The sentence with each word of a class replaced by the class's name."""
        return tuple(f"{{{self.class_of[w]}}}" if w in self.class_of else w for w in words)

    def _shapes(self, templates: Iterable[Template]) -> set[tuple[str, ...]]:
        return {self.shape(t.parts) for t in templates}

    def learn(self, templates: Iterable[Template]) -> None:
        """Let sentences of further templates count as good."""
        self._glue(templates)
        self._check_fills(templates)
        self.known |= self._shapes(templates)
        vars(self).pop("_prefixes", None)

    @cached_property
    def _prefixes(self) -> set[tuple[str, ...]]:
        return {shape[:n] for shape in self.known for n in range(1, len(shape))}

    def is_sentence(self, words: Sequence[str], cut: bool = False) -> bool:
        """Whether words are a sentence of this language; with `cut`, whether they begin one."""
        shape = self.shape(words)
        return shape in self.known or (cut and shape in self._prefixes)

    def draw(self, draw: Draw, template: Template, leaning: Leaning | None = None) -> list[str]:
        """A sentence of a template, leaning to a lexicon where one is given."""
        return template.fill(self.fills(draw, template.slots, leaning))

    def fills(self, draw: Draw, slots: Sequence[str], leaning: Leaning | None = None) -> list[str]:
        """Words for the slots of one sentence, none of them twice."""
        said: list[str] = []
        for slot in slots:
            word = self.word(draw, slot, leaning)
            while word in said:
                word = self.word(draw, slot, leaning)
            said.append(word)
        return said

    def word(self, draw: Draw, slot: str, leaning: Leaning | None = None) -> str:
        """A word for a slot."""
        if leaning is not None and slot == leaning.slot and draw.chance(leaning.rate):
            return draw.pick(leaning.words)
        if self.lexical.get(slot) and draw.chance(self.stray):
            return draw.pick(self.lexical[slot])
        return draw.pick(self.classes[slot])

    def template(self, draw: Draw) -> Template:
        """A template of free text, by weight."""
        return self.sentences[draw.weighted([t.weight for t in self.sentences])]

    def logprob(self, words: Sequence[str], leaning: Leaning | None = None) -> float:
        """Exact log probability of one sentence of free text: log sum_T P(T) prod_slot P(word | slot, words before).

        Args:
            words: the sentence.
            leaning: the concept it was drawn under.

        Returns:
            Natural log; -inf for what the grammar cannot say.
        """
        total, whole = 0.0, sum(t.weight for t in self.sentences)
        for template in self.sentences:
            if len(template.parts) != len(words):
                continue
            total += template.weight / whole * self._fit(template, words, leaning)
        return math.log(total) if total > 0 else -math.inf

    def _fit(self, template: Template, words: Sequence[str], leaning: Leaning | None) -> float:
        """P(words | template): a slot draws among the words that its sentence has not said."""
        p, said = 1.0, dict.fromkeys(template.slots, 0.0)  # by class, P of what was said
        for index, (part, word) in enumerate(zip(template.parts, words, strict=True)):
            if not part.startswith("{"):
                p *= part == word
                continue
            slot = part[1:-1]
            odds = 0.0 if word in words[:index] else self._odds(slot, word, leaning)
            p *= odds / (1 - said[slot])
            said[slot] += odds
        return p

    def _odds(self, slot: str, word: str, leaning: Leaning | None) -> float:
        """P(word | slot)."""
        plain, lexical = self.classes[slot], self.lexical.get(slot, ())
        stray = self.stray if lexical else 0.0
        p = (1 - stray) * plain.count(word) / len(plain)
        if lexical:
            p += stray * lexical.count(word) / len(lexical)
        if leaning is None or leaning.slot != slot:
            return p
        return leaning.rate * leaning.words.count(word) / len(leaning.words) + (1 - leaning.rate) * p


def sentences(text: str) -> list[list[str]]:
    """A text cut behind each `.`, `?` and `!`; the last one may lack its end."""
    found: list[list[str]] = [[]]
    for word in text.split():
        found[-1].append(word)
        if word in ENDS:
            found.append([])
    return [words for words in found if words]
