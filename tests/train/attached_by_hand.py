"""What an edited model computes, by hand (rows alone, unpadded, plain hooks and sums), and an edit that can learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from tests.model.tiny import block, changed
from torch import Tensor, nn

from inlay import Intervention

Pair = tuple[list[int], list[int]]
"""A prompt and a response, as ids."""


def logits(hf: Any, ids: Sequence[int], layer: int, vector: Tensor, where: Sequence[int]) -> Tensor:
    """[T, vocabulary] of one row with `vector` added to the block's output at the positions `where`."""

    def change(h: Tensor) -> Tensor:
        mask = torch.zeros(h.shape[1], 1, dtype=h.dtype)
        mask[list(where)] = 1
        return h + mask * vector

    with changed(block(hf, layer), change):
        return hf(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]


def logp(hf: Any, pair: Pair, layer: int, vector: Tensor, where: Sequence[int]) -> Tensor:
    """The summed log-probability of the response."""
    prompt, response = pair
    found = logits(hf, prompt + response, layer, vector, where).log_softmax(-1)
    return found[len(prompt) - 1 : -1].gather(1, torch.tensor(response)[:, None]).sum()


def loss(hf: Any, pairs: Sequence[Pair], layer: int, vector: Tensor, wheres: Sequence[Sequence[int]]) -> Tensor:
    """The cross-entropy of all response tokens, averaged over these."""
    sums = [logp(hf, pair, layer, vector, where) for pair, where in zip(pairs, wheres, strict=True)]
    return -torch.stack(sums).sum() / sum(len(response) for _, response in pairs)


def dpo(policy: Sequence[Tensor], reference: Sequence[Tensor], beta: float) -> Tensor:
    """2305.18290 equation 7 for log-probabilities of chosen and rejected responses."""
    margin = (policy[0] - reference[0]) - (policy[1] - reference[1])
    return -F.logsigmoid(beta * margin)


def ends(prompt: int, first: int, last: int) -> list[int]:
    """The first and last positions of a prompt of at least first + last tokens."""
    return [*range(first), *range(prompt - last, prompt)]


def batch(pairs: Sequence[Pair], side: str = "right") -> dict[str, Tensor]:
    """Padded ids and mask, and labels that are -100 on prompts and padding."""
    longest = max(len(p) + len(r) for p, r in pairs)
    ids, mask = (torch.zeros(len(pairs), longest, dtype=torch.long) for _ in range(2))
    labels = torch.full_like(ids, -100)
    for k, (prompt, response) in enumerate(pairs):
        start = longest - len(prompt) - len(response) if side == "left" else 0
        middle, end = start + len(prompt), start + len(prompt) + len(response)
        ids[k, start:middle], ids[k, middle:end] = torch.tensor(prompt), torch.tensor(response)
        labels[k, middle:end] = torch.tensor(response)
        mask[k, start:end] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


class Adapter(Intervention):
    """h + dropout(act(h A)) B, with B = 0 at first: something to train, with options that a folder must bring back."""

    kind = "tests.attached.adapter"
    holds = ("down", "up")

    def __init__(self, width: int, rank: int, p: float = 0.0, act: str = "relu") -> None:
        super().__init__()
        drawn = torch.randn(width, rank, generator=torch.Generator().manual_seed(0))
        self.down, self.up = nn.Parameter(drawn / width**0.5), nn.Parameter(torch.zeros(rank, width))
        self.p, self.act = p, act

    def config(self) -> dict[str, Any]:
        return {"p": self.p, "act": self.act}

    def transform(self, h: Tensor, state: Mapping[str, Tensor], call: Any) -> Tensor:
        inside = getattr(torch, self.act)(h.to(state["down"].dtype) @ state["down"])
        return h + (F.dropout(inside, self.p, self.training) @ state["up"]).to(h.dtype)
