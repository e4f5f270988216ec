"""A word-level chat tokenizer and tiny random models with it: what the tests of generation, reading and loading run on.

The models are random with wide weights, so that greedy text varies and an edit changes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import AutoModelForCausalLM as Auto
from transformers import (
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
)

import inlay

SPECIALS = ("<pad>", "<unk>", "<s>", "</s>", "<user>", "<assistant>", "<system>", "<end>")
WORDS = """
    the a one sea tide ship harbor sail wind rope mast deck crew captain salt wave storm calm north south east west
    gull fish net shore sand rock light lamp night day moon star sun rain cloud cold warm deep blue grey green old new
    goes comes turns falls rises sings waits and with
"""
VOCABULARY = (*SPECIALS, *WORDS.split())
TEMPLATE = (
    "{% for turn in messages %}<{{ turn.role }}> {{ turn.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
WIDTH, LAYERS, HEADS, LIMIT = 32, 3, 4, 64


def tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """Words split at spaces; one id a word."""
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=list(SPECIALS[4:]),
        model_max_length=LIMIT,
    )
    made.chat_template = template
    return made


_SHAPE = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": None,  # random text has no end
    "tie_word_embeddings": False,  # tied random embeddings repeat the last word
}
_LIMIT = {"max_position_embeddings": LIMIT}
_GROUPED = {**_SHAPE, **_LIMIT, "intermediate_size": 48, "num_key_value_heads": 2}

FAMILIES: dict[str, Callable[..., Any]] = {
    "llama": lambda **more: LlamaConfig(**{**_GROUPED, **more}),
    "gpt2": lambda **more: GPT2Config(**{**_SHAPE, "n_positions": LIMIT, **more}),
    "gemma2": lambda **more: Gemma2Config(**{**_GROUPED, "head_dim": 8, "sliding_window": 4, **more}),
    "mistral": lambda **more: MistralConfig(**{**_GROUPED, "sliding_window": 4, **more}),
    "falcon": lambda **more: FalconConfig(**{**_SHAPE, **_LIMIT, "multi_query": True, **more}),
    "mixtral": lambda **more: MixtralConfig(
        **{**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None, **more}
    ),
    "bloom": lambda **more: BloomConfig(**{**_SHAPE, **more}),
    "opt": lambda **more: OPTConfig(**{**_SHAPE, **_LIMIT, "ffn_dim": 48, "word_embed_proj_dim": WIDTH, **more}),
}
BLOCKS = {"gpt2": "transformer.h", "falcon": "transformer.h", "bloom": "transformer.h", "opt": "model.decoder.layers"}


def tiny(family: str, seed: int = 0, **changes: Any) -> Any:
    """A random Hugging Face model of a family, in eval mode."""
    torch.manual_seed(seed)
    return Auto.from_config(FAMILIES[family](**changes)).eval()


def wrapped(family: str, seed: int = 0, template: str | None = TEMPLATE, **changes: Any) -> inlay.Model:
    """The same with the tokenizer, as an inlay Model."""
    return inlay.load(tiny(family, seed, **changes), tokenizer=tokenizer(template))


def block(hf: Any, layer: int) -> torch.nn.Module:
    """A block, found by its path in the family and not by inlay."""
    return hf.get_submodule(f"{BLOCKS.get(hf.config.model_type, 'model.layers')}.{layer}")


def ids(text: str) -> list[int]:
    """Ids of words, by the table."""
    return [VOCABULARY.index(word) for word in text.split()]


def text(numbers: Sequence[int] | Tensor) -> str:
    """Words of ids, without the special ones."""
    return " ".join(VOCABULARY[int(i)] for i in numbers if int(i) >= len(SPECIALS))
