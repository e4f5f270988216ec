"""The positions that a read took: their tokens, and the way from values of positions to a labelled array.

Legend: n prompts, k the most positions of one prompt, N positions of all prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from inlay.model.chosen import chosen_slots, token_text
from inlay.model.inputs import pad

if TYPE_CHECKING:
    from inlay.causal.labelled import Grid
    from inlay.model.activations import Activations
    from inlay.model.model import Model


@dataclass(frozen=True)
class Selected:
    """Which positions of which prompts, in the order of `Activations`.

    Attributes:
        real: bool [n, k].
        position: int64 [n, k], the attended index of each position; -1 where there is none.
        texts: n lists of k, each position's token as text (its id without a tokenizer); "" where there is none.
        several: whether `token` is a dimension, as it is of the Activations.
    """

    real: Tensor
    position: Tensor
    texts: list[list[str]]
    several: bool

    @classmethod
    def of(cls, model: Model, prompts: Any, tokens: Any, acts: Activations, reading: Mapping[str, Any]) -> Selected:
        """The positions of `model.read(prompts, ..., tokens, **reading)`, which gave `acts`."""
        batch = pad(model.encoder.rows(prompts, reading.get("responses"), reading.get("chat")), 0, torch.device("cpu"))
        picked = chosen_slots(model, batch, tokens)
        k = int(picked.sum(1).max())
        where_nk = (~picked).to(torch.uint8).argsort(dim=1, stable=True)[:, :k]
        real_nk = picked.gather(1, where_nk)
        ids_nk = batch.ids.gather(1, where_nk)
        texts = [
            [token_text(model, i) if real else "" for i, real in zip(ids, mask, strict=True)]
            for ids, mask in zip(ids_nk.tolist(), real_nk.tolist(), strict=True)
        ]
        position_nk = batch.positions.gather(1, where_nk).masked_fill(~real_nk, -1)
        return cls(real_nk, position_nk, texts, acts.mask is not None)

    @property
    def prompt(self) -> Tensor:
        """Which prompt each position is of, int64 [N]."""
        return self.real.nonzero()[:, 0]

    def flat(self, values: Tensor) -> Tensor:
        """The values [N, ...] of the positions, from what an Activations holds: [n, k, ...] or [n, ...]."""
        return values[self.real] if self.several else values

    def grid(
        self,
        values: Tensor | np.ndarray[Any, Any],
        coords: Mapping[str, Sequence[Any]],
        name: str,
        units: str,
    ) -> Grid:
        """Values [N, ...] as a Grid [prompt, token, ...], without `token` where every prompt has one position.

        Positions that a prompt has not are NaN (`""` among texts). `text` and `position` label the tokens.

        Args:
            values: numbers or texts; a dimension behind the first for each of `coords`.
            coords: their names and labels.
            name: what the numbers are.
            units: their unit, "" for none.
        """
        from inlay.causal.labelled import Grid

        found = np.asarray(values)
        shape = (*self.real.shape, *found.shape[1:])
        whole = np.full(shape, "" if found.dtype.kind == "U" else np.nan, dtype=found.dtype)
        whole[self.real.numpy()] = found
        dims: tuple[str, ...] = ("prompt", "token")
        label = {"text": np.array(self.texts), "position": self.position.numpy()}
        at: dict[str, Any] = {"prompt": range(shape[0]), "token": range(shape[1])}
        if not self.several:
            whole, dims = whole[:, 0], ("prompt",)
            label = {key: value[:, 0] for key, value in label.items()}
            del at["token"]
        at |= {key: (dims, value) for key, value in label.items()} | dict(coords)
        attrs = {"long_name": name, **({"units": units} if units else {})}
        return Grid(whole, dims=(*dims, *coords), coords=at, attrs=attrs)
