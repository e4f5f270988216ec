"""Make a Run of a model: expand the Edit's parts over layers, run its Sources, check the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inlay.errors import EditError
from inlay.model.engine import Run
from inlay.model.passes import Want
from inlay.model.tokens import Tokens

if TYPE_CHECKING:
    from inlay.model.model import Model


def make_run(
    model: Model, edit: Any, wants: Sequence[Want] = (), *, rows: Any = None, strength: Any = None, **more: Any
) -> Run:
    """A Run of `model` under an Edit.

    Args:
        model: the Model.
        edit: an Edit, or `None`.
        wants: what to read.
        rows, strength: as in `Model.edited`.
        **more: see `Run`.

    Raises:
        SiteError, TokensError, EditError: the Edit does not fit the model, or the rows the Edit.
    """
    parts = _parts(model, edit)
    sources, constants = _sources(model, parts)
    return Run(
        model.base,
        model.sites(),
        parts,
        wants,
        rows=_rows(parts, rows),
        strength=None if strength is None else torch.as_tensor(strength, dtype=torch.float32),
        sources=sources,
        constants=constants,
        text=model.text,
        **more,
    )


def wanted(model: Model, sites: Any, tokens: Any, before: bool = False) -> list[Want]:
    """What to read: one `Want` for each Site of one layer, none for `None`."""
    if sites is None:
        return []
    spec = Tokens.parse(tokens)
    return [Want(site, spec, before) for site in model.sites().expand(sites)]


def _parts(model: Model, edit: Any) -> list[Any]:
    if edit is None:
        return []
    if not hasattr(edit, "parts"):
        raise EditError(f"edit={edit!r:.80} is not an Edit: write Edit('resid_post.3', Add(v))")
    return [replace(part, site=site) for part in edit.parts for site in model.sites().expand(part.site)]


def _sources(model: Model, parts: Sequence[Any]) -> tuple[dict[int, Any], dict[int, Tensor]]:
    """Run every distinct Source once, for all the Sites that ask for it."""
    asked: dict[int, list[int]] = {}
    for index, part in enumerate(parts):
        for source in part.intervention.sources():
            asked.setdefault(id(source), []).append(index)
    paired: dict[int, Any] = {}
    constants: dict[int, Tensor] = {}
    for indices in asked.values():
        source = parts[indices[0]].intervention.sources()[0]
        asks = [source.asks(parts[i].site, parts[i].tokens) for i in indices]
        distinct = list(dict.fromkeys(asks))
        found = dict(zip(distinct, source.activations(model, distinct), strict=True))
        for index, ask in zip(indices, asks, strict=True):
            values, real = found[ask]
            constant = parts[index].intervention.reduce(values, real)
            if constant is None:
                paired[index] = (values, real)
            else:
                constants[index] = constant
    return paired, constants


def _rows(parts: Sequence[Any], rows: Any) -> Tensor | None:
    banks = [part.intervention for part in parts if part.intervention.banked]
    if rows is None:
        return None
    if not banks:
        raise EditError("rows= picks rows of a Bank, and the Edit holds none")
    chosen = torch.as_tensor(rows, dtype=torch.long)
    if chosen.ndim != 1 or not len(chosen):
        raise EditError(f"rows is one row number a prompt, not {rows!r}")
    for bank in banks:
        bank.check_rows(chosen.tolist())
    return chosen
