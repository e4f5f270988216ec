"""Two changes to a gradient that leave the value alone, bit for bit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Scaled(torch.autograd.Function):
    """x, whose gradient is multiplied by a constant on its way down."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, factor: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


class _Grafted(torch.autograd.Function):
    """value + factor (surrogate - sg(surrogate)), without its three temporaries and where it would give inf - inf."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, surrogate: Tensor, factor: float) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
        ctx.factor, ctx.dtype = inputs[2], inputs[1].dtype

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        bent = gradient.to(ctx.dtype)
        return gradient, bent if ctx.factor == 1 else bent * ctx.factor, None


def scaled(x: Tensor, factor: float) -> Tensor:
    """`x`, whose gradient is `factor` times what it would be; the tensor itself for 1."""
    if factor == 1 or not x.requires_grad:
        return x
    out: Tensor = _Scaled.apply(x, factor)  # type: ignore[no-untyped-call]
    return out


def grafted(value: Tensor, surrogate: Tensor, factor: float = 1.0) -> Tensor:
    """The value of `value` with its own gradient and `factor` times that of `surrogate`, which has the same shape."""
    out: Tensor = _Grafted.apply(value, surrogate, factor)  # type: ignore[no-untyped-call]
    return out
