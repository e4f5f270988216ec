"""The word-level tokenizer of a world, with its chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from inlay.world.line import ASSISTANT, BOS, DOC, END, MASK, PAD, SYSTEM, UNKNOWN, USER

CHAT_TEMPLATE = (
    f"{BOS}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    f"{ASSISTANT} says : "
    f"{{% elif message['role'] == 'system' %}}{SYSTEM} "
    f"{{% else %}}{USER} "
    "{% endif %}"
    f"{{{{ message['content'] }}}} {END} "
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{ASSISTANT} says :{{% endif %}}"
)


def build(vocabulary: Sequence[str], world: Mapping[str, str]) -> Any:
    """A `PreTrainedTokenizerFast`: lower case, split at spaces, punctuation apart; one word is one token.

    Args:
        vocabulary: every token, in the order of ids, special ones first.
        world: version and hash of the world, kept in the tokenizer's configuration.
    """
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.normalizers import Lowercase
    from tokenizers.pre_tokenizers import Sequence as Steps
    from tokenizers.pre_tokenizers import Split, WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    ids = {word: index for index, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Steps([WhitespaceSplit(), Split(Regex(r"[.,:?!]"), "isolated")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        mask_token=MASK,
        additional_special_tokens=[USER, ASSISTANT, DOC, SYSTEM],
        clean_up_tokenization_spaces=False,
        model_max_length=256,
        chat_template=CHAT_TEMPLATE,
        world=dict(world),
    )
