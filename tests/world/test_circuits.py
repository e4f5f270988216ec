"""Section `circuits`: answers against solvers written here, and counterfactuals of the same length."""

from __future__ import annotations

import pytest

from inlay import world
from inlay.errors import WorldError
from inlay.world.line import MASK, Line

W = world.tidepool(seed=5)
NUMBERS = list(W.grammar.classes["NUM"])
SIGNS = W.spec.circuits.signs if W.spec.circuits else {}


def solve(kind: str, words: list[str]) -> str | list[str]:
    """The answer to a question, from its words alone."""
    if kind == "induction":
        listed, again = " ".join(words[2:]).split(" , ")
        last = again.split()[-1]
        return listed.split()[listed.split().index(last) + 1]
    if kind == "greater":
        return NUMBERS[NUMBERS.index(words[4]) + 1 :]
    if kind == "transfer":
        giver = words[8]
        return words[2] if giver == words[0] else words[0]
    found = {verdict for word in words for verdict, signs in SIGNS.items() if word in signs}
    assert len(found) == 1
    return found.pop()


@pytest.mark.parametrize("kind", ["induction", "greater", "transfer", "evidence", "clean evidence"])
def test_the_answer_is_the_one_that_follows(kind: str) -> None:
    for line in W.lines("circuits", 300, kind=kind):
        words = line.truth["question"].split()
        answer = solve(kind.removeprefix("clean "), words)
        assert line.truth["answer"] == answer
        text = (line.text or "").split()
        assert text[: len(words)] == words
        follows = text[len(words)]
        assert follows in answer if isinstance(answer, list) else follows == answer
        foils = line.truth["foil"] if isinstance(line.truth["foil"], list) else [line.truth["foil"]]
        assert not set(foils) & set(answer if isinstance(answer, list) else [answer])


@pytest.mark.parametrize("kind", ["induction", "greater", "transfer", "clean evidence"])
def test_a_counterfactual_differs_in_the_causal_tokens_only(kind: str) -> None:
    for line in W.lines("circuits", 300, kind=kind):
        other = W.counterfactual(line)
        question = line.truth["question"].split()
        swapped = (other.text or "").split()
        assert other.pair == line.id and len(swapped) >= len(question)
        causal = {i - 2 for s in line.spans if s.label == "causal" for i in range(s.start, s.end)}
        changed = {i for i, (a, b) in enumerate(zip(question, swapped, strict=False)) if a != b}
        assert changed <= causal and (changed or kind == "greater")


def test_counterfactuals_have_the_length_of_their_question() -> None:
    for line in W.lines("circuits", 500):
        assert len(line.truth["counterfactual"].split()) == len(line.truth["question"].split())


def test_a_counterfactual_of_induction_has_another_answer() -> None:
    for line in W.lines("circuits", 100, kind="induction"):
        assert solve("induction", (W.counterfactual(line).text or "").split()) != line.truth["answer"]


def test_evidence_is_masked_in_training_and_never_wholly() -> None:
    lines: list[Line] = list(W.lines("circuits", 500, kind="evidence"))
    tokens = [word for line in lines for word in line.truth["question"].split()[2:20]]
    assert 0.1 < tokens.count(MASK) / len(tokens) < 0.16
    assert not any(MASK in line.truth["question"] for line in W.lines("circuits", 100, kind="clean evidence"))


def test_other_lines_have_no_counterfactual() -> None:
    with pytest.raises(WorldError, match="has no counterfactual: only circuits and facts have"):
        W.counterfactual(W.line("concepts", 0))
