"""The layers that a run puts around a model's methods: one per touched module, plus those that follow the forward."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from inlay.errors import ModelError, SiteError
from inlay.model import attention
from inlay.model.frame import Frame, Prompt
from inlay.model.patch import Args, Kwargs, Layer
from inlay.model.places import Place, pick, put_back
from inlay.model.sites import Site

if TYPE_CHECKING:
    from inlay.model.engine import Run

ATTENTION_SIDES = ("query", "key", "pattern")
Planned = tuple[nn.Module, str, Layer]


@dataclass(frozen=True)
class Write:
    """Apply part `index` of the Edit."""

    run: Run
    place: Place
    index: int

    def __call__(self, whole: Tensor, rows: int, given: Tensor | None) -> Tensor:
        """Act on the tensor at the place; `given` is the module's input."""
        h = self.place.get(whole, rows)
        new = self.run.write(self.index, h, given)
        return whole if new is h else self.place.put(whole, new, rows)


@dataclass(frozen=True)
class Read:
    """Keep want `index`."""

    run: Run
    place: Place
    index: int

    def __call__(self, whole: Tensor, rows: int, given: Tensor | None) -> Tensor:
        """Act on the tensor at the place; `given` is the module's input."""
        self.run.read(self.index, self.place.get(whole, rows), whole, self.place.fragile)
        return whole


@dataclass(frozen=True)
class Keep:
    """Remember the residual stream before attention, for a write to `resid_mid` of the same layer."""

    run: Run
    place: Place
    layer: int

    def __call__(self, whole: Tensor, rows: int, given: Tensor | None) -> Tensor:
        """Act on the tensor at the place; `given` is the module's input."""
        self.run.current.kept[self.layer] = self.place.get(whole, rows)
        return whole


@dataclass(frozen=True)
class WriteMid:
    """A write to `resid_mid`, made on attention's contribution.

    No module's output is resid_mid = resid_pre + scale * attn_out, and changing the input of the norm behind it would
    change the MLP's branch and not the stream. So the difference that the edit makes is added to attn_out.
    """

    run: Run
    place: Place
    index: int
    layer: int

    def __call__(self, whole: Tensor, rows: int, given: Tensor | None) -> Tensor:
        """Act on the tensor at the place; `given` is the module's input."""
        out = self.place.get(whole, rows)
        scaled = out if self.place.scale == 1.0 else out * self.place.scale
        middle = self.run.current.kept[self.layer] + scaled
        new = self.run.write(self.index, middle)
        if new is middle:
            return whole
        change = new - middle
        return self.place.put(whole, out + (change if self.place.scale == 1.0 else change / self.place.scale), rows)


Op = Callable[[Tensor, int, Tensor | None], Tensor]


