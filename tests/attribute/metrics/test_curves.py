"""Deletion and insertion against loops, and how they hang together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.attribute.metrics.set_functions import additive, by_set, random_numbers

from inlay.attribute.metrics import curves, erasure


def test_areas() -> None:
    m, scores = 5, torch.randn(3, 5)
    number = random_numbers(m, seed=2)
    game = by_set(m, number)
    deletion, insertion = curves.deletion(game, scores), curves.insertion(game, scores)
    for i, mine in enumerate(scores.tolist()):
        order = sorted(range(m), key=lambda f: -mine[f])
        gone = [number(frozenset(order[:k])) for k in range(m + 1)]
        left = [number(frozenset(order[k:])) for k in range(m + 1)]
        at = np.arange(m + 1) / m
        assert float(deletion[i]) == pytest.approx(np.trapezoid(gone, at), abs=1e-6)
        assert float(insertion[i]) == pytest.approx(np.trapezoid(left, at), abs=1e-6)


def test_on_an_additive_game_insertion_and_deletion_add_up() -> None:
    """With weights w that are in, W - w are out: at each k the two curves add up to f(x) + f(baseline)."""
    game = by_set(6, additive([3.0, -1.0, 2.0, 0.5, 0.0, 1.0], rest=0.7))
    scores = torch.randn(4, 6)
    total = curves.deletion_curve(game, scores) + curves.insertion_curve(game, scores)
    torch.testing.assert_close(total, torch.full_like(total, 5.5 + 2 * 0.7), atol=1e-6, rtol=0)
    areas = curves.deletion(game, scores) + curves.insertion(game, scores)
    torch.testing.assert_close(areas, torch.full_like(areas, 5.5 + 2 * 0.7), atol=1e-6, rtol=0)


def test_areas_and_aopc_differ_by_the_ends_alone() -> None:
    """f(x) - AOPC is the mean over k = 1 ... m; the trapezoids are that over 0 ... m with half of each end."""
    game = by_set(6, random_numbers(6, seed=7))
    scores = torch.randn(4, 6)
    none = float(game(torch.ones(6, dtype=torch.bool)))
    ends = (game.full - none) / 12
    deletion = game.full - erasure.aopc_comprehensiveness(game, scores) + ends
    insertion = game.full - erasure.aopc_sufficiency(game, scores) + ends
    torch.testing.assert_close(curves.deletion(game, scores), deletion)
    torch.testing.assert_close(curves.insertion(game, scores), insertion)
