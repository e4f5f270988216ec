"""Interchange intervention training: train the base model itself until it computes what a causal model says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from inlay.causal.counterfactuals import Counterfactual
from inlay.causal.stored_runs import grouped, label_ids
from inlay.interventions.base import Dims
from inlay.interventions.edit import Edit
from inlay.interventions.from_source import Swap
from inlay.interventions.source import Source
from inlay.model.inputs import Row
from inlay.model.last_logits import last_logits
from inlay.model.restored import restored
from inlay.model.sites import Site
from inlay.model.tokens import Tokens
from inlay.model.two_stacks import refuse

if TYPE_CHECKING:
    from inlay.model.model import Model


@contextmanager
def iit_training(model: Model) -> Iterator[None]:
    """All of the base's floating-point weights get gradients inside, and `requires_grad` and `grad` are restored after.

    What an optimiser of yours made of the weights stays: save them with `model.hf.save_pretrained(folder)`. Modes
    stay yours, too: `model.hf.train()` turns dropout on.
    """
    with restored(model.hf):
        for parameter in model.hf.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        yield


def iit_loss(
    model: Model,
    batch: Sequence[Counterfactual],
    site: str | Site,
    tokens: Any = "last",
    dims: Dims | Mapping[str, Dims] = None,
    weight: float = 1.0,
    *,
    source_tokens: Any = None,
    chat: bool | None = None,
) -> Tensor:
    """The loss of interchange intervention training (IIT, 2112.00826): CE(N(b), y) + weight CE(N with h <- h(s), y_cf).

    h are the dimensions of a Site that shall hold a variable, taken from the source run and set in the base run. The
    gradient flows through both runs into whatever has `requires_grad`; see `iit_training`.

    Args:
        model: the Model, whose weights are to be trained.
        batch: what `counterfactuals` gives, some rows of it.
        site: one Site of one layer.
        tokens: which tokens.
        dims: the dimensions that hold the variable, all of them by default; by name where the rows set several.
        weight: of the second term.
        source_tokens: which tokens of the sources, where they are not `tokens`.
        chat: whether plain strings are user turns.

    Returns:
        The mean over the rows, a 0-d tensor.

    Raises:
        CausalError: no rows, a row sets a variable without `dims`, or a label is no token.
        InlayError: prompts, Sites or Tokens do not fit the model.
    """
    refuse(model, "iit_loss")
    names = dict.fromkeys(name for row in batch for name in row.variables)
    held = dims if isinstance(dims, Mapping) else dict.fromkeys(names, dims)
    total = torch.zeros((), device=model.device)
    for group, rows in grouped(batch, held).items():
        mine = [batch[row] for row in rows]
        base, cut = model.encoder.rows([row.base for row in mine], chat=chat), (rows, len(batch))
        parts = []
        for index, name in enumerate(group):
            ids = [list(row.ids) for row in model.encoder.rows([row.sources[index] for row in mine], chat=chat)]
            there = Tokens.parse(tokens if source_tokens is None else source_tokens)
            source = Source(ids, tokens=there.pick(*cut, max(map(len, ids))), grad=True)
            (part,) = Edit(site, Swap(source, held[name]), tokens).parts
            parts.append(replace(part, tokens=part.tokens.pick(*cut, max(len(row.ids) for row in base))))
        plain = _loss(model, base, [row.base_label for row in mine], None)
        total = total + plain + weight * _loss(model, base, [row.label for row in mine], Edit.of(tuple(parts)))
    return total / len(batch)


def _loss(model: Model, base: Sequence[Row], labels: Sequence[str | int], edit: Edit | None) -> Tensor:
    """The cross-entropy of labels behind the base prompts, summed over rows."""
    last = torch.tensor([len(row.ids) - 1 for row in base])
    logits, _ = last_logits(model, last, partial(model.forward, [list(row.ids) for row in base], edit=edit))
    return cross_entropy(logits, label_ids(model, labels).to(logits.device), reduction="sum")
