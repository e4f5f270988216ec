"""The closed-form interventions that need no other run: a vector, a direction, a subspace or a number decides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from inlay.errors import EditError
from inlay.interventions import families
from inlay.interventions.base import Dims, Intervention, at_dims, columns, dimensions, keep, unit, vector
from inlay.interventions.source import Source
from inlay.model.call import Call, State


class Add(Intervention):
    """h + s v: steering by a vector (activation addition), or by the paired state of another run.

    Subtraction is a strength of -1.

    Args:
        of: v, float [width], where an `nn.Parameter` stays trainable; or a `Source`.
        dims: which dimensions, as a list, a closed slice or a bool mask [width]; all of them by default.
    """

    kind = "add"
    neutral: ClassVar[Mapping[str, float] | None] = {"vector": 0.0}

    def __init__(self, of: Any, dims: Dims = None) -> None:
        super().__init__()
        if isinstance(of, Source):
            self.source = of
            self.needs = frozenset({"source"})
        else:
            keep(self, "vector", _vector(of, "Add(vector)"))
        self.register_buffer("dims", dimensions(dims))

    def width(self) -> int | None:
        """The length of v, where it is given."""
        vector = self.state().get("vector")
        return None if vector is None else int(vector.shape[-1])

    def config(self) -> dict[str, Any]:
        """The source, `None` where v itself is given."""
        return {"source": self.source}

    @classmethod
    def rebuild(cls, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Intervention:
        """From the stored vector or source."""
        if set(state) - {"dims"} != ({"vector"} if config["source"] is None else set()):
            raise EditError(f"Add holds a vector or has a source, and is stored with {', '.join(state) or 'neither'}")
        return cls(config["source"] or state["vector"], state.get("dims"))

    def transform(self, h: Tensor, state: State, call: Call) -> Tensor:
        """See `families.add`."""
        vector = state["vector"] if "vector" in state else self.paired(call)
        return at_dims(h, families.add(h, vector, call.strength), state)


class Clamp(Intervention):
    """Bring the component along a direction into [low, high]; with `low` alone, set it to that.

    h + (clip(h.u, low, high) - h.u) u, where u is the direction scaled to length 1.

    Args:
        direction: float [width], any length but 0.
        low: the least component, in units of the Site's own activations.
        high: the greatest one; `low` where it is not given.

    Raises:
        EditError: `low` is greater than `high`, or the component would be set to infinity.
    """

    kind = "clamp"
    holds = ("direction", "low", "high")

    def __init__(self, direction: Any, low: float, high: float | None = None) -> None:
        super().__init__()
        high = low if high is None else high
        if not low <= high:
            raise EditError(f"Clamp(low={low}, high={high}): low must not be above high")
        if low == high and abs(low) == float("inf"):
            raise EditError(f"Clamp(low={low}): a component is set to a finite number")
        keep(self, "direction", unit(direction, "Clamp(direction)"))
        keep(self, "low", torch.tensor(float(low), dtype=torch.float64))
        keep(self, "high", torch.tensor(float(high), dtype=torch.float64))

    def width(self) -> int:
        """The length of the direction's vector."""
        return int(self.state()["direction"].shape[-1])

    def transform(self, h: Tensor, state: State, call: Call) -> Tensor:
        """See `families.clamp`."""
        return families.clamp(h, state["direction"], state["low"], state["high"], call.strength)


class Ablate(Intervention):
    """Remove the component along a direction: h - (h.u) u (directional ablation).

    Args:
        direction: float [width], any length but 0.
    """

    kind = "ablate"
    holds = ("direction",)

    def __init__(self, direction: Any) -> None:
        super().__init__()
        keep(self, "direction", unit(direction, "Ablate(direction)"))

    def width(self) -> int:
        """The length of the direction's vector."""
        return int(self.state()["direction"].shape[-1])

    def transform(self, h: Tensor, state: State, call: Call) -> Tensor:
        """See `families.project`, with one column."""
        direction = state["direction"]
        column = direction[:, None] if direction.ndim == 1 else direction.transpose(-1, -2)
        return families.project(h, column, False, call.strength)


