"""What the engine and an intervention say to each other. `interventions/` implements it; `model/` only calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from inlay.model.sites import Site
from inlay.model.tokens import Tokens

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Call:
    """What an intervention may use beside the state h [R, T, width] that it changes.

    Attributes:
        strength: `None` for 1, a 0-d tensor, or one number a row, [R, 1, 1].
        source: the paired activations of another run, [R, T, width], for interventions that ask for them.
        input: the input of the module whose output is edited (its first float tensor), `None` on input Sites.
        site: the Site, for messages.
        positions: the attended index of every position, int64 [R, T].
        chosen: the selected positions that hold a token, bool [R, T], for interventions that ask for them; `None` for
            all. A condition (`when`) does not narrow them.
        keys: what a row's dropout depends on, int64 [R, 1, 1]; `None` for torch's own generator.
    """

    strength: Tensor | None = None
    source: Tensor | None = None
    input: Tensor | None = None
    positions: Tensor | None = None
    chosen: Tensor | None = None
    keys: Tensor | None = None
    site: str = "the Site"


def rowed(rows: Tensor) -> Tensor:
    """Rows of a table as `transform` takes them: numbers as [R, 1, 1], vectors as [R, 1, d], matrices as they are."""
    return rows.reshape(rows.shape[0], *[1] * max(0, 3 - rows.ndim), *rows.shape[1:])


class SourceLike(Protocol):
    """A run whose activations an intervention takes."""

    def activations(self, model: Any, wanted: Sequence[tuple[Site, Tokens]]) -> list[tuple[Tensor, Tensor | None]]:
        """For every (Site, Tokens): values [rows, k, width] and which of them are real, bool [rows, k] or `None`."""
        ...


class Transform(Protocol):
    """h -> h'. A module whose `transform` is one pure function of h, its state and the call."""

    needs: frozenset[str]
    common: frozenset[str]
    banked: bool

    def sources(self) -> tuple[Any, ...]:
        """The Sources whose activations it takes: none or one."""
        ...

    def reduce(self, values: Tensor, real: Tensor | None) -> Tensor | None:
        """A constant [1, 1, width] made of the source's values, or `None` where they are paired token by token."""
        ...

    def transform(self, h: Tensor, state: State, call: Call) -> Tensor:
        """The new state, of h's shape, dtype and device; h itself is not written to."""
        ...

    def state(self) -> State:
        """The tensors that it holds; of a bank: tables [K + 1, ...] whose row 0 is neutral, and those in `common`."""
        ...

    def prepare(self, state: State) -> State:
        """What `transform` takes, made of `state()` once a forward."""
        ...

    def asks(self, model: Any, site: Site, tokens: Tokens) -> tuple[Site, Tokens]:
        """What it reads of its source's run for an Edit at this Site and these tokens."""
        ...

    def check(self, width: int, site: str) -> None:
        """Raise where the intervention does not fit a Site of this width."""
        ...


class LeafLike(Protocol):
    """A test of the state at one Site.

    Attributes:
        pool: how the positions at `tokens` make one verdict: `"any"` of them passes, or their `"mean"` state.
    """

    pool: str

    @property
    def site(self) -> Site:
        """Where it is read."""
        ...

    @property
    def tokens(self) -> Tokens | None:
        """Where a row decides, `None` where every position decides for itself."""
        ...

    def passes(self, h: Tensor) -> Tensor:
        """Which of the states h [R, T, width] pass, bool [R, T]."""
        ...


class ConditionLike(Protocol):
    """Where a part of an Edit acts, given where its leaves hold."""

    def leaves(self) -> tuple[LeafLike, ...]:
        """The tests that it is made of."""
        ...

    def holds(self, verdicts: Any) -> Tensor:
        """Bool [R, T] or [R, 1], given that of every leaf."""
        ...


class PartLike(Protocol):
    """One Site x Tokens x Intervention of an Edit."""

    @property
    def site(self) -> Site:
        """Where."""
        ...

    @property
    def tokens(self) -> Tokens:
        """At which positions."""
        ...

    @property
    def intervention(self) -> Any:
        """What happens there: a `Transform`."""
        ...

    @property
    def strength(self) -> float | None:
        """A factor on the change, `None` for 1."""
        ...

    @property
    def when(self) -> Any:
        """Where it acts: a `ConditionLike`, `None` for everywhere."""
        ...

    @property
    def joint(self) -> bool:
        """Whether the selected positions are handed over side by side, as one state."""
        ...


@runtime_checkable
class EditLike(Protocol):
    """An Edit: parts that act in written order."""

    @property
    def parts(self) -> Sequence[PartLike]:
        """The parts."""
        ...
