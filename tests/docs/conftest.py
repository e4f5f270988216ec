"""`from_pretrained` gives a tiny random model of the family that the pages load, with a byte tokenizer and ChatML."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.cli.random_folder import byte_tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

NAME = "Qwen/Qwen2.5-0.5B-Instruct"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_qwen() -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerFast]:
    """The heads and key/value heads of Qwen2.5-0.5B, at 14 layers and a width of 56."""
    tokenizer = byte_tokenizer(CHATML)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=56,
        intermediate_size=96,
        num_hidden_layers=14,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    return Qwen2ForCausalLM(config).eval(), tokenizer


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tiny_qwen: tuple[Qwen2ForCausalLM, PreTrainedTokenizerFast]) -> None:
    """Loading by `NAME` gives the tiny model, anew each time; a folder is loaded; any other name fails."""
    model, tokenizer = tiny_qwen
    real_model, real_tokenizer = AutoModelForCausalLM.from_pretrained, AutoTokenizer.from_pretrained
    real_config = AutoConfig.from_pretrained

    def model_of(name: str, output_loading_info: bool = False, **kwargs: Any) -> Any:
        if Path(name).is_dir():  # what ships with inlay
            return real_model(name, output_loading_info=output_loading_info, **kwargs)
        assert name == NAME
        made = copy.deepcopy(model)
        return (made, {"missing_keys": set()}) if output_loading_info else made

    def config_of(name: str, **kwargs: Any) -> Any:
        if Path(name).is_dir():
            return real_config(name, **kwargs)
        assert name == NAME
        return copy.deepcopy(model.config)

    def tokenizer_of(name: str, **kwargs: Any) -> PreTrainedTokenizerFast:
        if Path(name).is_dir():
            return real_tokenizer(name, **kwargs)
        assert name == NAME
        return copy.deepcopy(tokenizer)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", model_of)
    monkeypatch.setattr(AutoConfig, "from_pretrained", config_of)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", tokenizer_of)
