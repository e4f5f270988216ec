"""The subspace that an interchange takes from its source, and the angles between two."""

from __future__ import annotations

import torch
from torch import Tensor

from inlay.errors import CausalError
from inlay.interventions.base import Intervention, columns
from inlay.interventions.from_source import Swap
from inlay.interventions.masks import Mask, MaskedColumns
from inlay.interventions.rotation import Rotated


def subspace(intervention: Intervention, width: int) -> Tensor | None:
    """Orthonormal columns [width, r] of what is taken; `None` for an intervention that takes no subspace.

    A mask takes what it has come to keep.

    Args:
        intervention: the intervention.
        width: of the states that it acts on.
    """
    if isinstance(intervention, MaskedColumns):
        return intervention.basis()[:, intervention.kept()]
    if isinstance(intervention, Rotated):
        return intervention.basis()
    if isinstance(intervention, Mask):
        return torch.eye(width, device=intervention.theta.device)[:, intervention.kept()]
    if isinstance(intervention, Swap):
        dims = intervention.state().get("dims")
        every = torch.eye(width)
        return every if dims is None else every.to(dims.device)[:, dims.unique()]
    return None


def principal_angles(a: Tensor, b: Tensor) -> Tensor:
    """The angles between two subspaces, in radians, from the smallest: float64 [min(r, s)].

    All are 0 where one lies in the other, and pi / 2 where they are orthogonal.

    Args:
        a: [width, r], columns that span the one.
        b: [width, s], those of the other.

    Raises:
        CausalError: the widths differ.
        EditError: the columns of one are not independent, or not finite.
    """
    one, other = (columns(x, "principal_angles").double().cpu() for x in (a, b))
    if one.shape[0] != other.shape[0]:
        raise CausalError(f"subspaces of width {one.shape[0]} and {other.shape[0]} have no angles between them")
    if one.shape[1] < other.shape[1]:
        one, other = other, one
    cosines = torch.linalg.svdvals(one.mT @ other)
    sines = torch.linalg.svdvals(other - one @ (one.mT @ other)).flip(0)  # exact where the cosine is not
    return torch.atan2(sines, cosines)
