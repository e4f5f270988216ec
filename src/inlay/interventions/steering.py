"""Trained steering: vectors that are added, taken out, detected and set, and what suppresses them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from inlay.errors import EditError
from inlay.interventions import trained_families
from inlay.interventions.base import Intervention, unit, vector
from inlay.interventions.dropping import Dropping
from inlay.interventions.rotation import Trained
from inlay.model.call import Call, State

_UNIT: Mapping[str, str] = MappingProxyType({"vector": "unit"})


class _Vectored(Trained):
    """What has a trained `vector` [d]."""

    def width(self) -> int:
        """The length of the vector."""
        return int(self.state()["vector"].shape[-1])

    def extra_repr(self) -> str:
        """The width."""
        return f"width={self.width()}"


class _Biased(Dropping, _Vectored):
    """What has a trained `vector` [d] with a `bias`, a number, and drops entries of the vector."""

    neutral: ClassVar[Mapping[str, float] | None] = {"vector": 0.0, "bias": 0.0}
    holds = ("vector", "bias")

    def __init__(self, vector: Any, bias: float | Tensor = 0.0, dropout: float = 0.0) -> None:
        super().__init__()
        name = type(self).__name__
        self.vector = parameter(vector, f"{name}(vector)")
        self.bias = number(bias, f"{name}(bias)")
        self.drops(dropout)

    def config(self) -> dict[str, Any]:
        """The dropout."""
        return {"dropout": self.dropout}

    def extra_repr(self) -> str:
        """The width and the dropout."""
        return f"width={self.width()}" + (f", dropout={self.dropout:g}" if self.dropout else "")


class Steer(_Biased):
    """h + (s + b) drop(v): a steering vector with a learned offset of its strength (RePS, 2505.20809).

    The strength s is the factor itself, so that at s = 0 what is learned in b stays; with b = 0 this is `Add`. Its
    null takes the concept out: `NullOut` with the same v and b.

    Args:
        vector: v, float [width], any length. An `nn.Parameter` of float32 or float64 is taken as it is and shared;
            anything else becomes one.
        bias: b, a number or a parameter.
        dropout: the probability of an entry of v being dropped, the same ones at all positions of a row.

    Raises:
        EditError: an argument is not finite, or the dropout out of range.
    """

    kind = "steer"

    def null(self) -> Intervention:
        """`NullOut`, sharing v and b."""
        return NullOut.rebuild(self.state(), self.config()).train(self.training)

    def transform(self, h: Tensor, state: State, call: Call) -> Tensor:
        """See `trained_families.steer`."""
        along = self.dropped_alike(state["vector"], h, call)
        return trained_families.steer(h, along, state["bias"], call.strength)


class NullOut(_Biased):
    """h - s z / (v.v) drop(v) with z = relu(h.v + b): takes out what of v is detected (RePS, 2505.20809).

    With b = 0 and s = 1 a positive component along v becomes 0 and a negative one stays. Where v is 0 it changes
    nothing.

    Args:
        vector, bias, dropout: as for `Steer`.

    Raises:
        EditError: as `Steer`.
    """

    kind = "null_out"

    def transform(self, h: Tensor, state: State, call: Call) -> Tensor:
        """See `trained_families.null_out`."""
        vector = state["vector"]
        return trained_families.null_out(h, vector, state["bias"], self.dropped_alike(vector, h, call), call.strength)


class TopKAdd(_Vectored):
    """h + s m w for a unit vector w, m the mean of the k greatest relu(h.w): ReFT-r1 (2501.17148 section 4).

    One vector that detects and steers. m is taken over the selected positions that hold a token, in each row by itself
    and over fewer where there are not k; every selected position is shifted alike, and gradients flow through m and w.
    In decoding with a cache each forward sees its own positions alone, so that m is that of the prompt first and then
    of each new token: this is for training on whole sequences. Once it is trained, detect with relu(h.w) and steer
    with `Add(w, strength)` or `Steer(w)`, a strength in units of the greatest detection.

    Args:
        vector: w, float [width], any length but 0; a parameter of its own is made of it, scaled to length 1. A trainer
            keeps it there (`constraints`).
        k: how many, from 1.

    Raises:
        EditError: k is below 1, or the vector is not finite or has no direction.
    """

    kind = "top_k_add"
    holds = ("vector",)
    neutral: ClassVar[Mapping[str, float] | None] = {"vector": 0.0}
    needs = frozenset({"chosen"})
    constraints = _UNIT

    def __init__(self, vector: Any, k: int = 8) -> None:
        super().__init__()
        if k < 1:
            raise EditError(f"TopKAdd(k={k}): at least one position makes the strength")
        self.vector = direction(vector, "TopKAdd(vector)")
        self.k = int(k)

    def config(self) -> dict[str, Any]:
        """k."""
        return {"k": self.k}

    def transform(self, h: Tensor, state: State, call: Call) -> Tensor:
        """See `trained_families.top_k_add`."""
        return trained_families.top_k_add(h, state["vector"], self.k, call.chosen, call.strength)

    def extra_repr(self) -> str:
        """The width and k."""
        return f"width={self.width()}, k={self.k}"


class SetAlong(_Vectored):
    """h + (s - h.w) w for a unit vector w: the component along w becomes the strength s itself (CDAS, 2602.05234).

    So the strength does not scale a change: 0 takes the component out, and no strength is 1. `Clamp` is the fixed one,
    whose level is its own.

    Args:
        vector: w, float [width], as for `TopKAdd`.

    Raises:
        EditError: the vector is not finite or has no direction.
    """

    kind = "set_along"
    holds = ("vector",)
    constraints = _UNIT

    def __init__(self, vector: Any) -> None:
        super().__init__()
        self.vector = direction(vector, "SetAlong(vector)")

    def transform(self, h: Tensor, state: State, call: Call) -> Tensor:
        """See `trained_families.set_along`."""
        return trained_families.set_along(h, state["vector"], call.strength)


class ReluGate(_Vectored):
    """h + s relu(h.u + c) v: a vector that is added where and as far as another one fires (PSR, 2605.03907).

    Args:
        read: u, float [width]; parameters are taken as for `Steer`.
        offset: c, a number.
        vector: v, float [width].

    Raises:
        EditError: an argument is not finite, or the widths differ.
    """

    kind = "relu_gate"
    holds = ("read", "offset", "vector")
    neutral: ClassVar[Mapping[str, float] | None] = {"read": 0.0, "offset": 0.0, "vector": 0.0}

    def __init__(self, read: Any, offset: float | Tensor, vector: Any) -> None:
        super().__init__()
        self.read = parameter(read, "ReluGate(read)")
        self.offset = number(offset, "ReluGate(offset)")
        self.vector = parameter(vector, "ReluGate(vector)")
        if self.read.shape != self.vector.shape:
            raise EditError(f"ReluGate(read) has width {len(self.read)}, and its vector {len(self.vector)}")

    def transform(self, h: Tensor, state: State, call: Call) -> Tensor:
        """See `trained_families.relu_gate`."""
        return trained_families.relu_gate(h, state["read"], state["offset"], state["vector"], call.strength)


def parameter(values: Any, name: str) -> nn.Parameter:
    """A trainable vector [d] in float32 or float64: a parameter that is one already as it is, else a copy.

    Raises:
        EditError: it is no vector, or not finite.
    """
    return _trainable(vector(values, name))


def direction(values: Any, name: str) -> nn.Parameter:
    """A trainable vector [d] of length 1, a copy.

    Raises:
        EditError: it is no vector, not finite, or has length 0.
    """
    return nn.Parameter(unit(vector(values, name).detach(), name).clone())


def number(value: float | Tensor, name: str) -> nn.Parameter:
    """A trainable number, as `parameter`.

    Raises:
        EditError: it is not one finite number.
    """
    given = value if isinstance(value, Tensor) else torch.tensor(float(value))
    if given.ndim or not bool(torch.isfinite(given.detach())):
        raise EditError(f"{name} is one finite number, not {value!r}")
    return _trainable(given)


def _trainable(tensor: Tensor) -> nn.Parameter:
    wide = torch.promote_types(tensor.dtype, torch.float32)
    if isinstance(tensor, nn.Parameter) and tensor.dtype == wide:
        return tensor
    return nn.Parameter(tensor.detach().to(wide).clone())
