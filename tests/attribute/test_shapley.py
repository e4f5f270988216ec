"""Shapley values against their axioms, against the mean over orders, and KernelSHAP against them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from math import comb
from typing import Any

import pytest
import torch
from tests.attribute.asking import BASE as BLANK
from tests.attribute.asking import asked
from tests.interventions import tiny
from torch import Tensor

import inlay
from inlay.attribute.asked import Asked
from inlay.attribute.shapley import MOST, coalitions, exact, kernel_shap, regressed, shapley, subsets
from inlay.errors import InputError

Present = Callable[[Tensor], Tensor]


def table_game(n: int, seed: int = 0) -> Present:
    """A game with a random value for each subset."""
    values = torch.randn(2**n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return lambda there: values[(there.long() * 2 ** torch.arange(n)).sum(1)]


def by_orders(game: Present, n: int) -> Tensor:
    """The definition: each feature's mean effect over all orders."""
    found = torch.zeros(n, dtype=torch.float64)
    orders = list(permutations(range(n)))
    for order in orders:
        there = torch.zeros(n + 1, n, dtype=torch.bool)
        for step, feature in enumerate(order):
            there[step + 1 :, feature] = True
        found[list(order)] += game(there).diff()
    return found / len(orders)


def row_mean_game(there: Tensor) -> Tensor:
    """Ten scores into a softmax, of which two alike hold the value; a score that is not there is the row's mean."""
    scores = torch.tensor([5.0, 5.0] + [0.0] * 8, dtype=torch.float64)
    return torch.where(there, scores, scores.mean()).softmax(-1)[:, :2].sum(1)


# -- exact -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
def test_exact_is_the_mean_effect_over_all_orders(n: int) -> None:
    game = table_game(n)
    torch.testing.assert_close(exact(game, n), by_orders(game, n), rtol=0, atol=1e-12)


@pytest.mark.parametrize("values", [exact, lambda game, n: regressed(game, n, 40)])
def test_axioms(values: Any) -> None:
    n = 7
    one, two = table_game(n, 1), table_game(n, 2)
    ends = torch.tensor([[False] * n, [True] * n])
    assert values(one, n).sum().item() == pytest.approx(one(ends).diff().item(), abs=1e-12)  # efficiency
    both = values(lambda there: 2 * one(there) - 3 * two(there), n)
    torch.testing.assert_close(both, 2 * values(one, n) - 3 * values(two, n), rtol=0, atol=1e-12)  # linearity


@pytest.mark.parametrize("values", [exact, lambda game, n: regressed(game, n, 2**n - 2)])
def test_a_feature_without_effect_scores_0_and_two_alike_score_alike(values: Any) -> None:
    n = 6
    inner = table_game(n)

    def game(there: Tensor) -> Tensor:  # 4 does nothing; 0 and 1 count by how many of them are there
        alike = there.clone()
        alike[:, 4] = False
        alike[:, 0], alike[:, 1] = there[:, 0] | there[:, 1], there[:, 0] & there[:, 1]
        return inner(alike)

    found = values(game, n)
    assert found[4].abs() < 1e-12
    assert (found[0] - found[1]).abs() < 1e-12
    assert found.abs().min() < 1e-12 < found[[0, 2, 3, 5]].abs().min()


@pytest.mark.parametrize("values", [exact, lambda game, n: regressed(game, n, 2**n - 2)])
def test_two_that_stand_in_for_each_other_share_what_each_alone_does_not_lose(values: Any) -> None:
    found = values(row_mean_game, 10)
    torch.testing.assert_close(found[:2], torch.full((2,), 0.34285, dtype=torch.float64), rtol=0, atol=5e-6)
    torch.testing.assert_close(found[2:], torch.full((8,), 0.01101, dtype=torch.float64), rtol=0, atol=5e-6)
    assert found.sum().item() == pytest.approx(0.77376, abs=5e-6)
    whole = torch.ones(3, 10, dtype=torch.bool)
    whole[1, 0] = whole[2, 0] = whole[2, 1] = False
    clean, single, joint = row_mean_game(whole).tolist()
    assert clean - single == pytest.approx(0.0240, abs=5e-5)
    assert clean - joint == pytest.approx(0.5691, abs=5e-5)


# -- KernelSHAP ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", range(1, 10))
def test_with_all_subsets_kernel_shap_is_exact(n: int) -> None:
    game = table_game(n)
    torch.testing.assert_close(regressed(game, n, 2**n), exact(game, n), rtol=0, atol=1e-10)


