"""Bank: K interventions of one kind in one table; every row of a batch picks its own."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from inlay.errors import EditError
from inlay.interventions.base import Intervention, check_dims, keep, kind_of, restore
from inlay.interventions.kept import Kept
from inlay.model.call import Call, State, rowed
from inlay.model.sites import Site
from inlay.model.tokens import Tokens

_prepared = Kept()


class Bank(Intervention):
    """K interventions of one kind, stacked. Item i is row i + 1; row 0 is "no edit" and leaves its rows bit-identical.

    A batch says which rows it uses with `rows=[...]` in `model.forward`, `generate`, `read` or `edited`. The rows'
    tensors are gathered once per forward, so that K edits in a batch cost what one costs.

    Args:
        items: K >= 1 interventions of one kind, shapes and configuration. Their tensors are copied into tables
            [K + 1, ...]; those that were trainable parameters stay trainable. Lists of dimensions may differ in length.
            What a kind `shares`, such as the one R of all parts of a `Rotate`, is not copied: it is one object in all
            items and stays it. Items that take a source take one and the same `Source`, which gives each row of the
            batch its own states.

    Raises:
        EditError: no items, or items that differ in kind, shape, configuration, source or what they should share.
    """

    kind = "bank"
    banked = True

    def __init__(self, items: Sequence[Intervention]) -> None:
        super().__init__()
        if not items:
            raise EditError("Bank([]) is empty: give at least one intervention")
        for index, item in enumerate(items):
            _check_item(index, item, items[0])
        heads = items[0].state()
        shared = {name: heads[name] for name in items[0].shares}
        states = _evened([{n: t for n, t in item.state().items() if n not in shared} for item in items], items[0])
        tables: dict[str, Tensor] = {}
        for name in states[0]:
            head, neutral = states[0][name].detach(), (items[0].neutral or {}).get(name)
            zero = head.clone() if neutral is None else torch.full_like(head, neutral)
            table = torch.stack([zero, *(state[name].detach() for state in states)])
            trained = isinstance(heads[name], nn.Parameter)
            tables[name] = nn.Parameter(table, heads[name].requires_grad) if trained else table
        self._set(_copied(items[0], shared), len(items), tables, shared)

    def _set(
        self, template: Intervention, size: int, tables: Mapping[str, Tensor], shared: Mapping[str, Tensor]
    ) -> None:
        self.size = size
        self.common = frozenset(shared)
        self._take(template)
        self._names = [*tables, *shared]
        for index, tensor in enumerate([*tables.values(), *shared.values()]):
            keep(self, f"table{index}", tensor)

    def _take(self, template: Intervention) -> None:
        self._template = [template]  # in a list: it says how the rows are applied, and its tables are not the Bank's
        self.source, self.needs, self.pooled = template.source, template.needs, template.pooled
        self.constraints = dict(template.constraints)

    @property
    def template(self) -> Intervention:
        """An intervention of the items' kind and configuration."""
        return self._template[0]

    def state(self) -> dict[str, Tensor]:
        """The tables [K + 1, ...], and the tensors that all rows share, by the items' own names."""
        return {name: getattr(self, f"table{index}") for index, name in enumerate(self._names)}

    def prepare(self, state: State) -> State:
        """As the items' own, for the rows of the batch."""
        if "rows" not in state or type(self.template).prepare is Intervention.prepare:
            return state
        made = _prepared.get([*self.state().values(), state["rows"]], lambda: self._made(state))
        return {"rows": state["rows"], **made}

    def _made(self, state: State) -> State:
        """What the items' own makes for the rows of the batch: of each row, or of each item where there are fewer."""
        rows = state["rows"]
        if self.size >= len(rows):
            return self.template.prepare({name: tensor for name, tensor in state.items() if name != "rows"})
        tables = {name: table.to(rows.device) for name, table in self.state().items()}
        items = {name: table if name in self.common else rowed(table) for name, table in tables.items()}
        made = self.template.prepare(items)  # of what all rows share it makes at most a matrix
        return {name: tensor.index_select(0, rows) if tensor.ndim > 2 else tensor for name, tensor in made.items()}

    def asks(self, model: Any, site: Site, tokens: Tokens) -> tuple[Site, Tokens]:
        """As the items' own."""
        return self.template.asks(model, site, tokens)

    def reduce(self, values: Tensor, real: Tensor | None) -> Tensor | None:
        """As the items' own."""
        return self.template.reduce(values, real)

    def with_source(self, source: Any) -> Self:
        """The same Bank, sharing its tables, whose items all take another source."""
        mine = copy.copy(self)
        mine._take(self.template.with_source(source))
        return mine

    def null(self) -> Bank | None:
        """A Bank of the items' own nulls, sharing the tables."""
        template = self.template.null()
        if template is None:
            return None
        mine = copy.copy(self)
        mine._take(template)
        return mine

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the Bank and of how it applies its rows (dropout)."""
        self.template.train(mode)
        return super().train(mode)

    def width(self) -> int | None:
        """The items' width."""
        return self.template.width()

    def check(self, width: int, site: str) -> None:
        """As the items' own, over all of their dimensions."""
        self.template.check(width, site)
        check_dims(self.state().get("dims"), width, site, type(self.template).__name__)

    def check_rows(self, rows: Sequence[int]) -> None:
        """Raise where a row is not of this Bank.

        Raises:
            EditError: a row is negative or above K.
        """
        for index, row in enumerate(rows):
            if not 0 <= row <= self.size:
                raise EditError(f"rows[{index}] = {row}: a Bank of {self.size} has rows 0 (no edit) to {self.size}")

    def item(self, row: int) -> Intervention:
        """The intervention of one row, 1 to K, as it stands in the tables now; what the rows share, it shares.

        Raises:
            EditError: row 0, or a row that the Bank does not have.
        """
        self.check_rows([row])
        if row == 0:
            raise EditError("row 0 of a Bank is no edit and has no intervention")
        state = self.state()
        made = _copied(self.template, {name: state[name] for name in self.common})
        for name in state.keys() - self.common:
            restore(made, name, state[name][row].detach().clone())
        return made

    def __len__(self) -> int:
        return self.size

    def transform(self, h: Tensor, state: State, call: Call) -> Tensor:
        """Each row's own intervention; rows of 0 keep h."""
        if "rows" not in state:
            raise EditError(
                "a Bank runs inside a model's forward, where each row of the batch picks its own: rows=[...]"
            )
        new = self.template.transform(h, state, call)
        tensors = {name: t for name, t in state.items() if name != "rows"}
        neutral = self.template.neutral
        if neutral is not None and set(neutral) == set(tensors) and not any(t.requires_grad for t in tensors.values()):
            return new  # row 0 of the table already is "no edit"; in training it must get no gradient
        return torch.where((state["rows"] > 0)[:, None, None], new, h)

    def config(self) -> dict[str, Any]:
        """The number of items, their kind and configuration, and the names of what they share."""
        template = self.template
        return {
            "kind": kind_of(template),
            "size": self.size,
            "config": template.config(),
            "shared": sorted(self.common),
        }

    @classmethod
    def rebuild(cls, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Bank:
        """From the stored tables."""
        kind = Intervention.kinds[config["kind"]]
        shared = {name: state[name] for name in config["shared"]}
        tables = {name: table for name, table in state.items() if name not in shared}
        first = {name: table[1].detach().clone() for name, table in tables.items()}
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made._set(kind.rebuild({**first, **shared}, config["config"]), config["size"], tables, shared)
        return made


def _check_item(index: int, item: Any, first: Any) -> None:
    if not isinstance(item, Intervention) or item.banked:
        raise EditError(f"Bank: item {index} is {item!r}; a Bank holds interventions such as Add(v)")
    if type(item) is not type(first):
        names = f"item {index} is a {type(item).__name__}, item 0 a {type(first).__name__}"
        raise EditError(f"Bank: {names}; it holds one kind")
    if item.source is not first.source:
        raise EditError(
            f"Bank: item {index} has another Source than item 0; give one Source to all, with a prompt for each row"
        )
    mine, theirs = _options(item), _options(first)
    if mine != theirs:
        raise EditError(f"Bank: item {index} is configured unlike item 0: {mine} and {theirs}")
    shapes = [
        {name: tuple(t.shape[1:] if _grows(one, name) else t.shape) for name, t in one.state().items()}
        for one in (item, first)
    ]
    if shapes[0] != shapes[1]:
        raise EditError(f"Bank: item {index} has tensors {shapes[0]}, item 0 {shapes[1]}")
    for name in first.shares:
        if item.state()[name] is not first.state()[name]:
            raise EditError(
                f"Bank: item {index} has a {name!r} of its own; the items of a Bank of {type(item).__name__} share one"
            )


def _evened(states: Sequence[dict[str, Tensor]], first: Intervention) -> Sequence[dict[str, Tensor]]:
    """The states with their lists of dimensions of one length: the shorter repeat their last value."""
    for name in filter(lambda name: _grows(first, name), states[0]):
        longest = max(len(state[name]) for state in states)
        for state in states:
            state[name] = torch.cat([state[name], state[name][-1:].expand(longest - len(state[name]))])
    return states


def _grows(item: Intervention, name: str) -> bool:
    """Whether a tensor is a list that may be made longer; a trained one may not, its values would drift apart."""
    return name in item.indices and not isinstance(item.state()[name], nn.Parameter)


def _copied(item: Intervention, shared: Mapping[str, Tensor]) -> Intervention:
    """A copy that shares the source and some tensors."""
    kept = {id(one): one for one in (*shared.values(), item.source) if one is not None}
    return copy.deepcopy(item, kept)


def _options(item: Intervention) -> Any:
    """What must agree between the items: a wrapped function, a wrapped module's make, anything else's configuration."""
    f, inner = getattr(item, "f", None), getattr(item, "inner", None)
    if isinstance(inner, Intervention):
        return type(inner), _options(inner)
    if f is None:
        return item.config()
    return repr(f) if isinstance(f, nn.Module) else f
