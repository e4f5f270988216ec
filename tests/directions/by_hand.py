"""A tiny random chat model, sentences for it, and its states by single unpadded forwards of the plain model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from tests.model import chat
from torch import Tensor

import inlay
from inlay.directions import Contrast

LAYER = 1  # of 3; the last block's hidden state is given only after the final norm
SITE = f"resid_post.{LAYER}"


@cache
def model() -> inlay.Model:
    """The model; nothing in these tests changes it."""
    return chat.wrapped("llama")


def sentences(count: int, seed: int) -> list[str]:
    """Different sentences of 1 to 9 words."""
    made = torch.Generator().manual_seed(seed)
    words = chat.WORDS.split()
    found: dict[str, None] = {}
    while len(found) < count:
        length = int(torch.randint(1, 10, (), generator=made))
        found[" ".join(words[int(i)] for i in torch.randint(len(words), (length,), generator=made))] = None
    return list(found)


def concepts(count: int) -> list[Contrast]:
    """Concepts with positives of their own and shared negatives."""
    negatives = sentences(6, seed=99)
    return [Contrast.of(f"concept {k}", sentences(5, seed=k), negatives) for k in range(count)]


def states(text: str, response: str | None = None, layer: int = LAYER) -> Tensor:
    """States [tokens, width] of a user turn and its response behind a block, with the first token."""
    ids = chat.ids(f"<user> {text} <end> <assistant> {response or ''}")
    with torch.no_grad():
        found = model().hf(input_ids=torch.tensor([ids]), output_hidden_states=True)
    hidden: Tensor = found.hidden_states[layer + 1][0]
    return hidden


def kept(texts: Sequence[str], layer: int = LAYER) -> list[Tensor]:
    """The states of each text without the template's first token."""
    return [states(text, layer=layer)[1:] for text in texts]


@contextmanager
def rows_read() -> Iterator[list[tuple[int, ...]]]:
    """The rows that the model runs on, without their padding."""
    seen: list[tuple[int, ...]] = []

    def note(_: Any, __: Any, given: dict[str, Any]) -> None:
        for ids, real in zip(given["input_ids"], given["attention_mask"].bool(), strict=True):
            seen.append(tuple(ids[real].tolist()))

    handle = model().hf.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()
