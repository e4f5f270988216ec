"""Where a Site lies: a module, a side, and which columns. Reads a Site's tensor out of a call and puts it back.

Every Site tensor that leaves this file is [rows, tokens, width]; per-head Sites have their heads side by side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from inlay.errors import SiteError

Index = slice | int | tuple[int, ...]


@dataclass(frozen=True)
class Columns:
    """Some columns of a tensor's last dimension: unflatten it to `shape`, then index with `take`."""

    shape: tuple[int, ...]
    take: tuple[Index, ...]

    def get(self, whole: Tensor) -> Tensor:
        """The columns, flattened to one last dimension: [..., width]."""
        picked = self._view(whole)
        return picked.flatten(whole.ndim - 1)

    def put(self, whole: Tensor, new: Tensor) -> Tensor:
        """A copy of `whole` with the columns replaced; the other columns are bit-identical."""
        copy = whole.clone()
        picked = self._view(whole)
        copy.unflatten(-1, self.shape)[self._index()] = new.reshape(picked.shape)
        return copy

    def _index(self) -> tuple[Any, ...]:
        rest = [slice(None)] * (len(self.shape) - len(self.take))
        return (..., *(list(i) if isinstance(i, tuple) else i for i in self.take), *rest)

    def _view(self, whole: Tensor) -> Tensor:
        view: Tensor = whole.unflatten(-1, self.shape)[self._index()]
        return view


@dataclass(frozen=True)
class Place:
    """Where one Site's tensor lies.

    Attributes:
        path: dotted path of the module in the base model.
        side: `"in"` or `"out"` of the module; `"linear"`: the product of the first linear map inside it (a router's
            logits); `"query"`, `"key"`, `"pattern"`: inside the attention function that the module calls.
        key: which input (position or keyword) or which item of a tuple output; `None` for a bare output.
        columns: the Site's columns, where the tensor holds more (fused projections); applied in order.
        heads: how many heads the Site's width is made of, 0 where it has none.
        width: the Site's width; -1 where it grows with the sequence (attention patterns).
        scale: what the block multiplies this tensor by before adding it to the residual stream.
        flat: the tensor is [rows * tokens, width].
        headed: the tensor is [rows, heads, tokens, width].
        fragile: the model overwrites the tensor in place after the module returned it, so that a read must copy.
    """

    path: str
    side: str
    key: int | str | None = None
    columns: tuple[Columns, ...] = ()
    heads: int = 0
    width: int = 0
    scale: float = 1.0
    flat: bool = False
    headed: bool = False
    fragile: bool = False

    def of_heads(self, heads: tuple[int, ...], name: str) -> Place:
        """The same place narrowed to some heads.

        Raises:
            SiteError: the Site has no heads, or fewer than were asked for.
        """
        if not heads:
            return self
        if not self.heads:
            raise SiteError(f"{name!r}: how many heads this Site has is not known for this model")
        if bad := [h for h in heads if h >= self.heads]:
            raise SiteError(
                f"{name!r}: head {bad[0]} is out of range; the Site has {self.heads} heads (0 to {self.heads - 1})"
            )
        each = -1 if self.width < 0 else self.width // self.heads
        picked = Columns((self.heads, each), (heads,))
        width = -1 if each < 0 else each * len(heads)
        return replace(self, columns=(*self.columns, picked), heads=len(heads), width=width)

    def get(self, whole: Tensor, rows: int) -> Tensor:
        """The Site's tensor, [rows, tokens, width], from the tensor at this place."""
        here = whole
        if self.flat:
            here = here.unflatten(0, (rows, -1))
        if self.headed:
            here = here.transpose(1, 2).flatten(2)
        for columns in self.columns:
            here = columns.get(here)
        return here

    def put(self, whole: Tensor, new: Tensor, rows: int) -> Tensor:
        """The tensor at this place with the Site's part replaced by `new`; out of place."""
        base = whole.unflatten(0, (rows, -1)) if self.flat else whole
        heads = base.shape[1]
        if self.headed:
            base = base.transpose(1, 2).flatten(2)
        outers: list[Tensor] = []
        for columns in self.columns:
            outers.append(base)
            base = columns.get(base)
        for columns, outer in zip(reversed(self.columns), reversed(outers), strict=True):
            new = columns.put(outer, new)
        if self.headed:
            new = new.unflatten(-1, (heads, -1)).transpose(1, 2)
            new = new.contiguous() if whole.is_contiguous() else new
        return new.flatten(0, 1) if self.flat else new


def pick(values: Any, key: int | str | None) -> Any:
    """The tensor that `key` names in a module's output."""
    return values if key is None else values[key]


def put_back(values: Any, key: int | str | None, new: Tensor) -> Any:
    """A copy of a module's output with the tensor that `key` names replaced."""
    if key is None:
        return new
    items = list(values)
    items[int(key)] = new
    return tuple(items) if type(values) is tuple else type(values)(items)
