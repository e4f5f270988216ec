"""Every Site of a family read and written with torch hooks alone, from the hand-written table in `families.py`.

Nothing here uses inlay. A tensor is brought to [R, T, W] as in the table's legend; the heads of a per-head Site, and
the keys of a pattern, lie side by side in W.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.model.families import VOCAB, Family
from torch import Tensor, nn

Key = tuple[str, int | None]
Change = Callable[[Tensor], Tensor]
ATTENTION = ("query", "key", "pattern")


def batch(*lengths: int, seed: int = 0) -> dict[str, Tensor]:
    """Random right-padded rows: `input_ids`, `attention_mask`, `position_ids`."""
    made = torch.Generator().manual_seed(seed)
    ids, mask, positions = (torch.zeros(len(lengths), max(lengths), dtype=torch.long) for _ in range(3))
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(3, VOCAB, (length,), generator=made)
        mask[row, :length] = 1
        positions[row, :length] = torch.arange(length)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


@dataclass
class Heard:
    """One forward: the logits that the model returned, and every Site's tensor."""

    logits: Tensor
    sites: dict[Key, Tensor]


def listen(
    hf: Any,
    family: Family,
    inputs: dict[str, Tensor],
    at: Key | None = None,
    change: Change | None = None,
    *,
    only: Collection[Key] | None = None,
) -> Heard:
    """Run a model with a hook on every Site (or on `only` some), and with one Site's tensor [R, T, W] changed."""
    rows = inputs["input_ids"].shape[0]
    sites: dict[Key, Tensor] = {}
    changed = _changed(hf, family, at, change, rows) if at is not None and change is not None else nullcontext()
    wraps = at is not None and family.where(*at)[1] in ("query", "key")  # what wraps a function last sees it first
    with ExitStack() as stack, torch.no_grad():
        if not wraps:
            stack.enter_context(changed)
        for name in family.sites:
            for layer in family.layers_of(name):
                if only is None or (name, layer) in only:
                    stack.enter_context(_recorded(hf, family, (name, layer), sites, rows))
        if wraps:
            stack.enter_context(changed)
        output = forward(hf, inputs)
    return Heard(output.logits, sites)


def forward(hf: Any, inputs: dict[str, Tensor]) -> Any:
    """The model's own forward, with the arguments that its family takes."""
    taken = inspect.signature(hf.forward).parameters
    return hf(**{k: v for k, v in inputs.items() if k in taken}, use_cache=False)


@contextmanager
def _recorded(hf: Any, family: Family, at: Key, sites: dict[Key, Tensor], rows: int) -> Iterator[None]:
    name = at[0]

    def keep(whole: Tensor) -> Tensor:
        part = _split(family, name, whole) if family.fused and name in ("q", "k", "v") else whole
        sites[at] = _shaped(part, rows).detach().clone()  # a family may write into the tensor afterwards
        return whole

    with _reached(hf, family, at, keep):
        yield


@contextmanager
def _changed(hf: Any, family: Family, at: Key, change: Change, rows: int) -> Iterator[None]:
    name, layer = at
    path, _ = family.where(name, layer)

    def new(whole: Tensor) -> Tensor:
        if family.fused and name in ("q", "k", "v"):
            parts = family.fused.split(whole)
            index = "qkv".index(name)
            parts[index] = change(parts[index])
            return family.fused.join(parts)
        return _unshaped(change(_shaped(whole, rows)), whole)

    if name == "router":
        with _router(hf.get_submodule(path), change, rows):
            yield
    elif name == "resid_mid":
        with _middle(hf, family, layer, change, rows):
            yield
    else:
        with _reached(hf, family, at, new):
            yield


@contextmanager
def _middle(hf: Any, family: Family, layer: int | None, change: Change, rows: int) -> Iterator[None]:
    """Change the stream between attention and MLP: the MLP's branch sees it, and the block's sum carries it on."""
    block, _ = family.where("resid_post", layer)
    moved: list[Tensor] = []

    def branch(whole: Tensor) -> Tensor:
        middle = _shaped(whole, rows)
        new = change(middle)
        moved.append(new - middle)
        return _unshaped(new, whole)

    with (
        _reached(hf, family, ("resid_mid", layer), branch),
        _hooked(hf.get_submodule(block), "out", lambda whole: whole + moved[-1]),
    ):
        yield


@contextmanager
def _router(module: nn.Module, change: Change, rows: int) -> Iterator[None]:
    """Change a router's logits, and choose and weigh the experts anew as its family does."""

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        logits = _unshaped(change(_shaped(output[0], rows)), output[0])
        if "GptOss" in type(module).__name__:
            values, chosen = torch.topk(logits, module.top_k, dim=-1)
            return logits, F.softmax(values, dim=1), chosen
        values, chosen = torch.topk(F.softmax(logits.float(), dim=-1), module.top_k, dim=-1)
        if getattr(module, "norm_topk_prob", True):  # Mixtral always does
            values = values / values.sum(dim=-1, keepdim=True)
        return logits, values, chosen

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _reached(hf: Any, family: Family, at: Key, act: Change) -> Iterator[None]:
    path, side = family.where(*at)
    module = hf.get_submodule(path)
    with (_inside if side in ATTENTION else _hooked)(module, side, act):
        yield


@contextmanager
def _hooked(module: nn.Module, side: str, act: Change) -> Iterator[None]:
    def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            return (act(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": act(kwargs["hidden_states"])}

    def after(_: nn.Module, __: Any, output: Any) -> Any:
        return (act(output[0]), *output[1:]) if isinstance(output, tuple) else act(output)

    if side == "in":
        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _inside(module: nn.Module, side: str, act: Change) -> Iterator[None]:
    """Put `act` around the family's eager attention function, for one module."""
    home: Any = sys.modules[type(module).__module__]
    eager = home.eager_attention_forward

    def attend(owner: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
        if owner is not module:
            return eager(owner, query, key, value, mask, **kwargs)
        query = act(query) if side == "query" else query
        key = act(key) if side == "key" else key
        output, pattern = eager(owner, query, key, value, mask, **kwargs)
        new = act(pattern) if side == "pattern" else pattern
        if new is pattern:
            return output, pattern
        repeated = value[:, :, None].expand(-1, -1, query.shape[1] // value.shape[1], -1, -1).flatten(1, 2)
        return torch.matmul(new, repeated).transpose(1, 2).contiguous(), new

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(home, "eager_attention_forward", attend)
        yield


def _split(family: Family, name: str, whole: Tensor) -> Tensor:
    assert family.fused
    return family.fused.split(whole)["qkv".index(name)]


def _shaped(whole: Tensor, rows: int) -> Tensor:
    """[R, T, W] from [R T, W] or [R, H, T, D]."""
    if whole.ndim == 2:
        return whole.view(rows, -1, whole.shape[-1])
    return whole.transpose(1, 2).reshape(rows, whole.shape[2], -1) if whole.ndim == 4 else whole


def _unshaped(new: Tensor, whole: Tensor) -> Tensor:
    """Back to the shape and the strides that the family's own tensor has."""
    if whole.ndim == 4:
        return torch.empty_like(whole).copy_(new.reshape(*new.shape[:2], whole.shape[1], -1).transpose(1, 2))
    return new.reshape(whole.shape)
