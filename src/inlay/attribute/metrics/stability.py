"""How well scores foresee erasures, and how far they move when the input hardly does (Yeh et al., 1901.09392).

Legend: m features of a row, n scorings, R rows, T tokens, d width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inlay.attribute.asked import Asked
from inlay.attribute.metrics.games import Game
from inlay.errors import InputError

if TYPE_CHECKING:
    from inlay.attribute.token_scores import Explain

SETS = 64
NOISES = 10
RADIUS = 0.02


def infidelity(game: Game, scores: Tensor, draws: int = SETS, seed: int = 0) -> Tensor:
    """E[(I.phi - (f(x) - f(x - I)))^2] over sets I of features that are replaced, float64 [n]; down.

    Each feature is in a set with probability 1/2. All scorings meet the same sets.

    Args:
        game: the game.
        scores: phi, [n, m], in the number's units.
        draws: of sets.
        seed: of the draws.

    Raises:
        InputError: there are no draws.
    """
    if draws < 1:
        raise InputError(f"draws={draws}: give at least 1")
    drawn = torch.Generator().manual_seed(seed)
    sets = torch.rand(draws, game.m, generator=drawn) < 0.5
    foreseen = scores.double() @ sets.double().T
    return (foreseen - game.lost(sets)).square().mean(-1)


def sensitivity_max(
    explain: Callable[[Tensor], Tensor],
    x: Tensor,
    radius: Tensor,
    draws: int = NOISES,
    seed: int = 0,
    lengths: Sequence[int] | None = None,
) -> Tensor:
    """The greatest norm(phi(x + e) - phi(x)) / norm(phi(x)) over noise e, float64 [R]; down. NaN where phi(x) is 0.

    Args:
        explain: phi, gives for embeddings [R, T, d] scores [R, T].
        x: [R, T, d].
        radius: each element of e is uniform on -radius to radius, [R].
        draws: of noise.
        seed: of each row's own draws, so that a row's value does not depend on the others.
        lengths: how many tokens each row has, T by default.

    Raises:
        InputError: there are no draws.
    """
    if draws < 1:
        raise InputError(f"draws={draws}: give at least 1")
    drawn = [torch.Generator().manual_seed(seed) for _ in x]
    clean = _numbers(explain(x))
    most = torch.zeros(len(x), dtype=torch.float64)
    for _ in range(draws):
        noise = torch.zeros(x.shape)
        for row, made in enumerate(drawn):
            length = x.shape[1] if lengths is None else lengths[row]
            noise[row, :length] = 2 * torch.rand(length, x.shape[2], generator=made) - 1
        noise = noise.to(x) * radius.to(x)[:, None, None]
        most = torch.maximum(most, torch.linalg.vector_norm(_numbers(explain(x + noise)) - clean, dim=-1))
    norm: Tensor = torch.linalg.vector_norm(clean, dim=-1)
    return most / norm.where(norm > 0, torch.nan)


def _numbers(scores: Tensor) -> Tensor:
    return scores.detach().double().cpu().nan_to_num(nan=0.0)


def sensitivity_of(every: Sequence[Asked], explain: Explain, draws: int = NOISES, seed: int = 0) -> Tensor:
    """`sensitivity_max` of a method at what is asked, float64 [R].

    The noise is uniform up to `RADIUS` of the range of each row's embeddings.

    Args:
        every: the same question against each baseline; phi is the mean over them.
        explain: the method.
        draws, seed: as for `sensitivity_max`.

    Raises:
        InputError: there are no draws, or the method runs from the ids alone.
    """
    x = every[0].embeds

    def at(embeds: Tensor) -> Tensor:
        moved = [Moved(**{name: getattr(one, name) for name in _FIELDS}, at=embeds) for one in every]
        found = torch.stack([explain(one).detach().float() for one in moved]).mean(0)
        if any("embeds" not in vars(one) for one in moved):
            raise InputError(
                "sensitivity_max moves the embeddings, and this method does not look at them: leave it out"
            )
        return found

    lengths = [len(row.ids) for row in every[0].rows]
    spread = torch.stack([own.max() - own.min() for own in (x[r, :n].float() for r, n in enumerate(lengths))])
    return sensitivity_max(at, x, RADIUS * spread, draws, seed, lengths)


@dataclass(frozen=True, eq=False)
class Moved(Asked):
    """The same question at other embeddings of the rows.

    Attributes:
        at: [R, T, d].
    """

    at: Tensor | None = None

    @cached_property
    def embeds(self) -> Tensor:
        """`at`."""
        assert self.at is not None
        return self.at

    def values(self, which: Sequence[int], embeds: Tensor | None = None) -> Tensor:
        """As for `Asked`; the rows' own embeddings are the moved ones."""
        return super().values(which, self.embeds[list(which)] if embeds is None else embeds)

    @cached_property
    def goes_on_from(self) -> None:
        """A row's beginning cannot be run from its ids."""


_FIELDS = ("model", "question", "baseline", "features", "batch_tokens", "seed")
