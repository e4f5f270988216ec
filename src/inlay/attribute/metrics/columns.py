"""The metrics by name: which way is better, and what measures it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from inlay.attribute.metrics import curves, erasure, evidence, soft, stability
from inlay.attribute.metrics.examples import Example
from inlay.errors import InputError

Measure = Callable[[Example, Tensor], Tensor]


@dataclass(frozen=True)
class Column:
    """A metric.

    Attributes:
        name: of the column.
        up: whether more is better.
        measure: gives for a row and scorings of its features [n, m] the values float64 [n]; `None` for one that is no
            function of the scores alone.
        oracle: whose ranking is the oracle's: that with the greatest AOPC from the highest score down, that with the
            least from the lowest score up, or none, where a ranking without magnitudes says nothing.
        note: what a reader must know.
    """

    name: str
    up: bool
    measure: Measure | None
    oracle: Literal["greatest", "least"] | None
    note: str = ""


def _naopc(name: Callable[..., Tensor]) -> Measure:
    return lambda row, scores: row.limits.of(name(row.game, scores))


def _soft(part: int) -> Measure:
    def measure(row: Example, scores: Tensor) -> Tensor:
        width = row.every[0].embeds.shape[-1]
        chances = [row.by_token(one) for one in soft.scaled(scores)]
        return torch.stack([soft.soft(row.distance, a, width, row.draws, row.seed)[part] for a in chances])

    return measure


def _known(measure: Callable[[Tensor, Tensor], Tensor]) -> Measure:
    def measured(row: Example, scores: Tensor) -> Tensor:
        assert row.evidence is not None
        return measure(scores, row.evidence)

    return measured


_OUT = "out of distribution: elements of embeddings are zeroed"
_EVERY = (
    Column("comprehensiveness", True, lambda row, s: erasure.comprehensiveness(row.game, s), "greatest"),
    Column("sufficiency", False, lambda row, s: erasure.sufficiency(row.game, s), "least"),
    Column("aopc_comprehensiveness", True, lambda row, s: erasure.aopc_comprehensiveness(row.game, s), "greatest"),
    Column("aopc_sufficiency", False, lambda row, s: erasure.aopc_sufficiency(row.game, s), "least"),
    Column("naopc_comprehensiveness", True, _naopc(erasure.aopc_comprehensiveness), "greatest"),
    Column("naopc_sufficiency", False, _naopc(erasure.aopc_sufficiency), "least"),
    Column("deletion", False, lambda row, s: curves.deletion(row.game, s), "greatest"),
    Column("insertion", True, lambda row, s: curves.insertion(row.game, s), "least"),
    Column("soft_nc", True, _soft(0), "greatest", _OUT),
    Column("soft_ns", True, _soft(1), "least", _OUT),
    Column("infidelity", False, lambda row, s: stability.infidelity(row.game, s, seed=row.seed), None),
    Column("sensitivity_max", False, None, None),
    Column("recall", True, _known(evidence.recall), "greatest"),
    Column("auprc", True, _known(evidence.auprc), "greatest"),
)
COLUMNS = {one.name: one for one in _EVERY}
"""Metrics by name."""

PAIRS = {name: tuple(one for one in COLUMNS if one.startswith(f"{name}_")) for name in ("aopc", "naopc", "soft")}
"""Names that stand for two metrics."""

KNOWN = ("recall", "auprc")
"""Metrics that need evidence."""


def columns(names: Sequence[str]) -> list[Column]:
    """The metrics that are meant, each once.

    Raises:
        InputError: there is no such metric, or none at all.
    """
    if not names or isinstance(names, str):
        raise InputError(f"metrics={names!r}: a list of names, such as ['aopc', 'naopc']")
    found: dict[str, Column] = {}
    for name in names:
        for one in PAIRS.get(name, (name,)):
            if one not in COLUMNS:
                raise InputError(f"metric {name!r}: one of {', '.join((*PAIRS, *COLUMNS))}")
            found[one] = COLUMNS[one]
    return list(found.values())
