"""The arithmetic of the interventions: pure tensor functions that know nothing of hooks or models.

Every function takes the state h [..., T, d] and parameters that broadcast against it: a vector is [d], or [R, 1, d]
with one for each row; a scalar is [] or [R, 1, 1]; a matrix is [d, r] or [R, d, r]. A source is of h's shape.
`strength` s scales the **change**, h' = h + s (f(h) - h), and is `None` for 1. Parameters are cast to h's dtype and
device; dot products of half-precision states are taken in float32. Nothing is written in place.
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
    unit = unit.to(h.device, dot_dtype(h))
    along = (h.to(unit.dtype) * unit).sum(-1, keepdim=True)
    low, high = low.to(unit), high.to(unit)
    change = (torch.minimum(torch.maximum(along, low), high) - along) * unit
    if strength is not None:
        change = change * strength
    return h + change.to(h.dtype)


def project(h: Tensor, basis: Tensor, keep: bool, strength: Tensor | None = None) -> Tensor:
    """h - (h V) V^T, or (h V) V^T where `keep`, for V [d, r] with orthonormal columns."""
    basis = basis.to(h.device, dot_dtype(h))
    inside = (h.to(basis.dtype) @ basis) @ basis.transpose(-1, -2)
    if keep:
        return blend(h, inside.to(h.dtype), strength)
    return h - (inside if strength is None else inside * strength).to(h.dtype)


def orthonormal(raw: Tensor) -> Tensor:
    """R [..., d, r] with orthonormal columns that span those of a free X [..., d, r], in float32 or float64.

    The Q of the thin QR with the signs that make the triangular factor's diagonal positive, so that R is unique, is X
    itself where X is orthonormal, and does not depend on the length of X. No state of d x d exists at any time.
    """
    columns, upper = torch.linalg.qr(raw.to(dot_dtype(raw)))
    signs = torch.where(upper.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)[..., None, :]
    basis: Tensor = columns * signs.to(columns)
    return basis


def interchange(
    h: Tensor,
    source: Tensor,
    basis: Tensor,
    weight: Tensor | None = None,
    strength: Tensor | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """h + s c ((((x - h) / c) R) * m) R^T for a source x and R [d, r] with orthonormal columns.

    Distributed interchange (2303.02536 section 3) with weights m [r] on the columns and a unit c [d] of each dimension,
    both 1 by default: there h' R is x R, and h' is h orthogonally to R.
    """
    basis = basis.to(h.device, dot_dtype(h))
    apart = source.to(basis) - h.to(basis.dtype)
    inside = (apart if scale is None else apart / scale.to(basis)) @ basis
    change = (inside if weight is None else inside * weight.to(basis)) @ basis.transpose(-1, -2)
    if scale is not None:
        change = change * scale.to(basis)
    return h + (change if strength is None else change * strength).to(h.dtype)


def mix(h: Tensor, source: Tensor, weight: Tensor, strength: Tensor | None = None) -> Tensor:
    """h + s m (x - h) for a source x and weights m [d]."""
    weight = weight.to(h.device, dot_dtype(h))
    change = weight * (source.to(weight) - h.to(weight.dtype))
    return h + (change if strength is None else change * strength).to(h.dtype)


def latents(
    x: Tensor,
    encode: Tensor,
    bias: Tensor,
    centre: Tensor | None = None,
    threshold: Tensor | None = None,
    k: int | None = None,
) -> Tensor:
    """What a sparse autoencoder makes of states x: z [..., T, m] of p = (x - c) W + b, in float32 or float64.

    relu(p); with thresholds t [m] relu(p) where p > t, else 0 (JumpReLU, 2407.14435); with k the k greatest
    of relu(p), else 0 (TopK, 2406.04093).

    Args:
        x: [..., T, d].
        encode: W [d, m] or [R, d, m].
        bias: b [m] or [R, 1, m].
        centre: c [d], 0 by default.
        threshold: t.
        k: how many latents are on.
    """
    encode = encode.to(x.device, dot_dtype(x))
    x = x.to(encode.dtype)
    pre = (x if centre is None else x - centre.to(encode)) @ encode + bias.to(encode)
    z = torch.relu(pre)
    if threshold is not None:
        return torch.where(pre > threshold.to(encode), z, 0.0)
    if k is None:
        return z
    greatest = z.topk(k, dim=-1)
    return torch.zeros_like(z).scatter(-1, greatest.indices, greatest.values)


def decoded(h: Tensor, change: Tensor, decode: Tensor, strength: Tensor | None = None) -> Tensor:
    """h + s dz D for a change dz [..., T, m] of latents and their decoder's rows D [m, d] or [R, m, d].

    Whatever of h the autoencoder does not reconstruct stays as it is.
    """
    moved = change @ decode.to(change)
    return h + (moved if strength is None else moved * strength).to(h.dtype)


def of_length(new: Tensor, h: Tensor) -> Tensor:
    """`new` scaled to the length of h at every position: new |h| / |new|, and 0 where `new` is 0."""
    wide = new.to(dot_dtype(h))
    have = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    want = torch.linalg.vector_norm(h.to(wide.dtype), dim=-1, keepdim=True)
    scaled: Tensor = wide * (want / torch.where(have > 0, have, 1.0))
    return scaled.to(h.dtype)


def turn(
    h: Tensor, first: Tensor, second: Tensor, degrees: Tensor, adaptive: bool, strength: Tensor | None = None
) -> Tensor:
    """h + s (|P h| (cos a b1 + sin a b2) - P h), P on the plane of the orthonormal b1, b2 [d]; 2510.26243.

    Where `adaptive`, only at positions with h.b1 > 0.
    """
    first = first.to(h.device, dot_dtype(h))
    second, angle = second.to(first), torch.deg2rad(degrees.to(first))
    wide = h.to(first.dtype)
    x, y = (wide * first).sum(-1, keepdim=True), (wide * second).sum(-1, keepdim=True)
    length = torch.sqrt(x * x + y * y)
    change = (length * torch.cos(angle) - x) * first + (length * torch.sin(angle) - y) * second
    if strength is not None:
        change = change * strength
    return h + (torch.where(x > 0, change, 0.0) if adaptive else change).to(h.dtype)


def linear(h: Tensor, matrix: Tensor, bias: Tensor, strength: Tensor | None = None) -> Tensor:
    """h M + b for M [d, d]."""
    matrix = matrix.to(h.device, dot_dtype(h))
    return blend(h, (h.to(matrix.dtype) @ matrix + bias.to(matrix)).to(h.dtype), strength)


def rescale(h: Tensor, scale: Tensor, bias: Tensor, strength: Tensor | None = None) -> Tensor:
    """h * m + b for m [d]."""
    scale = scale.to(h.device, dot_dtype(h))
    return blend(h, (h.to(scale.dtype) * scale + bias.to(scale)).to(h.dtype), strength)


def towards(h: Tensor, matrix: Tensor, beta: Tensor, strength: Tensor | None = None) -> Tensor:
    """h + s beta (h C - h) for a symmetric C [d, d]; 2410.16314."""
    matrix = matrix.to(h.device, dot_dtype(h))
    wide = h.to(matrix.dtype)
    change = (wide @ matrix - wide) * beta.to(matrix)
    return h + (change if strength is None else change * strength).to(h.dtype)


def boundary(share: Tensor, temperature: Tensor, n: int) -> Tensor:
    """sigmoid((c n - i - 1/2) / T) for i = 0 .. n - 1: weights that fall from 1 to 0 around c n, [n] or [R, 1, n]."""
    at = torch.arange(n, device=share.device, dtype=share.dtype) + 0.5
    return torch.sigmoid((within_bounds(share) * n - at) / temperature)


def within_bounds(share: Tensor) -> Tensor:
    """c brought into [.001, 1], with the gradient of c itself also outside of them."""
    return share + (share.clamp(1e-3, 1.0) - share).detach()


def dot_dtype(h: Tensor) -> torch.dtype:
    """The dtype that dot products are taken in: float32, or float64 where h is."""
    return torch.promote_types(h.dtype, torch.float32)


def moved(h: Tensor, change: Tensor, strength: Tensor | None = None) -> Tensor:
    """h + s c for a change c [..., T, d], which alone is cast to h's dtype."""
    return h + (change if strength is None else change * strength).to(h.dtype)