class SiteLayer(Layer):
    """The reads and writes on one module's inputs and outputs."""

    def __init__(self, run: Run) -> None:
        super().__init__(run.here)
        self.run = run
        self.inputs: dict[Any, list[Op]] = {}
        self.outputs: dict[Any, list[Op]] = {}

    def before(self, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """Run the operations on the inputs."""
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
        if not self.outputs:
            return output
        given = _first_input(args, kwargs)
        for key, ops in self.outputs.items():
            where = _first_output(output) if key == "first" else key
            whole = pick(output, where)
            new = self._run(ops, whole, given)
            if new is not whole:
                output = put_back(output, where, new)
        return output

    def _run(self, ops: Iterable[Op], whole: Tensor, given: Tensor | None) -> Tensor:
        rows = self.run.current.frame.rows
        for op in ops:
            whole = op(whole, rows, given)
        return whole


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
        with _OnFirstLinear(self._act):
            return call(*args, **kwargs)

    def _act(self, logits: Tensor) -> Tensor:
        rows = self.run.current.frame.rows
        shape = logits.shape
        for op in self.ops:
            logits = op(logits.reshape(-1, shape[-1]), rows, None).reshape(shape)
        return logits


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
        self.ops: dict[str, list[Write | Read]] = {side: [] for side in ATTENTION_SIDES}

    def around(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call the module with its attention function open."""
        with attention.watched(self.module, self._inside):
            return call(*args, **kwargs)

    def _inside(self, side: str, whole: Tensor) -> Tensor:
        rows = self.run.current.frame.rows
        for op in self.ops[side]:
            whole = self._key(op, whole) if side == "key" else op(whole, rows, None)
        return whole

    def _key(self, op: Write | Read, whole: Tensor) -> Tensor:
        """Keys come with the cached ones, which were stored unedited: a write selects over all of them anew."""
        frame = self.run.current.frame
        if isinstance(op, Read):
            op(whole[:, :, whole.shape[2] - frame.length :], frame.rows, None)
            return whole
        if isinstance(frame.start, Tensor):
            raise ModelError(
                "an edit on k_rot needs a dynamic cache; a static cache does not tell which keys are which"
            )
        first = frame.start + frame.length - whole.shape[2]
        keys = Frame(frame.prompt, frame.rows, whole.shape[2], first)
        spec = self.run.specs[op.index]
        chosen = keys.select(spec, frame.prompt.tables[op.index])
        h = op.place.get(whole, frame.rows)
        new = self.run.write(op.index, h, selection=chosen, frame=keys)
        return whole if new is h else op.place.put(whole, new, frame.rows)


class ForwardLayer(Layer):
    """Begins a pass where the model's forward begins: on the causal model, or on its decoder when called by itself."""

    def __init__(self, run: Run, module: nn.Module, outer: bool) -> None:
        super().__init__(run.here)
        self.run, self.outer = run, outer
        self.names = run.parameters(module)

    def around(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Settle the pass, then call."""
        if self.run.inside:
            return call(*args, **kwargs)
        self.run.begin(self.names, args, kwargs)
        if not self.outer:
            return call(*args, **kwargs)
        self.run.inside = True
        try:
            return call(*args, **kwargs)
        finally:
            self.run.inside = False


class GenerateLayer(Layer):
    """Marks off the prompt of a generation, so that its phase never has to be guessed from the calls that follow."""

    def __init__(self, run: Run, module: nn.Module) -> None:
        super().__init__(run.here)
        self.run, self.module = run, module
        self.names = ("inputs", *run.parameters(module, "generate")[1:])

    def around(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Generate; an inner generation (assisted decoding by the same model) belongs to the outer one's prompt."""
        if self.run.generation is not None:
            return call(*args, **kwargs)
        self.run.generation = self._prompt(dict(zip(self.names, args, strict=False)) | kwargs)
        self.run.settle(self.run.generation)
        try:
            return call(*args, **kwargs)
        finally:
            self.run.generation = None

    def _prompt(self, values: Kwargs) -> Prompt:
        ids = values.get("input_ids")
        ids = ids if ids is not None else values.get("inputs")
        embeds, mask = values.get("inputs_embeds"), values.get("attention_mask")
        first = embeds if embeds is not None else ids
        if first is None:
            return Prompt(1, 1, next(self.module.parameters()).device)
        if mask is None and ids is not None and embeds is None:
            mask = self._guess(ids, values)
        slots = first.shape[1] if mask is None else max(first.shape[1], mask.shape[-1])
        attended = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
        known = ids if ids is not None and ids.shape[1] == slots else None
        return self.run.prompt(first.shape[0], slots, first.device, attended, known)

    def _guess(self, ids: Tensor, values: Kwargs) -> Tensor | None:
        """Transformers' own rule for a missing mask: pads are masked where the pad token is no end token."""
        config = values.get("generation_config") or getattr(self.module, "generation_config", None)
        pad = values.get("pad_token_id", getattr(config, "pad_token_id", None))
        ends = values.get("eos_token_id", getattr(config, "eos_token_id", None))
        ends = [ends] if isinstance(ends, int) else list(ends or [])
        if pad is None or pad in ends:
            return None
        return ids.ne(pad)


class CheckpointLayer(Layer):
    """Lets the recomputation of a checkpointed block, during backward, run under the edits of its forward."""

    def __init__(self, run: Run, layer: int) -> None:
        super().__init__(run.here)
        self.run, self.layer = run, layer

    def before(self, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """Wrap the function that the checkpoint will call now and again."""
        run, function, now, layer, first = self.run, args[0], self.run.now, self.layer, True

        def again(*inputs: Any, **more: Any) -> Any:
            nonlocal first
            if first:
                first = False
                return function(*inputs, **more)
            with run.again(now):
                if now is not None and layer in now.kept and inputs and isinstance(inputs[0], Tensor):
                    now.kept[layer] = inputs[0]
                return function(*inputs, **more)

        return (again, *args[1:]), kwargs


class RootLayer(Layer):
    """Makes a block's input require a gradient, so that every Site above it lies in the graph."""

    def __init__(self, run: Run, place: Place) -> None:
        super().__init__(run.here)
        self.place = place

    def before(self, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """Detach and require, where nothing below asks for gradients already."""
        key = self.place.key
        whole = args[key] if isinstance(key, int) else kwargs[str(key)]
        if whole.requires_grad or not torch.is_grad_enabled():
            return args, kwargs
        root = whole.detach().requires_grad_(True)
        if isinstance(key, int):
            return (*args[:key], root, *args[key + 1 :]), kwargs
        return args, {**kwargs, str(key): root}


def plan(run: Run) -> list[Planned]:
    """Everything that a run puts around its model's methods, in the order in which it is put there.

    Raises:
        SiteError: a Site does not exist, or a raw path leads nowhere.
        EditError: an intervention does not fit its Site.
    """
    planned: list[Planned] = _follow(run)
    if run.grads and (first := run.sites.places.get("resid_pre")):
        place = next(iter(first.values()))
        planned.append((run.base.get_submodule(place.path), "forward", RootLayer(run, place)))
    at: dict[tuple[str, str], SiteLayer | RouterLayer | AttentionLayer] = {}

    def layer_at(place: Place) -> SiteLayer | RouterLayer | AttentionLayer:
        kind = "attention" if place.side in ATTENTION_SIDES else "router" if place.side == "linear" else "site"
        if (place.path, kind) not in at:
            module = run.base.get_submodule(place.path)
            made: SiteLayer | RouterLayer | AttentionLayer
            if kind == "attention":
                made = AttentionLayer(run, module)
            else:
                made = RouterLayer(run) if kind == "router" else SiteLayer(run)
            at[place.path, kind] = made
            planned.append((module, "forward", made))
        return at[place.path, kind]

    def add(place: Place, op: Any) -> None:
        layer = layer_at(place)
        if isinstance(layer, AttentionLayer):
            layer.ops[place.side].append(op)
        elif isinstance(layer, RouterLayer):
            layer.ops.append(op)
        else:
            side = layer.inputs if place.side == "in" else layer.outputs
            side.setdefault(place.key, []).append(op)

    for index, want in enumerate(run.wants):
        if want.before:
            place = place_of(run, want.site)
            add(place, Read(run, place, index))
    for index, part in enumerate(run.parts):
        place = place_of(run, part.site)
        part.intervention.check(place.width, str(part.site))
        if part.site.name == "resid_mid":
            _plan_mid(run, part.site, index, add)
        else:
            add(place, Write(run, place, index))
    for index, want in enumerate(run.wants):
        if not want.before:
            place = place_of(run, want.site)
            add(place, Read(run, place, index))
    return planned


def _plan_mid(run: Run, site: Site, index: int, add: Callable[[Place, Any], None]) -> None:
    layer = site.layer
    assert layer is not None
    pre, out = run.sites.place(Site("resid_pre", layer)), run.sites.place(Site("attn_out", layer))
    add(pre, Keep(run, pre, layer))
    add(out, WriteMid(run, out, index, layer))


def place_of(run: Run, site: Site) -> Place:
    """Where a Site of one layer lies in the run's model."""
    if site.name != "module":
        return run.sites.place(site)
    try:
        run.base.get_submodule(site.path)
    except AttributeError:
        raise SiteError(f"{site}: {type(run.base).__name__} has no module {site.path!r}") from None
    return Place(site.path, site.side, "first", width=0)


def _follow(run: Run) -> list[Planned]:
    planned: list[Planned] = [(run.base, "forward", ForwardLayer(run, run.base, outer=True))]
    if run.sites.decoder:
        decoder = run.base.get_submodule(run.sites.decoder)
        planned.append((decoder, "forward", ForwardLayer(run, decoder, outer=False)))
    if hasattr(run.base, "generate"):
        planned.append((run.base, "generate", GenerateLayer(run, run.base)))
    for layer, path in enumerate(run.sites.blocks):
        block = run.base.get_submodule(path)
        if getattr(block, "gradient_checkpointing", False) and "_gradient_checkpointing_func" in block.__dict__:
            planned.append((block, "_gradient_checkpointing_func", CheckpointLayer(run, layer)))
    return planned
