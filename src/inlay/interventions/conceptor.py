"""Conceptors: soft projections on the directions in which activations vary, with a logic of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from inlay.errors import EditError
from inlay.interventions import families
from inlay.interventions.base import Intervention, keep
from inlay.model.call import Call, State


class Conceptor(Intervention):
    """h + beta (h C - h) for a soft projection C: symmetric, with eigenvalues from 0 to 1.

    C = R (R + a^-2 I)^-1 of the correlations R = X^T X / n of n states, with the aperture a (steering: 2410.16314; the
    logic: Jaeger, 1403.3369, on Boolean operations). The paper's rule beta C h scales all of h; this one leaves h as it
    is at beta = 0. `~C` is I - C; `A & B` is (A^-1 + B^-1 - I)^-1, on the directions that both have where they are
    singular; `A | B` is ~(~A & ~B). The results take the beta of the left one.

    Args:
        matrix: C, float [width, width].
        beta: how far towards the projection.

    Raises:
        EditError: C is not symmetric, has eigenvalues outside of [0, 1], or is not finite.
    """

    kind = "conceptor"
    holds = ("matrix", "beta")

    def __init__(self, matrix: Any, beta: float = 1.0) -> None:
        super().__init__()
        given = torch.as_tensor(matrix).detach()
        if given.ndim != 2 or given.shape[0] != given.shape[1] or not given.numel():
            raise EditError(f"Conceptor(matrix) is [width, width], not {list(given.shape)}")
        if not bool(torch.isfinite(given).all()) or not abs(beta) < float("inf"):
            raise EditError("Conceptor(matrix, beta) holds values that are NaN or infinite")
        wide = given.double()
        values = torch.linalg.eigvalsh((wide + wide.T) / 2)
        if not torch.allclose(wide, wide.T, rtol=0, atol=1e-5) or values.min() < -1e-4 or values.max() > 1 + 1e-4:
            least, most = float(values.min()), float(values.max())
            raise EditError(
                f"Conceptor(matrix) is symmetric with eigenvalues from 0 to 1, and these lie from {least:.3g} to "
                f"{most:.3g}; Conceptor.fit(acts) makes one"
            )
        keep(self, "matrix", given if given.is_floating_point() else given.float())
        keep(self, "beta", torch.tensor(float(beta), dtype=torch.float64))

    @classmethod
    def fit(cls, acts: Tensor, aperture: float = 10.0, beta: float = 1.0) -> Conceptor:
        """The conceptor of activations.

        Args:
            acts: float [..., width], a state in each row.
            aperture: a, above 0; the greater, the more of each direction is kept.
            beta: as in the constructor.

        Raises:
            EditError: the aperture is not above 0, there is no state, or a value is not finite.
        """
        states = acts.detach().flatten(0, -2).double()
        if not 0 < aperture < float("inf") or not len(states) or not bool(torch.isfinite(states).all()):
            raise EditError(
                f"Conceptor.fit(aperture={aperture}) takes finite states, here {len(states)}, and an aperture above 0"
            )
        values, vectors = torch.linalg.eigh(states.T @ states / len(states))
        values = values.clamp(min=0)
        return cls(((vectors * (values / (values + aperture**-2))) @ vectors.T).float(), beta)

    def _of(self, matrix: Tensor) -> Conceptor:
        own = self.get_buffer("matrix")
        return Conceptor(((matrix + matrix.T) / 2).to(own), float(self.get_buffer("beta")))

    def __invert__(self) -> Conceptor:
        wide = self.get_buffer("matrix").double()
        return self._of(torch.eye(len(wide), dtype=wide.dtype, device=wide.device) - wide)

    def __and__(self, other: Conceptor) -> Conceptor:
        if self.width() != other.width():
            raise EditError(f"these Conceptors have widths {self.width()} and {other.width()}")
        return self._of(_both(self.get_buffer("matrix").double(), other.get_buffer("matrix").double()))

    def __or__(self, other: Conceptor) -> Conceptor:
        return ~(~self & ~other)

    def width(self) -> int:
        """The number of C's rows."""
        return int(self.state()["matrix"].shape[-1])

    def transform(self, h: Tensor, state: State, call: Call) -> Tensor:
        """See `families.towards`."""
        return families.towards(h, state["matrix"], state["beta"], call.strength)

    def extra_repr(self) -> str:
        """The width, beta, and the quota: the mean eigenvalue of C."""
        quota = float(self.state()["matrix"].double().diagonal().mean())
        return f"width={self.width()}, beta={float(self.state()['beta']):g}, quota={quota:.3g}"


def _both(a: Tensor, b: Tensor) -> Tensor:
    """A & B: (A^-1 + B^-1 - I)^-1 on the intersection of their ranges, and 0 elsewhere."""
    identity = torch.eye(len(a), dtype=a.dtype, device=a.device)
    values, vectors = torch.linalg.eigh(2 * identity - _range(a) - _range(b))
    shared = vectors[:, values < _TOLERANCE]
    a, b = (torch.linalg.pinv(one, atol=_TOLERANCE, hermitian=True) for one in (a, b))
    both: Tensor = shared @ torch.linalg.inv(shared.T @ (a + b - identity) @ shared) @ shared.T
    return both


def _range(symmetric: Tensor) -> Tensor:
    """The projection on the range of a symmetric matrix."""
    values, vectors = torch.linalg.eigh(symmetric)
    inside: Tensor = vectors[:, values > _TOLERANCE]
    return inside @ inside.T


_TOLERANCE = 1e-5  # of an eigenvalue of C, which is at most 1
