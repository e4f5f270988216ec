"""A random tiny Llama with a byte tokenizer, saved as a folder as `from_pretrained` reads it."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WIDTH, LAYERS = 32, 3
CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """One token a byte, so that it spells any text; `<pad>` pads and `<|end|>` ends a turn."""
    special = ["<pad>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(special + alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(special)
    made = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<|end|>")
    made.chat_template = chat_template
    return made


def save_random_folder(folder: Path, seed: int = 0, chat: bool = False, **config: int) -> Path:
    """Write the model and its tokenizer; `chat` gives it a chat template."""
    tokenizer = byte_tokenizer(CHAT if chat else None)
    torch.manual_seed(seed)
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "intermediate_size": 48, **config}
    made = LlamaConfig(
        vocab_size=len(tokenizer),
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,  # large enough for a steering vector to change what is said
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=None,  # so that a generation has the length that was asked for
        bos_token_id=None,
        **sizes,
    )
    LlamaForCausalLM(made).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
