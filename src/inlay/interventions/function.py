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
from inlay.interventions.base import Intervention, as_source, restore
from inlay.model.call import Call, State

_OFFERED = ("source", "input", "positions")


class Function(Intervention):
    """f(h), or f(h, source=, input=, positions=) with those arguments that it names.

    Args:
        f: a function or an `nn.Module` on h [rows, tokens, width] that returns h's shape. A module's parameters train
            and stack into a Bank (there f sees one row at a time, [tokens, width]) like any others.
        source: another run whose paired activations are passed as `source`, [rows, tokens, width].

    It is saved by its import path, `package.module:name`, and a module by its class's with its state; the constructor's
    arguments of a module are what its `config()` tells. A lambda, a local function, or a module that does not tell its
    arguments fails when it is saved, not when it is loaded.

    Raises:
        EditError: f is not callable, or it needs a source and is given none, or the other way round.
    """

    kind = "function"

    def __init__(self, f: Callable[..., Any], source: Any = None) -> None:
        super().__init__()
        if not callable(f):
            raise EditError(f"Function needs a function or a module, not {f!r}")
        self.f = f
        self.source = as_source(source)
        named = _named(f)
        self.needs = frozenset(named) - ({"source"} if self.source is None else set())
        if self.source is not None and "source" not in named:
            raise EditError(f"{f!r} is given a source and has no parameter called 'source'")
        if self.source is None and named.get("source") is inspect.Parameter.empty:
            raise EditError(f"{f!r} has a parameter 'source': write Function(f, source=Source(prompts))")

    def state(self) -> dict[str, Tensor]:
        """The parameters and buffers of a module; nothing of a function."""
        f = self.f
        return {**dict(f.named_parameters()), **dict(f.named_buffers())} if isinstance(f, nn.Module) else {}

    def transform(self, h: Tensor, state: State, call: Call) -> Tensor:
        """f on h, blended in by the strength; with one row of a bank each, mapped over rows."""
        new = self._call(h, state, {name: getattr(call, name) for name in sorted(self.needs)})
        if not isinstance(new, Tensor) or new.shape != h.shape:
            what = list(new.shape) if isinstance(new, Tensor) else type(new).__name__
            raise EditError(f"{call.site}: the function returned {what} for {list(h.shape)}")
        return families.blend(h, new, call.strength)

    def _call(self, h: Tensor, state: State, more: dict[str, Any]) -> Any:
        f = self.f
        if not isinstance(f, nn.Module):
            return f(h, **more)
        tensors = {name: tensor for name, tensor in state.items() if name != "rows"}
        if "rows" not in state:
            return functional_call(f, tensors, (h,), more)
        shapes = {name: tensor.shape for name, tensor in self.state().items()}
        mine = {name: tensor.reshape(h.shape[0], *shapes[name]) for name, tensor in tensors.items()}
        axes = {name: None if value is None else 0 for name, value in more.items()}

        def one(parameters: dict[str, Tensor], row: Tensor, extra: dict[str, Any]) -> Any:
            return functional_call(f, parameters, (row,), extra)

        return torch.vmap(one, in_dims=(0, 0, axes), randomness="different")(mine, h, more)

    def config(self) -> dict[str, Any]:
        """The import path, a module's constructor arguments, and the source.

        Raises:
            EditError: it cannot be made again from these.
        """
        f = self.f
        target = type(f) if isinstance(f, nn.Module) else f
        path = f"{getattr(target, '__module__', '')}:{getattr(target, '__qualname__', '')}"
        if _imported(path) is not target:
            raise EditError(
                f"{target!r} cannot be saved: define it at the top level of an importable module, not {path!r}"
            )
        arguments: dict[str, Any] = {}
        if isinstance(f, nn.Module):
            said: Any = getattr(f, "config", None)
            arguments = dict(said()) if callable(said) else {}
            _check_made_again(f, arguments)
        return {"import": path, "module": isinstance(f, nn.Module), "arguments": arguments, "source": self.source}

    @classmethod
    def rebuild(cls, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Function:
        """Import the function, or make the module again and give it its state.

        Raises:
            EditError: the import fails, or the state does not fit.
        """
        target = _imported(config["import"])
        if target is None:
            raise EditError(f"{config['import']!r} cannot be imported here; install the package that has it")
        made = cls(target(**config["arguments"]) if config["module"] else target, config["source"])
        have = made.state()
        if set(have) != set(state):
            names = f"it has {', '.join(have)}, the state {', '.join(state)}"
            raise EditError(f"{config['import']!r} does not take the stored state: {names}")
        for name, tensor in state.items():
            if have[name].shape != tensor.shape:
                shapes = f"{list(have[name].shape)} and is stored as {list(tensor.shape)}"
                raise EditError(f"{config['import']!r} does not take the stored state: {name} is {shapes}")
            _put(made, name, tensor)
        return made


def _put(made: Function, name: str, tensor: Tensor) -> None:
    """Give the module a stored tensor: a parameter as the object that it is, wherever the module has that parameter."""
    old = made.state()[name]
    if not (isinstance(old, nn.Parameter) and isinstance(tensor, nn.Parameter)):
        return restore(made, name, tensor)
    assert isinstance(made.f, nn.Module)
    for module in made.f.modules():
        for own, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if parameter is old:
                setattr(module, own, tensor)


def _check_made_again(f: nn.Module, arguments: dict[str, Any]) -> None:
    """Raise where the arguments that a module tells do not make it again, its tensors aside."""

    def make(module: nn.Module) -> tuple[str, str]:
        own = {k: v for k, v in module.__dict__.items() if not k.startswith("_") and k != "training"}
        return repr(module), repr(own)

    try:
        same = make(type(f)(**arguments)) == make(f)
    except TypeError:
        same = False
    if not same:
        raise EditError(
            f"{type(f).__name__} cannot be saved: its constructor's arguments are not told; give the class a method "
            "config() that returns them as a dict"
        )


def _named(f: Callable[..., Any]) -> dict[str, Any]:
    """Which of the offered arguments f names behind its first, with their defaults."""
    try:
        parameters = inspect.signature(f.forward if isinstance(f, nn.Module) else f).parameters
    except ValueError:  # a builtin without a signature
        return {}
    return {name: p.default for name, p in list(parameters.items())[1:] if name in _OFFERED}


def _imported(path: str) -> Any:
    home, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(home)
        for step in name.split("."):
            found = getattr(found, step)
    except (ImportError, AttributeError, ValueError):
        return None
    return found