@pytest.mark.parametrize("n", [2, 5, 30, 100])
def test_an_additive_game_is_recovered_from_few_subsets(n: int) -> None:
    weights = torch.randn(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    found = regressed(lambda there: there.double() @ weights - 3, n)
    torch.testing.assert_close(found, weights, rtol=0, atol=1e-10)


def test_more_subsets_come_closer() -> None:
    game, n = table_game(11), 11
    want = exact(game, n)

    def error(samples: int) -> float:
        return sum((regressed(game, n, samples, seed) - want).square().mean().item() for seed in range(8))

    assert error(1800) < error(600) / 2 < error(150) / 8


@pytest.mark.parametrize(("n", "samples"), [(5, 15), (8, 60), (12, 400), (40, 120), (41, 2000), (7, 126), (300, 900)])
def test_subsets_are_distinct_come_with_their_complements_and_fit_the_budget(n: int, samples: int) -> None:
    there, weight = coalitions(n, samples)
    assert len(there.unique(dim=0)) == len(there) <= samples
    assert len(there) >= 0.8 * min(samples, 2**n - 2)
    size = there.sum(1)
    assert size.min() >= 1
    assert size.max() <= n - 1
    rows = {tuple(row): w for row, w in zip(there.tolist(), weight.tolist(), strict=True)}
    assert all(rows[tuple(not i for i in row)] == w for row, w in rows.items())
    assert weight.sum().item() == pytest.approx(1, abs=1e-6)


def test_weights_are_the_kernels() -> None:
    """Sizes that are taken whole have (n - 1) / (C(n, s) s (n - s)) each, and the drawn ones have it on average."""
    n = 9
    kernel = torch.tensor([(n - 1) / (comb(n, s) * s * (n - s)) for s in range(1, n)], dtype=torch.float64)
    kernel /= sum(comb(n, s) * kernel[s - 1] for s in range(1, n))
    there, weight = coalitions(n, 2**n - 2)
    torch.testing.assert_close(weight, kernel[there.sum(1) - 1])
    there, weight = coalitions(n, 60)
    ends = (there.sum(1) == 1) | (there.sum(1) == n - 1)
    assert ends.sum() == 2 * n
    torch.testing.assert_close(weight[ends], kernel[:1].expand(2 * n))
    mean = torch.zeros(n - 1, dtype=torch.float64)
    for seed in range(60):
        there, weight = coalitions(n, 60, seed)
        mean.index_add_(0, there.sum(1) - 1, weight / 60)
    torch.testing.assert_close(mean, kernel * torch.tensor([comb(n, s) for s in range(1, n)]), rtol=0.1, atol=0)


# -- of a model ------------------------------------------------------------------------------------------------------


def ask(prompts: list[list[int]], **options: Any) -> Asked:
    return asked(inlay.load(tiny.llama()), prompts, target=1, foil=2, **options)


def with_blanks(ids: list[int], groups: list[list[int]]) -> Present:
    """A prompt as a game, by a forward of its own for each set of groups of tokens."""
    hf = tiny.llama()

    def game(there: Tensor) -> Tensor:
        found = []
        for row in there.tolist():
            gone = {slot for kept, group in zip(row, groups, strict=True) if not kept for slot in group}
            logits = hf(input_ids=torch.tensor([[BLANK if i in gone else t for i, t in enumerate(ids)]])).logits[0, -1]
            found.append((logits[1] - logits[2]).detach().double())
        return torch.stack(found)

    values = game(subsets(len(groups)))
    return lambda there: values[(there.long() * 2 ** torch.arange(len(groups))).sum(1)]


PROMPTS = [[5, 9, 17, 33], [40, 3], [8, 31, 7]]


@pytest.mark.parametrize("method", [shapley, lambda asked: kernel_shap(asked, samples=14)])
def test_scores_of_tokens_are_the_mean_effect_over_all_orders(method: Any) -> None:
    found = method(ask(PROMPTS))
    assert found.shape == (3, 4)
    for row, ids in enumerate(PROMPTS):
        want = by_orders(with_blanks(ids, [[slot] for slot in range(len(ids))]), len(ids))
        torch.testing.assert_close(found[row, : len(ids)], want.float(), rtol=1e-4, atol=2e-5)
        assert not found[row, len(ids) :].any()


def test_tokens_of_a_group_share_its_score() -> None:
    found = shapley(ask([[5, 9, 17, 33, 2]], within=slice(0, 4), by=[slice(0, 2), 3]))[0]
    want = by_orders(with_blanks([5, 9, 17, 33, 2], [[0, 1], [3]]), 2)
    want = torch.stack([want[0] / 2, want[0] / 2, want[1] * 0, want[1], want[1] * 0])
    torch.testing.assert_close(found, want.float(), rtol=1e-4, atol=2e-5)


def test_kernel_shap_of_a_row_does_not_depend_on_its_batch_and_is_complete() -> None:
    prompts = [[5, 9, 17, 33, 2, 8, 30], *PROMPTS]
    given = ask(prompts, batch_tokens=16)
    found = kernel_shap(given)
    alone = kernel_shap(ask(prompts[:1]))
    torch.testing.assert_close(found[0], alone[0], rtol=1e-3, atol=1e-4)
    rows = range(len(prompts))
    with torch.no_grad():
        change = given.values(rows) - given.values(rows, given.base)
    torch.testing.assert_close(found.sum(1), change, rtol=1e-4, atol=1e-4)


def test_too_many_features_and_too_few_subsets_say_what_to_do() -> None:
    with pytest.raises(InputError, match=r"row 1 has 13 features.*at most 12.*kernel_shap"):
        shapley(ask([[5], [7] * (MOST + 1)]))
    with pytest.raises(InputError, match=r"samples=5 .*4 scores: give at least 6"):
        kernel_shap(ask(PROMPTS), samples=5)


def test_subsets_are_numbered_by_their_bits() -> None:
    assert subsets(3).tolist()[5] == [True, False, True]
    assert len(subsets(4).unique(dim=0)) == 16
