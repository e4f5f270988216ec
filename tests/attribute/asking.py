"""An `Asked` of a tiny model, and the same number by hand."""

from __future__ import annotations

from typing import Any

import torch
from tests.interventions import tiny
from torch import Tensor

import inlay
from inlay.attribute.asked import Asked
from inlay.attribute.baselines import baselines
from inlay.attribute.features import features
from inlay.attribute.question import question

TARGETS, FOIL, BASE = [5, 9, 17, 33], 40, 20


def asked(model: inlay.Model, rows: Any = None, baseline: Any = BASE, **options: Any) -> Asked:
    """Which of two tokens comes behind tiny's ragged rows."""
    more = {name: options.pop(name) for name in ("batch_tokens", "seed") if name in options}
    within, by = options.pop("within", "all"), options.pop("by", "token")
    given = options or {"target": TARGETS, "foil": FOIL}
    asks = question(model, tiny.RAGGED if rows is None else rows, **given)
    (base,) = baselines(model, baseline, asks.rows)
    return Asked(model, asks, base, features(model, asks.rows, within, by), **more)


def table(model: inlay.Model) -> Any:
    """The module of the embeddings."""
    return model.hf.get_input_embeddings()


def difference(model: inlay.Model, embeds: Tensor, row: int) -> Tensor:
    """The number of one row by hand, from embeddings [T, d]."""
    logits = model.hf(inputs_embeds=embeds[None]).logits[0, -1]
    return logits[TARGETS[row]] - logits[FOIL]


def ends(model: inlay.Model, row: int) -> tuple[Tensor, Tensor]:
    """A row's embeddings and those of its baseline, [T, d]."""
    ids = torch.tensor(tiny.RAGGED[row])
    with torch.no_grad():
        return table(model)(ids), table(model)(torch.full_like(ids, BASE))


def slope(model: inlay.Model, embeds: Tensor, row: int) -> Tensor:
    """The gradient of the number by hand, [T, d]."""
    leaf = embeds.clone().requires_grad_()
    (found,) = torch.autograd.grad(difference(model, leaf, row), leaf)
    return found
