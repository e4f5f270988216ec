"""Samples whose direction is known: noise plus a planted vector, which positives have and negatives have reversed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from inlay.directions.gather import States
from inlay.directions.methods import Sample

WIDTH = 12


def sample_of(positives: Sequence[Tensor], negatives: Sequence[Tensor], seed: int = 0, name: str = "") -> Sample:
    """A Sample of texts given by their token states [tokens, width]."""
    texts = [*positives, *negatives]
    states = States(
        torch.stack([h.double().sum(0) for h in texts]),
        torch.tensor([len(h) for h in texts]),
        torch.stack([h.norm(dim=-1).double().sum() for h in texts]),
        torch.cat(texts),
    )
    return Sample(states, range(len(positives)), range(len(positives), len(texts)), seed, name)


def axis(seed: int = 0) -> Tensor:
    """A unit vector."""
    w = torch.randn(WIDTH, generator=torch.Generator().manual_seed(1000 + seed))
    return w / w.norm()


def texts(count: int, along: Tensor, shift: float, seed: int, spread: float = 0.0) -> list[Tensor]:
    """Texts of 3 to 8 tokens h = noise + (shift + spread x normal) w."""
    made = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        n = int(torch.randint(3, 9, (), generator=made))
        amounts = shift + spread * torch.randn(n, 1, generator=made)
        found.append(torch.randn(n, WIDTH, generator=made) + amounts * along)
    return found


def planted(seed: int = 0, c: float = 3.0, spread: float = 0.0, count: int = 60) -> tuple[Sample, Tensor]:
    """A Sample with h = noise + c y w, y = 1 for positives and -1 for negatives, and w."""
    w = axis(seed)
    return sample_of(texts(count, w, c, seed, spread), texts(count, w, -c, 500 + seed, spread), seed), w


def cosine(a: Tensor, b: Tensor) -> float:
    """The cosine of two vectors."""
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))
