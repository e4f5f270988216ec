"""The tail of a forward as a linear map: the final norm with its denominator held, and the head.

Legend: N states, W width, V vocabulary, m ids of which the logit is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inlay.causal.frozen_norm import FrozenNorm
from inlay.causal.tail import run_tail
from inlay.errors import SiteError
from inlay.interventions.edit import Edit
from inlay.interventions.function import Function
from inlay.model.sites import Site

if TYPE_CHECKING:
    from inlay.model.model import Model

AT_ONCE = 256  # states whose logits are in memory


@dataclass(frozen=True)
class FrozenTail:
    """logit = state . direction + norm_bias + head_bias: exact at the states it was made for, linear in their parts.

    The logit is a weighted sum of the `logits` Site's numbers, such as an answer's minus a foil's.

    Attributes:
        direction: float64 [N, W].
        norm_bias, head_bias: float64 [N], what the biases of the final norm and of the head add.
    """

    direction: Tensor
    norm_bias: Tensor
    head_bias: Tensor

    @classmethod
    def at(cls, model: Model, states_NW: Tensor, ids_Nm: Tensor, weights_Nm: Tensor) -> FrozenTail:
        """Hold the final norm's denominator at these states.

        Args:
            model: the Model.
            states_NW: [N, W], the last block's outputs.
            ids_Nm, weights_Nm: the tokens whose logits are summed, int64, and with what weights, float; [N, m].

        Raises:
            SiteError: the model lacks a final norm or a head, or one of them is not the map that this takes it for.
        """
        place = model.sites().place(Site("final_norm"))
        module = model.base.get_submodule(place.path)
        device = next((p.device for p in module.parameters()), model.device)
        norm = FrozenNorm.at(module, states_NW.to(device), place.path)
        slopes, logits = [], []
        for start in range(0, len(states_NW), AT_ONCE):
            here = slice(start, start + AT_ONCE)
            slope, logit = _slope(model, states_NW[here], ids_Nm[here], weights_Nm[here])
            slopes.append(slope)
            logits.append(logit)
        slope_NW, logit_N = torch.cat(slopes), torch.cat(logits)
        with torch.no_grad():
            zero_1V = _logits(model, states_NW[:1], torch.zeros_like)
        bias_N = _weighed(zero_1V.expand(len(ids_Nm), -1), ids_Nm, weights_Nm)
        made = cls(norm.pullback(slope_NW), (slope_NW * norm.bias).sum(1), bias_N)
        terms_NW = made.direction * states_NW.cpu().double()
        error_N = (terms_NW.sum(1) + made.norm_bias + bias_N - logit_N).abs()
        size_N = terms_NW.abs().sum(1) + made.norm_bias.abs() + bias_N.abs() + logit_N.abs()
        if bool((error_N > 16 * torch.finfo(states_NW.dtype).eps * size_N).any()):
            head = model.sites().place(Site("logits")).path
            raise SiteError(
                f"the logits at module {head!r} are not linear in what {place.path!r} gives: they miss the sum of "
                f"their parts by {float(error_N.max()):.1e}"
            )
        return made


def _slope(model: Model, states_NW: Tensor, ids_Nm: Tensor, weights_Nm: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient [N, W] of the logit with respect to what the final norm gives, and the logit [N]; float64."""
    leaf: list[Tensor] = []

    def keep(normed: Tensor) -> Tensor:
        leaf.append(normed.detach().requires_grad_())
        return leaf[0]

    with torch.enable_grad():
        logit_N = _weighed(_logits(model, states_NW, keep), ids_Nm, weights_Nm)
        (slope,) = torch.autograd.grad(logit_N.sum(), leaf[0])
    return slope[:, 0].cpu().double(), logit_N.detach()


def _logits(model: Model, states_NW: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The `logits` Site [N, V] with the final norm's output changed."""
    found = run_tail(model, states_NW, edit=Edit("final_norm", Function(change)), read="logits").acts
    assert found is not None
    return found["logits"][:, 0]


def _weighed(logits_NV: Tensor, ids_Nm: Tensor, weights_Nm: Tensor) -> Tensor:
    """The weighted sum of some logits, float64 [N]."""
    return (logits_NV.gather(1, ids_Nm.to(logits_NV.device)).cpu().double() * weights_Nm).sum(1)
