"""The arithmetic of the closed-form interventions: pure tensor functions that know nothing of hooks or models.

Every function takes the state h [..., T, d] and parameters that broadcast against it: a vector is [d], or [R, 1, d]
with one for each row; a scalar is [] or [R, 1, 1]; a matrix is [d, r] or [R, d, r]. `strength` s scales the
**change**, h' = h + s (f(h) - h), and is `None` for 1. Parameters are cast to h's dtype and device; dot products of
half-precision states are taken in float32. Nothing is written in place.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def add(h: Tensor, vector: Tensor, strength: Tensor | None = None) -> Tensor:
    """h + s v."""
    if strength is not None:
        vector = vector * strength
    return h + vector.to(h)


def blend(h: Tensor, new: Tensor, strength: Tensor | None = None) -> Tensor:
    """h + s (new - h): exactly `new` at s = 1 and exactly h at s = 0."""
    if strength is None:
        return new
    wide = torch.promote_types(h.dtype, new.dtype)
    return torch.lerp(h.to(wide), new.to(wide), strength.to(h.device, wide))


def replace(h: Tensor, vector: Tensor, strength: Tensor | None = None) -> Tensor:
    """v at every position."""
    new = vector.to(h).expand(h.shape)
    return new.clone() if strength is None else blend(h, new, strength)  # the model may write into what it gets


def scale(h: Tensor, factor: Tensor, strength: Tensor | None = None) -> Tensor:
    """c h."""
    return blend(h, h * factor.to(h), strength)


def clamp(h: Tensor, unit: Tensor, low: Tensor, high: Tensor, strength: Tensor | None = None) -> Tensor:
    """h + (clip(h.u, low, high) - h.u) u for a unit vector u: the component along u is brought into [low, high]."""
    unit = unit.to(h.device, _wide(h))
    along = (h.to(unit.dtype) * unit).sum(-1, keepdim=True)
    low, high = low.to(unit), high.to(unit)
    change = (torch.minimum(torch.maximum(along, low), high) - along) * unit
    if strength is not None:
        change = change * strength
    return h + change.to(h.dtype)


def project(h: Tensor, basis: Tensor, keep: bool, strength: Tensor | None = None) -> Tensor:
    """h - (h V) V^T, or (h V) V^T where `keep`, for V [d, r] with orthonormal columns."""
    basis = basis.to(h.device, _wide(h))
    inside = (h.to(basis.dtype) @ basis) @ basis.transpose(-1, -2)
    if keep:
        return blend(h, inside.to(h.dtype), strength)
    return h - (inside if strength is None else inside * strength).to(h.dtype)


def _wide(h: Tensor) -> torch.dtype:
    """The dtype that dot products are taken in: float32, or float64 where h is."""
    return torch.promote_types(h.dtype, torch.float32)


def within(h: Tensor, new: Tensor, dims: Tensor) -> Tensor:
    """`new` at the dimensions `dims` (int64 [n] or [R, 1, n]) and h, bit for bit, at all others."""
    index = dims.to(h.device).expand(*h.shape[:-1], dims.shape[-1])
    return h.scatter(-1, index, new.gather(-1, index))


def normal(seed: Tensor, positions: Tensor, width: int, device: torch.device) -> Tensor:
    """Standard normal numbers that depend on (seed, position, dimension) alone, float32 [R, T, width].

    A counter-based generator (two rounds of the splitmix64 finaliser, then Box-Muller): a row gets the same noise alone
    and in a batch, padded or not, with a cache or without.

    Args:
        seed: int64 [] or [R, 1, 1].
        positions: int64 [1 or R, T].
        width: the number of dimensions.
        device: where the result is wanted.
    """
    at = positions.to(device)[..., None] + 1
    dims = torch.arange(width, device=device) + 1
    key = _mix(_mix(seed.to(device) * _GOLDEN + at) + dims * _GOLDEN)
    first = ((_mix(key) >> 11) & _MASK53).double() + 1.0
    second = ((_mix(key + _GOLDEN) >> 11) & _MASK53).double()
    radius = torch.sqrt(-2.0 * torch.log(first / 2.0**53))
    return (radius * torch.cos(second * (2.0 * math.pi / 2.0**53))).float()


_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64
_MASK53 = (1 << 53) - 1


def _shift(x: Tensor, by: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _mix(x: Tensor) -> Tensor:
    """The splitmix64 finaliser."""
    x = (x ^ _shift(x, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ _shift(x, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return x ^ _shift(x, 31)
