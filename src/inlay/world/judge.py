"""What a text of a world is worth: exact scores, made without the generator that wrote it.

All scores are 0, 1 or 2, or a share between 0 and 1, as said with each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from inlay.world.concept import Concept
from inlay.world.grammar import ENDS, Grammar, Template, sentences


def concept_score(concept: Concept, text: str) -> int:
    """How far a text has a concept: 0, 1 or 2.

    For a lexicon, the number of different words, at most 2; a shared word counts only in a sentence with an own one.
    For a form, 2 where a mark stands in its place, 1 where it stands elsewhere.
    """
    said = sentences(text)
    if concept.place:
        marks = [mark.split() for mark in concept.marks]
        if not said:
            return 0
        there = said[0] if concept.place == "start" else said[-1]
        return 2 if there in marks else int(any(mark in said for mark in marks))
    found: set[str] = set()
    for sentence in said:
        here = set(sentence)
        if own := here & set(concept.lexicon):
            found |= own | (here & set(concept.shared))
    return min(2, len(found))


def fluency_score(grammar: Grammar, marks: Sequence[str], text: str) -> int:
    """How far a text is of the language: 0, 1 or 2.

    2 where at least 99 % of the tokens are in good sentences and none is there twice, 1 where at least 50 % are and
    none is there three times. A last sentence that is cut short is good where it begins one.
    """
    said = sentences(text)
    total = sum(map(len, said))
    if not total:
        return 0
    fixed = [mark.split() for mark in marks]
    good = 0
    for index, sentence in enumerate(said):
        cut = index == len(said) - 1 and sentence[-1] not in ENDS
        if sentence in fixed or grammar.is_sentence(sentence, cut=cut) or (cut and _begins(sentence, fixed)):
            good += len(sentence)
    most = max(said.count(sentence) for sentence in said)
    if good >= 0.99 * total and most < 2:
        return 2
    return int(good >= 0.5 * total and most < 3)


def _begins(words: Sequence[str], fixed: Sequence[Sequence[str]]) -> bool:
    return any(list(mark[: len(words)]) == list(words) for mark in fixed)


def instruction_score(grammar: Grammar, first: Template, subject: str, text: str) -> int:
    """How far a reply does what was asked.

    2 where a sentence about the subject has the frame's shape, 1 where the subject is named, 0 else.
    """
    shape = grammar.shape(first.parts)
    for sentence in sentences(text):
        if subject in sentence and grammar.shape(sentence) == shape:
            return 2
    return int(subject in text.split())


def overall(*scores: float) -> float:
    """The harmonic mean, 0 where one is 0."""
    return 0.0 if min(scores) <= 0 else len(scores) / sum(1 / score for score in scores)


def refused(refusal: str, text: str) -> bool:
    """Whether a reply refuses: it begins as the refusal does, up to its first slot."""
    opening = refusal.split("{")[0].split()
    return text.split()[: len(opening)] == opening


def item_scores(items: Sequence[str], truth: Mapping[str, object], text: str) -> dict[str, float]:
    """Scores of an answer about who has what, each between 0 and 1.

    `task`: all items named are the gold one. `faith`: all of them occur in the context (`None` without one is left
    out). `constraints`: the mean over prefix, suffix and count.
    """
    words = text.split()
    named = [word for word in words if word in items]
    asked = {str(key): str(value) for key, value in dict(truth["constraints"]).items()}  # type: ignore[call-overload]
    scores = {"task": float(bool(named) and all(word == truth["item"] for word in named))}
    if truth.get("context"):
        given = list(truth["context"])  # type: ignore[call-overload]
        scores["faith"] = float(bool(named) and all(word in given for word in named))
    count = {"once": 1, "twice": 2, "thrice": 3}[asked["times"]]
    prefix, suffix = asked["prefix"], asked["suffix"]
    first, last = (words[0], words[-1]) if words else ("", "")
    checks = [
        first == prefix if prefix else first in items,
        last == suffix if suffix else last in items,
        len(named) == count,
    ]
    return scores | {"constraints": sum(checks) / len(checks)}
