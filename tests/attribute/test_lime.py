"""LIME against additive games, against scikit-learn's ridge, and its samples and kernel against their formulas."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import Ridge
from tests.attribute.asking import BASE as BLANK
from tests.attribute.asking import asked
from tests.interventions import tiny
from torch import Tensor

import inlay
from inlay.attribute.lime import fitted, lime
from inlay.errors import InputError


class Noted:
    """A game with a random value for each subset, that notes which it was asked for."""

    def __init__(self, n: int, seed: int = 0) -> None:
        made = torch.Generator().manual_seed(seed)
        self.values = torch.randn(2**n, generator=made, dtype=torch.float64)
        self.numbers = 2 ** torch.arange(n)

    def __call__(self, there: Tensor) -> Tensor:
        self.there = there
        return self.values[(there.long() * self.numbers).sum(1)]


@pytest.mark.parametrize("n", [1, 2, 6, 40])
def test_without_a_penalty_an_additive_game_is_recovered(n: int) -> None:
    weights = torch.randn(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    found = fitted(lambda there: there.double() @ weights - 3, n, ridge=0)
    torch.testing.assert_close(found, weights, rtol=0, atol=1e-10)


@pytest.mark.parametrize("ridge", [1e-3, 0.1])
@pytest.mark.parametrize("width", [0.25, 1.0])
def test_the_fit_is_scikit_learns_ridge_with_the_kernels_weights(ridge: float, width: float) -> None:
    game = Noted(8)
    found = fitted(game, 8, samples=60, width=width, ridge=ridge)
    z = game.there.double()
    whole = torch.ones(8, dtype=torch.float64)
    cosine = z @ whole / (z.norm(dim=1) * whole.norm()).clamp(min=1e-12)
    weight = torch.exp(-((1 - cosine) ** 2) / (2 * width**2))
    peer = Ridge(alpha=ridge * weight.sum().item()).fit(z, game(game.there), sample_weight=weight)
    torch.testing.assert_close(found, torch.from_numpy(peer.coef_), rtol=0, atol=1e-10)


def test_samples_are_the_whole_row_and_rows_of_which_a_uniform_number_is_missing() -> None:
    game = Noted(5)
    fitted(game, 5, samples=20_001)
    assert game.there[0].all()
    missing = (~game.there[1:]).sum(1)
    share = missing.bincount(minlength=6) / 20_000
    torch.testing.assert_close(share, torch.tensor([0, 0.2, 0.2, 0.2, 0.2, 0.2]), rtol=0, atol=0.015)
    each = (~game.there[1:][missing == 2]).float().mean(0)
    torch.testing.assert_close(each, torch.full((5,), 0.4), rtol=0, atol=0.03)


def test_seeds() -> None:
    game = Noted(8)
    one, again, other = (fitted(game, 8, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_of_a_model_each_row_is_a_game_of_its_own() -> None:
    hf = tiny.llama()
    prompts = [[5, 9, 17, 33, 2], [40, 3, 21]]
    found = lime(asked(inlay.load(hf), prompts, target=1, foil=2, seed=3), samples=30)
    for row, ids in enumerate(prompts):

        def game(there: Tensor, ids: list[int] = ids) -> Tensor:
            copies = torch.where(there, torch.tensor(ids), BLANK)
            with torch.no_grad():
                logits = hf(input_ids=copies).logits[:, -1].double()
            return logits[:, 1] - logits[:, 2]

        want = fitted(game, len(ids), samples=30, seed=3)
        torch.testing.assert_close(found[row, : len(ids)], want.float(), rtol=1e-3, atol=1e-4)
        assert not found[row, len(ids) :].any()


def test_bad_settings_say_what_to_give() -> None:
    given = asked(inlay.load(tiny.llama()), [[5, 9, 17, 33]], target=1)
    with pytest.raises(InputError, match=r"samples=4 .* 4 weights and a constant: give at least 5"):
        lime(given, samples=4)
    with pytest.raises(InputError, match=r"width=0"):
        lime(given, width=0)
    with pytest.raises(InputError, match=r"ridge=-1"):
        lime(given, ridge=-1)
