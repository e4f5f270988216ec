"""The same work by other libraries, each in the way its own documentation shows. Runs without inlay.

Each library runs in a process of its own, in which plain HF is timed too: its ratios are to that plain HF.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
from interleaved import AGAIN, PLAIN, Case, Plan, Section
from random_llama import ALL, LAYERS, NEW_TOKENS, ONE, SIZES, adding, greedy, hooked, ids, inputs, llama, title, vectors
from torch import Tensor


def plans(peer: str) -> Iterator[Plan]:
    """Every section of one library, in order; titles are those of `inlay_sections`."""
    for size, shape, prompts in (("d768", (4, 64), ((1, 32), (4, 32))), ("d64", (8, 64), ((8, 64),))):
        tool = functools.cache(functools.partial(PEERS[peer], size))
        for layers in (ONE, ALL):
            yield title("forward", size, shape, layers), functools.partial(_forward, tool, size, shape, layers)
        for prompt in prompts:
            for layers in (ONE, ALL):
                work = functools.partial(_generate, tool, size, prompt, layers)
                yield title("generate 32 tokens", size, prompt, layers), work
        if peer == "pyvene":
            work = functools.partial(_interchange, tool, size, shape)
            yield title("interchange at 12 sites, one source", size, shape), work


class Pyvene:
    """pyvene: an `IntervenableModel` with one `AdditionIntervention` a layer."""

    name = "pyvene"

    def __init__(self, size: str) -> None:
        self.hf = llama(size)

    def _wrap(self, layers: list[int]) -> Any:
        import pyvene

        parts = [
            {"layer": layer, "component": "block_output", "intervention_type": pyvene.AdditionIntervention}
            for layer in layers
        ]
        return pyvene.IntervenableModel(parts, model=self.hf)

    def forward(self, batch: Tensor, vector: Tensor, layers: list[int]) -> Callable[[], Tensor]:
        wrapped, base = self._wrap(layers), inputs(batch)
        return lambda: wrapped(base=base, source_representations=vector)[1].logits

    def generate(self, batch: Tensor, vector: Tensor, layers: list[int]) -> Callable[[], Tensor]:
        wrapped, options = self._wrap(layers), greedy(batch)
        base = {key: options.pop(key) for key in ("input_ids", "attention_mask")}
        return lambda: wrapped.generate(base, source_representations=vector, intervene_on_prompt=True, **options)[1]

    def interchange(self, base: Tensor, source: Tensor, grouped: bool) -> Callable[[], Tensor]:
        import pyvene

        parts = [
            {"layer": layer, "component": "block_output", "intervention_type": pyvene.VanillaIntervention}
            | ({"group_key": 0} if grouped else {})
            for layer in ALL
        ]
        wrapped = pyvene.IntervenableModel(parts, model=self.hf)
        here, there, last = inputs(base), inputs(source), base.shape[1] - 1
        sources = [there] if grouped else [there] * LAYERS
        return lambda: wrapped(base=here, sources=sources, unit_locations={"sources->base": last})[1].logits


class NNsight:
    """nnsight: a `TransformersModel`, edits written in a trace."""

    name = "nnsight"

    def __init__(self, size: str) -> None:
        from nnsight import TransformersModel

        self.hf = llama(size)
        self.model = TransformersModel(self.hf, task="text-generation", tokenizer=_tokenizer(size))

    def forward(self, batch: Tensor, vector: Tensor, layers: list[int]) -> Callable[[], Tensor]:
        model, arguments = self.model, inputs(batch)

        def run() -> Tensor:
            with model.trace(**arguments):
                for layer in layers:
                    model.model.layers[layer].output[:] += vector
                logits = model.output.logits.save()
            return logits

        return run

    def generate(self, batch: Tensor, vector: Tensor, layers: list[int]) -> Callable[[], Tensor]:
        model, options = self.model, greedy(batch)
        batch = options.pop("input_ids")

        def run() -> Tensor:
            with model.generate(batch, **options) as tracer:
                for _ in tracer.iter[:NEW_TOKENS]:
                    for layer in layers:
                        model.model.layers[layer].output[:] += vector
                found = tracer.result.save()
            return found

        return run


class TransformerLens:
    """TransformerLens: a `TransformerBridge` over a second copy of the model, with eager attention as it asks for."""

    name = "TransformerLens"

    def __init__(self, size: str) -> None:
        from transformer_lens.model_bridge import TransformerBridge

        self.hf = llama(size)
        self.bridge = TransformerBridge.boot_transformers(
            "random-llama", hf_model=llama(size, "eager"), device="cpu", tokenizer=_tokenizer(size)
        )

    def _hooks(self, vector: Tensor, layers: list[int]) -> list[tuple[str, Any]]:
        return [(f"blocks.{layer}.hook_resid_post", lambda value, hook: value + vector) for layer in layers]

    def forward(self, batch: Tensor, vector: Tensor, layers: list[int]) -> Callable[[], Tensor]:
        hooks = self._hooks(vector, layers)
        return lambda: self.bridge.run_with_hooks(batch, fwd_hooks=hooks)

    def generate(self, batch: Tensor, vector: Tensor, layers: list[int]) -> Callable[[], Tensor]:
        hooks = self._hooks(vector, layers)

        def run() -> Tensor:
            with self.bridge.hooks(fwd_hooks=hooks):
                return self.bridge.generate(
                    batch, max_new_tokens=NEW_TOKENS, do_sample=False, stop_at_eos=False, verbose=False
                )

        return run


_FOLDERS: list[Any] = []
PEERS = {"pyvene": Pyvene, "nnsight": NNsight, "transformer_lens": TransformerLens}


def _tokenizer(size: str) -> Any:
    """A tokenizer that knows the model's ids by their numbers; two of the libraries do not start without one."""
    from tokenizers import Tokenizer, models
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    words = {str(index): index for index in range(SIZES[size]["vocab_size"])}
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="0")), pad_token="0", bos_token="1", eos_token="2"
    )
    folder = tempfile.TemporaryDirectory()
    _FOLDERS.append(folder)  # TransformerLens loads it a second time
    made.save_pretrained(folder.name)
    return AutoTokenizer.from_pretrained(folder.name)


