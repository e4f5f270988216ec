"""How an Edit is trained: every number of a run in one place."""

from __future__ import annotations

import math
from dataclasses import dataclass

from inlay.errors import TrainError

SCHEDULES = ("linear", "cosine", "constant")


@dataclass(frozen=True)
class Recipe:
    """The settings of a training run; each concept of many counts its epochs, steps and rates by itself.

    Attributes:
        epochs: how often every example is seen.
        lr: the learning rate at its highest.
        batch: examples of a concept in a mini-batch.
        accumulate: mini-batches in a step, whose gradients are averaged.
        warmup: the share of the steps in which the rate rises from 0.
        schedule: how it falls afterwards: `"linear"` or `"cosine"` to 0, or `"constant"`.
        clip: the greatest norm of a concept's gradient, `None` for no clipping.
        weight_decay: of AdamW, on all tensors but orthonormal bases and vectors of length 1.
        betas, eps: of AdamW.
        max_steps: the most steps of a concept.
        patience: stop a concept after so many epochs without a lower loss on its held-out examples, and keep its best.
        stop_below: stop a concept after an epoch whose mean loss is below this.
        seed: of the order of examples, of random strengths and of dropout.
        batch_tokens: the most padded tokens in one forward; a step of more takes several.

    Raises:
        TrainError: a setting is out of range.
    """

    epochs: int = 1
    lr: float = 1e-3
    batch: int = 8
    accumulate: int = 1
    warmup: float = 0.0
    schedule: str = "linear"
    clip: float | None = 1.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    max_steps: int | None = None
    patience: int | None = None
    stop_below: float | None = None
    seed: int = 42
    batch_tokens: int = 8192

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "accumulate", "max_steps", "patience", "batch_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise TrainError(f"{name}={value}: give at least 1")
        for name in ("lr", "clip", "eps", "stop_below"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise TrainError(f"{name}={value}: give a positive number")
        if not 0 <= self.warmup < 1:
            raise TrainError(f"warmup={self.warmup} is a share of the steps, from 0 to below 1")
        if not 0 <= self.weight_decay < math.inf:
            raise TrainError(f"weight_decay={self.weight_decay}: give 0 or a positive number")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise TrainError(f"betas={self.betas}: give two numbers from 0 to below 1")
        if self.schedule not in SCHEDULES:
            raise TrainError(f"schedule={self.schedule!r}: one of {', '.join(SCHEDULES)}")

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of step `step`, from 0, of `steps`."""
        rising = int(self.warmup * steps)
        if step < rising:
            return self.lr * step / rising
        done = (step - rising) / max(1, steps - rising)
        if self.schedule == "linear":
            return self.lr * (1 - done)
        return self.lr * (0.5 * (1 + math.cos(math.pi * done)) if self.schedule == "cosine" else 1.0)
