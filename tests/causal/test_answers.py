"""Answers become a table of ids, one row a prompt."""

from __future__ import annotations

import pytest
from tests.interventions import tiny

import inlay
from inlay.causal.answers import answer_table
from inlay.errors import CausalError, ModelError


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
    with pytest.raises(CausalError, match=rf"the answer {bad} is no token: the model has ids from 0 to 63"):
        answer_table(tiny.model(), bad, 2)


def test_what_token_ids_refuses_is_refused() -> None:
    with pytest.raises(CausalError, match="2 answers for 3 pairs"):
        answer_table(tiny.model(), [1, 2], 3)
    with pytest.raises(ModelError, match="no tokenizer"):
        answer_table(tiny.model(), "w5", 3)
