"""What takes out what an Edit adds."""

from __future__ import annotations

import pytest
import torch
from tests.interventions import tiny

from inlay import Add, Bank, Edit, NullOut, Steer
from inlay.errors import TrainError
from inlay.train.suppress import suppressing

VECTOR = torch.linspace(-1, 1, tiny.WIDTH)


def test_a_null_of_its_own_shares_its_tensors() -> None:
    steer = Steer(VECTOR, 0.5)
    shared = Edit("resid_post.0", steer) + Edit("resid_post.2", steer)
    null = suppressing(shared)
    first, second = (part.intervention for part in null.parts)
    assert first is second and isinstance(first, NullOut) and first.vector is steer.vector
    bank = suppressing(Edit("resid_post.1", Bank([steer, Steer(-VECTOR)])))
    model = tiny.model()
    got = model.forward(tiny.EVEN[:2], edit=bank, rows=[1, 2]).logits
    for index, vector in enumerate((VECTOR, -VECTOR)):
        want = model.forward([tiny.EVEN[index]], edit=Edit("resid_post.1", NullOut(vector, 0.5 * (1 - index)))).logits
        torch.testing.assert_close(got[index : index + 1], want, rtol=1e-5, atol=1e-5)


def test_without_one_it_is_the_negative_strength() -> None:
    null = suppressing(Edit("resid_post.0", Add(VECTOR), strength=2.0) + Edit("embed", Add(VECTOR)))
    assert [part.strength for part in null.parts] == [-2.0, -1.0]


def test_a_mixture_is_refused() -> None:
    with pytest.raises(TrainError, match="train them apart"):
        suppressing(Edit("resid_post.0", Add(VECTOR)) + Edit("resid_post.1", Steer(VECTOR)))
