"""Interchange in a fixed basis, such as the principal components of a Site's activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from inlay.errors import EditError
from inlay.interventions import families
from inlay.interventions.base import Intervention, as_source, columns, dimensions
from inlay.model.call import Call, State


class BasisSwap(Intervention):
    """Interchange of some components of a basis: h + scale * ((((x - h) / scale) C_I) C_I^T), x the source's state.

    What the basis does not span (the reconstruction error) stays as it is, so that a swap with itself changes nothing;
    the mean cancels. (pyvene's PCARotatedSpace gives the reconstruction alone.)

    Args:
        source: a `Source`, prompts to make one of, or `None` until `with_source` gives one.
        basis: C, float [width, r] with orthonormal columns.
        components: I, which columns; all of them by default.
        scale: the unit of each dimension, float [width], such as its standard deviation; 1 by default.

    Raises:
        EditError: the columns are not orthonormal, a component is out of range, or a scale is not above 0.
    """

    kind = "basis_swap"
    holds = ("basis", "chosen", "scale")
    needs = frozenset({"source"})

    def __init__(
        self, source: Any, basis: Any, components: Sequence[int] | slice | Tensor | None = None, scale: Any = None
    ) -> None:
        super().__init__()
        self.source = as_source(source)
        spanned = columns(basis, "BasisSwap(basis)")
        given = torch.as_tensor(basis).detach()
        if not torch.allclose(spanned, given.to(spanned), rtol=0, atol=1e-4):
            raise EditError("BasisSwap(basis): the columns are not orthonormal; make them so, torch.linalg.qr(basis).Q")
        width, rank = given.shape
        unit = torch.ones(width) if scale is None else torch.as_tensor(scale).detach()
        if unit.shape != (width,) or not bool(((unit > 0) & torch.isfinite(unit)).all()):
            raise EditError(f"BasisSwap(scale) is [{width}], finite and above 0; leave dimensions that never vary at 1")
        self.register_buffer("basis", given.to(spanned.dtype).clone(memory_format=torch.contiguous_format))
        self.register_buffer("chosen", _chosen(components, rank))
        self.register_buffer("scale", unit.to(spanned.dtype, copy=True))

    @classmethod
    def fit(cls, acts: Tensor, rank: int, standardise: bool = False, source: Any = None) -> BasisSwap:
        """The first principal components of activations, in order, each with its largest entry positive.

        Args:
            acts: float [..., width], a state in each row.
            rank: how many.
            standardise: divide each dimension by its standard deviation first; one that never varies is left at 1.
            source: as in the constructor.

        Raises:
            EditError: there are fewer states than components and one more, or some are not finite.
        """
        states = acts.detach().flatten(0, -2).double()
        if not 1 <= rank <= min(len(states) - 1, states.shape[1]):
            raise EditError(f"BasisSwap.fit: {len(states)} states of width {states.shape[1]} have no {rank} components")
        if not bool(torch.isfinite(states).all()):
            raise EditError("BasisSwap.fit: the activations hold values that are NaN or infinite")
        centred = states - states.mean(0)
        deviation = centred.square().mean(0).sqrt()
        scale = torch.where(deviation > 0, deviation, 1.0) if standardise else torch.ones_like(deviation)
        rows = torch.linalg.svd(centred / scale, full_matrices=False).Vh[:rank]
        largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
        return cls(source, (rows * largest.sign()).T.float(), scale=scale.float())

    def width(self) -> int:
        """The number of the basis' rows."""
        return int(self.state()["basis"].shape[-2])

    def config(self) -> dict[str, Any]:
        """The source."""
        return {"source": self.source}

    def transform(self, h: Tensor, state: State, call: Call) -> Tensor:
        """See `families.interchange`."""
        basis, chosen, scale = state["basis"], state["chosen"], state["scale"]
        return families.interchange(h, self.paired(call), basis, chosen, call.strength, scale)

    def extra_repr(self) -> str:
        """The width and which components."""
        chosen = self.state()["chosen"]
        return f"width={self.width()}, components={chosen.nonzero().flatten().tolist()}, source={self.source!r}"


def _chosen(components: Sequence[int] | slice | Tensor | None, rank: int) -> Tensor:
    """1 at the chosen components and 0 elsewhere, float32 [rank]."""
    index = dimensions(components)
    if index is None:
        return torch.ones(rank)
    if int(index.max()) >= rank:
        raise EditError(f"BasisSwap(components): {int(index.max())} is out of range; the basis has 0 to {rank - 1}")
    return torch.zeros(rank).index_fill(0, index, 1.0)
