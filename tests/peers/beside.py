"""One random model twice, with the same weights: inlay's, and a copy for pyvene.

pyvene gets its own copy, since it freezes the model that it wraps and removes every hook from it. Each of its calls is
made by a wrapper of its own, and locations are always spelled out in full, [[row's positions] for each row]: a location
that is one number, or two, makes all later calls of that wrapper edit the first row's positions in every row.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from tests.interventions import tiny
from tests.interventions.tiny import EVEN, OTHER
from torch import Tensor

import inlay
from inlay import Edit, Source
from inlay.model.sites import Site

# Each row's positions, in the base and in the source.
HERE, THERE = [[1], [3], [0], [2]], [[2], [0], [3], [1]]
TWO_HERE, TWO_THERE = [[1, 3], [0, 2], [1, 3], [2, 3]], [[0, 2], [1, 3], [0, 1], [1, 2]]
EVERY = [[0, 1, 2, 3]] * 4

# pyvene's name of a place, and the Site.
SITES = {
    "block_input": "resid_pre",
    "block_output": "resid_post",
    "attention_input": "attn_in",
    "attention_output": "attn_out",
    "attention_value_output": "z",
    "query_output": "q",
    "key_output": "k",
    "value_output": "v",
    "mlp_input": "mlp_in",
    "mlp_output": "mlp_out",
}


class Pair:
    """inlay's model, and a copy of it for pyvene."""

    def __init__(self, family: str, pyvene: ModuleType) -> None:
        self.family, self.pyvene = family, pyvene
        self.model, self.hf = inlay.load(tiny.FAMILIES[family]()), tiny.FAMILIES[family]()

    def width(self, component: str) -> int:
        """Of a place."""
        return self.model.sites().width(Site.parse(f"{SITES[component]}.0"))

    def wrap(self, parts: Sequence[dict[str, Any]], mode: str = "parallel", **options: Any) -> Any:
        """A new pyvene wrapper around its copy."""
        config = self.pyvene.IntervenableConfig([{"unit": "pos", **part} for part in parts], mode=mode)
        return self.pyvene.IntervenableModel(config, model=self.hf, **options)

    def theirs(
        self,
        parts: Sequence[dict[str, Any]],
        at: Any = None,
        base: Any = EVEN,
        sources: Sequence[Any] | None = None,
        mode: str = "parallel",
        options: dict[str, Any] | None = None,
        **call: Any,
    ) -> Any:
        """What pyvene's model gives for `base` under some interventions.

        Args:
            parts: the interventions, as pyvene's configuration has them.
            at: the unit locations of its call.
            base: rows of ids.
            sources: rows of ids for each intervention, `None` for those that take none.
            mode: parallel or serial.
            options: of the wrapper.
            **call: more of its call.
        """
        given = None if sources is None else [None if rows is None else tiny.padded(rows) for rows in sources]
        wrapped = self.wrap(parts, mode, **(options or {}))
        return wrapped(base=tiny.padded(base), sources=given, unit_locations=at, **call)

    def agree(self, edit: Edit, theirs: Tensor, base: Any = EVEN, rows: Sequence[int] | None = None) -> None:
        """Assert that inlay's logits under an Edit are pyvene's within 1e-5, and that it moves them by far more.

        Args:
            edit: the Edit.
            theirs: pyvene's logits.
            base: rows of ids.
            rows: of a Bank, which each row of `base` uses.
        """
        with torch.no_grad():
            mine = self.model.forward(base, edit=edit, rows=rows).logits
        moved = (mine - tiny.plain(self.hf, base)).abs().max()
        assert moved > 0.05, f"the edit moves no logit by more than {moved:.2g}, so that agreement says nothing"
        tiny.same_where_real(mine, theirs.detach(), base, rtol=0, atol=1e-5)


def pairs(here: Any = HERE, there: Any = THERE) -> dict[str, Any]:
    """pyvene's locations of one intervention that takes source positions to base positions."""
    return {"sources->base": ([there], [here])}


def only(here: Any = HERE) -> dict[str, Any]:
    """pyvene's locations of one intervention without a source."""
    return {"sources->base": (None, [here])}


def source(there: Any = THERE, rows: Any = OTHER) -> Source:
    """The other run at its own positions."""
    return Source(rows, tokens=torch.tensor(there))


def at(here: Any = HERE) -> Tensor:
    """Tokens of an Edit: each row's own positions."""
    return torch.tensor(here)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
