"""Reach inside the attention function: `q_rot`, `k_rot` and `pattern`.

No module holds these tensors, so a run that touches them switches the model's attention implementation to the function
below for as long as it stands. It calls the family's own eager attention, whose results it therefore equals bit for
bit.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

NAME = "inlay_eager"

_lock = threading.RLock()
_switched: dict[int, tuple[int, list[tuple[Any, Any]]]] = {}


class _Watching(threading.local):
    """The attention modules of this thread that are running under a run with Sites inside them, innermost last."""

    def __init__(self) -> None:
        self.stack: list[tuple[nn.Module, Inside]] = []


_watching = _Watching()

Inside = Callable[[str, Tensor], Tensor]


@contextmanager
def watched(module: nn.Module, inside: Inside) -> Iterator[None]:
    """While `module.forward` runs, `inside(side, tensor)` sees, and may replace, its query, key and pattern."""
    _watching.stack.append((module, inside))
    try:
        yield
    finally:
        _watching.stack.pop()


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """Eager attention of `module`'s family, with the Sites inside it open.

    Args:
        module: the attention module.
        query: [R, H, T, hd], rotated.
        key: [R, KV, S, hd], rotated, with the cached positions.
        value: [R, KV, S, hd].
        attention_mask: additive, [R, 1, T, S], or `None`.
        **kwargs: passed on to the family's function.

    Returns:
        The output [R, T, H, hd] and the pattern [R, H, T, S].
    """
    eager = sys.modules[type(module).__module__].eager_attention_forward
    insides = [inside for owner, inside in reversed(_watching.stack) if owner is module]
    for inside in insides:
        query, key = inside("query", query), inside("key", key)
    output, pattern = eager(module, query, key, value, attention_mask, **kwargs)
    edited = pattern
    for inside in insides:
        edited = inside("pattern", edited)
    if edited is not pattern:
        groups = query.shape[1] // value.shape[1]
        values = value if groups == 1 else value.repeat_interleave(groups, 1)
        output = torch.matmul(edited, values).transpose(1, 2).contiguous()
    return output, edited


def _configs(base: nn.Module) -> list[Any]:
    found: dict[int, Any] = {}
    for module in base.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation_internal"):
            found[id(config)] = config
    return list(found.values())


def switch_on(base: nn.Module) -> None:
    """Let the model call `attention`; counts, so that every call needs its own `switch_off`."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    with _lock:
        count, saved = _switched.get(id(base), (0, []))
        if count == 0:
            AttentionInterface.register(NAME, attention)
            AttentionMaskInterface.register(NAME, eager_mask)
            saved = [(config, config._attn_implementation_internal) for config in _configs(base)]
            for config, _ in saved:
                config._attn_implementation_internal = NAME
        _switched[id(base)] = (count + 1, saved)


def switch_off(base: nn.Module) -> None:
    """Give the model back the attention implementation it had."""
    with _lock:
        count, saved = _switched[id(base)]
        if count > 1:
            _switched[id(base)] = (count - 1, saved)
            return
        for config, implementation in saved:
            config._attn_implementation_internal = implementation
        del _switched[id(base)]
