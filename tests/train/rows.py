"""Ragged examples of ids for tiny models, and the naive way to score them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tests.interventions import tiny
from torch import Tensor

import inlay
from inlay.model.sites import Site
from inlay.train.examples import Example, encode
from inlay.train.frozen import Frozen
from inlay.train.step import Group, Item, Step


def ragged(n: int, seed: int = 0, rejected: bool = True) -> list[Example]:
    """Prompts of 1 to 6 tokens with responses of 1 to 5."""
    draws = torch.Generator().manual_seed(seed)

    def ids(most: int) -> list[int]:
        length = int(torch.randint(1, most + 1, (), generator=draws))
        return torch.randint(1, tiny.VOCABULARY, (length,), generator=draws).tolist()

    return [Example(ids(6), ids(5), ids(5) if rejected else None, teacher=ids(4)) for _ in range(n)]


def step_of(
    model: inlay.Model,
    edit: inlay.Edit,
    data: Sequence[Example],
    sides: Sequence[str] = ("chosen", "rejected"),
    cut: Site | None = None,
    **options: Any,
) -> Step:
    """A Step of one concept's whole mini-batch."""
    frozen = Frozen(model, cut)
    encoded = {side: frozen.add(rows) for side, rows in encode(model, data, sides).items()}
    tokens = {
        side: sum(len(r.ids) - r.prompt for r in (frozen.sequences[n] for n in ns)) for side, ns in encoded.items()
    }
    group = Group(0, options.pop("number", 0), len(data), tokens, 1.0, options.pop("progress", 0.0))
    items = [
        Item(group, i, {side: ns[i] for side, ns in encoded.items()}, one.row, one.label) for i, one in enumerate(data)
    ]
    return Step(frozen, edit, items, **options)


def logps_by_hand(hf: Any, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
    """The response's log-prob from a forward of this row alone."""
    ids = torch.tensor([[*prompt, *response]])
    logps = hf(ids).logits[0].log_softmax(-1)
    return torch.stack([logps[len(prompt) + k - 1, token] for k, token in enumerate(response)]).sum()
