"""Answers become a table of ids, one row a prompt."""

from __future__ import annotations

import pytest
from tests.interventions import tiny

import inlay
from inlay.errors import ModelError, TargetError
from inlay.model.answers import answer_table, token_ids


def test_one_for_all_one_each_and_several() -> None:
    model = inlay.load(tiny.llama(), tokenizer=tiny.words())
    ids, real = answer_table(model, "w5", 3)
    assert ids.tolist() == [[5]] * 3 and real.all()
    ids, _ = answer_table(model, ["w5", 7, "w6"], 3)
    assert ids.tolist() == [[5], [7], [6]]
    ids, real = answer_table(model, [["w5", 9], [7], 3], 3)
    assert ids.tolist() == [[5, 9], [7, 7], [3, 3]] and real.tolist() == [[True, True], [True, False], [True, False]]


@pytest.mark.parametrize("bad", [tiny.VOCABULARY, -1])
def test_an_id_outside_of_the_vocabulary(bad: int) -> None:
    with pytest.raises(TargetError, match=rf"the answer {bad} is no token: the model has ids from 0 to 63"):
        answer_table(tiny.model(), bad, 2)


def test_what_token_ids_refuses_is_refused() -> None:
    with pytest.raises(TargetError, match="2 answers for 3 prompts"):
        answer_table(tiny.model(), [1, 2], 3)
    with pytest.raises(ModelError, match="no tokenizer"):
        answer_table(tiny.model(), "w5", 3)


def test_ids_of_texts() -> None:
    model = tiny.model()
    assert token_ids(model, 5, 2) == [[5], [5]]
    assert token_ids(model, [3, 2], 2) == [[3], [2]]
    assert token_ids(model, [[1, 3], [4]], 2) == [[1, 3], [4]]
    with pytest.raises(TargetError, match="answer of prompt 1 is empty"):
        token_ids(model, [1, []], 2)
    with_words = inlay.load(tiny.llama(), tokenizer=tiny.words())
    assert token_ids(with_words, ["w7", 2], 2) == [[7], [2]]
    with pytest.raises(TargetError, match=r"'w3 w4' is 2 tokens .*\['w3', 'w4'\]"):
        token_ids(with_words, "w3 w4", 1)
