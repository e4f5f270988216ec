"""Section `circuits`: tasks with a known answer, a foil, and a counterfactual of the same length."""

from __future__ import annotations

from typing import Any

from inlay.world.draw import Draw
from inlay.world.grammar import Grammar
from inlay.world.line import MASK, Draft, Phrase
from inlay.world.spec import CircuitSpec


class Circuits:
    """The section.

    A line's truth has `answer` and `foil` (or lists of them, whose probabilities are summed), and `counterfactual`: the
    text of a line of the same length in which the causal tokens are others. Its spans `causal` mark those tokens.

    Args:
        spec: its settings.
        grammar: the language.
    """

    def __init__(self, spec: CircuitSpec, grammar: Grammar) -> None:
        self.spec, self.grammar = spec, grammar
        self.names, self.things = grammar.words(spec.names), grammar.words(spec.things)
        self.numbers = grammar.words(spec.numbers)

    def draft(self, draw: Draw, kind: str) -> Draft:
        """A line of a kind; `clean evidence` has no masks beside the noise."""
        how, _, plain = kind.rpartition(" ")
        if plain == "evidence":
            return self._evidence(draw, kind, 0.0 if how else self.spec.masked)
        return {"induction": self._induction, "greater": self._greater, "transfer": self._transfer}[plain](draw)

    def _induction(self, draw: Draw) -> Draft:
        """`list : a b c , a b c .`: what followed the first time follows again."""
        words = draw.sample(self.things, draw.number(3, 6))
        at = draw.number(1, len(words) - 1)
        other = draw.pick([w for w in self.things if w not in words])
        phrase, swapped = Phrase().say("list :"), Phrase().say("list :")
        for index, word in enumerate(words):
            phrase.say(word, "causal" if index == at else None)
            swapped.say(other if index == at else word)
        phrase.say(",").say(words[:at])
        swapped.say(",").say(words[:at])
        question = len(phrase.words)
        phrase.say(words[at], "answer").say(words[at + 1 :]).say(".")
        foil = draw.pick([w for i, w in enumerate(words) if i != at])
        return self._line("induction", phrase, question, words[at], foil, swapped.text)

    def _greater(self, draw: Draw) -> Draft:
        """`the watch lasted from seven to`: only larger numbers follow."""
        low = draw.number(1, len(self.numbers) - 2)
        high = draw.number(low + 1, len(self.numbers) - 1)
        phrase = Phrase().say("the watch lasted from").say(self.numbers[low], "causal").say("to")
        question = len(phrase.words)
        phrase.say(self.numbers[high], "answer").say(".")
        swapped = f"the watch lasted from {self.numbers[0]} to"
        return self._line(
            "greater", phrase, question, list(self.numbers[low + 1 :]), list(self.numbers[: low + 1]), swapped
        )

    def _transfer(self, draw: Draw) -> Draft:
        """`anna and otto met at the pier . anna gave the key to`: the other one (indirect object)."""
        one, two, third = draw.sample(self.names, 3)
        giver = draw.pick([one, two])
        getter = two if giver == one else one
        place, thing = draw.pick(self.spec.places), draw.pick(self.things)
        phrase = Phrase().say(one, "causal").say("and").say(two, "causal").say(f"met at the {place} .")
        phrase.say(giver, "causal").say(f"gave the {thing} to")
        question = len(phrase.words)
        swapped = f"{one} and {two} met at the {place} . {third} gave the {thing} to"
        phrase.say(getter, "answer").say(".")
        return self._line("transfer", phrase, question, getter, giver, swapped)

    def _evidence(self, draw: Draw, kind: str, masked: float) -> Draft:
        """`signs : ... verdict ?`: one to four redundant words among noise decide."""
        spec = self.spec
        verdict, other = draw.shuffled(list(spec.signs))[:2]
        count = draw.number(1, 4)
        at = set(draw.sample(range(spec.tokens), count))
        phrase, swapped, left = Phrase().say("signs :"), Phrase().say("signs :"), count
        for index in range(spec.tokens):
            if index in at:
                left -= 1
                hide = draw.chance(masked) and left > 0  # at least one is seen
                word = MASK if hide else draw.pick(spec.signs[verdict])
                phrase.say([word], None if hide else "causal")
                swapped.say(MASK)
            else:
                word = MASK if draw.chance(masked) else draw.pick(spec.noise_words)
                phrase.say([word])
                swapped.say([word])
        phrase.say(". verdict ?")
        swapped.say(". verdict ?")
        question = len(phrase.words)
        phrase.say(verdict, "answer")
        return self._line(kind, phrase, question, verdict, other, swapped.text)

    def _line(
        self, kind: str, phrase: Phrase, question: int, answer: str | list[str], foil: str | list[str], swapped: str
    ) -> Draft:
        truth: dict[str, Any] = {
            "answer": answer,
            "foil": foil,
            "question": " ".join(phrase.words[:question]),
            "counterfactual": swapped,
        }
        return Draft(kind, phrase, truth)
