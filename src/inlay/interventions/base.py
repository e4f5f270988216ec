"""What every intervention is: a module h -> h' whose arithmetic is one pure function of h, its state and a call."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from inlay.errors import EditError, SiteError
from inlay.interventions import families
from inlay.interventions.source import Source
from inlay.model.call import Call, State
from inlay.model.sites import Site
from inlay.model.tokens import Tokens

Dims = Sequence[int] | slice | Tensor | None


class Intervention(nn.Module):
    """h -> h' on a Site's tensor h [rows, tokens, width].

    Subclass it with the state as parameters and buffers and the arithmetic in `transform`; registered under `kind`,
    it can be stacked into a `Bank`, saved in an Edit folder and loaded from one. `transform` must be pure: it keeps
    nothing between calls, writes nothing in place, and takes its tensors from `state`, never from `self`.

    Attributes:
        kind: the name under which Edit folders store it.
        needs: which of `source`, `input`, `positions`, `chosen` its `transform` takes from the call.
        neutral: for each tensor of the state the value that leaves h as it is, used as row 0 of a Bank; a kind without
            one is masked out instead.
        holds: the names of the state's tensors, which `rebuild` insists on; empty for a kind that decides by itself.
        may_hold: the names of tensors that may be there too.
        constraints: for some tensors what training must heed: `"unit"` is a last dimension of length 1, for which a
            trainer takes the gradient's part along it out before a step and scales it after; `"any_length"` is one
            whose length means nothing, so that weight decay has nothing to do there.
        indices: which of the state's tensors are lists [n] that a Bank may make longer by repeating their last value.
        shares: which of the state's tensors the items of a Bank have in common: one object in all of them.
        source: the run whose activations it takes; `None` for a kind that takes none.
        common: of a Bank, which of the state's tensors are no tables and serve every row.
        banked: whether it is a Bank.
        pooled: whether `reduce` makes a constant of all of its source's rows.
    """

    kind: ClassVar[str] = ""
    needs: frozenset[str] = frozenset()
    neutral: ClassVar[Mapping[str, float] | None] = None
    holds: ClassVar[tuple[str, ...]] = ()
    may_hold: ClassVar[tuple[str, ...]] = ("dims",)
    constraints: Mapping[str, str] = MappingProxyType({})
    indices: tuple[str, ...] = ("dims",)
    shares: tuple[str, ...] = ()
    source: Source | None = None
    common: frozenset[str] = frozenset()
    banked: bool = False
    pooled: bool = False

    kinds: ClassVar[dict[str, type[Intervention]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "kind" in cls.__dict__:
            Intervention.kinds[cls.kind] = cls

    def transform(self, h: Tensor, state: State, call: Call) -> Tensor:
        """The new state, of h's shape; h is left as it is.

        Args:
            h: [rows, tokens, width].
            state: what `prepare` made of `state()`, or of one row of a bank for each row of h (vectors then are
                [rows, 1, d], matrices [rows, d, r], scalars [rows, 1, 1]).
            call: strength, source, module input and positions.
        """
        raise NotImplementedError(f"{type(self).__name__} must define transform(h, state, call)")

    def state(self) -> dict[str, Tensor]:
        """The tensors that it holds, by name: what is trained, stacked into a Bank and saved."""
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    def prepare(self, state: State) -> State:
        """What `transform` takes, made of `state()` once a forward; by default the state itself.

        For what is costly and the same at every Site and position, such as an orthonormal basis. In a Bank the tensors
        are those of the batch's rows, stacked in front: [rows, ...].
        """
        return state

    def config(self) -> dict[str, Any]:
        """The attributes that are not tensors of the state and decide what it does, as JSON values."""
        return {}

    @classmethod
    def rebuild(cls, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Intervention:
        """The intervention that had this state and this config, bit for bit.

        The tensors of the state and the values of the config become attributes again, without a call of the
        constructor; a kind whose constructor makes more than these overrides it.

        Raises:
            EditError: a tensor is missing, or there is one too many.
        """
        if cls.holds and set(state) - (set(cls.may_hold) - set(cls.holds)) != set(cls.holds):
            raise EditError(f"{cls.__name__} holds {', '.join(cls.holds)}, not {', '.join(state) or 'nothing'}")
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        for name, tensor in state.items():
            keep(made, name, tensor)
        for name, value in config.items():
            setattr(made, name, value)
        return made

    def sources(self) -> tuple[Any, ...]:
        """The Sources whose activations it takes."""
        return () if self.source is None else (self.source,)

    def asks(self, model: Any, site: Site, tokens: Tokens) -> tuple[Site, Tokens]:
        """What it reads of its source's run for an Edit at this Site of one layer and these tokens."""
        (source,) = self.sources()
        found: tuple[Site, Tokens] = source.asks(model, site, tokens)
        return found

    def picked(self, pick: Callable[[Any], Any]) -> Intervention:
        """The same for some rows of a batch: where it has a paired source, with those rows of it."""
        return self if self.source is None or self.pooled else self.with_source(pick(self.source))

    def with_source(self, source: Any) -> Self:
        """The same intervention, sharing its tensors, that takes another run's activations.

        Args:
            source: a `Source`, or prompts to make one of.

        Raises:
            EditError: this kind takes no source.
        """
        if "source" not in self.__dict__:
            raise EditError(f"{type(self).__name__} takes no source, so it cannot be given {source!r:.60}")
        mine = copy.copy(self)
        mine.source = as_source(source)
        return mine

    def paired(self, call: Call) -> Tensor:
        """The source's states that the positions of h are paired with, [rows, tokens, width].

        Raises:
            EditError: there is no source, or no model around that would run it.
        """
        if call.source is not None:
            return call.source
        name = type(self).__name__
        if self.source is None:
            raise EditError(f"{name} has no source yet: {name.lower()}.with_source(Source(prompts)) gives it one")
        raise EditError(f"{name} runs inside a model's forward, where its source is paired with the base")

    def reduce(self, values: Tensor, real: Tensor | None) -> Tensor | None:
        """A constant [1, 1, width] made of the source's values; `None`: they are paired with h token by token."""
        return None

    def null(self) -> Intervention | None:
        """What suppresses what this one adds, sharing its tensors under the same names.

        `None` where that is this one at the negative strength.
        """
        return None

    def check(self, width: int, site: str) -> None:
        """Raise where a vector's width is not the Site's.

        Args:
            width: the Site's width; -1 where it grows with the sequence, 0 where it is not known.
            site: the Site, for the message.

        Raises:
            SiteError: the widths differ, or a dimension is out of range.
        """
        if width <= 0:
            return
        have = self.width()
        if have is not None and have != width:
            raise SiteError(f"{type(self).__name__} has width {have}, and {site} has width {width}")
        check_dims(self.state().get("dims"), width, site, type(self).__name__)

    def width(self) -> int | None:
        """The width it is made for; `None` where it fits every width."""
        return None

    def forward(self, h: Tensor, call: Call | None = None) -> Tensor:
        """`transform` with the module's own state: what an Edit does to a Site's tensor, usable on any tensor."""
        return self.transform(h, self.prepare(self.state()), call or Call())


