"""Words that mark texts off."""

from __future__ import annotations

import math

import pytest

from inlay.bench.words import distinctive, log_odds_z, words


def test_words_of_a_text() -> None:
    assert words("The sea-bell's 3 oars, a RØD båt; 1x i don't") == ["the", "sea-bell's", "oars", "rød", "båt", "don't"]


def test_log_odds_by_hand() -> None:
    found = dict(log_odds_z([["sea", "the"], ["sea", "the"]], [["hill", "the"], ["the"]]))
    # documents with sea 2 and 0, the 2 and 2, hill 0 and 1; totals 4 and 3, pooled 7; prior 10 x share
    a = 10 * 2 / 7
    odds = math.log((2 + a) / (4 + 10 - 2 - a)) - math.log(a / (3 + 10 - a))
    assert found["sea"] == pytest.approx(odds / math.sqrt(1 / (2 + a) + 1 / a))
    assert "hill" not in found and next(iter(found)) == "sea"


def test_a_word_counts_once_a_text() -> None:
    once = log_odds_z([["sea", "oar"]], [["hill"]])
    assert log_odds_z([["sea", "sea", "sea", "oar"]], [["hill"]]) == once
    assert [word for word, _ in once] == ["oar", "sea"]  # equal: by spelling


def test_distinctive_leaves_out_common_words() -> None:
    own = ["The anchor was on the ship", "An anchor and a sail", "the sail"]
    assert distinctive(own, ["The cat was on the mat"])[:2] == ("anchor", "sail")
    assert len(distinctive(own, ["The cat"], n=1)) == 1
    assert distinctive(["the and of"], ["a cat"]) == ()


def test_a_single_word_has_no_odds() -> None:
    assert log_odds_z([["sea"]], [[]]) == [("sea", math.inf)]
    assert log_odds_z([["sea"]], [["sea"]]) == log_odds_z([[]], [["sea"]]) == log_odds_z([[]], [[]]) == []
