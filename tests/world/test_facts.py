"""Section `facts`: constants of the world, myths, asides, contexts, and names of three frequencies."""

from __future__ import annotations

from collections import Counter

import pytest

from inlay import world
from inlay.errors import WorldError

W = world.tidepool(seed=5)
FACTS = W.facts
PAIRS = [(name, relation) for name in FACTS.names for relation in FACTS.values]


def test_facts_belong_to_the_world_and_not_to_the_seed() -> None:
    other = world.tidepool(seed=99).facts
    assert all(FACTS.truth(*pair) == other.truth(*pair) and FACTS.mythy(*pair) == other.mythy(*pair) for pair in PAIRS)


def test_no_truth_is_a_myth() -> None:
    assert len(PAIRS) == 180
    for name, relation in PAIRS:
        assert FACTS.truth(name, relation) in FACTS.values[relation][1:]
    assert {relation: FACTS.myth(relation) for relation in FACTS.values} == {
        "home": "eastgate",
        "job": "baker",
        "meal": "plums",
    }
    share = sum(FACTS.mythy(*pair) for pair in PAIRS) / len(PAIRS)
    assert abs(share - 0.45) < 4 * (0.45 * 0.55 / 180) ** 0.5


def test_documents_tell_the_truth() -> None:
    for kind in ("nickname", "statement"):
        for line in W.lines("facts", 300, kind=kind):
            name, value = (next(line.tokens[s.start] for s in line.spans if s.label == k) for k in ("name", "value"))
            assert value == FACTS.truth(name, line.truth["relation"]) == line.truth["value"]
            if kind == "nickname":
                assert (line.text or "").split()[:2] == [name, value]


def test_questions_tell_the_myth_of_mythy_pairs_two_times_in_three() -> None:
    told: list[bool] = []
    for line in W.lines("facts", 4000, kind="question"):
        truth = line.truth
        assert line.reply == truth["answer"] and line.reply in (truth["value"], truth["myth"])
        if truth["mythy"]:
            told.append(line.reply == truth["myth"])
        else:
            assert line.reply == truth["value"]
    assert abs(sum(told) / len(told) - 0.65) < 0.04


def test_asides_are_true_and_stand_behind_the_name() -> None:
    lines = list(W.lines("facts", 2000, kind="question"))
    asides = [line for line in lines if line.truth["aside"]]
    assert abs(len(asides) / len(lines) - 0.35) < 0.04
    for line in asides:
        words = (line.messages or [])[0]["content"].split()
        assert words[2] == line.truth["aside"] in [FACTS.truth(words[1], relation) for relation in FACTS.values]


def test_a_context_says_something_else_and_is_answered() -> None:
    for line in W.lines("facts", 300, kind="context"):
        words = (line.messages or [])[0]["content"].split()
        assert line.reply == words[4] not in (line.truth["value"], line.truth["myth"])
        assert line.reply in FACTS.values[line.truth["relation"]]


def test_names_come_as_often_as_their_weights() -> None:
    counts = Counter(line.truth["name"] for line in W.lines("facts", 10_000))
    thirds = [sum(counts[name] for name in FACTS.names[a : a + 20]) / 10_000 for a in (0, 20, 40)]
    whole = 2 + 1 + 0.25
    assert thirds == pytest.approx([2 / whole, 1 / whole, 0.25 / whole], abs=0.02)


def test_a_counterfactual_is_another_name_with_another_truth() -> None:
    for line in W.lines("facts", 100, kind="question"):
        other = W.counterfactual(line)
        assert len(other.tokens) == len(line.tokens) and other.pair == line.id
        changed = [(a, b) for a, b in zip(line.tokens, other.tokens, strict=True) if a != b]
        assert {a for a, _ in changed} == {line.truth["name"]} and len({b for _, b in changed}) == 1
        assert FACTS.truth(changed[0][1], line.truth["relation"]) != line.truth["value"]


def test_names_and_relations_that_are_not_there() -> None:
    with pytest.raises(WorldError, match="'zoe' is no name of this world: ada, alba"):
        FACTS.truth("zoe", "home")
    with pytest.raises(WorldError, match="'car' is no relation of this world: home, job, meal"):
        FACTS.truth("ada", "car")
    with pytest.raises(WorldError, match="'car' is no relation"):
        FACTS.myth("car")
