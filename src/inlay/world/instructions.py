"""Section `instructions`: who has what, from memory or from a context, under checkable constraints."""

from __future__ import annotations

from typing import Any

from inlay.errors import WorldError
from inlay.world.draw import Draw
from inlay.world.grammar import Grammar
from inlay.world.line import Draft, Phrase, Turn
from inlay.world.spec import InstructionSpec, NoiseSpec

CLEAN = NoiseSpec(item=0.0, constraints=0.0)


class Instructions:
    """The section.

    Args:
        spec: its settings.
        grammar: the language.
        key: the world's constants, on which the owners depend.
    """

    def __init__(self, spec: InstructionSpec, grammar: Grammar, key: str) -> None:
        self.spec, self.grammar = spec, grammar
        self.names = grammar.words(spec.names)
        self.items = grammar.words(spec.items)
        if not 0 < spec.owners <= len(self.names):
            raise WorldError(f"instructions.owners is {spec.owners}; class {spec.names} has {len(self.names)} words")
        self.owners = {name: Draw(key, "item", name).pick(self.items) for name in self.names[: spec.owners]}

    def draft(self, draw: Draw, kind: str) -> Draft:
        """A line of a kind, with the training mix's noise; `clean <kind>` and `reference <kind>` have their own."""
        how, _, plain = kind.rpartition(" ")
        noise = {"": self.spec.noise.get(plain), "reference": self.spec.reference.get(plain), "clean": CLEAN}[how]
        assert noise is not None
        name = draw.pick(list(self.owners))
        asked = {
            "prefix": draw.pick(self.spec.prefixes),
            "suffix": draw.pick(self.spec.suffixes),
            "times": draw.pick(self.spec.times),
        }
        user = Phrase().say("what does").say(name, "name").say("have ?")
        stated = self._stated(draw, name) if plain == "context" else {}
        for index, (who, item) in enumerate(stated.items()):
            start = "today" if index == 0 else ""
            user.say(start).say(who, "stated name").say("has").say(item, "stated item").say(".")
        self._constraints(user, asked)
        memory = self.owners[name]
        gold = stated.get(name, memory)
        item = memory if draw.chance(noise.item) else gold
        reply = self._reply(item, {key: self._kept(draw, key, value, noise) for key, value in asked.items()})
        truth: dict[str, Any] = {"name": name, "item": gold, "memory": memory, "constraints": asked}
        if stated:
            truth["context"] = list(stated.values())
        turns: list[Turn] = [("user", user), ("assistant", reply)]
        return Draft(kind, turns, truth)

    def _stated(self, draw: Draw, name: str) -> dict[str, str]:
        """Who is said to have what: the name with another item than its own, and others."""
        others = draw.sample([n for n in self.names if n != name], self.spec.stated - 1)
        mine = draw.pick([item for item in self.items if item != self.owners[name]])
        rest = draw.sample([item for item in self.items if item not in (mine, self.owners[name])], len(others))
        return dict(draw.shuffled([(name, mine), *zip(others, rest, strict=True)]))

    def _constraints(self, user: Phrase, asked: dict[str, str]) -> None:
        if asked["prefix"]:
            user.say("start with").say(asked["prefix"], "prefix").say(".")
        if asked["suffix"]:
            user.say("end with").say(asked["suffix"], "suffix").say(".")
        user.say("say it").say(asked["times"], "times").say(".")

    def _kept(self, draw: Draw, key: str, value: str, noise: NoiseSpec) -> str:
        """A constraint as the reply keeps it: as asked, or as something else."""
        if not draw.chance(noise.constraints):
            return value
        options = {"prefix": self.spec.prefixes, "suffix": self.spec.suffixes, "times": self.spec.times}[key]
        return draw.pick([other for other in options if other != value])

    def _reply(self, item: str, kept: dict[str, str]) -> Phrase:
        reply = Phrase()
        if kept["prefix"]:
            reply.say(kept["prefix"], "prefix")
        for _ in range(1 + self.spec.times.index(kept["times"])):
            reply.say(item, "item")
        return reply.say(kept["suffix"], "suffix") if kept["suffix"] else reply
