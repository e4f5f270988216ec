"""Bank: K interventions of one kind in one table; every row of a batch picks its own."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from inlay.errors import EditError
from inlay.interventions.base import Intervention, check_dims, keep, restore
from inlay.model.call import Call, State


class Bank(Intervention):
    """K interventions of one kind, stacked. Item i is row i + 1; row 0 is "no edit" and leaves its rows bit-identical.

    A batch says which rows it uses with `rows=[...]` in `model.forward`, `generate`, `read` or `edited`. The rows'
    tensors are gathered once per forward, so that K edits in a batch cost what one costs.

    Args:
        items: K >= 1 interventions of one kind, shapes and configuration. Their tensors are copied into tables
            [K + 1, ...]; those that were trainable parameters stay trainable.

    Raises:
        EditError: no items, or items that differ in kind, shape or configuration.
    """

    kind = "bank"
    banked = True

    def __init__(self, items: Sequence[Intervention]) -> None:
        super().__init__()
        if not items:
            raise EditError("Bank([]) is empty: give at least one intervention")
        for index, item in enumerate(items):
            _check_item(index, item, items[0])
        states = [item.state() for item in items]
        tables: dict[str, Tensor] = {}
        for name, head in states[0].items():
            neutral = (items[0].neutral or {}).get(name)
            zero = head.detach().clone() if neutral is None else torch.full_like(head.detach(), neutral)
            table = torch.stack([zero, *(state[name].detach() for state in states)])
            tables[name] = nn.Parameter(table, head.requires_grad) if isinstance(head, nn.Parameter) else table
        self._set(copy.deepcopy(items[0]), len(items), tables)

    def _set(self, template: Intervention, size: int, tables: Mapping[str, Tensor]) -> None:
        self.size = size
        self.needs = template.needs
        self._template = [template]  # in a list: it says how the rows are applied, and its tensors are not the Bank's
        self._names = list(tables)
        for index, table in enumerate(tables.values()):
            keep(self, f"table{index}", table)

    @property
    def template(self) -> Intervention:
        """An intervention of the items' kind and configuration."""
        return self._template[0]

    def state(self) -> dict[str, Tensor]:
        """The tables [K + 1, ...], by the items' own names."""
        return {name: getattr(self, f"table{index}") for index, name in enumerate(self._names)}

    def prepare(self, state: State) -> State:
        """As the items' own, for the rows of the batch."""
        mine = {name: tensor for name, tensor in state.items() if name != "rows"}
        rows = {"rows": state["rows"]} if "rows" in state else {}
        return {**rows, **self.template.prepare(mine)}

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
        """The intervention of one row, 1 to K, as it stands in the tables now.

        Raises:
            EditError: row 0, or a row that the Bank does not have.
        """
        self.check_rows([row])
        if row == 0:
            raise EditError("row 0 of a Bank is no edit and has no intervention")
        made = copy.deepcopy(self.template)
        for name, table in self.state().items():
            restore(made, name, table[row].detach().clone())
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
        """The number of items, and their kind and configuration."""
        return {"kind": self.template.kind, "size": self.size, "config": self.template.config()}

    @classmethod
    def rebuild(cls, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Bank:
        """From the stored tables."""
        kind = Intervention.kinds[config["kind"]]
        first = {name: table[1].detach().clone() for name, table in state.items()}
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made._set(kind.rebuild(first, config["config"]), config["size"], state)
        return made


def _check_item(index: int, item: Any, first: Any) -> None:
    if not isinstance(item, Intervention) or item.banked:
        raise EditError(f"Bank: item {index} is {item!r}; a Bank holds interventions such as Add(v)")
    if type(item) is not type(first):
        names = f"item {index} is a {type(item).__name__}, item 0 a {type(first).__name__}"
        raise EditError(f"Bank: {names}; it holds one kind")
    if item.sources():
        raise EditError("Bank: an intervention with a Source has no table; give the Source one prompt for each row")
    mine, theirs = _options(item), _options(first)
    if mine != theirs:
        raise EditError(f"Bank: item {index} is configured unlike item 0: {mine} and {theirs}")
    shapes = [{name: tuple(t.shape) for name, t in one.state().items()} for one in (item, first)]
    if shapes[0] != shapes[1]:
        raise EditError(f"Bank: item {index} has tensors {shapes[0]}, item 0 {shapes[1]}")


def _options(item: Intervention) -> Any:
    """What must agree between the items: a wrapped function, a wrapped module's make, anything else's configuration."""
    f = getattr(item, "f", None)
    if f is None:
        return item.config()
    return repr(f) if isinstance(f, nn.Module) else f
