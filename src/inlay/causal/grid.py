"""Patching and ablation grids: every Site, head and token of a run set to another value, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inlay.causal.cells import Base, Cells, by_head, run_cells
from inlay.causal.columns import Columns, Rows, about_how_many, batches, chosen, columns
from inlay.causal.layout import Layout, Sites
from inlay.causal.measured import Piece, together
from inlay.causal.metrics import Direction, Ends, Metric

if TYPE_CHECKING:
    from inlay.causal.labelled import Grid
    from inlay.model.model import Model
    from inlay.model.sites import Site


@torch.no_grad()
def patch_grid(
    model: Model,
    base: Any,
    source: Any,
    sites: Sites,
    tokens: Any = "all",
    *,
    metric: Metric | Callable[[Tensor], Tensor],
    source_tokens: Any = None,
    direction: Direction = "denoise",
    batch_tokens: int = 8192,
    chat: bool | None = None,
) -> Grid:
    """Activation patching: a metric of the base run with one Site, head and token set to what the source run has there.

    Denoising patches clean activations into a corrupted base and shows what suffices; noising patches corrupted ones
    into a clean base and shows what is needed (Heimersheim and Nanda 2024, arXiv 2404.15255). The cells are rows of
    batches that start at the base run's stored states below the patched layer.

    Args:
        model: the Model.
        base: the run that is patched: a prompt or several, see `Encoder.rows`.
        source: the run that activations are taken from, a prompt for each of `base`.
        sites: Sites of layers, such as `"resid_pre.*"` or `["attn_out.*", "mlp_out.*"]`. Sites that are made of heads
            (`"z.*"`, `"z.5.h3"`) are patched head by head, in a call of their own.
        tokens: a Tokens spec: one column for each selected token, the k-th of the base with the k-th of the source; or
            names with specs, `{"subject": span("Paris"), "last": -1}`: one column for each name, all of its tokens
            patched at once. In place of a spec a list has one for each prompt.
        metric: of the logits at the base's last token: one of `inlay.causal.metrics`, or f(logits [rows, vocabulary])
            that gives [rows].
        source_tokens: the same for the source, where other tokens are meant.
        direction: `"denoise"`: the base is the corrupted run and the source the clean one; `"noise"`: the base is the
            clean one. Metrics that speak of the clean run go by it.
        batch_tokens: the most padded tokens in one forward (one row at least).
        chat: whether plain strings are user turns.

    Returns:
        The metric, float32, over `component` (where several names of Sites are asked for), `layer`, `head` (where the
        Sites have heads), `token` and `pair` (where there are several). Cells that were not asked for, or that a pair
        has no token for, are NaN. Coordinates: `text` of the base's tokens, `clean` and `corrupted` the metric of the
        two runs of each pair. Average over pairs with `grid.mean("pair")`.

    Raises:
        CausalError: the prompts do not pair up, a Site has no layer, or Sites with and without heads are mixed.
        TokensError: the runs of a pair select unequal numbers of tokens.
        InlayError: prompts, Sites, Tokens or answers do not fit the model.
        ExtraError: xarray is not installed.
    """
    layout, (rows, sources) = Layout.each(model, sites), Rows.paired(model, base, source, chat)

    def patched(mine: Rows) -> tuple[Columns, Cells, Tensor]:
        theirs = sources.pick(mine.numbers)
        run, acts = Base.run(model, theirs, [], layout.sites)
        assert acts is not None
        where = columns(model, mine, theirs, tokens, source_tokens)
        stored = {site: by_head(acts, site) for site in layout.sites}
        return where, layout.cells(len(where), stored, torch.arange(len(mine)), where.source), run.logits

    return _grid(model, rows, layout, patched, tokens, Metric.of(metric), direction, batch_tokens)


@torch.no_grad()
def ablate_grid(
    model: Model,
    prompts: Any,
    sites: Sites,
    tokens: Any = "all",
    *,
    metric: Metric | Callable[[Tensor], Tensor],
    mean_of: Any = None,
    batch_tokens: int = 8192,
    chat: bool | None = None,
) -> Grid:
    """Ablation: a metric of the run with one Site or head set to zero, or to its mean, at all of the selected tokens.

    Args:
        model: the Model.
        prompts: the runs; the coordinate `clean` is their metric without an ablation.
        sites: as in `patch_grid`.
        tokens: which tokens are ablated, all at once; a list has a spec for each prompt.
        metric: as in `patch_grid`.
        mean_of: prompts over all of whose tokens the mean is taken; zero by default.
        batch_tokens: the most padded tokens in one forward (one row at least).
        chat: whether plain strings are user turns.

    Returns:
        As `patch_grid`, without `token`, and with `prompt` in place of `pair`.

    Raises:
        InlayError: as `patch_grid`.
    """
    layout, rows = Layout.each(model, sites), Rows.of(model, prompts, chat)
    stored = _constants(model, layout.sites, rows, None if mean_of is None else Rows.of(model, mean_of, chat))

    def patched(mine: Rows) -> tuple[Columns, Cells, None]:
        table = chosen(model, mine, tokens)
        run, slot = torch.zeros(len(mine), dtype=torch.long), torch.zeros(1, 1, 1, dtype=torch.long)
        return Columns.of([table], [table], mine), layout.cells(1, stored, run, slot), None

    one = {"selected": tokens}
    return _grid(model, rows, layout, patched, one, Metric.of(metric), None, batch_tokens).isel(token=0, drop=True)


def _constants(model: Model, sites: Sequence[Site], rows: Rows, mean_of: Rows | None) -> dict[Site, Tensor]:
    """What an ablation sets at each Site, [1, 1, H, width of a head]: zeros, or the means over prompts' tokens."""
    acts = model.read((mean_of or rows.pick([0])).ids, sites, device=model.device)
    assert acts.mask is not None
    found = {}
    for site in sites:
        values = by_head(acts, site)
        mean = values.float().sum((0, 1), keepdim=True) / acts.mask.sum()
        found[site] = (mean if mean_of else torch.zeros_like(mean)).to(values.dtype)
    return found


def _grid(
    model: Model,
    rows: Rows,
    layout: Layout,
    patched: Callable[[Rows], tuple[Columns, Cells, Tensor | None]],
    tokens: Any,
    metric: Metric,
    direction: Direction | None,
    batch_tokens: int,
) -> Grid:
    """Measure every cell in every base run.

    `patched` gives for some base runs their token columns, the cells, and the source runs' logits. These and a
    direction are there where each base run is one of a pair.
    """
    pieces, most = [], layout.most * about_how_many(model, rows, tokens)
    for mine in batches(rows, batch_tokens // most):  # as many base runs as make full batches of cells
        where, cells, source = patched(mine)
        base, _ = Base.run(model, mine, layout.starts)
        ends = Ends.of(mine, base.logits, source, direction)
        measure = metric.bind(model, ends)
        found = torch.full((len(cells), len(mine)), torch.nan)
        for ran in run_cells(model, base, where, cells, batch_tokens):
            found[ran.cells, ran.runs] = measure(ran.logits, ran.runs).cpu()
        pieces.append(Piece.of(mine, where, found.unflatten(0, (len(layout), -1)), ends, measure))
    about = {} if direction is None else {"direction": direction}
    dim = "prompt" if direction is None else "pair"
    return together(model, layout, pieces, tokens, (metric.name, metric.units), dim, **about)
