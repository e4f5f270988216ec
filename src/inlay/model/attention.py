"""Reach inside the attention function: `q_rot`, `k_rot` and `pattern`.

No module holds these tensors, so a run that touches them switches the model's attention implementation to the function
below for as long as it stands. It calls the family's own eager attention, whose results it therefore equals bit for
bit. The same switch lets a rule stand around the model's own attention function, whichever that is, to give it another
gradient.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

_lock = threading.RLock()
_switched: dict[int, tuple[int, list[tuple[Any, Any]]]] = {}


Inside = Callable[[str, Tensor], Tensor]
Attend = Callable[..., tuple[Tensor, Tensor | None]]


class Rule(Protocol):
    """What stands around the attention functions of one model."""

    def owns(self, module: nn.Module) -> bool:
        """Whether an attention module is one of its model's."""
        ...

    def attend(self, own: Attend, *inputs: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """What `own(module, query, key, value, mask, **kwargs)` gives, with the rule's gradient."""
        ...

    def attend_open(self, eager: Attend, *inputs: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """The same where the pattern is a Site: the output is a function of the pattern that is returned."""
        ...


class _Watching(threading.local):
    """What stands in this thread: runs with Sites inside attention modules, and rules around them, innermost last."""

    def __init__(self) -> None:
        self.open = 0
        self.stack: list[tuple[nn.Module, Inside]] = []
        self.rules: list[Rule] = []


_watching = _Watching()


@contextmanager
def watched(module: nn.Module, inside: Inside) -> Iterator[None]:
    """While `module.forward` runs, `inside(side, tensor)` sees, and may replace, its query, key and pattern."""
    _watching.stack.append((module, inside))
    try:
        yield
    finally:
        _watching.stack.pop()


@contextmanager
def opened() -> Iterator[None]:
    """While this stands, attention in this thread is eager wherever a model was switched on."""
    _watching.open += 1
    try:
        yield
    finally:
        _watching.open -= 1


@contextmanager
def ruled(rule: Rule) -> Iterator[None]:
    """While this stands, attention in this thread goes through `rule` wherever its model was switched on."""
    _watching.rules.append(rule)
    try:
        yield
    finally:
        _watching.rules.remove(rule)


def _rule_on(module: nn.Module) -> Rule | None:
    return next((rule for rule in reversed(_watching.rules) if rule.owns(module)), None)


def _attention(original: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The attention function of a switched model whose implementation was `original`."""

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        eager = sys.modules[type(module).__module__].eager_attention_forward
        if not _watching.open:
            own: Any = eager if original == "eager" else ALL_ATTENTION_FUNCTIONS[original]
            if rule := _rule_on(module):
                return rule.attend(own, module, query, key, value, attention_mask, **kwargs)
            output, pattern = own(module, query, key, value, attention_mask, **kwargs)
            return output, pattern
        return _open_attention(eager, module, query, key, value, attention_mask, **kwargs)

    return attention


def _open_attention(
    eager: Callable[..., tuple[Tensor, Tensor]],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Eager attention of `module`'s family, with the Sites inside it open.

    Args:
        eager: the family's own function.
        module: the attention module.
        query: [R, H, T, hd], rotated.
        key: [R, KV, S, hd], rotated, with the cached positions.
        value: [R, KV, S, hd].
        attention_mask: additive, [R, 1, T, S], or `None`.
        **kwargs: passed on to the family's function.

    Returns:
        The output [R, T, H, hd] and the pattern [R, H, T, S].
    """
    insides = [inside for owner, inside in _watching.stack if owner is module]
    for inside in insides:
        query, key = inside("query", query), inside("key", key)
    rule = _rule_on(module)
    attend: Any = eager if rule is None else partial(rule.attend_open, eager)
    output, pattern = attend(module, query, key, value, attention_mask, **kwargs)
    edited = pattern
    for inside in insides:
        edited = inside("pattern", edited)
    return output if edited is pattern else mixed(edited, value), edited


def mixed(pattern: Tensor, value: Tensor) -> Tensor:
    """The attention output [R, T, H, hd] of a pattern [R, H, T, S] and values [R, KV, S, hd]."""
    groups = pattern.shape[1] // value.shape[1]
    values = value if groups == 1 else value.repeat_interleave(groups, 1)
    return torch.matmul(pattern, values).transpose(1, 2).contiguous()


def _mask(original: str) -> Callable[..., Any]:
    """The mask function of a switched model whose implementation was `original`."""

    def mask(*args: Any, **kwargs: Any) -> Any:
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

        return ALL_MASK_ATTENTION_FUNCTIONS["eager" if _watching.open else original](*args, **kwargs)

    return mask


def _configs(base: nn.Module) -> list[Any]:
    found: dict[int, Any] = {}
    for module in base.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation_internal"):
            found[id(config)] = config
    return list(found.values())


def switch_on(base: nn.Module) -> None:
    """Let the model call a function of ours; counts, so that every call needs its own `switch_off`."""
    from transformers import AttentionInterface, AttentionMaskInterface

    with _lock:
        count, saved = _switched.get(id(base), (0, []))
        if count == 0:
            saved = [(config, config._attn_implementation_internal) for config in _configs(base)]
            for config, implementation in saved:
                original = implementation or "eager"
                AttentionInterface.register(f"inlay_over_{original}", _attention(original))
                AttentionMaskInterface.register(f"inlay_over_{original}", _mask(original))
                config._attn_implementation_internal = f"inlay_over_{original}"
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
