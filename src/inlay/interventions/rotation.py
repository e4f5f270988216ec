"""Interchange in a learned subspace: distributed alignment search (DAS) by a low-rank basis, whole or in groups.

Dims of a name: d width, r rank, K columns of all groups.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor, nn

from inlay.errors import EditError
from inlay.interventions import families, trained_families
from inlay.interventions.base import Intervention, as_source, columns
from inlay.interventions.kept import Kept
from inlay.model.call import Call, State

_bases = Kept()
ANY_LENGTH: Mapping[str, str] = MappingProxyType({"raw": "any_length"})


class Trained(Intervention):
    """An intervention that is made to be trained: its tensors stay in float32 or float64, whatever it is cast to.

    A mask that is annealed and a basis that is kept orthonormal do not survive half precision; the arithmetic casts
    the **difference** to h's dtype instead.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def wide(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            half = new.is_floating_point() and torch.finfo(new.dtype).bits < 32
            return tensor.to(new.device) if half else new

        super()._apply(wide, recurse)  # type: ignore[no-untyped-call]
        return self


def kept_basis(raw: Tensor, groups: Sequence[int] = ()) -> Tensor:
    """R [..., d, r] of a free X of that shape, column group by column group where there are some.

    See `families.orthonormal` and `trained_families.orthonormal_groups`. It is made once a forward, and kept while
    nobody trains. R(c X) = R(X), so that weight decay on X does not break it.
    """
    if len(groups) < 2:
        return _bases.get([raw], lambda: families.orthonormal(raw))
    return _bases.get([raw], lambda: trained_families.orthonormal_groups(raw, groups))


class Rotated(Trained):
    """What interchanges in a basis R [d, r] with orthonormal columns: the `kept_basis` of a free parameter X, `raw`."""

    needs = frozenset({"source"})
    constraints = ANY_LENGTH

    def __init__(self, source: Any, start: Tensor) -> None:
        super().__init__()
        self.source = as_source(source)
        self.raw = nn.Parameter(start)

    def width(self) -> int:
        """d."""
        return int(self.state()["raw"].shape[-2])

    def basis(self) -> Tensor:
        """R as it stands now, [d, r], detached."""
        with torch.no_grad():
            return self.prepare(self.state())["basis"].clone()

    def config(self) -> dict[str, Any]:
        """The source."""
        return {"source": self.source}

    def prepare(self, state: State) -> State:
        """R of X, and the rest as it is."""
        basis = kept_basis(state["raw"])
        return {"basis": basis, **{name: tensor for name, tensor in state.items() if name != "raw"}}

    def extra_repr(self) -> str:
        """The width and the number of columns."""
        width, rank = self.state()["raw"].shape[-2:]
        return f"width={width}, rank={rank}, source={self.source!r}"


class LowRank(Rotated):
    """Interchange in a subspace (distributed interchange intervention, DII): h + s ((x - h) R) R^T.

    x is the paired state of the source and R [d, r] has orthonormal columns, trained by DAS (2303.02536 section 3;
    ReFT, 2404.03592 appendix B). At rank d it is `Swap`.

    Args:
        source: a `Source`, prompts to make one of, or `None` until `with_source` gives one.
        width: d.
        rank: r, from 1 to d.
        seed: of the random orthonormal start.

    Raises:
        EditError: the rank does not lie between 1 and the width.
    """

    kind = "low_rank"
    holds = ("raw",)

    def __init__(self, source: Any, width: int, rank: int, seed: int = 0) -> None:
        super().__init__(source, random_basis(width, rank, seed, "LowRank"))

    @classmethod
    def of(cls, basis: Any, source: Any = None) -> LowRank:
        """The subspace that the columns of `basis` [d, r] span; it is orthonormalised, and trainable like any other.

        Raises:
            EditError: the columns are not independent, or not finite.
        """
        made = cls.__new__(cls)
        Rotated.__init__(made, source, columns(basis, "LowRank.of(basis)"))
        return made

    def transform(self, h: Tensor, state: State, call: Call) -> Tensor:
        """See `families.interchange`."""
        return families.interchange(h, self.paired(call), state["basis"], strength=call.strength)


class Rotate(Rotated):
    """`LowRank` on one group of the columns of R [d, K]: several variables, each with its own orthogonal subspace.

    The groups are orthogonal by construction, so that edits of different groups commute. All interventions that
    `part` gives share the one parameter, which is counted, trained and saved once.

    Args:
        source: as for `LowRank`.
        width: d.
        parts: how many columns each group has, K in all.
        part: the group that this one acts on, from 0.
        seed: of the random orthonormal start.

    Raises:
        EditError: no groups, an empty one, more than `width` columns, or no such group.
    """

    kind = "rotate"
    holds = ("raw", "group")
    shares = ("raw",)

    def __init__(self, source: Any, width: int, parts: Sequence[int], part: int = 0, seed: int = 0) -> None:
        if not parts or min(parts) < 1:
            raise EditError(f"Rotate(parts={parts!r}): give the number of columns of each group, such as [4, 4]")
        super().__init__(source, random_basis(width, sum(parts), seed, "Rotate"))
        self.parts = [int(size) for size in parts]
        self.register_buffer("group", self._group(part))

    def _group(self, part: int) -> Tensor:
        """1 at the columns of a group and 0 elsewhere, float32 [K]."""
        if not 0 <= part < len(self.parts):
            raise EditError(f"Rotate has groups 0 to {len(self.parts) - 1}, and no group {part}")
        owner = torch.arange(len(self.parts)).repeat_interleave(torch.tensor(self.parts))
        return (owner == part).float()

    def part(self, part: int, source: Any = None) -> Rotate:
        """The same R on another group, from another source or, by default, from that of this one."""
        mine = copy.copy(self)
        mine._buffers = {**self._buffers, "group": self._group(part).to(self.raw.device)}
        mine.source = self.source if source is None else as_source(source)
        return mine

    def basis(self) -> Tensor:
        """The columns of this group, [d, k], detached."""
        return super().basis()[:, self.state()["group"] > 0]

    def config(self) -> dict[str, Any]:
        """The source and the groups' sizes; which group it is, is a tensor of the state."""
        return {"source": self.source, "parts": self.parts}

    def transform(self, h: Tensor, state: State, call: Call) -> Tensor:
        """See `families.interchange`."""
        return families.interchange(h, self.paired(call), state["basis"], state["group"], call.strength)

    def extra_repr(self) -> str:
        """The groups, and which one this is."""
        first = int(self.state()["group"].argmax())
        part = next(i for i in range(len(self.parts)) if sum(self.parts[:i]) == first)
        return f"width={self.width()}, parts={self.parts}, part={part}, source={self.source!r}"


def random_basis(width: int, rank: int, seed: int, what: str) -> Tensor:
    """Random orthonormal columns, float32 [width, rank].

    Raises:
        EditError: the rank does not lie between 1 and the width.
    """
    if not 1 <= rank <= width:
        raise EditError(f"{what}(width={width}): {rank} orthonormal columns do not fit; the rank is 1 to the width")
    drawn = torch.randn(width, rank, generator=torch.Generator().manual_seed(seed))
    return families.orthonormal(drawn).contiguous()
