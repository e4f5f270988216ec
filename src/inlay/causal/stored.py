"""Interventions that set stored activations: at single places of a batch, or in all of it."""

from __future__ import annotations

import torch
from torch import Tensor

from inlay.errors import SiteError
from inlay.interventions.base import Intervention
from inlay.model.call import Call, State


class Patch(Intervention):
    """Stored values at single places of a Site's tensor: h[row, slot, head] <- value.

    Args:
        row: int64 [m].
        slot: int64 [m].
        head: int64 [m], 0 at a Site without heads.
        values: [m, width of a head].
        heads: H, how many heads the Site is made of; 1 for none.
    """

    def __init__(self, row: Tensor, slot: Tensor, head: Tensor, values: Tensor, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self._state = {"row": row, "slot": slot, "head": head, "values": values}

    def state(self) -> dict[str, Tensor]:
        """The places and the values; no buffers, which take longer to register than the values to set."""
        return self._state

    def transform(self, h: Tensor, state: State, call: Call) -> Tensor:
        """A copy of h with the values set."""
        new: Tensor = h.clone().unflatten(-1, (self.heads, -1))
        if new.shape[-1] != state["values"].shape[-1]:
            raise SiteError(
                f"{call.site}: the source has width {state['values'].shape[-1]}, and the state {new.shape[-1]} (of each"
                " head, where there are any); a pattern's width is its number of keys, so both runs need equally many"
            )
        new[state["row"], state["slot"], state["head"]] = state["values"].to(h.dtype)
        return new.flatten(-2)


class Hold(Intervention):
    """Stored values at all of a Site's tensor, or where a mask is: h <- values.

    Args:
        values: [r, S, width].
        mask: bool [r, S], `None` for everywhere.
    """

    def __init__(self, values: Tensor, mask: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("values", values)
        self.register_buffer("mask", mask)

    def transform(self, h: Tensor, state: State, call: Call) -> Tensor:
        """The values, in h's dtype."""
        slots = h.shape[1]  # a batch of short rows is padded to less
        new = state["values"][:, :slots].to(h.dtype)
        return torch.where(state["mask"][:, :slots, None], new, h) if "mask" in state else new
