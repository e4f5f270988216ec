"""Methods of one or a few gradients at the embeddings.

Legend: R rows, T tokens, d width, k points of a path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from inlay.attribute.asked import Asked
from inlay.errors import InputError

Rule = Literal["gauss", "midpoint", "trapezoid"]
At = Callable[[Tensor, list[int]], Tensor]


def gradient(asked: Asked, which: Sequence[int], embeds: Tensor | None = None) -> Tensor:
    """The gradient of the number that is explained with respect to embeddings, [n, T, d], in float32 at least.

    Args:
        asked: what is asked.
        which: the row that each copy is of.
        embeds: [n, T, d]; by default the rows' own.
    """
    own = embeds is None
    given = asked.embeds[which, : max(len(asked.rows[row].ids) for row in which)] if embeds is None else embeds
    leaf = given.detach().requires_grad_()
    with torch.enable_grad():
        values = asked.values(which, leaf)
        (found,) = torch.autograd.grad(values.sum(), leaf)
    if own:
        asked.known.update(zip(which, values.detach().float().cpu(), strict=True))
    return _wide(found)


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _by_rows(asked: Asked, score: Callable[[list[int], int], Tensor]) -> Tensor:
    """Scores [R, T] of what `score` gives for a batch of rows and its length, [n, t]."""
    found = torch.zeros(len(asked.rows), asked.longest, device=asked.model.device)
    for rows in asked.batches():
        length = max(len(asked.rows[row].ids) for row in rows)
        found[rows, :length] = score(rows, length).float()
    return found


def times_change(asked: Asked) -> Tensor:
    """(x - b).gradient, summed over the width, [R, T]: gradient x input, or a rule set's score under its rules.

    Source: GIM (2505.17630); Shrikumar et al. (1605.01713).
    """

    def score(rows: list[int], length: int) -> Tensor:
        x, b = asked.embeds[rows, :length], asked.base[rows, :length]
        return (_wide(x - b) * gradient(asked, rows)).sum(-1)

    return _by_rows(asked, score)


def saliency(asked: Asked) -> Tensor:
    """The length of the gradient, [R, T]; without a sign, and without a baseline (Simonyan et al., 1312.6034)."""

    def score(rows: list[int], length: int) -> Tensor:
        found = gradient(asked, rows).norm(dim=-1)
        return torch.where(asked.scored[rows, :length], found, 0)

    return _by_rows(asked, score)


def smoothgrad(asked: Asked, samples: int = 25, noise: float = 0.15) -> Tensor:
    """`times_change` with the mean gradient at noisy embeddings (1706.03825).

    Args:
        asked: what is asked.
        samples: draws of the noise.
        noise: its standard deviation, as a share of the range of the row's embeddings; tokens that are not scored
            have none.
    """
    draws = _Draws(asked, noise)
    return _averaged(asked, samples, lambda x, rows: x + draws.noise(x, rows))


def gradient_shap(asked: Asked, samples: int = 25, noise: float = 0.0) -> Tensor:
    """The expectation of (x - b).gradient over a random point between baseline and input (1705.07874).

    With an `Expected` baseline that is expected gradients; each of its baselines gets all samples.

    Args:
        asked: what is asked.
        samples: draws for each baseline.
        noise: standard deviation of noise on the input, as for `smoothgrad`.
    """
    draws = _Draws(asked, noise)

    def at(x: Tensor, rows: list[int]) -> Tensor:
        b = asked.base[rows, : x.shape[1]]
        return b + draws.share(x, rows) * (x + draws.noise(x, rows) - b)

    return _averaged(asked, samples, at)


class _Draws:
    """Random numbers of each row's own, so that its scores do not depend on which rows it is batched with.

    Args:
        asked: what is asked.
        noise: standard deviation of the noise, as a share of the range of the row's embeddings.
    """

    def __init__(self, asked: Asked, noise: float) -> None:
        self.asked, self.size = asked, noise
        self.made = [torch.Generator().manual_seed(asked.seed) for _ in asked.rows]

    def noise(self, x: Tensor, rows: list[int]) -> Tensor:
        """Gaussian noise at the scored tokens of some rows, [n, T, d]."""
        found = torch.zeros(x.shape)
        if not self.size:
            return found.to(x)
        for index, row in enumerate(rows):
            length = len(self.asked.rows[row].ids)
            own = x[index, :length].float()
            spread = float(own.max() - own.min())
            found[index, :length] = self.size * spread * torch.randn(own.shape, generator=self.made[row])
        return found.to(x) * self.asked.scored[rows, : x.shape[1], None]

    def share(self, x: Tensor, rows: list[int]) -> Tensor:
        """A number from 0 to 1 for each of some rows, [n, 1, 1]."""
        return torch.stack([torch.rand(1, 1, generator=self.made[row]) for row in rows]).to(x)


def _averaged(asked: Asked, samples: int, at: At) -> Tensor:
    """(x - b).(the mean gradient over points), a point at a time, so that memory does not grow with their number."""
    _positive("samples", samples)

    def score(rows: list[int], length: int) -> Tensor:
        x, b = asked.embeds[rows, :length], asked.base[rows, :length]
        total = torch.zeros_like(_wide(x))
        for _ in range(samples):
            total += gradient(asked, rows, at(x, rows)) / samples
        return (_wide(x - b) * total).sum(-1)

    return _by_rows(asked, score)


def path_points(n: int, rule: Rule) -> tuple[list[float], list[float]]:
    """Points t in [0, 1] and weights of a rule of `n` points for an integral over [0, 1].

    Raises:
        InputError: n is too small, or there is no such rule.
    """
    _positive("n", n)
    if rule == "gauss":
        nodes, weights = np.polynomial.legendre.leggauss(n)
        return ((nodes + 1) / 2).tolist(), (weights / 2).tolist()
    if rule == "midpoint":
        return [(k + 0.5) / n for k in range(n)], [1 / n] * n
    if rule == "trapezoid":
        if n < 2:
            raise InputError("the trapezoid rule has at least 2 points")
        return [k / (n - 1) for k in range(n)], [(1 if 0 < k < n - 1 else 0.5) / (n - 1) for k in range(n)]
    raise InputError(f"rule={rule!r}: gauss, midpoint or trapezoid")


def integrated(asked: Asked, n: int = 50, rule: Rule = "gauss") -> Tensor:
    """Integrated gradients along the straight path from the baseline, [R, T] (1703.01365).

    (x - b).sum_k w_k g(b + t_k (x - b)). The scores add up to the difference of the number but for the rule's error.
    All points of a row stand in one batch as far as `batch_tokens` allows.

    Args:
        asked: what is asked.
        n: points of the path.
        rule: Gauss-Legendre (as Captum's default), midpoint or trapezoid.
    """
    points, weights = path_points(n, rule)

    def score(rows: list[int], length: int) -> Tensor:
        found = []
        for row in rows:
            x, b = asked.embeds[row, :length], asked.base[row, :length]
            total = torch.zeros_like(_wide(x))
            for part in asked.chunks(n, length):
                t, w = (torch.tensor(some[part], device=x.device) for some in (points, weights))
                path = b + t.to(x)[:, None, None] * (x - b)
                total += (w[:, None, None] * gradient(asked, [row] * len(t), path)).sum(0)
            found.append((_wide(x - b) * total).sum(-1))
        return torch.stack(found)

    return _by_rows(asked, score)


def sequential_integrated(asked: Asked, n: int = 20, rule: Rule = "gauss") -> Tensor:
    """Integrated gradients of one feature at a time, all others intact, [R, T] (2305.15853).

    Each feature's score is the change of the number when it alone goes from the baseline to the input, but for the
    rule's error. They do not add up to the whole change.

    Args:
        asked: what is asked.
        n: points of each path.
        rule: as for `integrated`.
    """
    points, weights = path_points(n, rule)
    found = torch.zeros(len(asked.rows), asked.longest, device=asked.model.device)
    for row, own in enumerate(asked.rows):
        length = len(own.ids)
        x, b = asked.embeds[row, :length], asked.base[row, :length]
        jobs = [(feature, k) for feature in range(len(asked.features[row])) for k in range(n)]
        table = asked.table(row)[:, :length]
        for part in asked.chunks(len(jobs), length):
            feature = torch.tensor([job[0] for job in jobs[part]], device=x.device)
            k = torch.tensor([job[1] for job in jobs[part]])
            t, w = (torch.tensor(some)[k].to(x.device) for some in (points, weights))
            moved = table[feature][..., None]
            path = torch.where(moved, b + t.to(x)[:, None, None] * (x - b), x)
            g = gradient(asked, [row] * len(k), path)
            found[row, :length] += (moved * w[:, None, None] * g * _wide(x - b)).sum((0, -1))
    return found


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{name}={value}: give at least 1")
