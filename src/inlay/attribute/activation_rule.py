"""The activation rules: act(x) / x in place of act'(x), or a gate held constant.

The ratio is computed without a division, so that it is finite at 0 (1/2 for SiLU and GELU). AttnLRP (2402.05602),
the identity rule; LXT and RelP divide by x plus a small number instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from inlay.attribute.report import Row
from inlay.attribute.surrogate import grafted
from inlay.errors import RuleError
from inlay.model.bare import bare_copy
from inlay.model.patch import Args, Here, Kwargs, Layer

Ratio = Callable[[Tensor], Tensor]

_TOLERANCE = 1e-5
_TANH = math.sqrt(2 / math.pi)

RATIOS: dict[str, Ratio] = {
    "silu": torch.sigmoid,
    "gelu": lambda x: (1 + torch.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: (1 + torch.tanh(_TANH * (x + 0.044715 * x**3))) / 2,
    "quick_gelu": lambda x: torch.sigmoid(1.702 * x),
    "relu": lambda x: (x > 0).to(x.dtype),
    "relu2": torch.relu,
    "mish": lambda x: torch.tanh(torch.nn.functional.softplus(x)),
    "linear": torch.ones_like,
}


class RatioLayer(Layer):
    """Around one activation function: its own output, with the gradient of x sg(act(x) / x)."""

    order = 1 << 60

    def __init__(self, here: Here, row: Row, ratio: Ratio) -> None:
        super().__init__(here)
        self.row, self.ratio = row, ratio

    def around(self, call: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Call, and put the other gradient under what comes out."""
        self.row.count()
        if not torch.is_grad_enabled():
            return call(x, *args, **kwargs)
        with torch.no_grad():
            y, ratio = call(x, *args, **kwargs), self.ratio(x)
        return grafted(y, x * ratio)


class DetachLayer(Layer):
    """Around what makes a gate: its output is a constant to the gradient."""

    order = 1 << 60

    def __init__(self, here: Here, row: Row) -> None:
        super().__init__(here)
        self.row = row

    def after(self, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Detach the output."""
        self.row.count()
        return output.detach()


def ratio_of(module: nn.Module, path: str) -> tuple[Ratio, float]:
    """The ratio of an activation function, found by its values on [-6, 6] in float64, and their largest error.

    Raises:
        RuleError: it is none that is known.
    """
    x = torch.linspace(-6, 6, 241, dtype=torch.float64)
    errors: dict[str, float] = {}
    if not any(True for _ in module.parameters()):
        with torch.no_grad():
            y = bare_copy(module).forward(x)
        errors = {name: float((y - x * ratio(x)).abs().max()) for name, ratio in RATIOS.items()}
    best = min(errors, key=lambda name: errors[name], default="")
    if not best or errors[best] > _TOLERANCE:
        raise RuleError(
            f"{path}: act(x) / x of the activation {type(module).__name__} is not known; these are: "
            f"{', '.join(RATIOS)}. Take a rule set with activation='derivative', such as 'gim'"
        )
    return RATIOS[best], errors[best]
