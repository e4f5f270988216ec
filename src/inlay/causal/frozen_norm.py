"""A norm as a linear map: at given states, with its denominators held at what they are there.

Legend: N states, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inlay.errors import SiteError


@dataclass(frozen=True)
class FrozenNorm:
    """norm(x) = gain * P x / sigma(x) + bias, with sigma held: P takes the mean out (LayerNorm) or is 1 (RMSNorm).

    At the states it was made for it gives exactly what the module gives, and it is linear in what adds up to them: the
    usual linearisation of direct logit attribution (Elhage et al. 2021, "Handling layer normalization").

    Attributes:
        gain, bias: float64 [W].
        centred: whether P takes the mean out.
        inverse: float64 [N], 1 / sigma of each state.
    """

    gain: Tensor
    bias: Tensor
    centred: bool
    inverse: Tensor

    @classmethod
    def at(cls, module: nn.Module, states_NW: Tensor, path: str) -> FrozenNorm:
        """Measure a norm on three probes and hold its denominators at these states.

        Nothing is assumed of the module's class or the names of its weights; that the form above is the module's own is
        checked on the states.

        Args:
            module: the norm.
            states_NW: [N, W], what it is given, in its own dtype.
            path: the module's path, for the message.

        Raises:
            SiteError: the module is no LayerNorm or RMSNorm, so that its output has no such parts.
        """
        width = states_NW.shape[1]
        one_W = torch.ones(width, dtype=states_NW.dtype, device=states_NW.device)
        signs_W = one_W.clone()
        signs_W[1::2] = -1
        with torch.no_grad():
            whole = module(torch.stack([torch.zeros_like(one_W), one_W, signs_W])[:, None])[:, 0].cpu().double()
            normed_NW = module(states_NW[:, None])[:, 0].cpu().double()
        bias_W, constant_W, probed_W = whole
        rounding = 16 * torch.finfo(states_NW.dtype).eps
        centred = bool((constant_W - bias_W).abs().max() <= rounding * (probed_W - bias_W).abs().max())
        gain_W = (probed_W - bias_W) / _centre(signs_W.cpu().double(), centred)
        states_NW = states_NW.detach().cpu().double()
        unscaled_NW = gain_W * _centre(states_NW, centred)
        squares_N = unscaled_NW.square().sum(1).clamp(min=torch.finfo(torch.float64).tiny)
        inverse_N = ((normed_NW - bias_W) * unscaled_NW).sum(1) / squares_N
        made = cls(gain_W, bias_W, centred, inverse_N)
        error_N = (unscaled_NW * inverse_N[:, None] + bias_W - normed_NW).abs().amax(1)
        size_N = gain_W.abs().max() * states_NW.abs().amax(1) * inverse_N.abs() + normed_NW.abs().amax(1)
        if bool((error_N > rounding * size_N).any()):
            raise SiteError(
                f"module {path!r} ({type(module).__name__}) is neither a LayerNorm nor an RMSNorm: with its "
                f"denominator held it misses its own output by {float(error_N.max()):.1e}, so that it has no parts"
            )
        return made

    def pullback(self, out_NW: Tensor) -> Tensor:
        """The vectors [N, W] whose products with the parts of a state are those of `out_NW` with the normed parts."""
        return _centre(out_NW * self.gain, self.centred) * self.inverse[:, None]


def _centre(values: Tensor, centred: bool) -> Tensor:
    return values - values.mean(-1, keepdim=True) if centred else values
