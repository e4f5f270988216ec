"""The models that are measured: Llamas with random weights, their inputs, and edits written as bare PyTorch hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

SIZES = {
    "d768": {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "vocab_size": 8192,
    },
    "d64": {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 1024,
    },
}
LAYERS = 12
ONE, ALL = [5], list(range(LAYERS))
NEW_TOKENS = 32


def title(work: str, size: str, shape: tuple[int, int], layers: list[int] | None = None) -> str:
    """A section's title: work on [rows, tokens] of the model of one size, with a vector added at some layers."""
    where = {None: "", 1: ", add a vector at one layer", LAYERS: ", add a vector at all 12 layers"}
    return f"{size}, {shape[0]} x {shape[1]} tokens: {work}{where[layers and len(layers)]}"


def llama(size: str, attention: str = "sdpa", positions: int = 512) -> Any:
    """A 12-layer Llama in float32, eval mode, with the same random weights in every process.

    No token ends a generation, so that all generations have the same length.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=LAYERS,
        max_position_embeddings=positions,
        attn_implementation=attention,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        **SIZES[size],
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def ids(size: str, rows: int, tokens: int) -> Tensor:
    """Random ids, int64 [rows, tokens], the same in every process."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, SIZES[size]["vocab_size"], (rows, tokens), generator=generator)


def vectors(size: str, count: int) -> Tensor:
    """Random vectors of length about 1, float32 [count, width], the same in every process."""
    generator = torch.Generator().manual_seed(2)
    width = SIZES[size]["hidden_size"]
    return torch.randn(count, width, generator=generator) / width**0.5


def inputs(batch: Tensor) -> dict[str, Any]:
    """What every tool's forward is given: ids [rows, tokens], a full mask, positions, no cache."""
    return {
        "input_ids": batch,
        "attention_mask": torch.ones_like(batch),
        "position_ids": torch.arange(batch.shape[1]).expand(batch.shape),
        "use_cache": False,
    }


def greedy(batch: Tensor, new: int = NEW_TOKENS) -> dict[str, Any]:
    """Arguments of a greedy generation of exactly `new` tokens."""
    return {
        "input_ids": batch,
        "attention_mask": torch.ones_like(batch),
        "max_new_tokens": new,
        "do_sample": False,
        "pad_token_id": 0,
    }


def adding(vector: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """A forward hook that adds a vector, [width] or [rows, 1, width], to a block's output."""

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output + vector

    return hook


@contextmanager
def hooked(hf: Any, layers: Sequence[int], hook: Any) -> Iterator[None]:
    """A forward hook on some blocks, registered on entry and removed on exit."""
    handles = [hf.model.layers[layer].register_forward_hook(hook) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
