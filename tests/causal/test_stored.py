"""Setting stored activations: exactly at their places, out of place, and nowhere else."""

from __future__ import annotations

import pytest
import torch

from inlay.causal.stored import Hold, Patch
from inlay.errors import SiteError
from inlay.interventions import Call


def test_patch_sets_single_places() -> None:
    h, values = torch.randn(3, 4, 6), torch.randn(3, 2)
    at = torch.tensor([0, 2, 2]), torch.tensor([3, 0, 0]), torch.tensor([1, 0, 2])
    was = h.clone()
    found = Patch(*at, values, 3)(h)
    wanted = h.clone()
    wanted[0, 3, 2:4], wanted[2, 0, 0:2], wanted[2, 0, 4:6] = values
    assert torch.equal(found, wanted) and torch.equal(h, was)


def test_patch_of_another_width() -> None:
    place = torch.tensor([0])
    with pytest.raises(SiteError, match=r"pattern\.1: the source has width 2, and the state 3"):
        Patch(place, place, place, torch.randn(1, 2), 2)(torch.randn(1, 1, 6), Call(site="pattern.1"))


def test_hold_sets_all_or_where_the_mask_is() -> None:
    h, values = torch.randn(2, 3, 4), torch.randn(2, 3, 4, dtype=torch.float64)
    assert torch.equal(Hold(values)(h), values.float())
    mask = torch.tensor([[True, False, True], [False, False, False]])
    found = Hold(values, mask)(h)
    assert torch.equal(found[mask], values.float()[mask]) and torch.equal(found[~mask], h[~mask])


def test_hold_of_a_batch_that_is_padded_to_less() -> None:
    h, values, mask = torch.randn(2, 2, 4), torch.randn(2, 3, 4), torch.ones(2, 3, dtype=torch.bool)
    assert torch.equal(Hold(values)(h), values[:, :2]) and torch.equal(Hold(values, mask)(h), values[:, :2])
