"""A copy of a module that shares its weights and nothing else, to try it out without anybody noticing."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import TypeVar

import torch
from torch import nn

from inlay.model.patch import shadowed

M = TypeVar("M", bound=nn.Module)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def bare_copy(module: M) -> M:
    """`module` and all in it anew, in eval mode, with the same parameters and without hooks or edits."""
    made = copy.copy(module)
    made.__dict__ = dict(module.__dict__)
    if "_hf_hook" in made.__dict__ or shadowed(module, "forward"):
        made.__dict__.pop("forward", None)
        made.__dict__.pop("_hf_hook", None)
    for name in _HOOKS:
        made.__dict__[name] = OrderedDict()
    made.__dict__["_modules"] = {n: None if m is None else bare_copy(m) for n, m in module._modules.items()}
    made.__dict__["training"] = False
    return made


def on_device(module: nn.Module) -> torch.device | None:
    """Where a module's parameters are; `None` where they are not in memory (offloaded)."""
    devices = {parameter.device for parameter in module.parameters()}
    if torch.device("meta") in devices:
        return None
    return next(iter(devices), torch.device("cpu"))
