"""Soft erasure: its limits in closed form, and on a model elements zeroed by hand."""

from __future__ import annotations

import pytest
import torch
from tests.attribute import asking
from tests.interventions import tiny
from torch import Tensor

import inlay
from inlay.attribute.metrics import soft
from inlay.attribute.question import Projection
from inlay.errors import InputError


def gone(keep: Tensor) -> Tensor:
    """A distance that is the share of elements that are zeroed, times 0.8."""
    return 0.8 * (1 - keep.double().mean((1, 2)))


def test_limits() -> None:
    """All kept: S = 1, so NS = 1. All zeroed: S = S0, so NS = 0 and NC = D/(1 - S0) = 1. None zeroed: NC = 0."""
    one, nought = torch.ones(4), torch.zeros(4)
    assert [float(v) for v in soft.soft(gone, one, 6)] == pytest.approx([1, 1])
    assert [float(v) for v in soft.soft(gone, nought, 6)] == pytest.approx([0, 0])


def test_chances() -> None:
    """Of a share 1 - a elements go: NC = mean a and NS = mean a, to four deviations of 200 draws of 4 x 32 elements."""
    a = torch.tensor([0.1, 0.9, 0.5, 0.3])
    nc, ns = soft.soft(gone, a, 32, draws=200)
    assert float(nc) == pytest.approx(0.45, abs=4 * 0.5 / (200 * 128) ** 0.5)
    assert float(ns) == pytest.approx(0.45, abs=4 * 0.5 / (200 * 128) ** 0.5)
    again = soft.soft(gone, a, 32, draws=200)
    assert (float(again[0]), float(again[1])) == (float(nc), float(ns))


def test_more_distance_than_without_any_element_counts_as_nought() -> None:
    def odd(keep: Tensor) -> Tensor:
        return torch.where(keep.any((1, 2)), 0.9, 0.5)

    assert float(soft.soft(odd, torch.full((4,), 0.5), 8)[1]) == 0


def test_where_zeros_change_nothing_it_is_not_defined() -> None:
    found = soft.soft(lambda keep: torch.zeros(len(keep)), torch.rand(4), 6)
    assert all(value.isnan() for value in found)


def test_scores_are_scaled() -> None:
    found = soft.scaled(torch.tensor([[-2.0, 0.0, 2.0], [3.0, 3.0, 3.0]]))
    assert found.tolist() == [[0, 0.5, 1], [0.5, 0.5, 0.5]]
    with pytest.raises(InputError, match="scale them"):
        soft.soft(gone, torch.tensor([0.0, 1.5]), 3)
    with pytest.raises(InputError, match="draws=0"):
        soft.soft(gone, torch.rand(2), 3, draws=0)


def test_hellinger() -> None:
    p, q = torch.tensor([0.36, 0.64, 0.0]), torch.tensor([0.0, 0.64, 0.36])
    assert float(soft.hellinger(p, p)) == 0
    assert float(soft.hellinger(p, q)) == pytest.approx((2 * 0.36 / 2) ** 0.5)
    assert float(soft.hellinger(torch.tensor([1.0, 0]), torch.tensor([0, 1.0]))) == pytest.approx(1)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_on_a_model_whole_tokens_zeroed_by_hand(family: str) -> None:
    """Scores of 0 and 1 leave nothing to chance. Token 0 may not change, and stays in every run."""
    model = inlay.load(tiny.FAMILIES[family]())
    asked, row = asking.asked(model), 0
    ids = tiny.RAGGED[row]
    free = torch.zeros(asked.longest, dtype=torch.bool)
    free[1 : len(ids)] = True
    a = torch.tensor([0.0, 1, 0, 0, 1])

    def distance(kept: list[int]) -> float:
        embeds, _ = asking.ends(model, row)
        mask = torch.tensor([float(slot in kept) for slot in range(len(ids))])
        with torch.no_grad():
            p, q = (
                model.hf(inputs_embeds=some[None]).logits[0, -1].softmax(-1)
                for some in (embeds, embeds * mask[:, None])
            )
        return float(((p.sqrt() - q.sqrt()) ** 2).sum().sqrt() / 2**0.5)

    nc, ns = soft.soft(soft.distance_of(asked, row, free), a, tiny.WIDTH, draws=2)
    none = distance([0])
    assert float(nc) == pytest.approx(distance([0, 2, 3]) / none, abs=1e-4)
    assert float(ns) == pytest.approx(max(0, none - distance([0, 1, 4])) / none, abs=1e-4)


def test_a_direction_has_no_distribution() -> None:
    model = tiny.model()
    asked = asking.asked(model, target=Projection("resid_post.1", torch.randn(tiny.WIDTH)))
    with pytest.raises(InputError, match="direction"):
        soft.distance_of(asked, 0, torch.ones(asked.longest, dtype=torch.bool))
