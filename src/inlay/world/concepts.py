"""Section `concepts`: talk, documents and glossaries that lean to a topic, a style or a form; pairs and prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from inlay.errors import WorldError
from inlay.world.concept import Concept
from inlay.world.draw import Draw
from inlay.world.grammar import Grammar, Leaning, Template
from inlay.world.judge import concept_score
from inlay.world.line import Draft, Phrase, Turn
from inlay.world.spec import ConceptSpec

SUBJECT = "SUBJ"
_TRIES = 1000


@dataclass(frozen=True)
class Frame:
    """A kind of talk: how it is asked for and how the reply begins."""

    name: str
    ask: Template
    first: Template


@dataclass(frozen=True)
class Talk:
    """The skeleton of a reply: whom it is about and the templates of its sentences, which a pair shares."""

    frame: Frame
    subject: str
    rest: tuple[Template, ...]

    @property
    def instruction(self) -> str:
        """What the user says."""
        return " ".join(self.frame.ask.fill([self.subject]))


class Concepts:
    """The section.

    Args:
        spec: its settings.
        grammar: the language.
        concepts: every concept.
        frames: the kinds of talk.
    """

    def __init__(
        self, spec: ConceptSpec, grammar: Grammar, concepts: Sequence[Concept], frames: Sequence[Frame]
    ) -> None:
        self.spec, self.grammar, self.concepts, self.frames = spec, grammar, list(concepts), list(frames)
        self.filler = Template.parse(spec.filler)
        subjects = grammar.words(SUBJECT)
        if not 0 < spec.subjects < len(subjects):
            raise WorldError(f"concepts.subjects is {spec.subjects}, and class SUBJ has {len(subjects)} words")
        self.subjects = {"train": subjects[: -spec.subjects], "test": subjects[-spec.subjects :]}

    def draft(self, draw: Draw, kind: str) -> Draft:
        """A line of a kind."""
        if kind == "document":
            return self._document(draw)
        if kind == "glossary":
            return self._glossary(draw)
        if kind in ("prompted", "unasked"):
            concept = draw.pick(self.concepts)
            talk = self._skeleton(draw, self.grammar.words(SUBJECT))
            talk, reply = self._until(draw, talk, concept, lambda said: concept_score(concept, said) == 2)
            turns = [("user", Phrase().say(talk.instruction)), ("assistant", reply)]
            if kind == "prompted":
                turns = self._asked(talk.instruction, self._ask(concept), reply, draw.chance(self.spec.system))
            return Draft(kind, turns, {"concept": concept.id, "frame": talk.frame.name, "subject": talk.subject})
        count = 1 if kind == "talk" else draw.number(2, 4)
        talks = [self._skeleton(draw, self.grammar.words(SUBJECT)) for _ in range(count)]
        turns = [turn for talk in talks for turn in self._plain(draw, talk)]
        return Draft(kind, turns, {"concept": None, "frame": talks[-1].frame.name, "subject": talks[-1].subject})

    # -- concept data ------------------------------------------------------------------------------------------------

    def pair(self, draw: Draw, concept: Concept, split: str) -> tuple[Draft, Draft]:
        """A reply with the concept (its score is 2) and one without (0), to the same words, on the same templates."""
        talk = self._skeleton(draw, self.subjects[split])
        talk, positive = self._until(draw, talk, concept, lambda said: concept_score(concept, said) == 2)
        _, negative = self._until(draw, talk, None, lambda said: concept_score(concept, said) == 0, concept.place)
        return self._draft("positive", talk, concept, positive), self._draft("negative", talk, concept, negative)

    def hard_negative(self, draw: Draw, concept: Concept, split: str = "test") -> Draft:
        """A reply that a twin made: the shared word in its other meaning, the other degree, the mark at the other end.

        Raises:
            WorldError: the concept has no twin.
        """
        twins = [c for c in self.concepts if concept.twin_of(c)]
        if not twins:
            raise WorldError(f"concept {concept.id} ({concept.description}) has no twin to make a hard negative of")
        twin = draw.pick(twins)
        talk = self._skeleton(draw, self.subjects[split])
        shared = set(concept.shared) & set(twin.shared)
        left = 1 if concept.place else 0  # a mark at the wrong end is not nothing

        def fits(said: str) -> bool:
            like = concept_score(twin, said) > 0 and (not shared or bool(shared & set(said.split())))
            return like and concept_score(concept, said) == left

        talk, reply = self._until(draw, talk, twin, fits)
        return self._draft("hard negative", talk, concept, reply)

    def prompts(self, draw: Draw, n: int, split: str = "test") -> list[str]:
        """n different instructions about the split's own subjects.

        Raises:
            WorldError: there are not so many.
        """
        every = [Talk(frame, subject, ()).instruction for frame in self.frames for subject in self.subjects[split]]
        if n > len(every):
            raise WorldError(f"{n} prompts were asked for, and {len(every)} are there")
        return draw.sample(every, n)

    # -- parts -------------------------------------------------------------------------------------------------------

    def _draft(self, kind: str, talk: Talk, concept: Concept, reply: Phrase) -> Draft:
        truth = {"concept": concept.id, "frame": talk.frame.name, "subject": talk.subject}
        return Draft(kind, [("user", Phrase().say(talk.instruction)), ("assistant", reply)], truth)

    def _leaning(self, concept: Concept | None) -> Leaning | None:
        slot = self.spec.slots.get(concept.genre) if concept else None
        if concept is None or slot is None:
            return None
        return Leaning(slot, concept.lexicon * self.spec.own + concept.shared, self.spec.rate)

    def _ask(self, concept: Concept) -> str:
        return self.spec.ask.format(description=concept.description)

    def _skeleton(self, draw: Draw, subjects: Sequence[str]) -> Talk:
        frame, subject = draw.pick(self.frames), draw.pick(subjects)
        count = 1 if draw.unit() < 1 / 3 else 2
        return Talk(frame, subject, tuple(self.grammar.template(draw) for _ in range(count)))

    def _reply(self, draw: Draw, talk: Talk, concept: Concept | None, filler: str = "") -> Phrase:
        """The reply of a skeleton; a form puts its mark, and `filler` a plain sentence, at its place."""
        leaning = self._leaning(concept)
        said = [self._about(draw, talk, leaning)]
        for template in talk.rest:
            said.append(self._another(draw, template, leaning, said))
        place = concept.place if concept else filler
        if place:
            mark = draw.pick(concept.marks).split() if concept else self.grammar.draw(draw, self.filler)
            said.insert(0 if place == "start" else len(said), mark)
        return self._labelled(said, concept)

    def _another(self, draw: Draw, template: Template, leaning: Leaning | None, said: Sequence[list[str]]) -> list[str]:
        """A sentence of a template that was not said yet, as far as the template has another one."""
        for _ in range(20):
            sentence = self.grammar.draw(draw, template, leaning)
            if sentence not in said:
                break
        return sentence

    def _labelled(self, said: Sequence[Sequence[str]], concept: Concept | None) -> Phrase:
        phrase = Phrase()
        marks = [mark.split() for mark in concept.marks] if concept else []
        for sentence in said:
            if list(sentence) in marks:
                phrase.say(sentence, "concept")
                continue
            for word in sentence:
                phrase.say([word], "concept" if concept and word in concept.words else None)
        return phrase

    def _about(self, draw: Draw, talk: Talk, leaning: Leaning | None) -> list[str]:
        first = talk.frame.first
        others = iter(self.grammar.fills(draw, [s for s in first.slots if s != SUBJECT], leaning))
        return first.fill([talk.subject if s == SUBJECT else next(others) for s in first.slots])

    def _until(
        self, draw: Draw, talk: Talk, concept: Concept | None, fits: Callable[[str], bool], filler: str = ""
    ) -> tuple[Talk, Phrase]:
        """Replies on one skeleton until one fits; where many have failed, on two free sentences that are drawn anew."""
        for tried in range(1, _TRIES):
            reply = self._reply(draw, talk, concept, filler)
            if fits(reply.text):
                return talk, reply
            if tried % 25 == 0 and concept is not None:
                talk = Talk(talk.frame, talk.subject, (self.grammar.template(draw), self.grammar.template(draw)))
        raise WorldError(f"no reply to {talk.instruction!r} in {_TRIES} draws has the score that is wanted")

    def _plain(self, draw: Draw, talk: Talk) -> list[Turn]:
        reply = self._reply(draw, talk, None)
        forms = [c for c in self.concepts if c.place]
        if forms and draw.chance(self.spec.stray_mark):
            reply = self._reply(draw, talk, draw.pick(forms))
        return [("user", Phrase().say(talk.instruction)), ("assistant", reply)]

    def _asked(self, instruction: str, ask: str, reply: Phrase, system: bool) -> list[Turn]:
        if system:
            return [("system", Phrase().say(ask)), ("user", Phrase().say(instruction)), ("assistant", reply)]
        return [("user", Phrase().say(instruction).say(ask)), ("assistant", reply)]

    def _document(self, draw: Draw) -> Draft:
        concept = draw.pick(self.concepts)
        leaning = self._leaning(concept)
        said: list[list[str]] = []
        for _ in range(draw.number(2, 4)):
            said.append(self._another(draw, self.grammar.template(draw), leaning, said))
        if concept.place:
            said.insert(0 if concept.place == "start" else len(said), draw.pick(concept.marks).split())
        return Draft("document", self._labelled(said, concept), {"concept": concept.id})

    def _glossary(self, draw: Draw) -> Draft:
        concept = draw.pick(self.concepts)
        words = draw.pick(concept.marks).split() if concept.marks else [*draw.shuffled(concept.words)[:5], "."]
        phrase = Phrase().say(concept.description).say("means").say(words, "concept")
        return Draft("glossary", phrase, {"concept": concept.id})
