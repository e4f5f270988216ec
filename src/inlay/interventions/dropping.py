"""Dropout of what an intervention adds, which a row draws alike alone and in a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from inlay.errors import EditError
from inlay.interventions import families
from inlay.interventions.base import Intervention
from inlay.interventions.rotation import Trained
from inlay.model.call import Call


class Dropping(Trained):
    """A trained intervention with dropout, in training mode alone.

    One that was loaded from a folder is in evaluation mode; one that was just made, like any module, is not.

    Attributes:
        dropout: the probability of a value being dropped; those that stay are scaled by 1 / (1 - dropout).
    """

    dropout: float = 0.0

    def drops(self, probability: float) -> None:
        """Set the dropout.

        Raises:
            EditError: it is not in [0, 1).
        """
        if not 0 <= probability < 1:
            raise EditError(f"{type(self).__name__}(dropout={probability}): a probability from 0 to below 1")
        self.dropout = float(probability)
        self._settle()

    def _settle(self) -> None:
        """Set what follows from the configuration."""
        self.needs = type(self).needs | ({"positions"} if self.dropout else set())

    @classmethod
    def rebuild(cls, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Intervention:
        """As any, in evaluation mode."""
        made = super().rebuild(state, config)
        assert isinstance(made, Dropping)
        made._settle()
        return made.eval()

    def dropped(self, values: Tensor, call: Call) -> Tensor:
        """Values of every position [R, T, n], where the intervention trains with some of them set to zero.

        With keys in the call, what is dropped depends on the row's key, the Site, the position and the dimension.
        """
        if not (self.training and self.dropout):
            return values
        positions = call.positions
        if positions is None:
            positions = torch.arange(values.shape[-2], device=values.device)[None]
        return self._drop(values, call, positions)

    def dropped_alike(self, vector: Tensor, h: Tensor, call: Call) -> Tensor:
        """A vector [n] or [R, 1, n] that all positions of a row share, as `dropped`: [R, 1, n] for h [R, T, d]."""
        if not (self.training and self.dropout):
            return vector
        vector = vector.to(h.device).expand(*h.shape[:-2], 1, -1)
        return self._drop(vector, call, torch.zeros(1, 1, dtype=torch.long, device=h.device))

    def _drop(self, values: Tensor, call: Call, positions: Tensor) -> Tensor:
        if call.keys is None:
            return F.dropout(values, self.dropout)
        keys = call.keys + _salt(call.site)
        kept = families.keep_mask(keys, positions, values.shape[-1], self.dropout, values.device)
        return values * kept / (1 - self.dropout)


def _salt(site: str) -> int:
    """A number for each Site, so that not all of them drop the same dimensions."""
    number = 0
    for letter in site:
        number = (number * 131 + ord(letter)) % (1 << 61)
    return number
