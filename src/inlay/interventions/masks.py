"""Interchange of a learned share of the dimensions: soft masks that are annealed until they are hard.

Dims of a name: d width, n dimensions of the mask.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from inlay.errors import EditError
from inlay.interventions import families
from inlay.interventions.base import Intervention, as_source
from inlay.interventions.from_source import Swap
from inlay.interventions.rotation import LowRank, Rotated, Trained, random_basis
from inlay.model.call import Call, State


class Masked(Intervention):
    """What has weights m in (0, 1) for n dimensions, the sharper the lower its temperature."""

    def weights(self, state: State) -> Tensor:
        """m, float [n], or [rows, 1, n] of a Bank's rows; with gradients where they are recorded."""
        raise NotImplementedError

    def share(self) -> Tensor:
        """The share of the n dimensions that is taken from the source, a 0-d tensor with a gradient: to be penalised.

        The mean of m. A penalty on the size of the parameters instead would pull m to 1/2, not to 0.
        """
        return self.weights(self.state()).mean()

    def kept(self) -> Tensor:
        """Which dimensions the mask has come to take from the source, m > 1/2, bool [n]."""
        with torch.no_grad():
            return self.weights(self.state()) > 0.5

    def hardened(self) -> Intervention:
        """A plain intervention on the dimensions of `kept`, with the same source.

        Raises:
            EditError: none are kept, so that it would change nothing.
        """
        kept = self.kept()
        if not bool(kept.any()):
            raise EditError(f"{type(self).__name__} keeps no dimension (m <= 1/2 everywhere): it edits nothing")
        return self._on(kept)

    def _on(self, kept: Tensor) -> Intervention:
        raise NotImplementedError

    def extra_repr(self) -> str:
        """The width, the temperature and how many dimensions are kept."""
        kept = self.kept()
        heat = float(self.state()["temperature"])
        return (
            f"width={self.width()}, kept={int(kept.sum())} of {len(kept)}, temperature={heat:g}, source={self.source!r}"
        )


class MaskedColumns(Masked, Rotated):
    """Interchange of the masked columns of R [d, n]: h + (((x - h) R) * m) R^T."""

    def prepare(self, state: State) -> State:
        """R and m."""
        return {"basis": super().prepare(state)["basis"], "weights": self.weights(state)}

    def transform(self, h: Tensor, state: State, call: Call) -> Tensor:
        """See `families.interchange`."""
        return families.interchange(h, self.paired(call), state["basis"], state["weights"], call.strength)

    def _on(self, kept: Tensor) -> Intervention:
        return LowRank.of(self.basis()[:, kept], self.source)


class Boundless(MaskedColumns):
    """Interchange in a subspace that learns its own rank (Boundless DAS, 2305.08809): h + (((x - h) R) * m) R^T.

    m_i = sigmoid((c n - i - 1/2) / T) for the columns i = 0 .. n - 1 of R [d, n]: with T -> 0 the first c n of them.
    (The paper's own mask, sigmoid(i/T) sigmoid((c n - i)/T), holds m_0 at 1/2 for ever.) c is kept within [.001, 1],
    and its gradient does not stop there, so that it can come back. Train with `share`, which is c, as the penalty and
    with T annealed by `set_temperature`, 50 -> 0.1 in the paper.

    Args:
        source: as for `LowRank`.
        width: d.
        max_rank: n, `width` by default.
        temperature: T, in units of dimensions.
        seed: of the random orthonormal start.

    Raises:
        EditError: `max_rank` does not lie between 1 and the width, or the temperature is not above 0.
    """

    kind = "boundless"
    holds = ("raw", "boundary", "temperature")

    def __init__(
        self, source: Any, width: int, max_rank: int | None = None, temperature: float = 50.0, seed: int = 0
    ) -> None:
        rank = width if max_rank is None else max_rank
        super().__init__(source, random_basis(width, rank, seed, "Boundless"))
        self.boundary = nn.Parameter(torch.tensor(0.5))
        self.register_buffer("temperature", _heat(temperature))

    def weights(self, state: State) -> Tensor:
        """See `families.boundary`."""
        return families.boundary(state["boundary"], state["temperature"], state["raw"].shape[-1])

    def share(self) -> Tensor:
        """c."""
        return families.within_bounds(self.state()["boundary"])

    def rank(self) -> float:
        """c n, the number of columns that the boundary has come to."""
        return float(self.share().detach()) * self.state()["raw"].shape[-1]


