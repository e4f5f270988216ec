"""What tells one model's weights from another's."""

from __future__ import annotations

import torch
from tests.model import tiny

from inlay.model.fingerprint import weights


def test_weights_their_format_and_what_text_they_are_given() -> None:
    model, same, other = tiny.frozen("llama"), tiny.frozen("llama"), tiny.frozen("llama", seed=1)
    assert weights(model) == weights(same) != weights(other)
    with torch.no_grad():
        next(same.base.parameters()).view(-1)[0] += 1e-3
    assert weights(same) != weights(model)
    same = tiny.frozen("llama")
    same.hf.to(torch.bfloat16)
    assert weights(same) != weights(model)
    chat, other_template = (tiny.frozen("llama", tokenizer=tiny.words(template=text)) for text in (tiny.TEMPLATE, None))
    assert weights(chat) != weights(other_template)
