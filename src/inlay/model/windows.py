"""Runs that share one forward: each acts on its own rows of the batch, and one may take what another just read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inlay.errors import EditError

if TYPE_CHECKING:
    from inlay.model.engine import Run


@dataclass(frozen=True)
class Window:
    """Rows `start:stop` of a batch of `total` rows."""

    start: int
    stop: int
    total: int

    def _slice(self, whole: Tensor) -> slice:
        each = whole.shape[0] // self.total
        return slice(self.start * each, self.stop * each)

    def get(self, whole: Tensor) -> Tensor:
        """These rows of a tensor [total, ...], or [total * tokens, ...]."""
        return whole[self._slice(whole)]

    def put(self, whole: Tensor, new: Tensor) -> Tensor:
        """A copy of `whole` with these rows replaced."""
        here = self._slice(whole)
        return torch.cat([whole[: here.start], new, whole[here.stop :]])


@dataclass(frozen=True)
class Live:
    """What another run reads, in the same forward.

    Attributes:
        run: the other run.
        want: which of its wanted Sites.
        grad: whether gradients flow into it.
    """

    run: Run
    want: int
    grad: bool

    def values(self, site: str) -> tuple[Tensor, Tensor | None]:
        """The values [rows, k, width] that it has read, and which are real.

        Raises:
            EditError: the forward has not reached them yet.
        """
        if not self.run.taken[self.want]:
            raise EditError(
                f"worlds=True: the source is read at {self.run.wants[self.want].site}, which the forward has not "
                f"reached where {site} is edited; leave worlds= out, and the source runs first"
            )
        taken = self.run.taken[self.want][-1]
        return (taken.values if self.grad else taken.values.detach()), taken.real

    def counts(self) -> Tensor:
        """How many positions it reads of each of its rows, int64 [rows]."""
        prompt, spec = self.run.current.frame.prompt, self.run.spec_of[len(self.run.parts) + self.want]
        table = prompt.tables[spec]
        if table is None:
            table = prompt.part("all" if self.run.specs[spec].everything else "prompt")
        return table.sum(1)
