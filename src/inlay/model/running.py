"""Make a Run of a model: expand the Edit's parts over layers, run its Sources, check the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inlay.errors import EditError, SiteError
from inlay.model.engine import Run
from inlay.model.passes import Tally, Want
from inlay.model.sites import Site
from inlay.model.tokens import Tokens
from inlay.model.windows import Live

if TYPE_CHECKING:
    from inlay.model.model import Model


def make_run(
    model: Model,
    edit: Any,
    wants: Sequence[Want] = (),
    *,
    rows: Any = None,
    strength: Any = None,
    keys: Any = None,
    cut: Cut | None = None,
    beside: Mapping[int, Run] | None = None,
    **more: Any,
) -> Run:
    """A Run of `model` under an Edit.

    Args:
        model: the Model.
        edit: an Edit, or `None`.
        wants: what to read.
        rows, strength, keys: as in `Model.edited`.
        cut: which of all rows this run is of, where a job is run in batches.
        beside: the runs of Sources in the same forward, by the Source's id; others are run now.
        **more: see `Run`.

    Raises:
        SiteError, TokensError, EditError: the Edit does not fit the model, or the rows the Edit.
    """
    parts = every = expanded(model, edit)
    chosen, factor = _rows(parts, rows), _strength(strength)
    if cut is not None:
        parts = _picked(model, every, cut)
        wants = [replace(want, tokens=want.tokens.pick(cut.rows, cut.total, cut.longest)) for want in wants]
        more |= {"numbers": cut.rows, "tally": cut.tally}
        chosen = chosen if chosen is None else chosen[cut.rows]
        factor = factor if factor is None or not factor.ndim else factor[cut.rows]
    sources, constants = _sources(model, parts, cut.constants if cut else {}, cut.whole if cut else {}, beside or {})
    if cut is not None:  # a source that belongs to no single row is run in the first batch and kept
        cut.whole |= {i: sources[i] for i in sources if parts[i].intervention.source is every[i].intervention.source}
    return Run(
        model.base,
        model.sites(),
        parts,
        wants,
        rows=chosen,
        strength=factor,
        keys=_keys(keys),
        sources=sources,
        constants=constants,
        text=model.text,
        **more,
    )


def _picked(model: Model, parts: Sequence[Any], cut: Cut) -> list[Any]:
    """The parts cut to the rows of a batch; one Source in several parts stays one."""
    known: dict[int, Any] = {}

    def source(whole: Any) -> Any:
        if id(whole) not in known:
            known[id(whole)] = whole.pick(model, cut.rows, cut.total, one)
        return known[id(whole)]

    def one(part: Any) -> Any:
        return replace(
            part,
            tokens=part.tokens.pick(cut.rows, cut.total, cut.longest),
            intervention=part.intervention.picked(source),
            when=part.when and part.when.pick(cut.rows, cut.total, cut.longest),
        )

    return [one(part) for part in parts]


@dataclass
class Cut:
    """Some rows of a job that is run in batches.

    Attributes:
        rows: the row numbers of this batch.
        total: how many rows the job has.
        constants: what was pooled over all rows of a Source, by part; filled by the first batch.
        whole: the values of Sources that belong to no single row, by part; filled by the first batch.
        longest: the tokens of this batch's longest row.
        tally: what the Edit touched over all batches.
    """

    rows: list[int]
    total: int
    constants: dict[int, Tensor]
    whole: dict[int, tuple[Tensor, Tensor | None] | Live]
    longest: int
    tally: Tally


def wanted(model: Model, sites: Any, tokens: Any, before: bool = False) -> list[Want]:
    """What to read: one `Want` for each Site of one layer, none for `None`."""
    if sites is None:
        return []
    spec = Tokens.parse(tokens)
    return [Want(site, spec, before) for site in model.sites().expand(sites)]


def expanded(model: Model, edit: Any) -> list[Any]:
    """The parts of an Edit, one for each layer that is meant."""
    if edit is None:
        return []
    if not hasattr(edit, "parts"):
        raise EditError(f"edit={edit!r:.80} is not an Edit: write Edit('resid_post.3', Add(v))")
    return [replace(part, site=site) for part in edit.parts for site in model.sites().expand(part.site)]


def _sources(
    model: Model,
    parts: Sequence[Any],
    known: dict[int, Tensor],
    whole: Mapping[int, tuple[Tensor, Tensor | None] | Live],
    beside: Mapping[int, Run],
) -> tuple[dict[int, tuple[Tensor, Tensor | None] | Live], dict[int, Tensor]]:
    """Run every distinct Source once, for all the Sites that ask for it."""
    asked: dict[int, list[int]] = {}
    for index, part in enumerate(parts):
        for source in part.intervention.sources():
            if index not in known and index not in whole:
                asked.setdefault(id(source), []).append(index)
    paired = dict(whole)
    for indices in asked.values():
        source = parts[indices[0]].intervention.sources()[0]
        asks = [parts[i].intervention.asks(model, parts[i].site, parts[i].tokens) for i in indices]
        if run := beside.get(id(source)):
            for index, ask in zip(indices, asks, strict=True):
                _check_width(model, parts[index].site, ask[0], model.sites().width(ask[0]))
                paired[index] = Live(run, [(w.site, w.tokens) for w in run.wants].index(ask), source.grad)
            continue
        distinct = list(dict.fromkeys(asks))
        found = dict(zip(distinct, source.activations(model, distinct), strict=True))
        for index, ask in zip(indices, asks, strict=True):
            values, real = found[ask]
            _check_width(model, parts[index].site, ask[0], values.shape[-1])
            constant = parts[index].intervention.reduce(values, real)
            if constant is None:
                paired[index] = (values, real)
            else:
                known[index] = constant
    return paired, known


def _check_width(model: Model, site: Site, ask: Site, have: int) -> None:
    width = model.sites().width(site)
    if width > 0 and have > 0 and have != width:
        raise SiteError(f"the source at {ask} has width {have}, and {site} has width {width}")


def _strength(strength: Any) -> Tensor | None:
    if strength is None:
        return None
    try:
        factor = torch.as_tensor(strength, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):
        raise EditError(f"strength is one number, or one for each prompt, not {strength!r:.60}") from None
    if factor.ndim > 1 or not factor.numel():
        raise EditError(f"strength is one number, or one for each prompt, not a tensor of shape {list(factor.shape)}")
    if not bool(torch.isfinite(factor.detach()).all()):
        raise EditError(f"strength={strength!r:.60}: give finite numbers")
    return factor


def _keys(keys: Any) -> Tensor | None:
    if keys is None:
        return None
    try:
        drawn = torch.as_tensor(keys)
    except (TypeError, ValueError, RuntimeError):
        raise EditError(f"keys is one integer a prompt, not {keys!r:.60}") from None
    if drawn.ndim != 1 or not len(drawn) or drawn.dtype not in (torch.int64, torch.int32):
        raise EditError(f"keys is one integer a prompt, not {keys!r:.60}")
    return drawn.long()


def _rows(parts: Sequence[Any], rows: Any) -> Tensor | None:
    banks = [part.intervention for part in parts if part.intervention.banked]
    if rows is None:
        return None
    if not banks:
        raise EditError("rows= picks rows of a Bank, and the Edit holds none")
    try:
        chosen = torch.as_tensor(rows)
    except (TypeError, ValueError, RuntimeError):
        raise EditError(f"rows is one row number a prompt, not {rows!r}") from None
    if chosen.ndim != 1 or not len(chosen) or chosen.dtype not in (torch.int64, torch.int32):
        raise EditError(f"rows is one row number a prompt, not {rows!r}")
    chosen = chosen.long()
    for bank in banks:
        bank.check_rows(chosen.tolist())
    return chosen
