"""Freeze or train a base model for a while, and leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def restored(module: nn.Module) -> Iterator[None]:
    """Afterwards every module's mode and every parameter's `requires_grad` and `grad` are what they were."""
    modes = [(one, one.training) for one in module.modules()]
    leaves = [(one, one.requires_grad, one.grad) for one in module.parameters()]
    for parameter, _, _ in leaves:
        parameter.grad = None  # a backward would add to what is there in place
    try:
        yield
    finally:
        for one, mode in modes:
            one.training = mode
        for parameter, trained, grad in leaves:
            parameter.requires_grad_(trained)
            parameter.grad = grad
