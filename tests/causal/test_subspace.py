"""The subspace of an interchange and principal angles, against projections written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from inlay import Add, Boundless, LowRank, Mask, Rotate, RotateMask, Swap
from inlay.causal.subspace import principal_angles, subspace
from inlay.errors import CausalError, EditError


def test_what_each_kind_takes() -> None:
    given = torch.linalg.qr(torch.randn(8, 3)).Q
    torch.testing.assert_close(subspace(LowRank.of(given), 8), given)
    whole = Rotate(None, 8, [2, 3])
    first, second = subspace(whole.part(0), 8), subspace(whole.part(1), 8)
    assert first is not None and second is not None and (first.shape[1], second.shape[1]) == (2, 3)
    torch.testing.assert_close(first.T @ second, torch.zeros(2, 3), atol=1e-6, rtol=0)
    bound = Boundless(None, 8, temperature=0.1)
    bound.boundary.data.fill_(3 / 8)
    torch.testing.assert_close(subspace(bound, 8), bound.basis()[:, :3])
    columns = RotateMask(None, 8)
    columns.theta.data[torch.tensor([1, 4])] = -100.0
    torch.testing.assert_close(subspace(columns, 8), columns.basis()[:, [0, 2, 3, 5, 6, 7]])
    dims = Mask(None, 8)
    dims.theta.data[5] = 1.0
    torch.testing.assert_close(subspace(dims, 8), torch.eye(8)[:, 5:6])
    torch.testing.assert_close(subspace(Swap(None, [6, 2, 6]), 8), torch.eye(8)[:, [2, 6]])
    torch.testing.assert_close(subspace(Swap(None), 8), torch.eye(8))
    assert subspace(Add(torch.ones(8)), 8) is None


@pytest.mark.parametrize("angles", [[0.0, 0.0], [1e-9, math.pi / 2], [0.3, 1.2], [math.pi / 2, math.pi / 2]])
def test_planes_turned_by_known_angles(angles: list[float]) -> None:
    basis = torch.linalg.qr(torch.randn(9, 9, dtype=torch.float64)).Q
    first = basis[:, :2]
    turned = torch.stack(
        [math.cos(angle) * basis[:, i] + math.sin(angle) * basis[:, 2 + i] for i, angle in enumerate(angles)], 1
    )
    found = principal_angles(first @ torch.randn(2, 2, dtype=torch.float64), 7 * turned)
    torch.testing.assert_close(found, torch.tensor(angles, dtype=torch.float64), rtol=0, atol=1e-12)


def test_subspaces_of_unequal_rank() -> None:
    basis = torch.linalg.qr(torch.randn(9, 9, dtype=torch.float64)).Q
    inside = principal_angles(basis[:, :5], basis[:, 1:3])
    torch.testing.assert_close(inside, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)
    across = principal_angles(basis[:, 4:6], basis[:, :5])
    torch.testing.assert_close(across, torch.tensor([0, math.pi / 2], dtype=torch.float64), rtol=0, atol=1e-12)
    assert across.tolist() == sorted(across.tolist())


def test_what_has_no_angles() -> None:
    with pytest.raises(CausalError, match="width 4 and 5"):
        principal_angles(torch.eye(4)[:, :1], torch.eye(5)[:, :1])
    with pytest.raises(EditError, match="not independent"):
        principal_angles(torch.ones(4, 2), torch.eye(4))


def test_gradients_are_left_behind() -> None:
    made = LowRank(None, 6, 2)
    found = subspace(made, 6)
    assert found is not None and not found.requires_grad and isinstance(made.raw, nn.Parameter)