def within(h: Tensor, new: Tensor, dims: Tensor) -> Tensor:
    """`new` at the dimensions `dims` (int64 [n] or [R, 1, n], some maybe twice) and h, bit for bit, at all others."""
    dims = dims.to(h.device)
    inside = torch.zeros(*dims.shape[:-1], h.shape[-1], dtype=torch.bool, device=h.device).scatter(-1, dims, True)
    return torch.where(inside, new, h)


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
    key = _counter(seed, positions, width, device)
    first = ((_mix(key) >> 11) & _MASK53).double() + 1.0
    second = ((_mix(key + _GOLDEN) >> 11) & _MASK53).double()
    radius = torch.sqrt(-2.0 * torch.log(first / 2.0**53))
    return (radius * torch.cos(second * (2.0 * math.pi / 2.0**53))).float()


def keep_mask(keys: Tensor, positions: Tensor, width: int, p: float, device: torch.device) -> Tensor:
    """Which values dropout keeps, bool [R, T, width]: each with probability 1 - p, by (key, position, dimension) alone.

    The generator is that of `normal`, so that a row drops the same alone and in a batch, padded or not.

    Args:
        keys: int64 [] or [R, 1, 1].
        positions: int64 [1 or R, T].
        width: the number of dimensions.
        p: the probability of being dropped.
        device: where the result is wanted.
    """
    return ((_mix(_counter(keys, positions, width, device)) >> 11) & _MASK53) >= int(p * 2**53)


def _counter(seed: Tensor, positions: Tensor, width: int, device: torch.device) -> Tensor:
    """An int64 [R, T, width] for each (seed, position, dimension)."""
    at = positions.to(device)[..., None] + 1
    dims = torch.arange(width, device=device) + 1
    return _mix(_mix(seed.to(device) * _GOLDEN + at) + dims * _GOLDEN)


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