def kind_of(intervention: Intervention) -> str:
    """The name under which an intervention is stored.

    Raises:
        EditError: its class is not registered under a name of its own.
    """
    if not intervention.kind or Intervention.kinds.get(intervention.kind) is not type(intervention):
        raise EditError(
            f"{type(intervention).__name__} has no `kind` of its own, so nothing could load it again; set "
            "kind = '<name>' on the class"
        )
    return intervention.kind


def as_source(source: Any) -> Source | None:
    """A Source of prompts or of stored activations; a Source, and `None`, stay what they are."""
    return source if source is None or isinstance(source, Source) else Source(source)


def vector(values: Any, name: str) -> Tensor:
    """A finite floating-point vector [d] from a tensor, array or list; a trainable parameter stays one.

    Raises:
        EditError: it is not one-dimensional, empty, or holds NaN or infinity.
    """
    try:
        tensor = values if isinstance(values, Tensor) else torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise EditError(f"{name} is one vector [width], not {values!r:.60}: {error}") from error
    if tensor.ndim != 1 or not tensor.numel():
        raise EditError(f"{name} is one vector [width], not a tensor of shape {list(tensor.shape)}")
    if not tensor.is_floating_point():
        tensor = tensor.float()
    bad = int((~torch.isfinite(tensor.detach())).sum())
    if bad:
        raise EditError(f"{name} holds {bad} value(s) that are NaN or infinite; check where it came from")
    return tensor


