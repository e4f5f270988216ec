"""What tells one model's weights from another's."""

from __future__ import annotations

import torch
from tests.model import tiny
from torch.distributed.fsdp import fully_shard

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


def test_weights_that_are_sharded() -> None:
    model, other = tiny.frozen("llama"), tiny.frozen("llama", seed=1)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        plain = weights(model)
        for one in (model, other):
            fully_shard(one.hf)
        assert weights(model) == plain  # one process has all of each
        assert weights(other) != plain
    finally:
        torch.distributed.destroy_process_group()
