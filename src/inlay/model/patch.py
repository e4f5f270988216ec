"""Put behaviour into a module for a while by shadowing one of its methods, and leave nothing behind.

inlay shadows `module.forward` with an instance attribute instead of registering a hook, for three reasons: compiled
code guards on the attribute and not on hooks (a hook set after `torch.compile` is silently ignored), a user's own hooks
all see the edited value whatever the order of registration, and a call pays nothing for PyTorch's slow hook path.
One shadow stands per module and attribute however many runs share it; the last one out restores what was there.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

from torch import nn

Args = tuple[Any, ...]
Kwargs = dict[str, Any]

_lock = threading.RLock()
_shadows: dict[tuple[int, str], Shadow] = {}


class Here(threading.local):
    """Whether a run is in force in the current thread. A run's layers act in the threads that it was entered in."""

    def __init__(self) -> None:
        self.on = False  # not a default of the class: compiled code guards only on what a thread holds itself


class _Standing(threading.local):
    """The layers that stand on one method in the current thread, in their order."""

    def __init__(self) -> None:
        self.layers: tuple[Layer, ...] = ()


class Layer:
    """What one run puts around one method. Skipped in threads that are not the run's own.

    Attributes:
        here: the run's own switch.
        order: the run's place among all runs, by when it was entered.
        late: whether it acts after every layer that is not late.
        around: called as `around(call, *args, **kwargs)` in place of the method, where it is not `None`.
    """

    around: Callable[..., Any] | None = None
    late = False
    order = 0

    def __init__(self, here: Here) -> None:
        self.here = here

    def before(self, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """The arguments that the method shall be called with."""
        return args, kwargs

    def after(self, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """The output that the caller shall see."""
        return output


class Shadow:
    """The instance attribute that stands in for a method while at least one layer is on it."""

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module, self.name = module, name
        self.had = name in module.__dict__
        self.original: Callable[..., Any] = getattr(module, name)
        self.standing = _Standing()
        self.users = 0
        self.function = _make(self)

    def add(self, layer: Layer) -> None:
        """Put a layer on; the first one sets the attribute."""
        if not self.users:
            self.module.__dict__[self.name] = self.function
        self.users += 1
        self.standing.layers = tuple(sorted((*self.standing.layers, layer), key=lambda one: (one.late, one.order)))

    def drop(self, layer: Layer) -> None:
        """Take a layer off; the last one restores the attribute, unless the user has set it anew since."""
        self.standing.layers = tuple(one for one in self.standing.layers if one is not layer)
        self.users -= 1
        if self.users or self.module.__dict__.get(self.name) is not self.function:
            return
        if self.had:
            self.module.__dict__[self.name] = self.original
        else:
            del self.module.__dict__[self.name]


def _make(shadow: Shadow) -> Callable[..., Any]:
    @functools.wraps(shadow.original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return _call(shadow.original, shadow.standing.layers, args, kwargs)

    return forward


def _call(original: Callable[..., Any], layers: tuple[Layer, ...], args: Args, kwargs: Kwargs) -> Any:
    """Layers act in the order in which their runs were entered, on the inputs and on the output alike."""
    call = original
    for layer in layers:
        if layer.here.on:
            args, kwargs = layer.before(args, kwargs)
    for layer in reversed(layers):
        if layer.around is not None and layer.here.on:
            call = functools.partial(layer.around, call)
    output = call(*args, **kwargs)
    for layer in layers:
        if layer.here.on:
            output = layer.after(args, kwargs, output)
    return output


def put(module: nn.Module, name: str, layer: Layer) -> None:
    """Put a layer around `module.name`."""
    with _lock:
        key = (id(module), name)
        if key not in _shadows:
            _shadows[key] = Shadow(module, name)
        _shadows[key].add(layer)


def lift(module: nn.Module, name: str, layer: Layer) -> None:
    """Take a layer off again; the last one restores the attribute as it was found."""
    with _lock:
        key = (id(module), name)
        shadow = _shadows[key]
        shadow.drop(layer)
        if not shadow.users:
            del _shadows[key]


def shadowed(module: nn.Module, name: str) -> bool:
    """Whether a layer stands around `module.name`, in any thread."""
    return (id(module), name) in _shadows


def standing() -> int:
    """How many methods are shadowed right now, over all models (0 when no run is in force)."""
    return len(_shadows)
