"""Distribution matching: the edited model's next-token distributions are to be the prompted model's.

Dims of a name: R examples, n response tokens, V vocabulary, d width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from inlay.errors import TrainError
from inlay.train.objectives.settings import at_least

if TYPE_CHECKING:
    from inlay.train.step import Ran, Step


def jsd(logits_RnV: Tensor, target_RnV: Tensor, mask_Rn: Tensor, chunk: int = 64) -> Tensor:
    """The Jensen-Shannon divergence of two next-token distributions, summed over a response's tokens, [R], in nats.

    Computed in float32 on `chunk` tokens at a time, and again in the backward pass, so that beside the logits and their
    gradient no [R, n, V] tensor is held.

    Args:
        logits_RnV, target_RnV: logits of the two.
        mask_Rn: which tokens are real.
        chunk: tokens at a time.
    """
    count = mask_Rn.numel()
    pairs = zip(*(t.reshape(count, -1).split(chunk) for t in (logits_RnV, target_RnV)), strict=True)
    values = [checkpoint(_jsd, p, q, use_reentrant=False, preserve_rng_state=False) for p, q in pairs]
    return torch.cat(values).view(mask_Rn.shape).masked_fill(~mask_Rn, 0).sum(-1)


def _jsd(p: Tensor, q: Tensor) -> Tensor:
    """The divergence of rows of logits [N, V], [N]."""
    dtype = torch.promote_types(p.dtype, torch.float32)
    p, q = p.to(dtype).log_softmax(-1), q.to(dtype).log_softmax(-1)
    middle = torch.logaddexp(p, q) - math.log(2)
    return (p.exp() * (p - middle) + q.exp() * (q - middle)).sum(-1) / 2


@dataclass(frozen=True)
class JSDMatch:
    """Concept distribution alignment steering (CDAS, 2602.05234), for an Edit of one `SetAlong`, in both directions.

    With x the prompt, x+ the teacher's, y+ the chosen and y the rejected response, and q(x) the component along w of
    the frozen state at the last token of a prompt:

    - the model on (x, y+), its component set to q(x+), is to predict what the frozen one does on (x+, y+);
    - on (x+, y), set to q(x), what the frozen one does on (x, y).

    The loss is the sum of the two mean divergences a token. The gradient runs through w in the Edit and in q.

    Attributes:
        chunk: tokens of which the divergence is computed at a time.

    Raises:
        TrainError: chunk is below 1, or, when it is run, the Edit is no single vector.
    """

    chunk: int = 64

    sides: ClassVar[tuple[str, ...]] = ("chosen", "rejected", "teacher", "teacher_rejected")

    def __post_init__(self) -> None:
        at_least(1, chunk=self.chunk)

    def __call__(self, step: Step) -> Tensor:
        """The contributions of the examples, [R]."""
        state = step.state()
        if len(step.sites) != 1 or "vector" not in state:
            raise TrainError(
                f"jsd_match sets one component, and the Edit acts at {', '.join(map(str, step.sites))} and holds "
                f"{', '.join(state) or 'nothing'}: give it one SetAlong(vector) at one Site"
            )
        q_plain, q_asked = (self._component(step, side, state["vector"]) for side in ("rejected", "teacher"))
        added, removed = step.run("chosen", "teacher_rejected", factor=[q_asked, q_plain], logits=True)
        towards, away = self._gap(added, step, "teacher"), self._gap(removed, step, "rejected")
        return step.per_token(towards, "chosen") + step.per_token(away, "rejected")

    def _component(self, step: Step, side: str, vector_R1d: Tensor) -> Tensor:
        """h.w of the frozen model at the prompt's last token, [R]."""
        (site,) = step.sites
        h_R1d = step.frozen(side, site, "prompt_end")[site]
        return (h_R1d.to(vector_R1d.dtype) * vector_R1d).sum((-1, -2))

    def _gap(self, ran: Ran, step: Step, side: str) -> Tensor:
        target, _ = step.frozen_logits(side)
        assert ran.logits is not None
        return jsd(ran.logits, target, ran.mask, self.chunk)
