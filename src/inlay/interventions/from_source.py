"""Interventions that take another run's activations: interchange, mean ablation, a module left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from inlay.errors import SiteError
from inlay.interventions import families
from inlay.interventions.base import Dims, Intervention, as_source, at_dims, dimensions, keep
from inlay.interventions.base import vector as as_vector
from inlay.model.call import Call, State
from inlay.model.sites import Site
from inlay.model.tokens import Tokens


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
        self.source = as_source(source)
        self.register_buffer("dims", dimensions(dims))

    def config(self) -> dict[str, Any]:
        """The source."""
        return {"source": self.source}

    def transform(self, h: Tensor, state: State, call: Call) -> Tensor:
        """The source's state, blended in by the strength."""
        return at_dims(h, families.blend(h, self.paired(call).to(h), call.strength), state)


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
        self.register_buffer("dims", dimensions(dims))
        if isinstance(of, Tensor) and of.ndim == 1:
            keep(self, "vector", as_vector(of, "Mean(of)"))
        else:
            self.source = as_source(of)
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
        mean = state["vector"] if "vector" in state else self.paired(call)
        return at_dims(h, families.replace(h, mean, call.strength), state)


class Skip(Intervention):
    """Leave a module out: its output becomes its **input**, of this run or of a source's.

    At `resid_post.l` it skips block l. At other Sites the module is the one whose output the Site is: at `attn_out` and
    `mlp_out` of most families the branch, whose input is the normed stream.

    Args:
        source: a `Source`, or prompts to make one of, whose input to the module is taken; by default this run's own.
    """

    kind = "skip"

    def __init__(self, source: Any = None) -> None:
        super().__init__()
        self.source = as_source(source)
        self.needs = frozenset({"input" if self.source is None else "source"})

    def config(self) -> dict[str, Any]:
        """The source."""
        return {"source": self.source}

    @classmethod
    def rebuild(cls, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Intervention:
        """From the source."""
        return cls(config["source"])

    def with_source(self, source: Any) -> Self:
        """The same with the module's input of another run."""
        return type(self)(source)

    def asks(self, model: Any, site: Site, tokens: Tokens) -> tuple[Site, Tokens]:
        """The input of the module whose output the Site is, in the source's run.

        Raises:
            SiteError: the Site is no module's output.
        """
        found, mine = super().asks(model, site, tokens)
        place = found if found.name == "module" else model.sites().place(found)
        if place.side != "out":
            raise SiteError(_NO_OUTPUT.format(site=found))
        return Site("module", path=place.path, side="in"), mine

    def transform(self, h: Tensor, state: State, call: Call) -> Tensor:
        """The module's input, blended in by the strength."""
        given = call.input if self.source is None else self.paired(call)
        if given is None:
            raise SiteError(_NO_OUTPUT.format(site=call.site))
        if given.shape != h.shape:
            raise SiteError(
                f"Skip at {call.site}: the module's input is {list(given.shape)}, its output {list(h.shape)}"
            )
        return families.blend(h, given.to(h).clone(), call.strength)  # the model may write into what it gets


_NO_OUTPUT = (
    "Skip sets a module's output to its input, and {site} is not the output of a module that is given states; use a "
    "Site such as 'resid_post.3', 'mlp_out.3' or 'module:<path>:out'"
)
