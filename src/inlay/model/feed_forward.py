"""Where the feed-forward parts of a block lie, dense and mixtures of experts, and whether they are gated."""

from __future__ import annotations

import inspect
import math
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from inlay.errors import ModelError
from inlay.model import architectures as names
from inlay.model.bare import bare_copy
from inlay.model.passes import Stop

_grown: weakref.WeakKeyDictionary[nn.Module, dict[Any, float]] = weakref.WeakKeyDictionary()

_NONE = (nn.modules.dropout._DropoutNd, nn.Identity, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
_LAST = (*names.DOWN, "output_linear", "wo")
EXPERTS, SHARED_GATE = "experts", "shared_expert_gate"


@dataclass
class FeedForward:
    """One feed-forward part of a block.

    Attributes:
        path, module: where it is; for an MLP whose layers lie in the block itself, the block.
        role: `"dense"`; in a mixture of experts `"experts"`, `"shared"` (an MLP beside them) or `"shared_gate"`.
        up: the child that it begins with, where its layers lie in the block itself; else "".
        down: the child that its inner activations go into, "" for fused experts and gates.
        activations: the children that are activation functions, by their names in it.
        gated: whether a shared expert's output is multiplied by a gate.
    """

    path: str
    module: nn.Module
    role: str
    up: str = ""
    down: str = ""
    activations: dict[str, nn.Module] = field(default_factory=dict)
    gated: bool = False


def feed_forwards(path: str, block: nn.Module) -> Iterator[FeedForward]:
    """The feed-forward parts of a block: whatever in it, attention aside, holds a last projection.

    Raises:
        ModelError: the experts of a mixture are a list of modules, whose products with the router's weights no module
            makes; or an activation function lies in none of the parts found, so that one was missed.
    """
    parts = list(_parts(path, block))
    known = [part.path for part in parts]
    for name, module in block.named_modules():
        where = f"{path}.{name}" if name else path
        inside = any(where == one or (one != path and where.startswith(f"{one}.")) for one in known)
        if not inside and not _in_attention(name) and (found := activations(module)):
            raise ModelError(
                f"{where} ({type(module).__name__}) applies {', '.join(type(m).__name__ for m in found.values())} in a "
                f"way that is not known: none of its children is called {', '.join(_LAST)}"
            )
    yield from parts


def _parts(path: str, block: nn.Module) -> Iterator[FeedForward]:
    own = _child_of(block, _LAST)
    if own and (up := _child_of(block, names.UP)):
        yield FeedForward(path, block, "dense", up, own, activations(block))
    inside = [(n, m) for n, m in block.named_modules() if n and not _in_attention(n)]
    for name, module in inside:
        where, parent = f"{path}.{name}", block.get_submodule(name.rpartition(".")[0])
        mixture = isinstance(getattr(parent, EXPERTS, None), nn.Module)
        last = name.rpartition(".")[2]
        if last == EXPERTS:
            if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
                raise ModelError(
                    f"{where} is a {type(module).__name__} of experts: what multiplies them by the router's weights is "
                    f"code of {type(parent).__name__}, which no module shows"
                )
            yield FeedForward(where, module, "experts", activations=activations(module))
        elif mixture and last == SHARED_GATE:
            yield FeedForward(where, module, "shared_gate")
        elif down := _child_of(module, _LAST):
            gate = getattr(parent, SHARED_GATE, None) is not None
            yield FeedForward(where, module, "shared" if mixture else "dense", "", down, activations(module), gate)


def activations(module: nn.Module) -> dict[str, nn.Module]:
    """The children of a module that are activation functions, by what they are called or by having no weights."""
    found = {}
    for name, child in module.named_children():
        leaf = not any(True for _ in child.children())
        other = isinstance(child, _NONE) or "norm" in type(child).__name__.lower()
        weightless = not any(True for _ in child.parameters())
        if leaf and not other and (weightless or name in names.ACTIVATION):
            found[name] = child
    return found


def growth(part: FeedForward, width: int, like: Tensor) -> float:
    """log2(|f(2^(n+1) x)| / |f(2^n x)|) of what goes into the last projection, with the activation left out; kept.

    2 where two branches are multiplied, 1 where there is one; whatever the activation and the norms behind it.

    Args:
        part: a dense MLP.
        width: of its input.
        like: a tensor of the dtype and on the device that the model computes in.
    """
    known = _grown.setdefault(part.module, {})
    if (like.dtype, like.device) not in known:
        known[like.dtype, like.device] = _growth(part, width, like)
    return known[like.dtype, like.device]


def _growth(part: FeedForward, width: int, like: Tensor) -> float:
    alone: nn.Module = bare_copy(part.module)
    for name in part.activations:
        alone._modules[name] = nn.Identity()
    down = alone.get_submodule(_before(alone, part.down))
    if part.up:  # the block's own forward is more than its MLP
        alone = nn.Sequential(alone.get_submodule(part.up), down)
    kept: list[float] = []

    def keep(_: nn.Module, args: Sequence[Tensor]) -> None:
        kept.append(float(args[0].double().norm()))
        raise Stop

    down.register_forward_pre_hook(keep)
    largest = 13 if torch.finfo(like.dtype).max > 1e30 else 6
    x = torch.randn(1, 3, width, generator=torch.Generator().manual_seed(0)).to(device=like.device, dtype=like.dtype)
    needed = [p for p in inspect.signature(alone.forward).parameters.values() if p.default is p.empty]
    count = max(1, sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in needed))
    for power in (largest - 1, largest):
        try:
            with torch.no_grad():
                alone(*[x * 2.0**power] * count)
        except Stop:
            continue
        return math.nan
    return math.log2(kept[1] / kept[0]) if kept[0] else math.nan


def _before(module: nn.Module, down: str) -> str:
    return next((name for name in names.BEFORE_DOWN if hasattr(module, name)), down)


def _child_of(module: nn.Module, options: Sequence[str]) -> str:
    return next((name for name in options if isinstance(getattr(module, name, None), nn.Module)), "")


def _in_attention(name: str) -> bool:
    return any(f"{name}.".startswith(f"{attention}.") for attention in names.ATTENTION)
