"""The limits of AOPC against every order there is."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from tests.attribute.metrics.set_functions import additive, by_set, naive_aopc, random_numbers
from torch import Tensor

from inlay.attribute.metrics import erasure, naopc
from inlay.attribute.metrics.games import Game
from inlay.errors import InputError


@pytest.mark.parametrize(("m", "seed"), [(1, 0), (5, 1), (6, 2)])
@pytest.mark.parametrize("shift", [0.0, -10.0])
def test_exact_limits_are_those_of_all_orders(m: int, seed: int, shift: float) -> None:
    number = random_numbers(m, seed, shift)
    found = naopc.limits(by_set(m, number))
    every = {order: naive_aopc(number, order) for order in permutations(range(m))}
    assert found.exact
    assert found.upper == pytest.approx(max(every.values()), abs=1e-6)
    assert found.lower == pytest.approx(min(every.values()), abs=1e-6)
    assert every[tuple(found.best.tolist())] == pytest.approx(found.upper, abs=1e-6)
    assert every[tuple(found.worst.tolist())] == pytest.approx(found.lower, abs=1e-6)
    if shift:  # every removal raises the number: a maximum that starts at 0 would stay there
        assert found.upper < 0


def test_the_best_order_of_an_additive_game_is_that_of_its_weights() -> None:
    weights = torch.tensor([3.0, -1.0, 7.0, 0.5, 2.0])
    found = naopc.limits(by_set(5, additive(weights.tolist())))
    assert found.best.tolist() == weights.argsort(descending=True).tolist()
    assert found.worst.tolist() == weights.argsort().tolist()


def test_aopc_of_the_best_ranking_is_one_and_of_the_worst_nought() -> None:
    game = by_set(6, random_numbers(6, seed=4))
    found = naopc.limits(game)
    scores = torch.zeros(2, 6)
    scores[0, found.best] = torch.arange(6, 0, -1).float()
    scores[1, found.worst] = torch.arange(6, 0, -1).float()
    comprehensive = erasure.aopc_comprehensiveness(game, scores)
    torch.testing.assert_close(comprehensive, torch.tensor([found.upper, found.lower]).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.of(comprehensive), torch.tensor([1.0, 0.0]).double())
    within = found.of(erasure.aopc_comprehensiveness(game, torch.randn(50, 6)))
    assert ((within >= 0) & (within <= 1)).all()


def test_where_all_orders_are_alike_there_is_no_naopc() -> None:
    game = by_set(4, lambda gone: 2.0 - len(gone))
    found = naopc.limits(game)
    assert found.upper == found.lower == 2.5
    assert found.of(erasure.aopc_comprehensiveness(game, torch.randn(3, 4))).isnan().all()


@pytest.mark.parametrize("seed", range(3))
def test_a_beam_that_holds_all_sets_is_exact(seed: int) -> None:
    game = by_set(6, random_numbers(6, seed))
    exact, beam = naopc.exact_limits(game), naopc.beam_limits(game, width=math.comb(6, 3))
    assert not beam.exact
    assert (beam.lower, beam.upper) == pytest.approx((exact.lower, exact.upper))
    for mine, theirs in ((beam.best, beam.upper), (beam.worst, beam.lower)):
        assert erasure.aopc(game, mine).item() == pytest.approx(theirs)


@pytest.mark.parametrize("width", [1, 3])
def test_a_narrow_beam_is_within_the_limits_and_reaches_what_it_says(width: int) -> None:
    game = by_set(8, random_numbers(8, seed=9))
    exact, beam = naopc.exact_limits(game), naopc.beam_limits(game, width)
    assert exact.lower - 1e-9 <= beam.lower <= beam.upper <= exact.upper + 1e-9
    assert erasure.aopc(game, torch.stack([beam.worst, beam.best])).tolist() == pytest.approx([beam.lower, beam.upper])


def test_a_beam_of_one_is_greedy() -> None:
    number = random_numbers(7, seed=3)
    beam = naopc.beam_limits(by_set(7, number), width=1)
    gone: list[int] = []
    while len(gone) < 7:
        gone.append(min(set(range(7)) - set(gone), key=lambda f: number(frozenset([*gone, f]))))
    assert beam.best.tolist() == gone


@pytest.mark.parametrize(("m", "width"), [(5, 5), (13, 1), (13, 4), (15, 2000)])
def test_what_it_runs_is_bounded_by_what_it_says(m: int, width: int) -> None:
    ran = []

    def without(dropped: Tensor) -> Tensor:
        ran.append(len(dropped))
        return (dropped * torch.arange(m)).sum(1).sin()

    naopc.limits(Game(m, without), width)
    assert sum(ran) <= naopc.runs(m, width) + 1
    assert sum(ran) <= 2**m


def test_a_beam_has_a_width() -> None:
    with pytest.raises(InputError, match="width=0"):
        naopc.beam_limits(by_set(3, additive([1.0, 2.0, 3.0])), width=0)
