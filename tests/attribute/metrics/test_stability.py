"""Infidelity and sensitivity: where they are 0, against loops, and at moved embeddings of a model."""

from __future__ import annotations

import pytest
import torch
from tests.attribute import asking
from tests.attribute.metrics.set_functions import additive, by_set, random_numbers
from tests.interventions import tiny
from torch import Tensor

import inlay
from inlay.attribute.asked import Asked
from inlay.attribute.gradients import times_change
from inlay.attribute.metrics.stability import infidelity, sensitivity_max, sensitivity_of
from inlay.errors import InputError


def test_infidelity_of_exact_scores_of_a_linear_model_is_nought() -> None:
    weights = torch.tensor([2.0, -1.0, 0.5, 3.0])
    game = by_set(4, additive(weights.tolist(), rest=1.5))
    found = infidelity(game, torch.stack([weights, weights + torch.tensor([0.0, 0, 2, 0])]))
    assert float(found[0]) == pytest.approx(0, abs=1e-12)
    # A score that is wrong by 2 is wrong by 4 squared in the half of the sets that hold it.
    in_sets = torch.rand(64, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    assert float(found[1]) == pytest.approx(4 * float(in_sets[:, 2].double().mean()))


def test_infidelity_over_all_sets() -> None:
    """Many draws come to the mean over all sets, to four deviations."""
    number, phi = random_numbers(4, seed=5), torch.randn(4, dtype=torch.float64)
    errors = []
    for k in range(16):
        gone = [i for i in range(4) if k >> i & 1]
        errors.append((sum(float(phi[i]) for i in gone) - (number(frozenset()) - number(frozenset(gone)))) ** 2)
    exact = torch.tensor(errors)
    found = infidelity(by_set(4, number), phi[None], draws=20_000)
    assert float(found) == pytest.approx(float(exact.mean()), abs=4 * float(exact.std()) / 20_000**0.5)


def test_sensitivity_of_a_constant_explanation_is_nought() -> None:
    found = sensitivity_max(lambda x: torch.ones(2, 3), torch.randn(2, 3, 4), torch.ones(2))
    assert found.tolist() == [0, 0]


def test_sensitivity_is_the_greatest_move_of_the_scores() -> None:
    seen: list[Tensor] = []

    def explain(x: Tensor) -> Tensor:
        seen.append(x)
        return x.square().sum(-1)

    x, radius = torch.randn(2, 3, 4), torch.tensor([0.1, 0.5])
    found = sensitivity_max(explain, x, radius, draws=6)
    clean, *moved = seen
    assert torch.equal(clean, x)
    assert len(moved) == 6
    for row in range(2):
        noise = [(one[row] - x[row]).abs().max().item() for one in moved]
        assert 0.5 * float(radius[row]) < max(noise) <= float(radius[row]) + 1e-6
        phi = x[row].square().sum(-1)
        moves = [float((one[row].square().sum(-1) - phi).norm() / phi.norm()) for one in moved]
        assert float(found[row]) == pytest.approx(max(moves), rel=1e-5)


def test_scores_of_nought_have_no_sensitivity() -> None:
    assert sensitivity_max(lambda x: torch.zeros(1, 3), torch.randn(1, 3, 4), torch.ones(1)).isnan().all()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_method_runs_at_the_moved_embeddings(family: str) -> None:
    """A gradient method and one that erases see the model computed from the moved embeddings, by hand."""
    model = inlay.load(tiny.FAMILIES[family]())
    asked, row = asking.asked(model), 0
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def explain(at: Asked) -> Tensor:
        length = len(tiny.RAGGED[row])
        one = torch.eye(length, dtype=torch.bool)
        late = at.without(row, one[2:])  # whose beginnings are alike, and would be run once from a cache
        drops = torch.cat([at.values([row]).detach(), at.without(row, one[:2]), late])
        scores = times_change(at)
        seen.append((at.embeds[row, :length], scores[row, :length], drops))
        return scores

    sensitivity_of([asked], explain, draws=2)
    assert len(seen) == 3
    _, base = asking.ends(model, row)
    for x, scores, drops in seen:
        by_hand = ((x - base) * asking.slope(model, x, row)).sum(-1)
        torch.testing.assert_close(scores, by_hand, atol=2e-4, rtol=1e-3)
        for slot in range(-1, len(x)):
            one = x.clone()
            if slot >= 0:
                one[slot] = base[slot]
            with torch.no_grad():
                assert float(drops[slot + 1]) == pytest.approx(float(asking.difference(model, one, row)), abs=2e-4)
    assert not torch.equal(seen[0][0], seen[1][0])


def test_a_row_has_the_sensitivity_that_it_has_alone() -> None:
    model, rows = inlay.load(tiny.llama()), [[5, 9, 17, 33, 2], [40, 3]]
    scores = [
        inlay.attribute.tokens(model, some, [7] * len(some), method="grad", baseline=20) for some in (rows, rows[1:])
    ]
    both, alone = (sensitivity_of(one.asked, one.explain) for one in scores)
    assert float(both[1]) == pytest.approx(float(alone[0]), rel=1e-3)


def test_bad_settings() -> None:
    asked = asking.asked(tiny.model())
    with pytest.raises(InputError, match="does not look"):
        sensitivity_of([asked], lambda at: torch.ones(len(at.rows), at.longest))
    with pytest.raises(InputError, match="draws=0"):
        sensitivity_of([asked], times_change, draws=0)
    with pytest.raises(InputError, match="draws=0"):
        infidelity(by_set(2, additive([1.0, 2.0])), torch.rand(1, 2), draws=0)
