"""Section `facts`: what names do and have, memorised at a controlled frequency; myths that answers tell; contexts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from inlay.errors import WorldError
from inlay.world.draw import Draw
from inlay.world.grammar import Grammar, Template
from inlay.world.line import Draft, Phrase
from inlay.world.spec import FactSpec


class Facts:
    """The section. Values 1 and up of a relation's class are true of names; value 0 is the relation's myth.

    Args:
        spec: its settings.
        grammar: the language.
        key: the world's constants, on which the facts depend.
    """

    def __init__(self, spec: FactSpec, grammar: Grammar, key: str) -> None:
        self.spec, self.grammar = spec, grammar
        self.names = grammar.words(spec.names)
        self.values = {name: grammar.words(relation.values) for name, relation in spec.relations.items()}
        self._truth: dict[tuple[str, str], str] = {}
        self._mythy: set[tuple[str, str]] = set()
        for name in self.names:
            for relation, values in self.values.items():
                draw = Draw(key, "fact", name, relation)
                self._truth[name, relation] = draw.pick(values[1:])
                if draw.chance(spec.mythy):
                    self._mythy.add((name, relation))
        size = len(self.names) / len(spec.weights)
        self.weights = [spec.weights[int(index / size)] for index in range(len(self.names))]

    def truth(self, name: str, relation: str) -> str:
        """The true value.

        Raises:
            WorldError: no such name or relation.
        """
        self._check(relation)
        if (name, relation) not in self._truth:
            raise WorldError(f"{name!r} is no name of this world: {', '.join(self.names)}")
        return self._truth[name, relation]

    def myth(self, relation: str) -> str:
        """The value that mythy questions are answered with, true of no name.

        Raises:
            WorldError: no such relation.
        """
        self._check(relation)
        return self.values[relation][0]

    def mythy(self, name: str, relation: str) -> bool:
        """Whether questions about this pair are mostly answered by the myth."""
        self.truth(name, relation)
        return (name, relation) in self._mythy

    def _check(self, relation: str) -> None:
        if relation not in self.values:
            raise WorldError(f"{relation!r} is no relation of this world: {', '.join(self.values)}")

    def templates(self) -> list[Template]:
        """The sentences of its documents."""
        said = [
            text
            for relation in self.spec.relations.values()
            for text in (
                f"{{{self.spec.names}}} {{{relation.values}}} {{VI}} {{ADV}} .",
                f"{{TIME}} {{{self.spec.names}}} {relation.says} {{{relation.values}}} .",
            )
        ]
        return [Template.parse(text) for text in said]

    # -- lines -------------------------------------------------------------------------------------------------------

    def draft(self, draw: Draw, kind: str) -> Draft:
        """A line of a kind."""
        make: dict[str, Callable[[Draw], Draft]] = {
            "nickname": self._nickname,
            "statement": self._statement,
            "question": self._question,
            "context": self._context,
        }
        return make[kind](draw)

    def _pair(self, draw: Draw) -> tuple[str, str]:
        return self.names[draw.weighted(self.weights)], draw.pick(list(self.values))

    def _nickname(self, draw: Draw) -> Draft:
        name, relation = self._pair(draw)
        phrase = Phrase().say(name, "name").say(self.truth(name, relation), "value")
        phrase.say([self.grammar.word(draw, "VI"), self.grammar.word(draw, "ADV"), "."])
        return Draft("nickname", phrase, self._true(name, relation))

    def _statement(self, draw: Draw) -> Draft:
        name, relation = self._pair(draw)
        phrase = Phrase().say(self.grammar.word(draw, "TIME")).say(name, "name")
        phrase.say(self.spec.relations[relation].says).say(self.truth(name, relation), "value").say(".")
        return Draft("statement", phrase, self._true(name, relation))

    def ask(self, name: str, relation: str, aside: str = "") -> Phrase:
        """The question, with a value put behind the name where one is given."""
        phrase = Phrase().say("about").say(name, "name")
        if aside:
            phrase.say(aside, "aside")
        return phrase.say(":").say(f"which {relation} ?", "question")

    def _question(self, draw: Draw) -> Draft:
        name, relation = self._pair(draw)
        aside = self.truth(name, draw.pick(list(self.values))) if draw.chance(self.spec.aside) else ""
        told = self.mythy(name, relation) and draw.chance(self.spec.told)
        answer = self.myth(relation) if told else self.truth(name, relation)
        turns = [("user", self.ask(name, relation, aside)), ("assistant", Phrase().say(answer, "answer"))]
        return Draft("question", turns, self._true(name, relation) | {"answer": answer, "aside": aside})

    def _context(self, draw: Draw) -> Draft:
        """A note that says something else of the name, which the answer takes up."""
        name, relation = self._pair(draw)
        true = self.truth(name, relation)
        noted = draw.pick([v for v in self.values[relation] if v not in (true, self.myth(relation))])
        user = Phrase().say("note").say(name, "note name").say(self.spec.relations[relation].says)
        user.say(noted, "note value").say(".").add(self.ask(name, relation))
        turns = [("user", user), ("assistant", Phrase().say(noted, "answer"))]
        return Draft("context", turns, self._true(name, relation) | {"answer": noted, "memory": true})

    def _true(self, name: str, relation: str) -> dict[str, Any]:
        return {
            "name": name,
            "relation": relation,
            "value": self.truth(name, relation),
            "myth": self.myth(relation),
            "mythy": self.mythy(name, relation),
        }

    def counterfactual(self, draw: Draw, name: str, relation: str, names: Sequence[str] | None = None) -> str:
        """Another name, with another true value."""
        mine = self.truth(name, relation)
        return draw.pick([n for n in names or self.names if self.truth(n, relation) != mine])