class RotateMask(MaskedColumns):
    """Interchange of some columns of a full rotation: h + (((x - h) R) * m) R^T with m = sigmoid(theta / T).

    Where `Boundless` keeps the first columns, this one keeps any. pyvene's SigmoidMaskRotatedSpace, and its start.

    Args:
        source: as for `LowRank`.
        width: d.
        max_rank: the number of columns of R, `width` by default.
        temperature: T; theta starts at 100, so that m starts at .88 with the default.
        seed: of the random orthonormal start.

    Raises:
        EditError: as for `Boundless`.
    """

    kind = "rotate_mask"
    holds = ("raw", "theta", "temperature")

    def __init__(
        self, source: Any, width: int, max_rank: int | None = None, temperature: float = 50.0, seed: int = 0
    ) -> None:
        rank = width if max_rank is None else max_rank
        super().__init__(source, random_basis(width, rank, seed, "RotateMask"))
        self.theta = nn.Parameter(torch.full((rank,), 100.0))
        self.register_buffer("temperature", _heat(temperature))

    def weights(self, state: State) -> Tensor:
        """sigmoid(theta / T)."""
        return torch.sigmoid(state["theta"] / state["temperature"])


class Mask(Masked, Trained):
    """Interchange of some of the Site's own dimensions: (1 - m) h + m x with m = sigmoid(theta / T).

    pyvene's SigmoidMask, and its start. Penalise `share`; T goes from .01 to 1e-7 in its notebook.

    Args:
        source: as for `LowRank`.
        width: d.
        temperature: T; theta starts at 0, so that m starts at 1/2.

    Raises:
        EditError: the width is not above 0, or the temperature is not.
    """

    kind = "mask"
    holds = ("theta", "temperature")
    needs = frozenset({"source"})

    def __init__(self, source: Any, width: int, temperature: float = 0.01) -> None:
        super().__init__()
        if width < 1:
            raise EditError(f"Mask(width={width}): the width is the Site's, above 0")
        self.source = as_source(source)
        self.theta = nn.Parameter(torch.zeros(width))
        self.register_buffer("temperature", _heat(temperature))

    def width(self) -> int:
        """d."""
        return int(self.state()["theta"].shape[-1])

    def config(self) -> dict[str, Any]:
        """The source."""
        return {"source": self.source}

    def weights(self, state: State) -> Tensor:
        """sigmoid(theta / T)."""
        return torch.sigmoid(state["theta"] / state["temperature"])

    def prepare(self, state: State) -> State:
        """m."""
        return {"weights": self.weights(state)}

    def transform(self, h: Tensor, state: State, call: Call) -> Tensor:
        """See `families.mix`."""
        return families.mix(h, self.paired(call), state["weights"], call.strength)

    def _on(self, kept: Tensor) -> Intervention:
        return Swap(self.source, kept)


def set_temperature(intervention: Intervention, temperature: float) -> None:
    """Set T of a mask, or of all rows of a Bank of masks, in place: the one step of an annealing schedule.

    Args:
        intervention: `Boundless`, `RotateMask`, `Mask`, or a Bank of one of them.
        temperature: T, above 0.

    Raises:
        EditError: it has no temperature, or T is not a finite number above 0.
    """
    heat = intervention.state().get("temperature")
    if heat is None:
        raise EditError(f"{type(intervention).__name__} has no temperature; Boundless, RotateMask and Mask have one")
    heat.fill_(float(_heat(temperature)))


def _heat(temperature: float) -> Tensor:
    if not 0 < temperature < float("inf"):
        raise EditError(f"temperature={temperature}: give a finite number above 0")
    return torch.tensor(float(temperature))
