"""What the kinds of representation finetuning (ReFT, 2404.03592) are made of: low-rank changes of the state.

Dims of a name: d width, r rank (the columns of all groups). Row form: h [T, d], D [d, r], U [r, d], R [d, r].
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inlay.errors import EditError
from inlay.interventions import families, trained_families
from inlay.interventions.base import Intervention
from inlay.interventions.dropping import Dropping
from inlay.interventions.rotation import ANY_LENGTH, kept_basis, random_basis
from inlay.model.call import Call, State

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "identity": None,
    "relu": torch.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


class ReFT(Dropping):
    """h + s drop(c U) with r coefficients c at each position, for r directions U in all or some groups.

    Parameters are float32, also under `.to(torch.bfloat16)`; the change is computed in that and cast to h's dtype.
    Orthonormal directions R = U^T are the `kept_basis` of a free matrix `raw`, so that nothing of d x d ever exists.

    **Groups** split the r columns into named sets, and `part` gives the intervention on some of them alone. All parts
    read the same h, so that their changes add up to the whole one; a part's loss has no gradient in the other groups;
    and training a group moves no direction of an earlier one. Parts are items of one `Bank`, where a row names its own.

    Attributes:
        groups: how many columns each group has, in order; `None` without groups.
        activation: f, by its name in `ACTIVATIONS`.
        subtracts: whether h U^T, what h has along the directions already, is taken off the coefficients.
    """

    may_hold = ("group",)
    constraints = ANY_LENGTH
    subtracts: ClassVar[bool] = False

    groups: dict[str, int] | None = None
    activation: str = "identity"

    def __init__(self, width: int, rank: int | None, dropout: float, groups: Mapping[str, int] | None) -> None:
        super().__init__()
        name = type(self).__name__
        if groups is not None and (not groups or min(groups.values()) < 1):
            raise EditError(f"{name}(groups={groups!r}): give each group's number of columns, such as {{'de': 4}}")
        total = rank if groups is None else sum(groups.values())
        if total is None or rank not in (None, total):
            raise EditError(f"{name}(rank={rank}, groups={groups!r}): the rank is the number of columns of all groups")
        if not 1 <= total <= width:
            raise EditError(f"{name}(width={width}): {total} columns do not fit; the rank is 1 to the width")
        if groups is not None:
            self.groups = {str(group): int(size) for group, size in groups.items()}
            self.register_buffer("group", torch.ones(total))
        self._shape = width, total
        self.drops(dropout)

    def _settle(self) -> None:
        super()._settle()
        self.shares = self.holds if self.groups else ()

    @classmethod
    def rebuild(cls, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Intervention:
        """As any, with the groups that it had."""
        if ("group" in state) != bool(config["groups"]):
            raise EditError(f"{cls.__name__} has groups {config['groups']!r} and holds {', '.join(state)}")
        return super().rebuild(state, config)

    def part(self, *names: str) -> Self:
        """The same on some groups alone, sharing all parameters.

        Raises:
            EditError: there is no such group, or none was named.
        """
        groups = self.groups or {}
        if not names or not set(names) <= groups.keys():
            raise EditError(f"part{names!r}: {type(self).__name__} has the groups {', '.join(groups) or 'of none'}")
        mine = copy.copy(self)
        acts = [float(group in names) for group, size in groups.items() for _ in range(size)]
        mine._buffers = {**self._buffers, "group": torch.tensor(acts, device=self.state()["group"].device)}
        return mine

    def width(self) -> int:
        """d."""
        state = self.state()
        return int(state["raw"].shape[-2] if "raw" in state else state["up"].shape[-1])

    def basis(self) -> Tensor:
        """The directions as they stand now, [d, r], those of the groups that act, detached."""
        with torch.no_grad():
            made = self.prepare(self.state())
            columns = made["write"].mT.clone()
        return columns[:, made["group"] > 0] if "group" in made else columns

    def config(self) -> dict[str, Any]:
        """The groups' sizes, f, and the dropout; which groups act is a tensor of the state."""
        return {"groups": self.groups, "activation": self.activation, "dropout": self.dropout}

    def prepare(self, state: State) -> State:
        """U, and what is taken of h, in one matrix where f is the identity."""
        sizes = tuple((self.groups or {}).values())
        write = kept_basis(state["raw"], sizes).mT if "raw" in state else state["up"]
        made = {"write": write, **{name: state[name] for name in ("bias", "group") if name in state}}
        down = state.get("down")
        if self.subtracts and ACTIVATIONS[self.activation] is None:
            down = -write.mT if down is None else down - write.mT
        elif self.subtracts:
            made["read"] = trained_families.column_major(write.mT)
        if down is not None:
            made["down"] = trained_families.column_major(down)
        return made

    def transform(self, h: Tensor, state: State, call: Call) -> Tensor:
        """See `trained_families.reft`."""
        change = trained_families.reft(
            h,
            state["write"],
            state["bias"],
            state.get("down"),
            state.get("read"),
            ACTIVATIONS[self.activation],
            state.get("group"),
            call.strength,
        )
        return families.moved(h, self.dropped(change, call))

    def extra_repr(self) -> str:
        """The width and the rank, the groups and which of them act, f and the dropout."""
        state = self.state()
        said = f"width={self.width()}, rank={state['bias'].shape[-1]}"
        if self.groups:
            acts = [each[0] > 0 for each in state["group"].split(list(self.groups.values()))]
            said += f", groups={self.groups}, part={[g for g, on in zip(self.groups, acts, strict=True) if on]}"
        said += "" if self.activation == "identity" else f", activation={self.activation}"
        return said + (f", dropout={self.dropout:g}" if self.dropout else "")

    # -- what the kinds are made of ----------------------------------------------------------------------------------

    def _orthonormal(self, seed: int) -> None:
        self.raw = nn.Parameter(random_basis(*self._shape, seed, type(self).__name__))

    def _linear(self, activation: str, draws: torch.Generator) -> None:
        """D and b, drawn as those of an `nn.Linear`."""
        if activation not in ACTIVATIONS:
            raise EditError(f"{type(self).__name__}(activation={activation!r}): one of {', '.join(ACTIVATIONS)}")
        self.activation = activation
        self.down = nn.Parameter(self._uniform(self._shape, draws))
        self.bias = nn.Parameter(self._uniform(self._shape[1:], draws))

    def _uniform(self, shape: tuple[int, ...], draws: torch.Generator) -> Tensor:
        bound = self._shape[0] ** -0.5
        return torch.empty(shape).uniform_(-bound, bound, generator=draws)

    def _starts(self, init: str) -> bool:
        """Whether it starts as no edit."""
        if init not in ("random", "identity"):
            raise EditError(f"{type(self).__name__}(init={init!r}): 'random' or 'identity'")
        if init == "identity" and self.subtracts and self.activation != "identity":
            raise EditError(
                f"{type(self).__name__}(init='identity') needs activation='identity', not {self.activation!r}"
            )
        return init == "identity"


def draws(seed: int) -> torch.Generator:
    """Another stream than that which `random_basis` draws from."""
    return torch.Generator().manual_seed(seed + (1 << 32))
