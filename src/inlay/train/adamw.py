"""AdamW over tables of which every concept owns a row: moments, step counts, clipping and rates are each row's own.

Legend: K concepts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inlay.errors import TrainError


@dataclass(frozen=True)
class Table:
    """A trainable tensor and who owns what of it.

    Attributes:
        parameter: [K + 1, ...] of a Bank, whose row k + 1 is concept k's; or the one concept's whole tensor.
        banked: which of the two.
        decay: whether weight decay acts on it.
        unit: whether its last dimension is kept at length 1.
    """

    parameter: nn.Parameter
    banked: bool
    decay: bool = True
    unit: bool = False

    def rows(self, tensor: Tensor) -> Tensor:
        """A tensor of the parameter's shape as [K, ...]."""
        return tensor[1:] if self.banked else tensor[None]


class RowAdamW:
    """AdamW (1711.05101) for each concept by itself, in one set of tables.

    A concept that takes no part in a step keeps its values, moments and step count; in a dense optimiser its momentum
    and weight decay would move it. For one concept this is `torch.optim.AdamW` behind `clip_grad_norm_`.

    Args:
        tables: what is trained.
        count: K.
        betas, eps, weight_decay: as in `torch.optim.AdamW`.
        clip: the greatest norm of a concept's gradient over all of its tensors, `None` for no clipping.
    """

    def __init__(
        self,
        tables: Mapping[str, Table],
        count: int,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        clip: float | None = 1.0,
    ) -> None:
        self.tables, self.count = dict(tables), count
        self.betas, self.eps, self.weight_decay, self.clip = betas, eps, weight_decay, clip
        with torch.no_grad():
            self.state = {
                f"{name}.{moment}": torch.zeros_like(table.rows(table.parameter))
                for name, table in self.tables.items()
                for moment in ("mean", "square")
            }
        self.steps = torch.zeros(count, dtype=torch.float64)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for table in self.tables.values():
            table.parameter.grad = None

    @torch.no_grad()
    def step(self, concepts: Sequence[int], rates: Sequence[float]) -> Tensor:
        """One step of some concepts, in place.

        Args:
            concepts: which of the K, each once, in rising order.
            rates: the learning rate of each.

        Returns:
            The norms of their gradients before clipping, float32 [n]; a concept whose norm is not finite is left as it
            is.

        Raises:
            TrainError: nothing has a gradient.
        """
        tables = {name: table for name, table in self.tables.items() if table.parameter.grad is not None}
        if not tables:
            raise TrainError("the loss does not depend on what is trained: no tensor of the Edit has a gradient")
        who = torch.tensor(concepts)
        grads = {name: _some(table.rows(_grad(table)), who, self.count) for name, table in tables.items()}
        squares = [grad.reshape(len(grad), -1).square().sum(1).float().cpu() for grad in grads.values()]
        norms = torch.stack(squares).sum(0).sqrt()
        sound = norms.isfinite()
        if not bool(sound.all()):
            who, grads = who[sound], {name: grad[sound.to(grad.device)] for name, grad in grads.items()}
        self.steps[who] += 1
        counts, rates_left = self.steps[who], torch.tensor(rates, dtype=torch.float64)[sound]
        clip = torch.ones_like(norms) if self.clip is None else (self.clip / (norms + 1e-6)).clamp(max=1.0)
        first, second = self.betas
        each = _Each(
            clip=clip[sound],
            size=rates_left / (1 - first**counts),
            root=(1 - second**counts).sqrt(),
            keep=1 - rates_left * self.weight_decay,
        )
        for name, grad in grads.items():
            self._update(name, grad, who, each)
        return norms

    def _update(self, name: str, grad: Tensor, who: Tensor, each: _Each) -> None:
        """AdamW of one table's rows `who`, [n], given their gradients [n, ...]; in place where that is every row."""
        table = self.tables[name]
        values, moments = table.rows(table.parameter), [self.state[f"{name}.{moment}"] for moment in ("mean", "square")]
        value, mean, square = (_some(tensor, who, self.count) for tensor in (values, *moments))
        first, second = self.betas
        if self.clip is not None:
            grad = grad * _beside(each.clip, grad)
        if table.unit:
            length = value.square().sum(-1, keepdim=True).clamp(min=1e-12)  # row 0 of a Bank is 0
            grad = grad - (grad * value).sum(-1, keepdim=True) / length * value
        mean.lerp_(grad, 1 - first)
        square.mul_(second).addcmul_(grad, grad, value=1 - second)
        if table.decay and self.weight_decay:
            value.mul_(_beside(each.keep, grad))
        value.sub_(mean / (square.sqrt().div_(_beside(each.root, grad)).add_(self.eps)) * _beside(each.size, grad))
        if table.unit:
            value.copy_(nn.functional.normalize(value, dim=-1))
        if len(who) < self.count:
            here = who.to(grad.device)
            values[here], moments[0][here], moments[1][here] = value, mean, square

    def state_dict(self) -> dict[str, Tensor]:
        """The moments, [K, ...], and the step counts, float64 [K]."""
        return {**self.state, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state_dict` gave."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])


@dataclass(frozen=True)
class _Each:
    """What is each concept's own in a step: [n] each."""

    clip: Tensor
    size: Tensor
    root: Tensor
    keep: Tensor


def _grad(table: Table) -> Tensor:
    assert table.parameter.grad is not None
    return table.parameter.grad


def _some(rows: Tensor, who: Tensor, count: int) -> Tensor:
    """Some of K rows: a copy, or the rows themselves where all are meant, in order."""
    return rows if len(who) == count else rows[who.to(rows.device)]


def _beside(values: Tensor, grad: Tensor) -> Tensor:
    """One number a row, [n], in the shape and on the device of rows [n, ...]."""
    return values.to(grad.device, grad.dtype).reshape(-1, *[1] * (grad.ndim - 1))
