"""Affine maps of the state, and those that carry one set of activations over to another (optimal transport)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from inlay.errors import EditError
from inlay.interventions import families, trained_families
from inlay.interventions.base import Intervention, keep, vector
from inlay.interventions.rotation import Trained
from inlay.model.call import Call, State


class Affine(Intervention):
    """h M + b for a matrix M, or h * m + b for a scale m of each dimension.

    Args:
        by: M, float [width, width], or m, float [width]; an `nn.Parameter` stays trainable.
        bias: b, float [width]; 0 by default.

    Raises:
        EditError: the shapes do not fit each other, or a value is not finite.
    """

    kind = "affine"
    neutral: ClassVar[Mapping[str, float] | None] = {"scale": 1.0, "bias": 0.0}

    def __init__(self, by: Any, bias: Any = None) -> None:
        super().__init__()
        given = by if isinstance(by, Tensor) else torch.as_tensor(by, dtype=torch.float32)
        if given.ndim not in (1, 2) or not given.numel() or given.shape[0] != given.shape[-1]:
            raise EditError(f"Affine(by) is [width, width] or [width], not {list(given.shape)}")
        if not bool(torch.isfinite(given.detach()).all()):
            raise EditError("Affine(by) holds values that are NaN or infinite")
        shift = torch.zeros(given.shape[0], dtype=given.dtype) if bias is None else vector(bias, "Affine(bias)")
        if shift.shape[0] != given.shape[0]:
            raise EditError(f"Affine(bias) has width {shift.shape[0]}, and the map {given.shape[0]}")
        keep(self, "scale" if given.ndim == 1 else "matrix", given)
        keep(self, "bias", shift)

    @classmethod
    def transport(cls, before: Tensor, after: Tensor, how: str = "gaussian", ridge: float = 1e-4) -> Affine:
        """The map that carries activations like `before` over to activations like `after`.

        - `"mean"`: h + mean(after) - mean(before).
        - `"per_dimension"`: least squares between the sorted samples of each dimension, the optimal transport of that
          dimension by an affine map (Linear-AcT, 2410.23054 section 3).
        - `"gaussian"`: mean and covariance are matched, by the optimal transport between two normal distributions,
          A = S1^-1/2 (S1^1/2 S2 S1^1/2)^1/2 S1^-1/2 (MiMiC, 2402.09631 section 3).

        Args:
            before: float [n, width].
            after: float [m, width], of other states than `before`: nothing is paired.
            how: which of the three.
            ridge: a share of each covariance's mean variance that is added to its diagonal, for `"gaussian"`.

        Raises:
            EditError: an unknown `how`, fewer than two states, widths that differ, or a value that is not finite.
        """
        ways: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
            "mean": _shift,
            "per_dimension": _sorted,
            "gaussian": partial(_gaussian, ridge=ridge),
        }
        if how not in ways:
            raise EditError(f"Affine.transport(how={how!r}): one of {', '.join(map(repr, ways))}")
        sides = [acts.detach().flatten(0, -2).double() for acts in (before, after)]
        if sides[0].shape[1] != sides[1].shape[1] or min(map(len, sides)) < 2:
            shapes = " and ".join(str(list(side.shape)) for side in sides)
            raise EditError(f"Affine.transport needs two or more states of one width on each side, not {shapes}")
        if not all(bool(torch.isfinite(side).all()) for side in sides):
            raise EditError("Affine.transport: the activations hold values that are NaN or infinite")
        by, bias = ways[how](*sides)
        return cls(by.float(), bias.float())

    def width(self) -> int:
        """The length of b."""
        return int(self.state()["bias"].shape[-1])

    @classmethod
    def rebuild(cls, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Intervention:
        """From the stored map."""
        return cls(state["matrix"] if "matrix" in state else state["scale"], state["bias"])

    def transform(self, h: Tensor, state: State, call: Call) -> Tensor:
        """See `families.linear` and `families.rescale`."""
        if "matrix" in state:
            return families.linear(h, state["matrix"], state["bias"], call.strength)
        return families.rescale(h, state["scale"], state["bias"], call.strength)

    def extra_repr(self) -> str:
        """The width, and which kind of map."""
        return f"width={self.width()}, {'matrix' if 'matrix' in self.state() else 'scale'}"


class RED(Trained):
    """h * m + b for a trained scale m and bias b, which start at 1 and 0 (2404.03592 equation 8).

    Where `Affine` rounds what it makes to h's dtype, this one rounds the change.

    Args:
        width: d.
        seed: not used, since no start is random; every kind of `train.reft` takes one.

    Raises:
        EditError: the width is not above 0.
    """

    kind = "red"
    neutral: ClassVar[Mapping[str, float] | None] = {"scale": 1.0, "bias": 0.0}
    holds = ("scale", "bias")

    def __init__(self, width: int, seed: int = 0) -> None:
        super().__init__()
        if width < 1:
            raise EditError(f"RED(width={width}): the width is the Site's, above 0")
        self.scale = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def width(self) -> int:
        """d."""
        return int(self.state()["scale"].shape[-1])

    def transform(self, h: Tensor, state: State, call: Call) -> Tensor:
        """See `trained_families.red`."""
        return trained_families.red(h, state["scale"], state["bias"], call.strength)

    def extra_repr(self) -> str:
        """The width."""
        return f"width={self.width()}"


def _shift(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ones_like(before[0]), after.mean(0) - before.mean(0)


def _sorted(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """The slope and intercept of each dimension's quantiles; where `before` never varies the slope is 1."""
    count = min(len(before), len(after))
    x, y = (_quantiles(side, count) for side in (before, after))
    spread, along = (x - x.mean(0)), (y - y.mean(0))
    variance = spread.square().sum(0)
    slope = torch.where(variance > 0, (spread * along).sum(0) / variance, 1.0)
    return slope, y.mean(0) - slope * x.mean(0)


def _quantiles(side: Tensor, count: int) -> Tensor:
    """`count` values of each dimension in order: the sorted sample, or thinned out by interpolation."""
    ordered = side.sort(0).values
    at = torch.linspace(0, len(side) - 1, count, dtype=side.dtype, device=side.device)
    low = at.floor().long().clamp(max=len(side) - 1)
    high = at.ceil().long().clamp(max=len(side) - 1)
    return torch.lerp(ordered[low], ordered[high], (at - low)[:, None])


def _gaussian(before: Tensor, after: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    first, second = (_covariance(side, ridge) for side in (before, after))
    root, back = _power(first, 0.5), _power(first, -0.5)
    by = back @ _power(root @ second @ root, 0.5) @ back
    return by, after.mean(0) - before.mean(0) @ by


def _covariance(side: Tensor, ridge: float) -> Tensor:
    covariance = torch.cov(side.T, correction=0).reshape(side.shape[1], -1)
    mean = covariance.diagonal().mean().clamp(min=torch.finfo(side.dtype).tiny)
    return covariance + ridge * mean * torch.eye(side.shape[1], dtype=side.dtype, device=side.device)


def _power(symmetric: Tensor, exponent: float) -> Tensor:
    """A power of a symmetric matrix with no eigenvalue below 0."""
    values, vectors = torch.linalg.eigh((symmetric + symmetric.T) / 2)
    least = torch.finfo(values.dtype).eps * float(values.max())
    powered: Tensor = (vectors * values.clamp(min=least) ** exponent) @ vectors.T
    return powered
