"""The layers that follow a forward: where a pass begins, a generation's prompt, recomputation in backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from inlay.model.frame import Prompt
from inlay.model.patch import Args, Kwargs, Layer
from inlay.model.places import Place, pick, put_back
from inlay.model.sitemap import DECODER, ENCODER

if TYPE_CHECKING:
    from inlay.model.engine import Run

Planned = tuple[nn.Module, str, Layer]


class ForwardLayer(Layer):
    """Begins a pass where the model's forward begins: on the causal model, or on its decoder when called by itself."""

    def __init__(self, run: Run, module: nn.Module) -> None:
        super().__init__(run.here)
        self.run = run
        self.names = run.parameters(module)

    def around(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Settle the pass, then call."""
        run = self.run
        if run.inside:
            return call(*args, **kwargs)
        run.begin(self.names, args, kwargs)
        run.inside = True
        try:
            return call(*args, **kwargs)
        finally:
            run.inside, run.now = False, None


class SeqToSeqLayer(Layer):
    """The forward or generation of an encoder-decoder model, in which each stack begins a pass of its own.

    The decoder's pass outlasts the decoder, for the head behind it.
    """

    def __init__(self, run: Run, generates: bool) -> None:
        super().__init__(run.here)
        self.run, self.generates = run, generates

    def around(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call, and end the pass that is left."""
        run = self.run
        outer, run.inside = run.inside, True
        run.generating = run.generating or self.generates
        try:
            return call(*args, **kwargs)
        finally:
            run.inside = outer
            if not outer:
                run.now, run.generation, run.generating, run.encoded = None, None, False, 0


class StackLayer(Layer):
    """Begins a pass where one stack of an encoder-decoder model begins."""

    def __init__(self, run: Run, module: nn.Module, stack: str) -> None:
        super().__init__(run.here)
        self.run, self.stack = run, stack
        self.names = run.parameters(module)

    def around(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Settle the pass, then call."""
        run = self.run
        if self.stack == ENCODER:
            generation, run.generation = run.generation, None  # whose slots are the decoder's
            run.begin(self.names, args, kwargs, self.stack)
            run.generation, run.encoded = generation, run.current.frame.rows * run.generating
        else:
            run.begin(self.names, args, kwargs, self.stack)
            if run.generating:
                run.generation = run.current.frame.prompt
        try:
            return call(*args, **kwargs)
        finally:
            if not run.inside:
                run.now = None


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
        return self.run.prompt(first.shape[0], slots, first.device, attended, known, wait=True)

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
        """Wrap the function that the checkpoint will call now and again.

        The reentrant kind runs a graph of its own in backward, so what was computed from parameters before the block (a
        bank's gathered rows) is computed anew there.
        """
        run, function, now, layer, first, reentrant = self.run, args[0], self.run.now, self.layer, True, False

        def again(*inputs: Any, **more: Any) -> Any:
            nonlocal first, reentrant
            if first:
                first, reentrant = False, not torch.is_grad_enabled()
                return function(*inputs, **more)
            assert now is not None
            with run.again(run.fresh(now) if reentrant else now):
                if layer in now.kept and inputs and isinstance(inputs[0], Tensor):
                    run.current.kept[layer] = inputs[0]
                return function(*inputs, **more)

        return (again, *args[1:]), kwargs


class RootLayer(Layer):
    """Makes a place's tensor require a gradient, so that every Site above it lies in the graph."""

    def __init__(self, run: Run, place: Place) -> None:
        super().__init__(run.here)
        self.place = place

    def before(self, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """Root the input, where the place is one."""
        key = self.place.key
        if self.place.side != "in":
            return args, kwargs
        if isinstance(key, int):
            return (*args[:key], _rooted(args[key]), *args[key + 1 :]), kwargs
        return args, {**kwargs, str(key): _rooted(kwargs[str(key)])}

    def after(self, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Root the output, where the place is one."""
        if self.place.side != "out":
            return output
        return put_back(output, self.place.key, _rooted(pick(output, self.place.key)))


def _rooted(whole: Tensor) -> Tensor:
    """The tensor itself where something below asks for gradients already, else a leaf that does."""
    if whole.requires_grad or not torch.is_grad_enabled():
        return whole
    return whole.detach().requires_grad_(True)


def follow(run: Run) -> list[Planned]:
    """The layers that every run needs, whatever its Sites."""
    planned: list[Planned] = _stacks(run) if run.sites.encoder else _one_stack(run)
    for layer, path in enumerate(run.sites.blocks):
        block = run.base.get_submodule(path)
        if getattr(block, "gradient_checkpointing", False) and "_gradient_checkpointing_func" in block.__dict__:
            planned.append((block, "_gradient_checkpointing_func", CheckpointLayer(run, layer)))
    return planned


def _one_stack(run: Run) -> list[Planned]:
    planned: list[Planned] = [(run.base, "forward", ForwardLayer(run, run.base))]
    if run.sites.decoder:
        decoder = run.base.get_submodule(run.sites.decoder)
        planned.append((decoder, "forward", ForwardLayer(run, decoder)))
    if hasattr(run.base, "generate"):
        planned.append((run.base, "generate", GenerateLayer(run, run.base)))
    return planned


def _stacks(run: Run) -> list[Planned]:
    planned: list[Planned] = [
        (run.base, "forward", SeqToSeqLayer(run, generates=False)),
        (run.base, "generate", SeqToSeqLayer(run, generates=True)),
    ]
    for stack, path in ((ENCODER, run.sites.encoder), (DECODER, run.sites.decoder)):
        module = run.base.get_submodule(path)
        planned.append((module, "forward", StackLayer(run, module, stack)))
    return planned