def unit(values: Any, name: str) -> Tensor:
    """`vector`, scaled to length 1, in float32 or float64.

    Raises:
        EditError: as `vector`, or its length is 0.
    """
    direction = vector(values, name)
    if isinstance(values, Tensor) and values.requires_grad:
        raise EditError(f"{name} is scaled to length 1 once and would not train; give its tensor, .detach()ed")
    wide = direction.double()
    length = float(torch.linalg.vector_norm(wide.detach()))
    if length == 0:
        raise EditError(f"{name} has length 0 and so no direction")
    return (wide / length).to(torch.promote_types(direction.dtype, torch.float32))


def columns(values: Any, name: str) -> Tensor:
    """Orthonormal columns that span those of a matrix [d, r], in float32, or in float64 where it is.

    Raises:
        EditError: it is no such matrix, or its columns are not independent, or not finite.
    """
    try:
        given = torch.as_tensor(values).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise EditError(f"{name} is a matrix [width, r], not {values!r:.60}: {error}") from error
    if given.ndim != 2 or not 1 <= given.shape[1] <= given.shape[0]:
        raise EditError(f"{name} is [width, r] with r <= width, not {list(given.shape)}")
    given = given if given.is_floating_point() else given.float()
    if not torch.isfinite(given).all():
        raise EditError(f"{name} holds values that are NaN or infinite")
    upper = torch.linalg.qr(given.double(), mode="r").R
    least = 16 * torch.finfo(given.dtype).eps * float(upper.abs().max())
    if bool((upper.diagonal().abs() <= least).any()):
        raise EditError(f"{name}: the columns are not independent; give a basis of the subspace")
    return families.orthonormal(given.double()).to(torch.promote_types(given.dtype, torch.float32)).contiguous()


def dimensions(dims: Dims) -> Tensor | None:
    """Dimensions of a Site's width as int64 [n], from a list, a closed slice or a bool mask [width].

    Raises:
        EditError: it is empty, holds a negative index, or is a slice without an end.
    """
    if dims is None:
        return None
    if isinstance(dims, slice):
        if dims.stop is None or dims.stop < 0 or (dims.start or 0) < 0:
            raise EditError(f"dims={dims}: give a slice with a start and an end from 0, such as slice(0, 8)")
        dims = list(range(dims.stop))[dims]
    try:
        index = torch.as_tensor(dims)
    except (TypeError, ValueError, RuntimeError):
        raise EditError(f"dims is a list of dimensions from 0, a slice or a bool mask [width], not {dims!r}") from None
    if index.dtype == torch.bool:
        index = index.nonzero().flatten()
    if index.ndim != 1 or not index.numel() or index.is_floating_point() or int(index.min()) < 0:
        raise EditError(f"dims is a list of dimensions from 0, a slice or a bool mask [width], not {dims!r}")
    return index.long()


def check_dims(dims: Tensor | None, width: int, site: str, what: str) -> None:
    """Raise where a dimension lies outside of a Site's width.

    Raises:
        SiteError: it does.
    """
    if dims is not None and width > 0 and int(dims.max()) >= width:
        raise SiteError(f"{what}: dimension {int(dims.max())} is out of range at {site}, of width {width}")


def keep(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Register a tensor: a parameter as it is, so that it stays trainable and shared, anything else as a buffer."""
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(name, tensor)
    else:
        module.register_buffer(name, tensor.detach().clone())


def restore(module: Intervention, name: str, tensor: Tensor) -> None:
    """Put a tensor, with its dtype, in the place of the one that `module.state()` gives under `name`."""
    module.state()[name].data = tensor.detach()


def at_dims(h: Tensor, new: Tensor, state: State) -> Tensor:
    """`new` at the state's `dims`, where it has any, and h elsewhere."""
    return families.within(h, new, state["dims"]) if "dims" in state else new
