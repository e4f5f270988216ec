"""Representation finetuning (ReFT, 2404.03592): LoReFT, DiReFT, and the paper's ablations of them.

Dims of a name: d width, r rank (the columns of all groups). Row form: h [T, d], D [d, r], U [r, d], R [d, r].
pyreft's names are a trap: its Nodireft is the paper's DiReFT, and its Direft the ablation `OrthoDiReFT`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from inlay.interventions.reft_base import ReFT, draws


class LoReFT(ReFT):
    """h + s (f(h D + b) - h R) R^T: what h has in r orthonormal directions becomes f(h D + b) (LoReFT, equation 2).

    r(2d + 1) parameters.

    Args:
        width: d.
        rank: r, from 1 to d; it may be left out with groups.
        activation: f.
        dropout: of the change.
        init: `"random"`, D and b as an `nn.Linear`'s; or `"identity"`, D = R and b = 0: no edit at all.
        groups: names and numbers of columns; see `ReFT`.
        seed: of the random start.

    Raises:
        EditError: an argument is out of range.
    """

    kind = "loreft"
    holds = ("raw", "down", "bias")
    subtracts = True

    def __init__(
        self,
        width: int,
        rank: int | None = None,
        activation: str = "identity",
        dropout: float = 0.0,
        init: str = "random",
        groups: Mapping[str, int] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(width, rank, dropout, groups)
        self._orthonormal(seed)
        self._linear(activation, draws(seed))
        if self._starts(init):
            with torch.no_grad():
                self.down.copy_(self.basis())
                self.bias.zero_()


class DiReFT(ReFT):
    """h + s f(h D + b) U with a free U: the paper's DiReFT (equation 3), which pyreft calls Nodireft.

    r(2d + 1) parameters.

    Args:
        width, rank, activation, dropout, groups, seed: as for `LoReFT`.
        init: `"random"`, all as an `nn.Linear`'s; or `"identity"`, U = 0: no edit at all.

    Raises:
        EditError: an argument is out of range.
    """

    kind = "direft"
    holds = ("down", "bias", "up")

    def __init__(
        self,
        width: int,
        rank: int | None = None,
        activation: str = "identity",
        dropout: float = 0.0,
        init: str = "random",
        groups: Mapping[str, int] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(width, rank, dropout, groups)
        drawn = draws(seed)
        self._linear(activation, drawn)
        up = self._uniform(self._shape[::-1], drawn)
        self.up = nn.Parameter(torch.zeros_like(up) if self._starts(init) else up)


class NoReFT(ReFT):
    """h + s (f(h D + b) - h U^T) U with a free U: LoReFT without orthonormal directions (the paper's ablation).

    r(2d + 1) parameters.

    Args:
        width, rank, activation, dropout, groups, seed: as for `LoReFT`; all starts are as an `nn.Linear`'s.

    Raises:
        EditError: an argument is out of range.
    """

    kind = "noreft"
    holds = ("down", "bias", "up")
    subtracts = True

    def __init__(
        self,
        width: int,
        rank: int | None = None,
        activation: str = "identity",
        dropout: float = 0.0,
        groups: Mapping[str, int] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(width, rank, dropout, groups)
        drawn = draws(seed)
        self._linear(activation, drawn)
        self.up = nn.Parameter(self._uniform(self._shape[::-1], drawn))


class OrthoDiReFT(ReFT):
    """h + s f(h D + b) R^T with orthonormal R: the paper's ablation "h + R^T(Wh + b)", which pyreft calls Direft.

    r(2d + 1) parameters.

    Args:
        width, rank, activation, dropout, groups, seed: as for `LoReFT`.

    Raises:
        EditError: an argument is out of range.
    """

    kind = "ortho_direft"
    holds = ("raw", "down", "bias")

    def __init__(
        self,
        width: int,
        rank: int | None = None,
        activation: str = "identity",
        dropout: float = 0.0,
        groups: Mapping[str, int] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(width, rank, dropout, groups)
        self._orthonormal(seed)
        self._linear(activation, draws(seed))


class ConsReFT(ReFT):
    """h + s (b - h R) R^T: what h has in r orthonormal directions becomes the constant b (the paper's ablation).

    r(d + 1) parameters. The same twice is the same once.

    Args:
        width, rank, dropout, groups, seed: as for `LoReFT`; b starts uniform in [0, 1).

    Raises:
        EditError: an argument is out of range.
    """

    kind = "consreft"
    holds = ("raw", "bias")
    subtracts = True

    def __init__(
        self,
        width: int,
        rank: int | None = None,
        dropout: float = 0.0,
        groups: Mapping[str, int] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(width, rank, dropout, groups)
        self._orthonormal(seed)
        self.bias = nn.Parameter(torch.rand(self._shape[1], generator=draws(seed)))


class LobiReFT(ReFT):
    """h + s b R^T: a constant in r orthonormal directions (the paper's ablation, like BitFit).

    r(d + 1) parameters.

    Args:
        width, rank, dropout, groups, seed: as for `ConsReFT`.

    Raises:
        EditError: an argument is out of range.
    """

    kind = "lobireft"
    holds = ("raw", "bias")

    def __init__(
        self,
        width: int,
        rank: int | None = None,
        dropout: float = 0.0,
        groups: Mapping[str, int] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(width, rank, dropout, groups)
        self._orthonormal(seed)
        self.bias = nn.Parameter(torch.rand(self._shape[1], generator=draws(seed)))
