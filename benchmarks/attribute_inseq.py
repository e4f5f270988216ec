"""inseq's integrated gradients of one token, for the benchmark; `pip install --no-deps inseq` and what it asks for."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor


def has_inseq() -> bool:
    """Whether inseq is here."""
    return importlib.util.find_spec("inseq") is not None


def integrated(hf: Any, batch: Tensor, target: int, baseline: int, points: int) -> Callable[[], Tensor]:
    """Scores [T] of a row's tokens for the logit of the token behind it, against the baseline token."""
    import inseq
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    special = {1: "<s>", 2: "</s>", baseline: "<pad>"}  # inseq takes the unknown token for the baseline
    words = {special.get(i, f"w{i}"): i for i in range(hf.config.vocab_size)}
    made = Tokenizer(WordLevel(words, unk_token="<pad>"))
    made.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    for config in (hf.config, hf.generation_config):
        config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, baseline
    model = inseq.load_model(hf, "integrated_gradients", tokenizer=tokenizer)
    text = " ".join(f"w{i}" for i in batch[0].tolist())

    def call() -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = model.attribute(
                input_texts=[text],
                generated_texts=[f"{text} w{target}"],
                attributed_fn="logit",
                n_steps=points,
                internal_batch_size=1,
                show_progress=False,
            )
        scores: Tensor = found.sequence_attributions[0].target_attributions[:-1, 0].sum(-1)
        return scores

    return call
