"""Bank: K interventions of one kind in one table; every row of a batch picks its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from inlay.errors import EditError
from inlay.interventions.base import Intervention
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
        first = items[0]
        for index, item in enumerate(items):
            if type(item) is not type(first):
                raise EditError(
                    f"Bank: item {index} is a {type(item).__name__}, item 0 a {type(first).__name__}; it holds one kind"
                )
            if not isinstance(item, Intervention) or item.banked:
                raise EditError(f"Bank: item {index} is {item!r}; a Bank holds interventions such as Add(v)")
            if item.sources():
                raise EditError(
                    "Bank: an intervention with a Source has no table; give the Source one prompt for each row"
                )
            if _options(item) != _options(first):
                raise EditError(
                    f"Bank: item {index} is configured unlike item 0: {_options(item)} and {_options(first)}"
                )
        states = [item.state() for item in items]
        shapes = [{name: tuple(t.shape) for name, t in state.items()} for state in states]
        for index, shape in enumerate(shapes):
            if shape != shapes[0]:
                raise EditError(f"Bank: item {index} has tensors {shape}, item 0 {shapes[0]}")
        self.needs = first.needs
        self.size = len(items)
        self._model = [first]  # in a list: its tensors are not the Bank's
        for name in states[0]:
            self._stack(name, [state[name] for state in states])

    def _stack(self, name: str, tensors: Sequence[Tensor]) -> None:
        neutral = (self._model[0].neutral or {}).get(name)
        head = tensors[0].detach()
        zero = head.clone() if neutral is None else torch.full_like(head, neutral)
        table = torch.stack([zero, *(t.detach() for t in tensors)])
        safe = name.replace(".", "__")
        if isinstance(tensors[0], nn.Parameter):
            self.register_parameter(safe, nn.Parameter(table, tensors[0].requires_grad))
        else:
            self.register_buffer(safe, table)

    def state(self) -> dict[str, Tensor]:
        """The tables [K + 1, ...], by the items' own names."""
        return {name.replace("__", "."): tensor for name, tensor in super().state().items()}

    def width(self) -> int | None:
        """The items' width."""
        return self._model[0].width()

    def check(self, width: int, site: str) -> None:
        """As the items' own."""
        self._model[0].check(width, site)

    def check_rows(self, rows: Sequence[int]) -> None:
        """Raise where a row is not of this Bank.

        Raises:
            EditError: a row is negative or above K.
        """
        for index, row in enumerate(rows):
            if not 0 <= row <= self.size:
                raise EditError(f"rows[{index}] = {row}: a Bank of {self.size} has rows 0 (no edit) to {self.size}")

    def item(self, row: int) -> Intervention:
        """The intervention of one row, 1 to K, as it stands in the tables now."""
        self.check_rows([row])
        if row == 0:
            raise EditError("row 0 of a Bank is no edit and has no intervention")
        first = self._model[0]
        state = {name: table[row].detach().clone() for name, table in self.state().items()}
        return type(first).rebuild(state, first.config())

    def __len__(self) -> int:
        return self.size

    def transform(self, h: Tensor, state: State, call: Call) -> Tensor:
        """Each row's own intervention; rows of 0 keep h."""
        first = self._model[0]
        if "rows" not in state:
            raise EditError(
                "a Bank runs inside a model's forward, where each row of the batch picks its own: rows=[...]"
            )
        new = first.transform(h, state, call)
        tensors = {name: t for name, t in state.items() if name != "rows"}
        if set(first.neutral or ()) == set(tensors) and not any(t.requires_grad for t in tensors.values()):
            return new  # row 0 of the table already is "no edit"; in training it must get no gradient
        return torch.where((state["rows"] > 0)[:, None, None], new, h)

    def config(self) -> dict[str, Any]:
        """The items' kind and configuration."""
        return {"kind": self._model[0].kind, "config": self._model[0].config()}

    @classmethod
    def rebuild(cls, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Bank:
        """From the stored tables."""
        kind = Intervention.kinds[config["kind"]]
        rows = range(1, next(iter(state.values())).shape[0])
        return cls([kind.rebuild({n: t[row] for n, t in state.items()}, config["config"]) for row in rows])


def _options(item: Intervention) -> Any:
    """What must agree between the items of a Bank: a wrapped function itself, the configuration of anything else."""
    f = getattr(item, "f", None)
    return item.config() if f is None else type(f) if isinstance(f, nn.Module) else f
