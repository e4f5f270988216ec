"""AxBench's probe: one unit vector that tells the tokens of positive texts from those of negative ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from inlay.errors import DirectionError


def token_probe(
    positives: Sequence[Tensor],
    negatives: Sequence[Tensor],
    draws: torch.Generator,
    *,
    epochs: int,
    batch: int,
    lr: float,
    weight_decay: float,
    l1: float,
) -> Tensor:
    """Minimise BCE(sigmoid(h.w)) over tokens with AdamW, w of length 1 throughout (AxBench, `probe.py`).

    Each token has its text's label. The gradient along w is removed and w is scaled back **after** each step, so that
    the w returned is the w of the loss; the reference code scales before the step and returns another one. The
    gradient is written out, so that gradient modes do not matter.

    Args:
        positives, negatives: float32 [tokens, width] of each text.
        draws: the order of the texts.
        epochs: how often every text is seen.
        batch: texts in a step.
        lr: the first learning rate; it falls to 0 in a line.
        weight_decay: AdamW's.
        l1: the weight of the mean activation, sigmoid(h.w).

    Returns:
        float32 [width], of length 1.

    Raises:
        DirectionError: `epochs`, `batch` or `lr` is not positive.
    """
    if epochs < 1 or batch < 1 or not lr > 0:
        raise DirectionError(f"epochs={epochs}, batch={batch} and lr={lr} must be positive")
    texts = [*positives, *negatives]
    labels = [1.0] * len(positives) + [0.0] * len(negatives)
    w = normalize(torch.randn(texts[0].shape[1], generator=draws), dim=0)
    optimiser = torch.optim.AdamW([w], lr=lr, weight_decay=weight_decay)
    steps = epochs * -(-len(texts) // batch)
    done = 0
    for _ in range(epochs):
        for index in torch.randperm(len(texts), generator=draws).split(batch):
            h = torch.cat([texts[i] for i in index])
            y = torch.cat([torch.full((len(texts[i]),), labels[i]) for i in index])
            p = (h @ w).sigmoid()
            gradient = (p - y + l1 * p * (1 - p)) @ h / len(h)
            w.grad = gradient - (gradient @ w) * w
            optimiser.param_groups[0]["lr"] = lr * (1 - done / steps)
            optimiser.step()
            w.copy_(normalize(w, dim=0))
            done += 1
    return w
