"""Objectives of vectors that detect: ReFT-r1's joint loss, and a linear probe.

Dims of a name: R examples, T tokens, d width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from inlay.errors import TrainError
from inlay.train.objectives.settings import at_least

if TYPE_CHECKING:
    from inlay.train.step import Step


def outside_top(z_RT: Tensor, mask_RT: Tensor, k: int) -> Tensor:
    """What ReFT-r1 makes sparse (AxBench, 2501.17148 section 4): the mean over tokens of z outside its top k, [R].

    Args:
        z_RT: detections relu(h.w), at least 0.
        mask_RT: which tokens are real; a pad is in no top k and in no mean.
        k: how many of the greatest are left out; all are where there are fewer.
    """
    falling = z_RT.masked_fill(~mask_RT, 0).sort(dim=-1, descending=True).values
    return falling[:, k:].sum(-1) / mask_RT.sum(-1).clamp_min(1)


def probe_bce(logits_RT: Tensor, mask_RT: Tensor, labels_R: Tensor) -> Tensor:
    """The mean over a row's tokens of the binary cross entropy of their logits against the row's label, [R].

    Args:
        logits_RT: h.w + b.
        mask_RT: which tokens are real.
        labels_R: from 0 to 1.
    """
    target = labels_R.to(logits_RT.dtype)[:, None].expand_as(logits_RT)
    losses = binary_cross_entropy_with_logits(logits_RT, target, reduction="none")
    return losses.masked_fill(~mask_RT, 0).sum(-1) / mask_RT.sum(-1).clamp_min(1)


@dataclass(frozen=True)
class ReFTr1:
    """ReFT-r1's joint loss (AxBench, 2501.17148 section 4), for an Edit of one `TopKAdd`.

    Cross entropy of the chosen response, and sparsity x progress x the mean detection outside the top k, with progress
    from 0 to 1 over the training. Give it examples with the concept and without: on the latter nothing should be
    detected.

    Attributes:
        k: how many of the greatest detections steer; by default the Edit's own.
        sparsity: the weight of the second part at the end of the training, at least 0.

    Raises:
        TrainError: a setting is out of range, or, when it is run, the Edit is no single vector.
    """

    k: int | None = None
    sparsity: float = 0.005

    sides: ClassVar[tuple[str, ...]] = ("chosen",)

    def __post_init__(self) -> None:
        at_least(0, sparsity=self.sparsity)
        if self.k is not None:
            at_least(1, k=self.k)

    def __call__(self, step: Step) -> Tensor:
        """The contributions of the examples, [R]."""
        if len(step.parts) != 1:
            raise TrainError(f"the Edit has {len(step.parts)} parts, and ReFT-r1 trains one: reft_r1(model, site)")
        (part,), (site,) = step.parts, step.sites
        k = self._top(part.intervention)
        (chosen,) = step.run("chosen", factor=step.factors(), read=site, tokens=part.tokens, before=True)
        h_RTd, mask = _states(chosen.acts, site)
        z_RT = (h_RTd * _vector(step, 0, "ReFT-r1")).sum(-1).relu()
        sparse = self.sparsity * step.progress * outside_top(z_RT, mask, k)
        return step.per_token(-chosen.logps) + step.per_row(sparse)

    def _top(self, intervention: Any) -> int:
        if self.k is not None:
            return self.k
        own = (intervention.template if intervention.banked else intervention).config().get("k")
        if own is None:
            raise TrainError("the Edit has no top k of its own: train a TopKAdd, or give k, objective('reft_r1', k=8)")
        return int(own)


@dataclass(frozen=True)
class ProbeBCE:
    """A linear probe sigmoid(h.w + b) on frozen states at the Edit's Site, against the examples' labels.

    AxBench's Probe (2501.17148) where the Edit's vector has no bias and is kept at length 1. An example weighs the same
    whatever its length. An Edit with several parts trains a probe in each.

    Attributes:
        tokens: which tokens are classified; by default those of the Edit.
    """

    tokens: Any = None

    sides: ClassVar[tuple[str, ...]] = ("chosen",)

    def __call__(self, step: Step) -> Tensor:
        """The contributions of the examples, [R]."""
        losses = []
        for index, (part, site) in enumerate(zip(step.parts, step.sites, strict=True)):
            frozen = step.frozen("chosen", site, part.tokens if self.tokens is None else self.tokens)
            h_RTd, mask = _states(frozen, site)
            logits = (h_RTd * _vector(step, index, "a probe")).sum(-1)
            bias = step.state(index).get("bias")
            losses.append(probe_bce(logits if bias is None else logits + bias[..., 0], mask, step.labels))
        return step.per_row(torch.stack(losses).mean(0))


def _vector(step: Step, part: int, what: str) -> Tensor:
    """The vector [R, 1, d] of a part."""
    state = step.state(part)
    if "vector" not in state:
        held = ", ".join(state) or "nothing"
        raise TrainError(f"{what} trains a vector, and the intervention at {step.sites[part]} holds {held}")
    return state["vector"]


def _states(acts: Any, site: Any) -> tuple[Tensor, Tensor]:
    """Activations [R, T, d], in float32 at least, and which are real, bool [R, T]."""
    values = acts[site]
    return values.to(torch.promote_types(values.dtype, torch.float32)), acts.mask
