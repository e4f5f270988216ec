"""Erasure metrics against loops written from the formulas."""

from __future__ import annotations

import pytest
import torch
from tests.attribute.metrics.set_functions import additive, by_set, naive_aopc, random_numbers

from inlay.attribute.metrics import erasure


@pytest.mark.parametrize("m", [1, 6, 60])
def test_gim_shares(m: int) -> None:
    weights = torch.randn(m, dtype=torch.float64).tolist()
    number = additive(weights, rest=100.0)
    game = by_set(m, lambda gone: number(gone) ** 2)  # not additive
    scores = torch.randn(3, m)
    found, left = erasure.comprehensiveness(game, scores), erasure.sufficiency(game, scores)
    whole = number(frozenset()) ** 2
    for i, mine in enumerate(scores.tolist()):
        down = sorted(range(m), key=lambda f: -mine[f])
        ks = range(1, min(50, m) + 1)
        shares = [(whole - number(frozenset(down[:k])) ** 2) / whole for k in ks]
        assert float(found[i]) == pytest.approx(sum(shares) / len(ks), abs=1e-6)
        shares = []
        for r in (0.5, 0.8, 0.9, 0.95, 0.99):
            lowest = down[::-1][: int(r * m)]
            shares.append((whole - number(frozenset(lowest)) ** 2) / whole)
        assert float(left[i]) == pytest.approx(sum(shares) / 5, abs=1e-6)


def test_a_row_of_few_features_is_not_held_against_fifty() -> None:
    """One feature that carries all of f: its removal loses all, at every k there is."""
    game = by_set(2, additive([3.0, 0.0]))
    assert erasure.comprehensiveness(game, torch.tensor([[1.0, 0.0]])).item() == pytest.approx(1)


@pytest.mark.parametrize("rest", [-1.0, -2.0])
def test_nothing_is_a_share_of_what_is_not_above_zero(rest: float) -> None:
    game = by_set(2, additive([0.5, 0.5], rest))
    assert erasure.comprehensiveness(game, torch.rand(2, 2)).isnan().all()
    assert erasure.sufficiency(game, torch.rand(2, 2)).isnan().all()
    assert erasure.aopc_comprehensiveness(game, torch.rand(2, 2)).isfinite().all()


def test_aopc() -> None:
    number, scores = random_numbers(6, seed=1), torch.randn(4, 6)
    game = by_set(6, number)
    down, up = erasure.aopc_comprehensiveness(game, scores), erasure.aopc_sufficiency(game, scores)
    for i, mine in enumerate(scores.tolist()):
        order = sorted(range(6), key=lambda f: -mine[f])
        assert float(down[i]) == pytest.approx(naive_aopc(number, order), abs=1e-6)
        assert float(up[i]) == pytest.approx(naive_aopc(number, order[::-1]), abs=1e-6)


def test_aopc_of_an_additive_game_in_closed_form() -> None:
    """A weight that goes at place k is missing in m - k + 1 of m terms."""
    weights = torch.tensor([4.0, 2.0, 1.0, -1.0], dtype=torch.float64)
    game = by_set(4, additive(weights.tolist()))
    assert erasure.aopc(game, torch.tensor([0, 1, 2, 3])).item() == pytest.approx((4 * 4 + 2 * 3 + 1 * 2 - 1) / 4)
    total = erasure.aopc_comprehensiveness(game, weights[None]) + erasure.aopc_sufficiency(game, weights[None])
    assert total.item() == pytest.approx(float(weights.sum()) * 5 / 4)
