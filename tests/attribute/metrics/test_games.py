"""The game of a row: each set once, and on a model the number with ids replaced by hand."""

from __future__ import annotations

import math

import pytest
import torch
from tests.attribute import asking
from tests.attribute.metrics.set_functions import by_set
from tests.interventions import tiny
from torch import Tensor

import inlay
from inlay.attribute.metrics.games import Game, first, game_of, ranking
from inlay.errors import InputError


def test_each_set_is_asked_for_once() -> None:
    asked: list[list[int]] = []

    def without(dropped: Tensor) -> Tensor:
        asked.extend(dropped.int().tolist())
        return dropped.sum(1)

    game = Game(9, without)
    dropped = torch.rand(40, 9) < 0.5
    twice = torch.stack([dropped, dropped.flip(0)])
    assert torch.equal(game(twice), twice.sum(-1).double())
    assert game.full == 0
    assert torch.equal(game.lost(dropped), -dropped.sum(-1).double())
    assert len(asked) == len({tuple(one) for one in asked}) == len({*map(tuple, dropped.tolist()), (False,) * 9})


def test_ranking_and_first_sets() -> None:
    order = ranking(torch.tensor([[0.0, 3.0, 1.0, 3.0], [4.0, 3.0, 2.0, 1.0]]))
    assert order.tolist() == [[1, 3, 2, 0], [0, 1, 2, 3]]
    sets = first(order, [0, 1, 3])
    assert [[s.nonzero().flatten().tolist() for s in row] for row in sets] == [
        [[], [1], [1, 2, 3]],
        [[], [0], [0, 1, 2]],
    ]


def test_bad_games() -> None:
    with pytest.raises(InputError, match="no feature"):
        Game(0, lambda dropped: dropped.sum(1))
    game = by_set(3, lambda gone: math.nan if gone == {0, 2} else 1.0)
    assert float(game(torch.tensor([True, True, False]))) == 1
    with pytest.raises(InputError, match=r"nan without the features \[0, 2\]"):
        game(torch.ones(3, dtype=torch.bool) & torch.tensor([True, False, True]))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_on_a_model_it_is_the_number_with_ids_replaced(family: str) -> None:
    model = inlay.load(tiny.FAMILIES[family]())
    every = [asking.asked(model, baseline=one) for one in (20, 31)]
    row, features = 2, [(0,), (2, 3), (5,)]
    sets = torch.tensor([[bool(k >> i & 1) for i in range(3)] for k in range(8)])
    alone, both = game_of(every[:1], row, features)(sets), game_of(every, row, features)(sets)

    def by_hand(gone: list[bool], base: int) -> float:
        slots = [slot for drop, feature in zip(gone, features, strict=True) if drop for slot in feature]
        ids = [base if slot in slots else one for slot, one in enumerate(tiny.RAGGED[row])]
        logits = tiny.plain(model.hf, [ids])[0, -1]
        return float(logits[asking.TARGETS[row]] - logits[asking.FOIL])

    first_base, second = ([by_hand(gone, base) for gone in sets.tolist()] for base in (20, 31))
    torch.testing.assert_close(alone, torch.tensor(first_base).double(), atol=2e-4, rtol=0)
    mean = (torch.tensor(first_base) + torch.tensor(second)) / 2
    torch.testing.assert_close(both, mean.double(), atol=2e-4, rtol=0)
