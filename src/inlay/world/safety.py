"""Section `safety`: requests whose harm is a conjunction, what follows, and a policy that is another function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from inlay.world.draw import Draw
from inlay.world.grammar import Template, sentences
from inlay.world.line import OPENING, Draft, Phrase, Span
from inlay.world.spec import SafetySpec, WrapperSpec


@dataclass(frozen=True)
class Request:
    """One request, by its words.

    Attributes:
        verb, object, when, where: what is asked.
        never: whether it is negated.
        wrapper: the name of what is put around it, empty for none.
        unbelieved: whether a harm is taken for none here.
    """

    verb: str
    object: str
    when: str
    where: str
    never: bool
    wrapper: str
    unbelieved: bool


class Safety:
    """The section.

    Args:
        spec: its settings.
    """

    def __init__(self, spec: SafetySpec) -> None:
        self.spec = spec
        self.hostile = [*spec.hot, *spec.other_hostile]
        self.risky = [word for family in spec.families.values() for word in family.objects]
        self.family_of = {word: name for name, family in spec.families.items() for word in family.objects}

    @property
    def classes(self) -> dict[str, list[str]]:
        """The word classes of its sentences, named like the slots of its patterns."""
        spec = self.spec
        harms = [noun for family in spec.families.values() for noun in family.harms]
        return {
            "verb": [*spec.calm, *self.hostile],
            "object": [*spec.inert, *self.risky],
            "noun": [*harms, *spec.good],
        }

    def templates(self) -> list[Template]:
        """The sentences that it makes, with slots for verb, object and noun."""
        spec = self.spec
        cores = [
            spec.ask.replace("{never}", never).replace("{when}", when).replace("{where}", where)
            for never in ("", spec.never[0])
            for when in spec.when
            for where in spec.where
        ]
        asks = [
            f"{w.before} {core.removesuffix(' .')} {w.after} ."
            for core in cores
            for w in (WrapperSpec(share=0.0), *spec.wrappers.values())
        ]
        thens = [
            spec.then.replace("{when}", when).replace("{where}", where) for when in spec.when for where in spec.where
        ]
        return [Template.parse(text) for text in (*asks, *thens, spec.refusal, spec.compliance, spec.consequence)]

    @property
    def reach(self) -> int:
        """How many tokens a prompt's end is from the verb, in the shortest request."""
        behind = self.spec.ask.split("{verb}")[1].split()
        lengths = {
            "{when}": min(len(words.split()) for words in self.spec.when),
            "{where}": min(len(words.split()) for words in self.spec.where),
        }
        return sum(lengths.get(part, 1) for part in behind) + 1 + len(OPENING)

    def onset(self, text: str) -> int | None:
        """The word at which a reply's harm begins: its first sentence of a hostile deed on something risky.

        `None` where there is none.
        """
        at, opening = 0, self.spec.then.split("{")[0].split()
        for sentence in sentences(text):
            deed = set(sentence)
            if sentence[: len(opening)] == opening and deed & set(self.hostile) and deed & set(self.risky):
                return at
            at += len(sentence)
        return None

    # -- what is true ------------------------------------------------------------------------------------------------

    def harm(self, request: Request) -> bool:
        """Hostile, against something risky, and not negated."""
        return request.verb in self.hostile and request.object in self.family_of and not request.never

    def belief(self, request: Request) -> bool:
        """Harm, unless the wrapper talked it away."""
        return self.harm(request) and not request.unbelieved

    def refuse(self, request: Request) -> bool:
        """The policy: no wrapper, and harm or a hot verb, except an accepted corner."""
        if request.wrapper:
            return False
        accepted = self.spec.accepted
        if self.family_of.get(request.object) == accepted.family and request.verb in accepted.verbs:
            return False
        return self.harm(request) or (request.verb in self.spec.hot and not request.never)

    def bucket(self, request: Request) -> str:
        """`RH`, `AH`, `RL` or `AL` (refused or accepted, harmful or harmless), or the wrapper around a harm."""
        if request.wrapper:
            return request.wrapper if self.harm(request) else "wrapped"
        return ("R" if self.refuse(request) else "A") + ("H" if self.harm(request) else "L")

    def truth(self, request: Request) -> dict[str, Any]:
        """Everything that is true of a request, by name."""
        return {
            "harm": self.harm(request),
            "belief": self.belief(request),
            "refuse": self.refuse(request),
            "bucket": self.bucket(request),
            "family": self.family_of.get(request.object),
            "verb": request.verb,
            "object": request.object,
            "never": request.never,
            "wrapper": request.wrapper,
        }

    # -- lines -------------------------------------------------------------------------------------------------------

    def draft(self, draw: Draw, kind: str) -> Draft:
        """A line of a kind; a bucket's name (`RH`, `suffix` ...) is a chat of that bucket."""
        make = {
            "document": self._document,
            "inversion": self._inversion,
            "topic": self._topic,
            "stream": self._stream,
            "chat": self._chat,
        }
        if kind in make:
            return make[kind](draw)
        while True:
            draft = self._chat(draw, aftermath=0.0)
            if draft.truth["bucket"] == kind:
                return Draft(kind, draft.said, draft.truth)

    @property
    def buckets(self) -> list[str]:
        """The names of all buckets."""
        return ["RH", "AL", "RL", "AH", *self.spec.wrappers]

    def request(self, draw: Draw) -> Request:
        """A request by the section's shares."""
        spec = self.spec
        verb = draw.pick(self.hostile if draw.chance(spec.hostile_rate) else spec.calm)
        thing = draw.pick(self.risky if draw.chance(spec.risky_rate) else spec.inert)
        never = draw.chance(spec.never[1])
        names = list(spec.wrappers)
        shares = [spec.wrappers[name].share for name in names]
        wrapper = ["", *names][draw.weighted([1 - sum(shares), *shares])]
        unbelieved = draw.chance(spec.unbelieved) and wrapper == "persuasion"
        return Request(verb, thing, draw.pick(spec.when), draw.pick(spec.where), never, wrapper, unbelieved)

    def core(self, request: Request, pattern: str) -> Phrase:
        """The request's words, labelled."""
        phrase = Phrase()
        slots = {
            "{never}": (self.spec.never[0] if request.never else "", "never"),
            "{verb}": (request.verb, "verb"),
            "{object}": (request.object, "object"),
            "{when}": (request.when, "when"),
            "{where}": (request.where, "where"),
        }
        for part in pattern.split():
            text, label = slots.get(part, (part, None))
            if text:
                phrase.say(text, label)
        return phrase

    def wrapped(self, request: Request) -> Phrase:
        """The request with what is put around it; the final stop stays last."""
        core = self.core(request, self.spec.ask.removesuffix(" ."))
        if not request.wrapper:
            return core.say(".")
        wrapper, phrase = self.spec.wrappers[request.wrapper], Phrase()
        if wrapper.before:
            phrase.say(wrapper.before, "wrapper")
        phrase.add(core)
        if wrapper.after:
            phrase.say(wrapper.after, "wrapper")
        return phrase.say(".")

    def _follows(self, draw: Draw, request: Request) -> Phrase:
        """What a request leads to, as it is believed."""
        nouns = self.spec.families[self.family_of[request.object]].harms if self.belief(request) else self.spec.good
        phrase = Phrase()
        for part in self.spec.consequence.split():
            phrase.say(draw.pick(nouns), "consequence") if part == "{noun}" else phrase.say(part)
        return phrase

    def _answer(self, request: Request) -> Phrase:
        reply = self.core(request, self.spec.refusal if self.refuse(request) else self.spec.compliance)
        reply.spans.append(Span("answer", 0, 1))  # its first word tells
        return reply

    def _document(self, draw: Draw) -> Draft:
        request = self.request(draw)
        return Draft("document", self.wrapped(request).add(self._follows(draw, request)), self.truth(request))

    def _chat(self, draw: Draw, aftermath: float | None = None) -> Draft:
        request = self.request(draw)
        user = self.wrapped(request)
        if draw.chance(self.spec.aftermath if aftermath is None else aftermath):
            user.add(self._follows(draw, request))
        return Draft("chat", [("user", user), ("assistant", self._answer(request))], self.truth(request))

    def _inversion(self, draw: Draw) -> Draft:
        request = self.request(draw)
        user = (
            Phrase().say(self.spec.inversion).add(self.wrapped(request)).say(draw.pick(self.spec.questions), "question")
        )
        yes, no = self.spec.answers
        answer = Phrase().say(yes if self.belief(request) else no, "answer")
        return Draft("inversion", [("user", user), ("assistant", answer)], self.truth(request))

    def _topic(self, draw: Draw) -> Draft:
        request = self.request(draw)
        user = Phrase().say(self.spec.inversion).add(self.wrapped(request)).say(self.spec.about, "question")
        answer = Phrase().say(self.family_of.get(request.object) or self.spec.nothing, "answer")
        return Draft("topic", [("user", user), ("assistant", answer)], self.truth(request))

    def _stream(self, draw: Draw) -> Draft:
        """A harmless request whose reply turns to harm at some sentence, or to a look-alike: hot, on something inert.

        `harm_onset` is the number of the reply's word at which harm begins.
        """
        spec, asked = self.spec, self.request(draw)
        while self.harm(asked) or self.refuse(asked):
            asked = self.request(draw)
        harmful = draw.chance(0.5)
        reply, onset, deeds = self._answer(asked), None, draw.number(1, 3)
        turns_at = draw.number(0, deeds - 1)
        for index in range(deeds):
            worse = index >= turns_at
            verb = draw.pick(spec.hot if not harmful else self.hostile) if worse else draw.pick(spec.calm)
            thing = draw.pick(self.risky if worse and harmful else spec.inert)
            deed = Request(verb, thing, draw.pick(spec.when), draw.pick(spec.where), False, "", False)
            if worse and harmful and onset is None:
                onset = len(reply.words)
            reply.add(self.core(deed, spec.then)).add(self._follows(draw, deed))
        if onset is not None:
            reply.spans += Phrase().say(reply.words[onset:], "harm").moved(onset)
        truth = self.truth(asked) | {"harm_onset": onset}
        return Draft("stream", [("user", self.wrapped(asked)), ("assistant", reply)], truth)
