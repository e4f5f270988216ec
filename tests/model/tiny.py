"""Tiny random models, a word-level chat tokenizer, and a record of everything that inlay must leave as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor, nn
from transformers import AutoModelForCausalLM as Auto
from transformers import (
    FalconConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    PreTrainedTokenizerFast,
)

import inlay

VOCAB, WIDTH, LAYERS, HEADS, KV, MLP = 48, 32, 3, 4, 2, 40
_SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # wide enough that attention is far from uniform
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_GROUPED = {**_SHAPE, "intermediate_size": MLP, "num_key_value_heads": KV}

CONFIGS: dict[str, Callable[..., Any]] = {
    "llama": lambda **more: LlamaConfig(**{**_GROUPED, **more}),
    "gpt2": lambda **more: GPT2Config(
        **{**_SHAPE, "n_positions": 64, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, **more}
    ),
    "gemma2": lambda **more: Gemma2Config(**{**_GROUPED, "head_dim": 8, "sliding_window": 4, **more}),
    "falcon": lambda **more: FalconConfig(**{**_SHAPE, "multi_query": True, **more}),
    "mixtral": lambda **more: MixtralConfig(
        **{**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None, **more}
    ),
}
BLOCKS = {"gpt2": "transformer.h", "falcon": "transformer.h"}
FAMILIES = tuple(CONFIGS)


def tiny(family: str = "llama", seed: int = 0, **changes: Any) -> Any:
    """A random causal LM of a family, in eval mode; it never ends a generation by itself."""
    torch.manual_seed(seed)
    return Auto.from_config(CONFIGS[family](**changes)).eval()


def frozen(family: str = "llama", seed: int = 0, tokenizer: Any = None, **changes: Any) -> inlay.Model:
    """The same with frozen weights, as an inlay Model."""
    return inlay.load(tiny(family, seed, **changes).requires_grad_(False), tokenizer=tokenizer)


def block(hf: Any, layer: int) -> Any:
    """A block, by the family's own path."""
    return hf.get_submodule(f"{BLOCKS.get(hf.config.model_type, 'model.layers')}.{layer}")


def rows(*lengths: int, seed: int = 0) -> list[list[int]]:
    """Random rows of ids; 0 to 7 are the tokenizer's special ones and do not occur."""
    made = torch.Generator().manual_seed(seed)
    return [torch.randint(8, VOCAB, (n,), generator=made).tolist() for n in lengths]


def padded(rows: Sequence[Sequence[int]], side: str = "right") -> dict[str, Tensor]:
    """`input_ids`, `attention_mask` and `position_ids` of rows padded on one side."""
    longest = max(map(len, rows))
    ids, mask, positions = (torch.zeros(len(rows), longest, dtype=torch.long) for _ in range(3))
    for r, row in enumerate(rows):
        start = longest - len(row) if side == "left" else 0
        for k, token in enumerate(row):
            ids[r, start + k], mask[r, start + k], positions[r, start + k] = token, 1, k
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


@contextmanager
def changed(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """A hand-written hook that changes a module's output (its first item where it is a tuple)."""

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def changed_input(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """A hand-written hook that changes a module's first positional input."""
    handle = module.register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:]))
    try:
        yield
    finally:
        handle.remove()


# -- words -----------------------------------------------------------------------------------------------------------

SPECIALS = ("<pad>", "<s>", "<unk>", "</s>", "<user>", "<assistant>", "<system>", "<end>")
_SAID = "a the old new red blue boat dog sea hill sees likes finds and or in on it is was here there now then"
WORDS = (
    *SPECIALS,
    *_SAID.split(),
)
TEMPLATE = (
    "{% for turn in messages %}<{{ turn.role }}> {{ turn.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def words(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """A tokenizer of one id a word, with a chat template whose roles are `user`, `assistant` and `system`."""
    made = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", unk_token="<unk>", eos_token="</s>"
    )
    fast.chat_template = template
    return fast


def ids_of(text: str) -> list[int]:
    """The ids of words, by the table alone."""
    return [WORDS.index(word) for word in text.split()]


# -- what must not change --------------------------------------------------------------------------------------------


class Record:
    """Everything on a model: attributes, hooks, modes, `requires_grad`, gradients, configuration, weights.

    Values are kept by identity; weights and the configuration also by content.
    """

    def __init__(self, hf: nn.Module) -> None:
        self.hf = hf
        self.attributes = {
            name: {key: dict(value) if isinstance(value, dict) else value for key, value in module.__dict__.items()}
            for name, module in hf.named_modules()
        }
        self.weights = {name: tensor.clone() for name, tensor in hf.state_dict().items()}
        self.leaves = {name: (p, p.requires_grad, p.grad) for name, p in hf.named_parameters()}
        self.config = copy.deepcopy(getattr(hf, "config", nn.Identity()).__dict__)

    def check(self, offloaded: bool = False) -> None:
        """Fail where anything is not as it was; accelerate itself renews `offloaded` weights at every call."""
        now = Record(self.hf)
        assert now.attributes.keys() == self.attributes.keys()
        for name, before in self.attributes.items():
            after = now.attributes[name]
            assert list(after) == list(before), name
            for key, value in before.items():
                if isinstance(value, dict):
                    assert list(after[key]) == list(value), (name, key)
                    if offloaded and key in ("_parameters", "_buffers"):
                        continue
                    assert all(after[key][k] is v for k, v in value.items()), (name, key)
                else:
                    assert after[key] is value, (name, key)
        assert now.weights.keys() == self.weights.keys()
        for name, tensor in self.weights.items():
            assert offloaded or torch.equal(now.weights[name], tensor), name
        for name, (p, required, grad) in self.leaves.items():
            assert (
                (offloaded or now.leaves[name][0] is p)
                and now.leaves[name][1] is required
                and now.leaves[name][2] is grad
            ), name
        assert now.config == self.config