class Project(Intervention):
    """Remove a subspace, h - (h V) V^T, or keep nothing else, (h V) V^T.

    Args:
        basis: float [width, r]: the subspace's span, in any basis; it is orthonormalised once.
        keep: keep the subspace instead of removing it.

    Raises:
        EditError: the columns are not independent, or not finite.
    """

    kind = "project"
    holds = ("basis",)

    def __init__(self, basis: Any, keep: bool = False) -> None:
        super().__init__()
        if isinstance(basis, Tensor) and basis.requires_grad:
            raise EditError("Project(basis) is orthonormalised once and would not train; give its tensor, .detach()ed")
        self.register_buffer("basis", columns(basis, "Project(basis)"))
        self.keep = keep

    def width(self) -> int:
        """The number of the basis' rows."""
        return int(self.state()["basis"].shape[-2])

    def config(self) -> dict[str, Any]:
        """Whether the subspace is kept."""
        return {"keep": self.keep}

    def transform(self, h: Tensor, state: State, call: Call) -> Tensor:
        """See `families.project`."""
        return families.project(h, state["basis"], self.keep, call.strength)


class Replace(Intervention):
    """Set a constant vector.

    Args:
        vector: float [width].
        dims: which dimensions, as a list, a closed slice or a bool mask [width]; all of them by default.
    """

    kind = "replace"
    holds = ("vector",)

    def __init__(self, vector: Any, dims: Dims = None) -> None:
        super().__init__()
        keep(self, "vector", _vector(vector, "Replace(vector)"))
        self.register_buffer("dims", dimensions(dims))

    def width(self) -> int:
        """The length of the vector."""
        return int(self.state()["vector"].shape[-1])

    def transform(self, h: Tensor, state: State, call: Call) -> Tensor:
        """See `families.replace`."""
        return at_dims(h, families.replace(h, state["vector"], call.strength), state)


class Zero(Intervention):
    """Set to zero (zero ablation).

    Args:
        dims: which dimensions; all of them by default.
    """

    kind = "zero"

    def __init__(self, dims: Dims = None) -> None:
        super().__init__()
        self.register_buffer("dims", dimensions(dims))

    def transform(self, h: Tensor, state: State, call: Call) -> Tensor:
        """Zeros, blended in by the strength."""
        return at_dims(h, families.blend(h, torch.zeros_like(h), call.strength), state)


class Scale(Intervention):
    """Multiply by a number.

    Args:
        factor: c in c h.
        dims: which dimensions; all of them by default.
    """

    kind = "scale"
    holds = ("factor",)

    def __init__(self, factor: float | Tensor, dims: Dims = None) -> None:
        super().__init__()
        number = factor if isinstance(factor, Tensor) else torch.tensor(float(factor), dtype=torch.float64)
        if number.ndim or not torch.isfinite(number.detach()):
            raise EditError(f"Scale(factor) is one finite number, not {factor!r}")
        keep(self, "factor", number)
        self.register_buffer("dims", dimensions(dims))

    def transform(self, h: Tensor, state: State, call: Call) -> Tensor:
        """See `families.scale`."""
        return at_dims(h, families.scale(h, state["factor"], call.strength), state)


class Noise(Intervention):
    """h + s std eps with eps ~ N(0, 1), drawn for (seed, position, dimension).

    The same seed gives the same noise: in every call, alone or in a batch, padded or not, cached or not. Rows of a
    batch get different noise through a `Bank` of Noises with different seeds.

    Args:
        std: the standard deviation, in units of the Site's own activations.
        seed: any int64.
        dims: which dimensions; all of them by default.
    """

    kind = "noise"
    holds = ("std", "seed")
    needs = frozenset({"positions"})

    def __init__(self, std: float, seed: int = 0, dims: Dims = None) -> None:
        super().__init__()
        if not (std >= 0 and std < float("inf")):
            raise EditError(f"Noise(std={std}): the standard deviation is a finite number from 0")
        keep(self, "std", torch.tensor(float(std), dtype=torch.float64))
        if not -(2**63) <= int(seed) < 2**63:
            raise EditError(f"Noise(seed={seed}): the seed is a 64-bit integer")
        keep(self, "seed", torch.tensor(int(seed)))
        self.register_buffer("dims", dimensions(dims))

    def transform(self, h: Tensor, state: State, call: Call) -> Tensor:
        """See `families.normal`."""
        positions = call.positions
        if positions is None:
            positions = torch.arange(h.shape[-2], device=h.device)[None]
        eps = families.normal(state["seed"], positions, h.shape[-1], h.device)
        return at_dims(h, families.add(h, eps * state["std"].to(h.device), call.strength), state)


_vector = vector
