"""Interventions that take another run's activations: interchange and mean ablation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from inlay.errors import EditError
from inlay.interventions import families
from inlay.interventions.base import Dims, Intervention, at_dims, dimensions, keep
from inlay.interventions.base import vector as as_vector
from inlay.interventions.source import Source
from inlay.model.call import Call, State


class Swap(Intervention):
    """Interchange: the state becomes the paired state of a source run (activation patching).

    The k-th selected source token goes to the k-th selected base token of the same row; a source of one row serves
    every row. Lengths and paddings may differ.

    Args:
        source: a `Source`, or prompts to make one of.
        dims: which dimensions; all of them by default.
    """

    kind = "swap"
    needs = frozenset({"source"})

    def __init__(self, source: Any, dims: Dims = None) -> None:
        super().__init__()
        self.source = source if isinstance(source, Source) else Source(source)
        self.register_buffer("dims", dimensions(dims))

    def config(self) -> dict[str, Any]:
        """The source."""
        return {"source": self.source}

    def transform(self, h: Tensor, state: State, call: Call) -> Tensor:
        """The source's state, blended in by the strength."""
        if call.source is None:
            raise EditError("Swap runs inside a model's forward, where its source is paired with the base")
        return at_dims(h, families.blend(h, call.source.to(h), call.strength), state)


class Mean(Intervention):
    """Mean ablation: every selected position becomes one mean vector.

    Args:
        of: the mean itself, float [width], or a `Source` (or prompts) over whose rows and selected tokens it is taken.
        dims: which dimensions; all of them by default.
    """

    kind = "mean"
    pooled = True

    def __init__(self, of: Any, dims: Dims = None) -> None:
        super().__init__()
        self.source: Source | None = None
        self.register_buffer("dims", dimensions(dims))
        if isinstance(of, Tensor) and of.ndim == 1:
            keep(self, "vector", as_vector(of, "Mean(of)"))
        else:
            self.source = of if isinstance(of, Source) else Source(of)
            self.needs = frozenset({"source"})

    def width(self) -> int | None:
        """The length of the mean, where it is given."""
        vector = self.state().get("vector")
        return None if vector is None else int(vector.shape[-1])

    def config(self) -> dict[str, Any]:
        """The source, `None` where the mean itself is given."""
        return {"source": self.source}

    @classmethod
    def rebuild(cls, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Intervention:
        """From the stored mean or source."""
        return cls(config["source"] or state["vector"], state.get("dims"))

    def reduce(self, values: Tensor, real: Tensor | None) -> Tensor | None:
        """The mean [1, 1, width] of a source's values [rows, k, width]."""
        weight = torch.ones(values.shape[:2], device=values.device) if real is None else real.float()
        total = (values.float() * weight[..., None]).sum((0, 1)) / weight.sum()
        return total.to(values.dtype)[None, None]

    def transform(self, h: Tensor, state: State, call: Call) -> Tensor:
        """The mean, blended in by the strength."""
        mean = state.get("vector", call.source)
        if mean is None:
            raise EditError("Mean of a source runs inside a model's forward; give the mean itself to use it elsewhere")
        return at_dims(h, families.replace(h, mean, call.strength), state)
