"""Many patched runs as rows of a few batches: each row is one base run with its own cell's values set into it.

Legend: n base runs of S slots, C cells, K token columns, E writes at one Site, r rows of a batch, H heads.

A row starts at its base run's stored state just below the first Site that its cell sets, so that the layers below are
not run again, and logits are computed at the answer position alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inlay.causal.columns import Columns, Rows
from inlay.causal.stored import Hold, Patch
from inlay.interventions.edit import Edit, Part
from inlay.model.last_logits import last_logits
from inlay.model.resume import States
from inlay.model.sites import Site
from inlay.model.tokens import Tokens

if TYPE_CHECKING:
    from inlay.model.activations import Activations
    from inlay.model.model import Model

_ALL = Tokens.parse("all")
WHOLE = -1  # in place of a number of blocks: the run starts at its prompts


@dataclass(frozen=True)
class Writes:
    """What cells set at one Site.

    Attributes:
        site: a Site of one layer, without heads.
        cell: int64 [E], ascending: which cell each write belongs to.
        head: int64 [E], 0 at a Site without heads.
        values: [q, slots, H, width of a head], the stored activations that are set.
        run: int64 [n], which of the q stored runs serves each base run.
        slot: int64, expands to [K, n, S]: which stored slot serves each slot of a base run.
    """

    site: Site
    cell: Tensor
    head: Tensor
    values: Tensor
    run: Tensor
    slot: Tensor

    @classmethod
    def at(cls, site: Site, place: Tensor, head: Tensor | None, columns: int, **more: Any) -> Writes:
        """What the cells of some places, ascending, set in all of K columns; cell a K + k is place a, column k."""
        cell = (place[:, None] * columns + torch.arange(columns)).flatten()
        heads = torch.zeros_like(cell) if head is None else head.repeat_interleave(columns)
        return cls(site, cell, heads, **more)

    @cached_property
    def _entries(self) -> tuple[Tensor, Tensor]:
        """For every cell its first write and how many it has, int64 [C'] each, up to the last cell that has one."""
        count = self.cell.bincount()
        return count.cumsum(0) - count, count

    def patch(self, reach: Reach) -> Patch | None:
        """What the cells of some rows set here, `None` for nothing."""
        first, count = self._entries
        here = reach.cell < len(count)
        cell = reach.cell.where(here, 0)
        times = count[cell] * here
        at = torch.arange(len(times)).repeat_interleave(times)
        if not len(at):
            return None
        nth = torch.arange(len(at)) - (times.cumsum(0) - times)[at]
        head = self.head[first[cell[at]] + nth]
        run, slot = reach.run[at], reach.slot[at]
        there = self.slot.expand(reach.shape)[reach.column[at], run, slot]
        return Patch(reach.row[at], slot, head, self.values[self.run[run], there, head], self.values.shape[2])


@dataclass(frozen=True)
class Reach:
    """The slots that the cells of some rows cover, p of them.

    Attributes:
        row: int64 [p], ascending.
        slot: int64 [p].
        cell: int64 [p], the row's cell.
        run: int64 [p], the row's base run.
        column: int64 [p], the cell's token column.
        shape: K, n and S of the columns.
    """

    row: Tensor
    slot: Tensor
    cell: Tensor
    run: Tensor
    column: Tensor
    shape: torch.Size

    @classmethod
    def of(cls, cells: Tensor, runs: Tensor, column: Tensor, columns: Columns) -> Reach:
        """Of rows with these cells, base runs and token columns, int64 [r] each."""
        row, slot = columns.base[column, runs].nonzero(as_tuple=True)
        return cls(row, slot, cells[row], runs[row], column[row], columns.base.shape)


@dataclass(frozen=True)
class Cells:
    """C patched runs to make of every base run.

    Attributes:
        column: int64 [C], the token column of each.
        start: int64 [C], how many blocks need not be run again, or `WHOLE`.
        writes: what they set, Site by Site.
    """

    column: Tensor
    start: Tensor
    writes: Sequence[Writes]

    def __len__(self) -> int:
        return len(self.column)


@dataclass(frozen=True)
class Base:
    """The runs that cells are set into.

    Attributes:
        rows: their prompts.
        starts: by number of blocks below, the residual stream.
        logits: float32 [n, vocabulary], at each row's last token.
    """

    rows: Rows
    starts: Mapping[int, States]
    logits: Tensor

    @classmethod
    def run(
        cls,
        model: Model,
        rows: Rows,
        starts: Sequence[int],
        read: Sequence[Site] = (),
        edit: Any = None,
        picks: Sequence[int] | None = None,
    ) -> tuple[Base, Activations | None]:
        """Run them once.

        Args:
            model: the Model.
            rows: the prompts.
            starts: from how many blocks up cells will go on; none where none will.
            read: Sites to read at all tokens.
            edit: an Edit on `embed`, where the base is an edited run.
            picks: for its Bank, the row that each prompt uses.

        Returns:
            The runs, and what was read.
        """
        sites = {cut: _state_site(cut) for cut in starts if cut != WHOLE}
        wanted = list(dict.fromkeys([*sites.values(), *read])) or None
        if not sites:
            forward = partial(model.forward, rows.ids, edit=edit, rows=picks, read=wanted)
            logits, output = last_logits(model, rows.last, forward)
            return cls(rows, {}, logits.float()), output.acts
        first = model.states(rows.ids, "resid_pre.0", edit=edit, rows=picks)
        logits, output = last_logits(model, rows.last, partial(model.resume, first, read=wanted))
        assert output.acts is not None
        kept = {cut: States(site, output.acts[site], first.batch) for cut, site in sites.items()}
        return cls(rows, kept, logits.float()), output.acts

    def go_on(self, model: Model, cut: int, runs: Tensor, edit: Any, read: Sequence[Site] = ()) -> tuple[Tensor, Any]:
        """Rows of these runs from `cut` blocks up, under an Edit.

        Args:
            model: the Model.
            cut: how many blocks are not run, or `WHOLE`.
            runs: int64 [r], which base run each row is.
            edit: the Edit.
            read: Sites to read at all tokens, before the Edit acts there.

        Returns:
            Logits float32 [r, vocabulary] at each row's last token, and what was read.
        """
        more: dict[str, Any] = {"edit": edit, "read": list(read) or None, "before": True}
        if cut == WHOLE:
            ids = self.rows.ids
            forward = partial(model.forward, [ids[run] for run in runs.tolist()], **more)
        else:
            forward = partial(model.resume, self.starts[cut].pick(runs), **more)
        logits, output = last_logits(model, self.rows.last[runs], forward)
        return logits.float(), output.acts


@dataclass(frozen=True)
class Ran:
    """One batch of patched runs.

    Attributes:
        cells: int64 [r], the cell of each row.
        runs: int64 [r], its base run.
        logits: float32 [r, vocabulary], at its last token.
        acts: what was read.
    """

    cells: Tensor
    runs: Tensor
    logits: Tensor
    acts: Any


def run_cells(
    model: Model,
    base: Base,
    columns: Columns,
    cells: Cells,
    batch_tokens: int,
    held: Mapping[Site, Tensor] | None = None,
    read: Sequence[Site] = (),
) -> Iterator[Ran]:
    """Every cell in every base run that has its column, as rows of batches.

    Args:
        model: the Model.
        base: the base runs.
        columns: their token columns.
        cells: what each patched run sets.
        batch_tokens: the most padded tokens of a batch (one row at least).
        held: stored values [n, S, width] by Site, set at all tokens of every row before what its cell sets there.
        read: Sites to read; those below a row's start are left out.
    """
    most = max(1, batch_tokens // columns.base.shape[2])
    there = columns.base.any(2)
    for cut in cells.start.unique().tolist():
        group = (cells.start == cut).nonzero().flatten()
        index, runs = there[cells.column[group]].nonzero(as_tuple=True)
        writes = [one for one in cells.writes if bool((cells.start[one.cell] == cut).any())]
        above = [(s, values) for s, values in (held or {}).items() if s.layer is not None and s.layer >= cut]
        reads = [site for site in read if site.layer is not None and site.layer >= cut]
        for some in torch.arange(len(runs)).split(most):
            mine, run = group[index[some]], runs[some]
            parts = [Part(site, _ALL, Hold(values[run.to(values.device)])) for site, values in above]
            reach = Reach.of(mine, run, cells.column[mine], columns)
            parts += [Part(one.site, _ALL, patch) for one in writes if (patch := one.patch(reach)) is not None]
            logits, acts = base.go_on(model, cut, run, Edit.of(tuple(parts)), reads)
            yield Ran(mine, run, logits, acts)


def start_of(model: Model, site: Site) -> int:
    """How many blocks a run that changes nothing below a Site need not run again; `WHOLE` where it cannot go on there.

    Args:
        model: the Model.
        site: a Site of one layer.
    """
    assert site.layer is not None
    cut = site.layer + (site.name == "resid_post")
    places = model.sites().places
    known = 0 in places.get("resid_pre", {}) and (not cut or cut - 1 in places.get("resid_post", {}))
    return cut if known else WHOLE


def by_head(acts: Activations, site: Site) -> Tensor:
    """What was read at a Site without heads named, as [n, slots, H, width of a head]; one head where it has none."""
    values = acts[site]
    return values if values.ndim == 4 else values[:, :, None]


def _state_site(cut: int) -> Site:
    return Site("resid_post", cut - 1) if cut else Site("resid_pre", 0)