def _close(found: Tensor, wanted: Tensor, what: str) -> None:
    """Attention by another kernel rounds differently; anything more is another computation."""
    worst = float((found - wanted).abs().max())
    if worst > 1e-4:
        raise AssertionError(f"{what}: differs from the hand-written hook by up to {worst:.3g}")


def _forward(make: Callable[[], Any], size: str, shape: tuple[int, int], layers: list[int], title: str) -> Section:
    tool, vector, batch = make(), vectors(size, 1)[0], ids(size, *shape)
    arguments = inputs(batch)

    def plain() -> Tensor:
        return tool.hf(**arguments).logits

    run = tool.forward(batch, vector, layers)
    with hooked(tool.hf, layers, adding(vector)):
        wanted = plain()
    _close(run(), wanted, title)
    return Section(title, (Case(PLAIN, plain), Case(AGAIN, plain), Case(tool.name, run)), 21 if size == "d768" else 51)


def _generate(make: Callable[[], Any], size: str, shape: tuple[int, int], layers: list[int], title: str) -> Section:
    tool, vector, batch = make(), vectors(size, 1)[0], ids(size, *shape)
    options = greedy(batch)

    def plain() -> Tensor:
        return tool.hf.generate(**options)

    run = tool.generate(batch, vector, layers)
    with hooked(tool.hf, layers, adding(vector)):
        wanted = plain()
    found = run()
    first = slice(0, shape[1] + 1)  # behind it a tie of two logits may break either way under another attention kernel
    if found.shape != wanted.shape or not torch.equal(found[:, first], wanted[:, first]):
        raise AssertionError(f"{title}: other ids than under the hand-written hook")
    return Section(title, (Case(PLAIN, plain), Case(AGAIN, plain), Case(tool.name, run)), 11 if size == "d768" else 15)


def _interchange(make: Callable[[], Pyvene], size: str, shape: tuple[int, int], title: str) -> Section:
    tool = make()
    base, source = ids(size, 2 * shape[0], shape[1]).chunk(2)
    here, there = inputs(base), inputs(source)

    def twice() -> None:
        tool.hf(**there)
        tool.hf(**here)

    grouped, apart = (tool.interchange(base, source, flag) for flag in (True, False))
    _close(grouped(), apart(), title)
    return Section(
        title,
        (
            Case(f"{PLAIN}, two forwards", twice),
            Case(f"{AGAIN}, two forwards", twice),
            Case("pyvene, sources grouped", grouped),
            Case("pyvene, a source for each site", apart),
        ),
        9 if size == "d768" else 21,
    )
