"""The layers that a run puts around a model's methods: one per touched module, plus those that follow the forward."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from inlay.errors import ModelError, SiteError
from inlay.model import at_site, attention
from inlay.model.call import LeafLike
from inlay.model.frame import Frame
from inlay.model.patch import Args, Kwargs, Layer
from inlay.model.places import Place, pick, put_back

if TYPE_CHECKING:
    from inlay.model.engine import Run

ATTENTION_SIDES = ("query", "key", "pattern")


@dataclass(frozen=True)
class Write:
    """Apply part `index` of the Edit."""

    run: Run
    place: Place
    index: int

    def __call__(self, whole: Tensor, rows: int, given: Tensor | None) -> Tensor:
        """Act on the tensor at the place; `given` is the module's input."""
        h = self.place.get(whole, rows)
        if not self.place.width:  # a raw Site's shape shows only here
            _check_raw(self.run, self.place, h)
            if not self.run.parts[self.index].joint:
                self.run.parts[self.index].intervention.check(h.shape[-1], self.run.site_names[self.index])
        if given is not None and given.ndim == 2 and h.ndim == 3:
            given = given.unflatten(0, (rows, -1))
        new = at_site.write(self.run, self.index, h, given)
        if new is h:
            return whole
        whole = self.place.put(whole, new, rows)
        return whole.clone() if self.place.fragile else whole  # what the model writes into must be its own


@dataclass(frozen=True)
class Read:
    """Keep want `index`."""

    run: Run
    place: Place
    index: int

    def __call__(self, whole: Tensor, rows: int, given: Tensor | None) -> Tensor:
        """Act on the tensor at the place; `given` is the module's input."""
        h = self.place.get(whole, rows)
        if not self.place.width:
            _check_raw(self.run, self.place, h)
        at_site.read(self.run, self.index, h, whole, self.place.fragile)
        return whole


@dataclass(frozen=True)
class Watch:
    """Note where a condition holds."""

    run: Run
    place: Place
    leaf: LeafLike

    def __call__(self, whole: Tensor, rows: int, given: Tensor | None) -> Tensor:
        """Look at the tensor at the place."""
        h = self.place.get(whole, rows)
        if not self.place.width:
            _check_raw(self.run, self.place, h)
        at_site.watch(self.run, self.leaf, h)
        return whole


def _check_raw(run: Run, place: Place, h: Tensor) -> None:
    frame = run.current.frame
    if h.ndim != 3 or tuple(h.shape[:2]) != (frame.rows, frame.length):
        raise SiteError(
            f"module:{place.path}:{place.side} is {list(h.shape)} here; a raw Site is [rows, tokens, width], "
            f"here [{frame.rows}, {frame.length}, width]"
        )


Op = Callable[[Tensor, int, Tensor | None], Tensor]


