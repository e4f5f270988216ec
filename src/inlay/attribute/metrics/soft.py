"""Soft-NC and Soft-NS: erasure of single elements of the embeddings, the likelier the higher a token's score.

What is run so is no text that the model was trained on: these numbers are out of distribution, and labelled so.
Source: ReAGent (2402.00794), its code. Its NC squares the difference of the roots without taking the root of the sum;
here both take the Hellinger distance.

Legend: T tokens of a row, d width of an embedding, n copies, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inlay.attribute.question import clean_logits
from inlay.errors import InputError

if TYPE_CHECKING:
    from inlay.attribute.asked import Asked

Distance = Callable[[Tensor], Tensor]
DRAWS = 8


def scaled(scores: Tensor) -> Tensor:
    """Scores on [0, 1], the least 0 and the greatest 1, [..., m]; 1/2 where all are equal."""
    low, high = scores.amin(-1, keepdim=True), scores.amax(-1, keepdim=True)
    return torch.where(high > low, (scores - low) / (high - low), 0.5)


def hellinger(p: Tensor, q: Tensor) -> Tensor:
    """norm(sqrt p - sqrt q) / sqrt 2 of distributions [..., V]: 0 for equal ones, 1 for disjoint ones."""
    length: Tensor = torch.linalg.vector_norm(p.sqrt() - q.sqrt(), dim=-1)
    return length / 2**0.5


def soft(distance: Distance, scores: Tensor, width: int, draws: int = DRAWS, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(Soft-NC, Soft-NS), float64 each; both up. NaN where zeros in place of the embeddings change nothing.

    With D(keep) the distance of the next-token distribution to the clean one and D0 that without any element,
    NC = mean D / D0, each element kept with probability 1 - a, and NS = mean max(0, D0 - D) / D0, kept with a.

    Args:
        distance: gives for bool [n, T, d], the elements that are kept, the distances [n].
        scores: a, on [0, 1], [T].
        width: d.
        draws: of the kept elements; the mean over them is taken.
        seed: of the draws.

    Raises:
        InputError: a score is outside of [0, 1], or there are no draws.
    """
    if draws < 1:
        raise InputError(f"draws={draws}: give at least 1")
    if not ((scores >= 0) & (scores <= 1)).all():
        raise InputError(f"scores from {float(scores.min()):g} to {float(scores.max()):g}: scale them to [0, 1]")
    drawn = torch.Generator().manual_seed(seed)
    chance = torch.rand(draws, len(scores), width, generator=drawn)
    a = scores.float().cpu()[:, None]
    keep = torch.cat([torch.zeros(1, len(a), width, dtype=torch.bool), chance < 1 - a, chance < a])
    none, necessary, sufficient = distance(keep).double().cpu().split([1, draws, draws])
    span = none if none > 0 else torch.full_like(none, torch.nan)
    return (necessary / span).mean(), ((none - sufficient).clamp(min=0) / span).mean()


def distance_of(asked: Asked, row: int, may_change: Tensor) -> Distance:
    """The distance of the distributions that a row's number is read from, the mean where several are.

    Args:
        asked: what is asked.
        row: which row.
        may_change: bool [T], the tokens of which elements may be zero; the others are whole in every run.

    Raises:
        InputError: the number is not read from logits.
    """
    if asked.question.projection is not None:
        raise InputError("soft_nc and soft_ns compare next-token distributions, and a direction's score has none")
    length = len(asked.rows[row].ids)
    slots = asked.question.slots[row]
    clean = clean_logits(asked.model, asked.rows[row : row + 1], [slots]).softmax(-1)

    def measure(logits: Tensor, which: Tensor) -> Tensor:
        return hellinger(logits.softmax(-1), clean.to(logits.device)[which.to(clean.device)]) / len(slots)

    question = replace(
        asked.question,
        rows=(asked.rows[row],),
        slots=(slots,),
        measure=measure,
        target=asked.question.target[row : row + 1],
        foil=None,
        steps=None,
    )
    alone = replace(asked, question=question, features=[asked.features[row]])
    x = asked.embeds[row, :length]
    free = may_change[:length].to(x.device)

    @torch.no_grad()
    def distance(keep: Tensor) -> Tensor:
        found = []
        for part in alone.chunks(len(keep), length):
            whole = keep[part].to(x.device) | ~free[:, None]
            found.append(alone.values([0] * len(whole), x * whole))
        return torch.cat(found)

    return distance
