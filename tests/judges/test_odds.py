"""Log-odds, by the numbers of the paper's formula."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inlay.errors import JudgeError
from inlay.judges import preference_odds, utility_odds


def test_the_worked_example() -> None:
    assert preference_odds(1.0, 2.0) == 1.0
    assert utility_odds(1.0, 2.0) == pytest.approx(0.01286, abs=5e-6)


@given(st.floats(0.7, 30), st.floats(0.7, 30))
def test_utility_is_the_log_odds_of_either(a: float, b: float) -> None:
    p = math.exp(-a) + math.exp(-b)
    assert utility_odds(a, b) == pytest.approx(math.log(p / (1 - p)), abs=1e-6)
    assert utility_odds(a, b) == utility_odds(b, a) and preference_odds(a, b) == -preference_odds(b, a)


def test_long_answers_do_not_underflow() -> None:
    assert utility_odds(5000.0, 5000.0) == pytest.approx(math.log(2) - 5000)


@pytest.mark.parametrize("nll", [-1.0, math.nan, math.inf])
def test_what_is_no_nll(nll: float) -> None:
    for odds in (preference_odds, utility_odds):
        for pair in ((nll, 2.0), (2.0, nll)):
            with pytest.raises(JudgeError, match=f"a negative log-likelihood of {nll} is none"):
                odds(*pair)


def test_two_answers_cannot_be_likelier_than_everything() -> None:
    for pair in ((0.0, 2.0), (0.5, 0.5)):
        with pytest.raises(JudgeError, match="two different answers have less than 1"):
            utility_odds(*pair)
