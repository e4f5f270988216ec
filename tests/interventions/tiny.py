"""Tiny random models, ragged prompts and hand-written hooks: the ground truth of the intervention tests.

Weights are wide (initializer range 0.3), so that an edit moves the logits by far more than the tolerance of a test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import inlay

WIDTH, LAYERS, HEADS, KV, HEAD_WIDTH, INNER, VOCABULARY = 32, 3, 4, 2, 8, 48, 64
Rows = Sequence[Sequence[int]]

# Unequal lengths, no pad token among them; EVEN is the same number of rows of one length.
RAGGED: list[list[int]] = [[5, 9, 17, 33, 2], [40, 3, 21], [8, 8, 60, 7, 11, 30, 4], [12, 50]]
EVEN: list[list[int]] = [[5, 9, 17, 33], [40, 3, 21, 6], [8, 60, 7, 11], [12, 50, 1, 2]]
OTHER: list[list[int]] = [[31, 22, 13, 44], [55, 6, 7, 18], [19, 20, 41, 42], [3, 14, 15, 9]]


def llama(seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> LlamaForCausalLM:
    """Three blocks, four query heads on two key/value heads."""
    torch.manual_seed(seed)
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": None,
    }
    return LlamaForCausalLM(LlamaConfig(**{**shape, **changes})).to(dtype).eval()


def gpt2(seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> GPT2LMHeadModel:
    """Three blocks, fused projections, learned positions."""
    torch.manual_seed(seed)
    shape = {
        "vocab_size": VOCABULARY,
        "n_embd": WIDTH,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "n_positions": 128,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": None,
    }
    return GPT2LMHeadModel(GPT2Config(**{**shape, **changes})).to(dtype).eval()


FAMILIES: dict[str, Callable[..., Any]] = {"llama": llama, "gpt2": gpt2}


def model(seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> inlay.Model:
    """The Llama as an inlay Model without a tokenizer: prompts are rows of ids."""
    return inlay.load(llama(seed, dtype, **changes))


def block(hf: Any, layer: int) -> nn.Module:
    """A block, by its path in the family and not by inlay."""
    return hf.model.layers[layer] if hasattr(hf, "model") else hf.transformer.h[layer]


def words() -> PreTrainedTokenizerFast:
    """`w0` ... `w63`, split at spaces: id k is the word `wk`."""
    made = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    made.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="w0", unk_token="w0")


def text(rows: Rows) -> list[str]:
    """Rows of ids as text of `words()`."""
    return [" ".join(f"w{i}" for i in row) for row in rows]


def padded(rows: Rows) -> dict[str, Tensor]:
    """Ids, mask and positions, padded on the right: what a user would write to run the rows as one batch."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    positions = torch.tensor([[*range(len(row)), *[0] * (longest - len(row))] for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


def plain(hf: Any, rows: Rows) -> Tensor:
    """Logits [rows, tokens, vocabulary] of the Hugging Face model alone."""
    with torch.no_grad():
        return hf(**padded(rows), use_cache=False).logits


@contextmanager
def hook(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """A bare torch hook that replaces a module's output (the first item of a tuple) by `change` of it."""

    def act(_: nn.Module, __: Any, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    handle = module.register_forward_hook(act)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def input_hook(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """A bare torch hook that replaces a module's first positional input by `change` of it."""
    handle = module.register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:]))
    try:
        yield
    finally:
        handle.remove()


def hooked(hf: Any, rows: Rows, layer: int, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Logits with a block's output changed by a bare hook."""
    with hook(block(hf, layer), change):
        return plain(hf, rows)


def states(hf: Any, rows: Rows, layer: int) -> Tensor:
    """A block's output [rows, tokens, width], as a bare hook sees it."""
    kept: list[Tensor] = []
    with hook(block(hf, layer), lambda h: kept.append(h.clone()) or h):
        plain(hf, rows)
    return kept[0]


@contextmanager
def forwards(hf: Any) -> Iterator[list[int]]:
    """Counts calls of the model's forward (a pre-hook, so that a read which stops early counts too)."""
    count = [0]

    def act(*_: Any) -> None:
        count[0] += 1

    handle = hf.register_forward_pre_hook(act)
    try:
        yield count
    finally:
        handle.remove()


def same_where_real(have: Tensor, want: Tensor, rows: Rows, **tolerance: float) -> None:
    """Assert closeness of [rows, tokens, ...] at the positions that hold a token."""
    for index, row in enumerate(rows):
        torch.testing.assert_close(
            have[index, : len(row)],
            want[index, : len(row)],
            msg=lambda m, i=index: f"row {i}: {m}",
            **tolerance,
        )
