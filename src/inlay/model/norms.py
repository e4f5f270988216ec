"""Where the norms lie in a model."""

from __future__ import annotations

from torch import nn


def find_norms(base: nn.Module) -> dict[str, nn.Module]:
    """Every norm by its path: modules without parts whose class is called a norm (pre, post, q/k and final norms)."""
    return {
        path: module
        for path, module in base.named_modules()
        if "norm" in type(module).__name__.lower() and not any(True for _ in module.children())
    }


def norm_shape(module: nn.Module) -> tuple[int, ...]:
    """The last dimensions that a norm acts on, by its weight; 16 for one that takes any."""
    weight = getattr(module, "weight", None)
    if weight is not None:
        return tuple(weight.shape)
    shape = getattr(module, "normalized_shape", (16,))
    return (shape,) if isinstance(shape, int) else tuple(shape)


def norm_eps(module: nn.Module) -> float | None:
    """The epsilon under a norm's root, `None` where it is not named."""
    for name in ("eps", "variance_epsilon"):
        if isinstance(found := getattr(module, name, None), float):
            return found
    return None
