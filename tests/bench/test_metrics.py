"""The bench's numbers, against scikit-learn, brute force and the paper's own examples."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score, roc_auc_score

from inlay.bench.metrics import (
    auroc,
    best_f1,
    interval,
    macro_accuracy,
    overall,
    pick_factor,
    threshold_youden,
    worth,
)

FEW = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=12)  # few values, so that ties are common
REAL = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12)


@given(FEW | REAL, FEW | REAL)
def test_auroc_is_scikit_learns(yes: list[float], no: list[float]) -> None:
    labels = [1] * len(yes) + [0] * len(no)
    assert auroc(yes, no) == pytest.approx(roc_auc_score(labels, [*yes, *no]))
    assert auroc(yes, no) == pytest.approx(1 - auroc(no, yes))


@given(FEW, FEW)
def test_auroc_counts_pairs_and_only_their_order(yes: list[float], no: list[float]) -> None:
    pairs = [Fraction(1, 2) if a == b else Fraction(int(a > b)) for a, b in product(yes, no)]
    assert auroc(yes, no) == pytest.approx(float(sum(pairs) / len(pairs)))
    mapped = [[math.exp(value) * 3 - 7 for value in side] for side in (yes, no)]
    assert auroc(*mapped) == auroc(yes, no)
    low, span = min(*yes, *no), (max(*yes, *no) - min(*yes, *no)) or 1.0
    assert auroc([(v - low) / span for v in yes], [(v - low) / span for v in no]) == auroc(yes, no)


@given(st.integers(1, 9), st.integers(1, 9), st.floats(-5, 5))
def test_a_constant_score_has_half(n: int, m: int, value: float) -> None:
    assert auroc([value] * n, [value] * m) == 0.5


def test_auroc_by_hand() -> None:
    assert auroc([2, 3], [1, 0]) == 1.0
    assert auroc([1, 2], [1, 3]) == (0.5 + 0 + 1 + 0) / 4
    assert auroc([math.inf], [-math.inf, math.inf]) == 0.75


@pytest.mark.parametrize(("yes", "no"), [([], [1.0]), ([1.0], []), ([math.nan], [1.0]), ([1.0], [math.nan])])
def test_auroc_of_nothing(yes: list[float], no: list[float]) -> None:
    with pytest.raises(ValueError, match="AUROC needs both, without NaN"):
        auroc(yes, no)


@given(FEW, FEW)
def test_youden_is_the_best_of_every_threshold(yes: list[float], no: list[float]) -> None:
    def gain(at: float) -> Fraction:
        return Fraction(sum(v >= at for v in yes), len(yes)) - Fraction(sum(v >= at for v in no), len(no))

    every = sorted({*yes, *no})
    best = max(map(gain, every))
    assert threshold_youden(yes, no) == max(at for at in every if gain(at) == best)


@given(FEW, FEW)
def test_f1_is_the_best_of_every_threshold(yes: list[float], no: list[float]) -> None:
    labels, values = [1] * len(yes) + [0] * len(no), [*yes, *no]
    each = {at: f1_score(labels, [v >= at for v in values]) for at in sorted(set(values))}
    found = best_f1(yes, no)
    said = [value >= found.threshold for value in values]
    assert found.f1 == pytest.approx(max(each.values())) == pytest.approx(each[found.threshold])
    assert found.threshold == min(at for at, f1 in each.items() if f1 == pytest.approx(found.f1))
    assert found.precision == pytest.approx(precision_score(labels, said))
    assert found.recall == pytest.approx(recall_score(labels, said))
    assert found.accuracy == pytest.approx(accuracy_score(labels, said))


def test_macro_accuracy_by_hand() -> None:
    assert macro_accuracy([1, 2, 3, 4], [0, 2], 2) == (3 / 4 + 1 / 2) / 2
    assert macro_accuracy([1, 2, 3, 4], [], 2) is None


RATINGS = [((2, 2, 1), 1.5), ((1, 1, 2), 1.2), ((2, 1, 1), 1.2), ((2, 2, 0), 0.0), ((0, 0, 0), 0.0), ((2, 2, 2), 2.0)]


@pytest.mark.parametrize(("ratings", "whole"), RATINGS)
def test_overall_of_the_paper(ratings: tuple[float, float, float], whole: float) -> None:
    assert overall(*ratings) == pytest.approx(whole)


@pytest.mark.parametrize("ratings", [(None, 2, 2), (2, None, 0), (2, 2, None), (None, None, None)])
def test_a_missing_rating_is_not_zero(ratings: tuple[float | None, float | None, float | None]) -> None:
    assert overall(*ratings) is None


def test_the_factor_with_the_best_mean() -> None:
    assert pick_factor({0.5: [0.0, 1.0], 1.0: [1.2, 1.5], 2.0: [2.0, 0.0]}) == 1.0
    assert pick_factor({2.0: [1.0], 0.5: [1.0], 1.0: [1.0]}) == 0.5
    assert pick_factor({-2.0: [1.0], -0.5: [1.0], 1.0: [0.0]}) == -0.5


@given(st.permutations([overall(*r) for r in product((1, 2), repeat=3)]))
def test_the_order_of_prompts_decides_no_tie(scores: list[float]) -> None:
    assert pick_factor({1.0: scores, 0.5: sorted(scores), 2.0: scores[::-1]}) == 0.5


def test_failed_ratings_are_left_out_of_the_choice() -> None:
    assert pick_factor({0.5: [1.0, 1.0], 1.0: [None, 1.5]}) == 1.0
    assert pick_factor({0.5: [None, None], 1.0: [0.0]}) == 1.0
    assert pick_factor({1.0: [None], 0.5: [None]}) == 0.5
    with pytest.raises(ValueError, match="no factors"):
        pick_factor({})


def test_intervals_are_seeded_and_cover() -> None:
    values = [0.1, 0.9, 0.4, 0.7, 0.2, 0.6]
    low, high = interval(values, seed=3)
    assert (low, high) == interval(values, seed=3) != interval(values, seed=4)
    assert min(values) < low < sum(values) / 6 < high < max(values)
    assert interval([0.3] * 4) == pytest.approx((0.3, 0.3))
    assert interval([]) == interval([0.3]) == (None, None)  # one concept says nothing of the others


def test_a_factor_that_mostly_failed_is_not_chosen() -> None:
    assert pick_factor({0.5: [1.0, 1.0, 1.0], 1.0: [2.0, None, None]}) == 0.5
    assert pick_factor({0.5: [1.0, 1.0, 1.0], 1.0: [2.0, 2.0, None]}) == 1.0
    assert worth([None, None]) == worth([2.0, None, None]) == -math.inf and worth([2.0, None]) == 2.0


def test_intervals_of_one_seed_are_paired() -> None:
    values = [0.1, 0.9, 0.4, 0.7, 0.2, 0.6]
    shifted = interval([value + 1 for value in values], seed=1)
    assert shifted == pytest.approx([bound + 1 for bound in interval(values, seed=1)])


def test_an_interval_has_the_width_of_its_standard_error() -> None:
    values = [i / 199 for i in range(200)]
    low, high = interval(values)
    spread = (sum((v - 0.5) ** 2 for v in values) / 200) ** 0.5
    assert (high - low) / 2 == pytest.approx(1.96 * spread / 200**0.5, rel=0.1)
