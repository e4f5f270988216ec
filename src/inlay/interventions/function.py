"""Any module or function as an intervention."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from inlay.errors import EditError
from inlay.interventions import families
from inlay.interventions.base import Intervention
from inlay.interventions.source import Source
from inlay.model.call import Call, State

_OFFERED = ("source", "input", "positions")


class Function(Intervention):
    """f(h), or f(h, source=, input=, positions=) with those arguments that it names.

    Args:
        f: a function or an `nn.Module` on h [rows, tokens, width] that returns h's shape. A module's parameters train
            and stack into a Bank (there f sees one row at a time, [tokens, width]) like any others.
        source: another run whose paired activations are passed as `source`, [rows, tokens, width].

    It is saved by its import path, `package.module:name`, and a module by its class's with its state; a lambda or a
    local function fails when it is saved, not when it is loaded.
    """

    kind = "function"

    def __init__(self, f: Callable[..., Any], source: Any = None) -> None:
        super().__init__()
        if not callable(f):
            raise EditError(f"Function needs a function or a module, not {f!r}")
        self.f = f
        self.source = None if source is None else source if isinstance(source, Source) else Source(source)
        named = inspect.signature(f.forward if isinstance(f, nn.Module) else f).parameters
        self.needs = frozenset(name for name in _OFFERED if name in named)
        if self.source is not None and "source" not in self.needs:
            raise EditError(f"{f!r} is given a source and has no parameter called 'source'")

    def state(self) -> dict[str, Tensor]:
        """The parameters and buffers of a module; nothing of a function."""
        f = self.f
        return {**dict(f.named_parameters()), **dict(f.named_buffers())} if isinstance(f, nn.Module) else {}

    def transform(self, h: Tensor, state: State, call: Call) -> Tensor:
        """F on h, blended in by the strength; with one row of a bank each, mapped over rows."""
        more = {name: getattr(call, name) for name in sorted(self.needs)}
        tensors, f = {k: v for k, v in state.items() if k != "rows"}, self.f
        if not isinstance(f, nn.Module):
            new = f(h, **more)
        elif "rows" in state:
            shapes = {k: v.shape for k, v in self.state().items()}
            mine = {k: v.reshape(h.shape[0], *shapes[k]) for k, v in tensors.items()}
            axes = {k: 0 if isinstance(v, Tensor) and v.shape[0] == h.shape[0] else None for k, v in more.items()}
            new = torch.vmap(lambda p, x, extra: functional_call(f, p, (x,), extra), in_dims=(0, 0, axes))(
                mine, h, more
            )
        else:
            new = functional_call(f, tensors, (h,), more)
        return families.blend(h, new, call.strength)

    def config(self) -> dict[str, Any]:
        """The import path, and a module's constructor arguments where it keeps them in `config()`.

        Raises:
            EditError: it cannot be imported by name.
        """
        target = type(self.f) if isinstance(self.f, nn.Module) else self.f
        path = f"{getattr(target, '__module__', '')}:{getattr(target, '__qualname__', '')}"
        if _imported(path) is not target:
            raise EditError(
                f"{target!r} cannot be saved: define it at the top level of an importable module, not as {path!r}"
            )
        said: Any = getattr(self.f, "config", None)
        arguments = said() if isinstance(self.f, nn.Module) and callable(said) else {}
        source = {"source": self.source.to_json()} if self.source else {}
        return {"import": path, "module": isinstance(self.f, nn.Module), "arguments": arguments, **source}

    @classmethod
    def rebuild(cls, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Function:
        """Import the function, or rebuild the module and load its state.

        Raises:
            EditError: the import fails, or the state does not fit.
        """
        target = _imported(config["import"])
        if target is None:
            raise EditError(
                f"the Edit's function {config['import']!r} cannot be imported here; install the package that has it"
            )
        source = Source.from_json(config["source"]) if "source" in config else None
        if not config["module"]:
            return cls(target, source)
        module = target(**config["arguments"])
        try:
            module.load_state_dict(dict(state))
        except RuntimeError as error:
            raise EditError(f"{config['import']!r} does not take the stored state: {error}") from error
        return cls(module, source)


def _imported(path: str) -> Any:
    home, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(home)
        for step in name.split("."):
            found = getattr(found, step)
    except (ImportError, AttributeError, ValueError):
        return None
    return found
