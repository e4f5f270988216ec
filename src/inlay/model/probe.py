"""Run two tokens through a model and note what every module takes and gives."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from inlay.errors import InlayError, ModelError
from inlay.model import attention
from inlay.model.places import Place


@dataclass
class Seen:
    """What one module took and gave in the probe run."""

    took: Tensor | None = None
    took_key: int | str | None = None
    gave: Tensor | None = None
    gave_key: int | None = None
    gave_items: int = 0
    inside: dict[str, tuple[int, ...]] = field(default_factory=dict)  # shapes of the query, key and pattern


def probe(base: nn.Module, example: Mapping[str, Any] | Tensor | None = None) -> dict[str, Seen]:
    """What every module took and gave in a run of two tokens, in eval mode and without gradients.

    The modules' modes are as before afterwards, and no hook is left.

    Args:
        base: the causal language model.
        example: inputs for the run, for models that do not take `input_ids`.
    """
    seen: dict[str, Seen] = {}
    handles = []

    def watch(path: str, module: nn.Module) -> None:
        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            one = seen.setdefault(path, Seen())
            named = [(i, a) for i, a in enumerate(args)] + list(kwargs.items())
            for key, value in named:
                if isinstance(value, Tensor) and value.is_floating_point() and value.ndim >= 2:
                    one.took, one.took_key = value.detach().clone(), key
                    return

        def after(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            one = seen.setdefault(path, Seen())
            if isinstance(output, (tuple, list)):
                one.gave_items = len(output)
                one.gave_key = next((i for i, v in enumerate(output) if isinstance(v, Tensor)), None)
                if one.gave_key is not None:
                    one.gave = output[one.gave_key].detach().clone()
            elif isinstance(output, Tensor):
                one.gave = output.detach().clone()

        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after, with_kwargs=True))

    modes = [(m, m.training) for m in base.modules()]
    try:
        with _without_hooks(base):
            for path, module in base.named_modules():
                watch(path, module)
            for module, _ in modes:
                module.training = False
            with _attention_open(base, seen), torch.no_grad():
                _run(base, example)
    except InlayError:
        raise
    except Exception as error:
        raise ModelError(
            f"the two-token run that finds the Sites of {type(base).__name__} failed ({error!r}); give inputs that it "
            "takes: example="
        ) from error
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    return seen


@contextmanager
def _attention_open(base: nn.Module, seen: dict[str, Seen]) -> Iterator[None]:
    """Note the shapes inside the attention function that a module calls, where it calls one."""
    if not any(hasattr(getattr(m, "config", None), "_attn_implementation_internal") for m in base.modules()):
        yield
        return

    def note(path: str, side: str, whole: Tensor) -> Tensor:
        seen.setdefault(path, Seen()).inside[side] = tuple(whole.shape)
        return whole

    attention.switch_on(base)
    try:
        with attention.opened(), ExitStack() as stack:
            for path, module in base.named_modules():
                stack.enter_context(attention.watched(module, partial(note, path)))
            yield
    finally:
        attention.switch_off(base)


@contextmanager
def _without_hooks(base: nn.Module) -> Iterator[None]:
    """The user's hooks are set aside for the run: what they change is not the model's structure."""
    kinds = ("_forward_hooks", "_forward_pre_hooks")
    kept = [(module, kind, getattr(module, kind)) for module in base.modules() for kind in kinds]
    try:
        for module, kind, _ in kept:
            setattr(module, kind, OrderedDict())
        yield
    finally:
        for module, kind, hooks in kept:
            setattr(module, kind, hooks)


def _run(base: nn.Module, example: Mapping[str, Any] | Tensor | None) -> None:
    if isinstance(example, Mapping):
        base(**example)
        return
    more: dict[str, Any] = {"use_cache": False} if takes(base, "use_cache") else {}
    if example is None:
        device = next((p.device for p in base.parameters() if p.device.type != "meta"), torch.device("cpu"))
        example = torch.tensor([[0, 1]], device=device)
        if "attention_mask" in inspect.signature(base.forward).parameters:
            more["attention_mask"] = torch.ones_like(example)  # without it some warn that id 0 is padding
        if getattr(getattr(base, "config", None), "is_encoder_decoder", False):
            more["decoder_input_ids"] = example
    base(example, **more)


def takes(base: nn.Module, name: str) -> bool:
    """Whether a model's forward takes an argument of this name."""
    parameters = inspect.signature(base.forward).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def took(path: str, seen: Mapping[str, Seen], **more: Any) -> Place | None:
    """The place of what a module took, `None` where the run did not call it."""
    one = seen.get(path)
    if one is None or one.took is None:
        return None
    return Place(path, "in", one.took_key, width=one.took.shape[-1], flat=one.took.ndim == 2, **more)


def gave(path: str, seen: Mapping[str, Seen], **more: Any) -> Place | None:
    """The place of what a module gave, `None` where the run did not call it."""
    one = seen.get(path)
    if one is None or one.gave is None:
        return None
    return Place(path, "out", one.gave_key, width=one.gave.shape[-1], flat=one.gave.ndim == 2, **more)
