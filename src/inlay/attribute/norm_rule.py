"""The norm rule: y = (x - mu) / sigma * w + b with sigma held, so that its gradient keeps what self-repair would hide.

GIM (2505.17630), rule "layer norm freeze"; AttnLRP (2402.05602), Proposition 3.4. The mean is still differentiated:
with u = dy w / sigma, dx = u for an RMSNorm and u - mean(u) for a LayerNorm.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from inlay.attribute.report import Row
from inlay.attribute.surrogate import grafted
from inlay.errors import RuleError
from inlay.model.bare import bare_copy, on_device
from inlay.model.norms import norm_eps, norm_shape
from inlay.model.patch import Here, Layer

Frozen = Callable[..., Tensor]  # (the norm's forward, x, ...) -> y with sigma held

TOLERANCE = 0.02
_ROOTS = {torch.rsqrt, torch.sqrt, Tensor.rsqrt, Tensor.sqrt, Tensor.rsqrt_, Tensor.sqrt_}
_POWERS = {torch.pow, Tensor.pow, Tensor.__pow__}
_tested: weakref.WeakKeyDictionary[nn.Module, dict[Any, tuple[Frozen, float]]] = weakref.WeakKeyDictionary()


class NormLayer(Layer):
    """Around one norm's forward."""

    order = 1 << 60  # inside every run's layers

    def __init__(self, here: Here, row: Row, frozen: Frozen) -> None:
        super().__init__(here)
        self.row, self.frozen = row, frozen

    def around(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The norm's own output, with sigma held in its gradient."""
        self.row.count()
        return self.frozen(call, *args, **kwargs) if torch.is_grad_enabled() else call(*args, **kwargs)


class _RootsHeld(TorchFunctionMode):
    """Detaches whatever comes out of a square root."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _ROOTS or (func in _POWERS and _exponent(args, kwargs) in (0.5, -0.5)):
            return result.detach()
        return result


def _exponent(args: Sequence[Any], kwargs: Any) -> Any:
    exponent = args[1] if len(args) > 1 else (kwargs or {}).get("exponent")
    return None if isinstance(exponent, Tensor) else exponent


def _roots_held(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
    """The norm's own code: the 187 of 197 RMSNorm classes of transformers that take a root in Python."""
    with _RootsHeld():
        out: Tensor = call(*args, **kwargs)
    return out


class _StraightThrough:
    """The norm's own output with the gradient of (x - mu) sg(1 / sigma) w + b: for fused norms."""

    def __init__(self, module: nn.Module, centred: bool, offset: int) -> None:
        self.module, self.centred, self.offset = weakref.ref(module), centred, offset

    def __call__(self, call: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with torch.no_grad():
            y: Tensor = call(x, *args, **kwargs)
        return grafted(y, self.held(x).to(y.dtype))

    def held(self, x: Tensor) -> Tensor:
        """(x - mu) sg(1 / sigma) w + b, in float32 at least."""
        module: Any = self.module()
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        over = tuple(range(-len(norm_shape(module)), 0))
        centred = wide - wide.mean(over, keepdim=True) if self.centred else wide
        eps = norm_eps(module)
        eps = torch.finfo(x.dtype).eps if eps is None else eps
        sigma = (centred.square().mean(over, keepdim=True) + eps).sqrt().detach()
        held = centred / sigma
        if weight is not None:
            held = held * (weight + self.offset)
        if bias is not None:
            held = held + bias
        return held


def settle(module: nn.Module, path: str) -> tuple[Frozen, float]:
    """How a norm's sigma is held, and the self-test of that; known after the first time.

    The test: for random x [3, D] and w, r = <d<w, y>/dx, x> / <w, y - bias> is 0 for an ordinary norm, which is blind
    to the length of x, and 1 with sigma held. w has the signs of y - bias: the denominator is a sum of one sign.

    Raises:
        RuleError: no form passes.
    """
    device = on_device(module)
    if device is None:
        raise RuleError(f"{path}: the weights are offloaded, and it cannot be tested; load it on a device")
    dtype = next((p.dtype for p in module.parameters()), torch.float32)
    known = _tested.setdefault(module, {})
    if (dtype, device) not in known:
        tried: list[str] = []
        forms: list[Frozen] = [_roots_held]
        forms += [_StraightThrough(module, centred, offset) for centred in (True, False) for offset in (0, 1)]
        for frozen in forms:
            value = _self_test(module, frozen, dtype, device)
            if abs(value - 1) <= TOLERANCE:
                known[dtype, device] = frozen, value
                break
            tried.append(f"{value:.3f}")
        else:
            raise RuleError(
                f"{path} ({type(module).__name__}) is called a norm, and no rule holds its denominator: the self-test "
                f"gives {', '.join(tried)} in place of 1; it is neither a LayerNorm nor an RMSNorm"
            )
    return known[dtype, device]


def _others(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Ones for whatever else a norm must be given: a gate that multiplies its output."""
    needed = [p for p in inspect.signature(module.forward).parameters.values() if p.default is p.empty]
    count = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in needed)
    return [torch.ones_like(x)] * (count - 1)


def _self_test(module: nn.Module, frozen: Frozen, dtype: torch.dtype, device: torch.device) -> float:
    """r; infinite where a straight-through form is another function than the norm."""
    alone = bare_copy(module)
    made = torch.Generator().manual_seed(0)
    drawn = [torch.randn(3, *norm_shape(module), generator=made) for _ in range(2)]
    with torch.inference_mode(False), torch.enable_grad():
        x, size = (one.to(device=device, dtype=dtype) for one in drawn)
        x.requires_grad_()
        y = frozen(alone.forward, x, *_others(alone, x))
        if not y.requires_grad:
            return 0.0
        if isinstance(frozen, _StraightThrough) and not torch.allclose(
            frozen.held(x).float(), y.float(), rtol=0.02, atol=0.02
        ):
            return float("inf")
        bias = getattr(module, "bias", None)
        unbiased = (y if bias is None else y - bias).detach()
        w = size.abs() * unbiased.sign()
        (gradient,) = torch.autograd.grad((w * y).sum(), x)
    return float((gradient.double() * x.detach().double()).sum() / (w.double() * unbiased.double()).sum())