class SiteLayer(Layer):
    """The reads and writes on one module's inputs and outputs."""

    def __init__(self, run: Run) -> None:
        super().__init__(run.here)
        self.run = run
        self.inputs: dict[Any, list[Op]] = {}
        self.outputs: dict[Any, list[Op]] = {}
        self.needs_input = False

    def before(self, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """Run the operations on the inputs."""
        if not self.inputs or not self.run.acting():
            return args, kwargs
        for key, ops in self.inputs.items():
            where = _first_key(args, kwargs) if key == "first" else key
            whole = args[where] if isinstance(where, int) else kwargs[where]
            new = self._run(ops, whole, None)
            if new is whole:
                continue
            if isinstance(where, int):
                args = (*args[:where], new, *args[where + 1 :])
            else:
                kwargs = {**kwargs, where: new}
        return args, kwargs

    def after(self, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Run the operations on the output."""
        if not self.outputs or not self.run.acting():
            return output
        given = _first_input(args, kwargs) if self.needs_input else None
        for key, ops in self.outputs.items():
            where = _first_output(output) if key == "first" else key
            whole = pick(output, where)
            new = self._run(ops, whole, given)
            if new is not whole:
                output = put_back(output, where, new)
        return output

    def _run(self, ops: Iterable[Op], whole: Tensor, given: Tensor | None) -> Tensor:
        rows, given = self.run.current.frame.rows, self.run.mine(given)
        mine = new = self.run.mine(whole)
        for op in ops:
            new = op(new, rows, given)
        return whole if new is mine else self.run.back(whole, new)


class KeepLayer(Layer):
    """Remembers the residual stream that a block was given, for a write to `resid_mid` of the same layer."""

    def __init__(self, run: Run, place: Place, layer: int) -> None:
        super().__init__(run.here)
        self.run, self.place, self.layer = run, place, layer

    def around(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Keep what the block is called with once every input edit was made."""
        if self.run.acting():
            key = self.place.key
            whole = args[key] if isinstance(key, int) else kwargs[str(key)]
            self.run.current.kept[self.layer] = self.place.get(self.run.mine(whole), self.run.current.frame.rows)
        return call(*args, **kwargs)


class MidLayer(Layer):
    """Writes to `resid_mid`, made on attention's contribution after every edit of that.

    No module's output is resid_mid = resid_pre + scale * attn_out, and changing the input of the norm behind it would
    change the MLP's branch and not the stream. So the difference that the edits make is added to attn_out.
    """

    late = True

    def __init__(self, run: Run, place: Place, layer: int) -> None:
        super().__init__(run.here)
        self.run, self.place, self.layer = run, place, layer
        self.reads: list[int] = []
        self.writes: list[int] = []

    def after(self, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Read the middle where that is wanted before the edits, then add what they change."""
        if not self.run.acting():
            return output
        batch = pick(output, self.place.key)
        whole, rows = self.run.mine(batch), self.run.current.frame.rows
        out = self.place.get(whole, rows)
        middle = self.run.current.kept[self.layer] + (out if self.place.scale == 1.0 else out * self.place.scale)
        for index in self.reads:
            at_site.read(self.run, index, middle, middle)
        new = middle
        for index in self.writes:
            new = at_site.write(self.run, index, new)
        if new is middle:
            return output
        change = new - middle
        change = change if self.place.scale == 1.0 else change / self.place.scale
        new = self.run.back(batch, self.place.put(whole, out + change, rows))
        return put_back(output, self.place.key, new)


def _first_key(args: Args, kwargs: Kwargs) -> int | str:
    named: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    for key, value in named:
        if isinstance(value, Tensor) and value.is_floating_point():
            return key
    raise SiteError("module:<path>:in: the module was called without a float tensor; use another module or ':out'")


def _first_input(args: Args, kwargs: Kwargs) -> Tensor | None:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
    return None


def _first_output(output: Any) -> int | None:
    if isinstance(output, Tensor):
        return None
    for index, value in enumerate(output if isinstance(output, (tuple, list)) else ()):
        if isinstance(value, Tensor) and value.is_floating_point():
            return index
    raise SiteError(f"module:<path>:out: the module returned no float tensor but a {type(output).__name__}")


class RouterLayer(Layer):
    """Reads and writes on a router's logits, which the router uses and then returns only for information."""

    def __init__(self, run: Run) -> None:
        super().__init__(run.here)
        self.run = run
        self.ops: list[Op] = []

    def around(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call the router with its first linear map's product passed through the operations."""
        if not self.run.acting():
            return call(*args, **kwargs)
        with _OnFirstLinear(self._act):
            return call(*args, **kwargs)

    def _act(self, logits: Tensor) -> Tensor:
        rows = self.run.current.frame.rows
        flat = logits.reshape(-1, logits.shape[-1])
        mine = new = self.run.mine(flat)
        for op in self.ops:
            new = op(new, rows, None)
        return logits if new is mine else self.run.back(flat, new).reshape(logits.shape)


class _OnFirstLinear(TorchFunctionMode):
    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.act, self.done = act, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is F.linear and not self.done:
            self.done = True
            return self.act(result)
        return result


class AttentionLayer(Layer):
    """Reads and writes on the query, key and pattern inside one attention module."""

    def __init__(self, run: Run, module: nn.Module) -> None:
        super().__init__(run.here)
        self.run, self.module = run, module
        self.ops: dict[str, list[Write | Read | Watch]] = {side: [] for side in ATTENTION_SIDES}

    def around(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call the module with its attention function open."""
        if not self.run.acting():
            return call(*args, **kwargs)
        with attention.watched(self.module, self._inside):
            return call(*args, **kwargs)

    def _inside(self, side: str, whole: Tensor) -> Tensor:
        rows = self.run.current.frame.rows
        mine = new = self.run.mine(whole)
        for op in self.ops[side]:
            new = self._key(op, new) if side == "key" else op(new, rows, None)
        return whole if new is mine else self.run.back(whole, new)

    def _key(self, op: Write | Read | Watch, whole: Tensor) -> Tensor:
        """Keys come with the cached ones, which were stored unedited: a write selects over all of them anew."""
        frame = self.run.current.frame
        if not isinstance(op, Write):
            op(whole[:, :, whole.shape[2] - frame.length :], frame.rows, None)
            return whole
        if isinstance(frame.start, Tensor):
            raise ModelError(
                "an edit on k_rot needs a dynamic cache; a static cache does not tell which keys are which"
            )
        first = frame.start + frame.length - whole.shape[2]
        keys = Frame(frame.prompt, frame.rows, whole.shape[2], first)
        spec = self.run.spec_of[op.index]
        chosen = keys.select(self.run.specs[spec], frame.prompt.tables[spec])
        h = op.place.get(whole, frame.rows)
        new = at_site.write(self.run, op.index, h, selection=chosen, frame=keys)
        return whole if new is h else op.place.put(whole, new, frame.rows)
