"""The arithmetic of the trained interventions: pure tensor functions, with the conventions of `families`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from inlay.interventions import families


def along(h: Tensor, vector: Tensor) -> Tensor:
    """h.v in v's dtype, [..., T, 1], without a product of h's size."""
    wide = h.to(vector.dtype)
    return (wide @ vector)[..., None] if vector.ndim == 1 else wide @ vector.mT


def column_major(matrix: Tensor) -> Tensor:
    """The same [..., d, r] with each column's numbers side by side.

    A product of many states with few long columns, and the gradient of these, then take a fraction of the time (d 4096,
    r 4, 512 states on a CPU: a fifth and a fourteenth).
    """
    return matrix.mT.contiguous().mT


def reft(
    h: Tensor,
    write: Tensor,
    bias: Tensor,
    down: Tensor | None = None,
    read: Tensor | None = None,
    activation: Callable[[Tensor], Tensor] | None = None,
    gate: Tensor | None = None,
    strength: Tensor | None = None,
) -> Tensor:
    """s ((f(h D + b) - h E) * g) U, the change of a representation finetuning, [..., T, d] (2404.03592 section 3.2).

    Args:
        h: [..., T, d].
        write: U [r, d] or [R, r, d].
        bias: b [r] or [R, 1, r].
        down: D [d, r] or [R, d, r]; `None` for 0.
        read: E [d, r] or [R, d, r]; `None` for 0.
        activation: f; `None` for the identity.
        gate: g [r] or [R, 1, r], 1 for the columns that act and 0 for the others; `None` for all.
        strength: s.
    """
    write = write.to(h.device, families.dot_dtype(h))
    wide, inside = h.to(write.dtype), bias.to(write)
    if down is not None:
        inside = wide @ down.to(write) + inside
    if activation is not None:
        inside = activation(inside)
    if read is not None:
        inside = inside - wide @ read.to(write)
    if gate is not None:
        inside = inside * gate.to(write)
    if strength is not None:
        inside = inside * strength.to(write)  # of r numbers a state, not of d
    change: Tensor = inside @ write
    return change.expand(*h.shape[:-1], -1) if down is None and read is None else change


def orthonormal_groups(raw: Tensor, sizes: Sequence[int]) -> Tensor:
    """R [..., d, r] as `orthonormal`, group of columns by group: R_i = Q of (I - P P^T) X_i, P = R_1 ... R_(i-1).

    P is taken as constant, so that what a group learns moves no column of an earlier one.
    """
    found: list[Tensor] = []
    for block in raw.split(list(sizes), -1):
        if found:
            before = torch.cat(found, -1).detach()
            for _ in range(2):  # what rounding leaves of `before` after the first time, the second takes out
                block = block - before @ (before.transpose(-1, -2) @ block.to(before.dtype))
        found.append(families.orthonormal(block))
    return torch.cat(found, -1)


def red(h: Tensor, scale: Tensor, bias: Tensor, strength: Tensor | None = None) -> Tensor:
    """h + s (h * (m - 1) + b) for m and b [d]: representation editing (2404.03592 equation 8)."""
    scale = scale.to(h.device, families.dot_dtype(h))
    return families.moved(h, h.to(scale.dtype) * (scale - 1) + bias.to(scale), strength)


def steer(h: Tensor, vector: Tensor, bias: Tensor, strength: Tensor | None = None) -> Tensor:
    """h + (s + b) v."""
    vector = vector.to(h.device, families.dot_dtype(h))
    factor = bias.to(vector) + (1.0 if strength is None else strength.to(vector))
    return h + (factor * vector).to(h.dtype)


def null_out(
    h: Tensor, vector: Tensor, bias: Tensor, taken: Tensor | None = None, strength: Tensor | None = None
) -> Tensor:
    """h - s z / (w.w) w with z = relu(h.w + b), and h where w is 0; RePS (2505.20809).

    Args:
        h: [..., T, d].
        vector: w.
        bias: b.
        taken: what is subtracted in place of w: w with some entries dropped.
        strength: s.
    """
    vector = vector.to(h.device, families.dot_dtype(h))
    z = torch.relu(along(h, vector) + bias.to(vector))
    size = (vector * vector).sum(-1, keepdim=True)
    z = z / torch.where(size > 0, size, 1.0)
    return families.moved(h, -z * (vector if taken is None else taken.to(vector)), strength)


def top_mean(z: Tensor, k: int, chosen: Tensor | None = None) -> Tensor:
    """The mean of the k greatest of z [..., T] >= 0 over the positions that are chosen, [..., 1].

    Of all of them where there are fewer than k, and 0 where there are none.

    Args:
        z: [..., T].
        k: how many.
        chosen: bool [..., T]; `None` for all.
    """
    if chosen is not None:
        z = z.masked_fill(~chosen, -1.0)
    greatest = z.topk(min(k, z.shape[-1]), dim=-1).values
    real = greatest >= 0
    return (greatest * real).sum(-1, keepdim=True) / real.sum(-1, keepdim=True).clamp(min=1)


def top_k_add(
    h: Tensor, vector: Tensor, k: int, chosen: Tensor | None = None, strength: Tensor | None = None
) -> Tensor:
    """h + s m w, m the `top_mean` of relu(h.w): every position is shifted alike (ReFT-r1, 2501.17148 section 4)."""
    vector = vector.to(h.device, families.dot_dtype(h))
    z = torch.relu(along(h, vector)[..., 0])
    return families.moved(h, top_mean(z, k, chosen)[..., None] * vector, strength)


def set_along(h: Tensor, vector: Tensor, strength: Tensor | None = None) -> Tensor:
    """h + (s - h.w) w for a unit vector w: the component along w becomes s (CDAS, 2602.05234)."""
    vector = vector.to(h.device, families.dot_dtype(h))
    target = 1.0 if strength is None else strength.to(vector)
    return families.moved(h, (target - along(h, vector)) * vector)


def relu_gate(h: Tensor, read: Tensor, offset: Tensor, vector: Tensor, strength: Tensor | None = None) -> Tensor:
    """h + s relu(h.u + c) v for vectors u, v and a number c (PSR, 2605.03907)."""
    read = read.to(h.device, families.dot_dtype(h))
    return families.moved(h, torch.relu(along(h, read) + offset.to(read)) * vector.to(read), strength)


def lora(
    h: Tensor, given: Tensor, down: Tensor, up: Tensor, scale: float = 1.0, strength: Tensor | None = None
) -> Tensor:
    """h + s c i A B for a module's input i [..., T, n], A [n, r] and B [r, d] (2106.09685 section 4.1)."""
    down = down.to(h.device, families.dot_dtype(h))
    inside = given.to(down) @ down * scale
    if strength is not None:
        inside = inside * strength.to(down)  # of r numbers a state, not of d
    return families.moved(h, inside @ up.to(down))
