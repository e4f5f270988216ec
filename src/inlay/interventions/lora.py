"""LoRA as an intervention on a linear module's output: per row of a batch, per token, at any strength."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from inlay.errors import EditError
from inlay.interventions import families, trained_families
from inlay.interventions.dropping import Dropping
from inlay.model.call import Call, State


class LoRA(Dropping):
    """h + s c drop(i) A B for the input i of the module whose output h is (2106.09685 section 4.1).

    For the output Site of a linear module: `"module:<path>:out"`, or a named Site whose module is one, such as `"q.3"`.
    At `"attn_out"` and the like i is the whole attention's input. A starts Kaiming-uniform (a = sqrt 5), as peft's, and
    B at 0, so that it starts as no edit. c is 1, or by `alpha` alpha / r, or alpha / sqrt r with `rslora` (2312.03732).

    Args:
        in_width: the width of i.
        out_width: d.
        rank: r.
        alpha: as in peft; `None` for c = 1, as RePS trains it.
        rslora: see above.
        dropout: of i.
        seed: of A.

    Raises:
        EditError: an argument is out of range.
    """

    kind = "lora"
    holds = ("down", "up")
    neutral: ClassVar[Mapping[str, float] | None] = {"down": 0.0, "up": 0.0}
    needs = frozenset({"input"})

    def __init__(
        self,
        in_width: int,
        out_width: int,
        rank: int,
        alpha: float | None = None,
        rslora: bool = False,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if min(in_width, out_width, rank) < 1:
            raise EditError(f"LoRA({in_width}, {out_width}, rank={rank}): widths and rank are above 0")
        if alpha is not None and not math.isfinite(alpha):
            raise EditError(f"LoRA(alpha={alpha}): a finite number, or None for a scale of 1")
        if rslora and alpha is None:
            raise EditError("LoRA(rslora=True) changes what alpha means: give alpha too")
        bound = in_width**-0.5  # Kaiming-uniform with a = sqrt 5
        draws = torch.Generator().manual_seed(seed)
        self.down = nn.Parameter(torch.empty(in_width, rank).uniform_(-bound, bound, generator=draws))
        self.up = nn.Parameter(torch.zeros(rank, out_width))
        self.alpha, self.rslora = alpha, rslora
        self.drops(dropout)

    def width(self) -> int:
        """d."""
        return int(self.state()["up"].shape[-1])

    def rank(self) -> int:
        """r."""
        return int(self.state()["up"].shape[-2])

    def scale(self) -> float:
        """c."""
        rank = self.rank()
        return 1.0 if self.alpha is None else self.alpha / (math.sqrt(rank) if self.rslora else rank)

    def config(self) -> dict[str, Any]:
        """What makes the scale, and the dropout."""
        return {"alpha": self.alpha, "rslora": self.rslora, "dropout": self.dropout}

    def prepare(self, state: State) -> State:
        """A as it is multiplied with."""
        return {**state, "down": trained_families.column_major(state["down"])}

    def transform(self, h: Tensor, state: State, call: Call) -> Tensor:
        """See `trained_families.lora`."""
        down = state["down"]
        given = call.input
        if given is None or given.shape[-1] != down.shape[-2]:
            has = "has no input of its own" if given is None else f"gets an input of width {given.shape[-1]}"
            raise EditError(
                f"{call.site} {has}, and this LoRA takes one of width {down.shape[-2]}: it acts on the output of a "
                "linear module, 'module:<path>:out'"
            )
        given = self.dropped(given.to(families.dot_dtype(given)), call)
        return trained_families.lora(h, given, down, state["up"], self.scale(), call.strength)

    def extra_repr(self) -> str:
        """The widths, the rank and the scale."""
        said = f"{self.state()['down'].shape[-2]}, {self.width()}, rank={self.rank()}, scale={self.scale():g}"
        return said + (f", dropout={self.dropout:g}" if self.dropout else "")


def widths(module: nn.Module) -> tuple[int, int]:
    """The input's and the output's width of a linear module, whatever wraps or quantises it.

    Raises:
        EditError: it is none.
    """
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, Conv1D):
        return int(module.nx), int(module.nf)
    sizes = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if not all(isinstance(size, int) for size in sizes):
        raise EditError(f"LoRA acts on linear modules, and {type(module).__name__} is none")
    return int(sizes[0]), int(sizes[1])  # type: ignore[arg-type]
