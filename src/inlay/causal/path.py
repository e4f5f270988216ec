"""Path patching: what senders change in receivers directly, with everything else that could pass it on held."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inlay.causal.cells import Base, Ran, by_head, run_cells, start_of
from inlay.causal.columns import Columns, Rows, batches, chosen
from inlay.causal.layout import Layout, Sites, layer_of
from inlay.causal.measured import Piece, together
from inlay.causal.metrics import Direction, Ends, Metric
from inlay.causal.stored import Hold
from inlay.interventions.edit import Edit
from inlay.model.sites import Site

if TYPE_CHECKING:
    from inlay.causal.labelled import Grid
    from inlay.model.model import Model


@torch.no_grad()
def path_patch(
    model: Model,
    base: Any,
    source: Any,
    senders: Sites,
    receivers: Sites = "logits",
    *,
    metric: Metric | Callable[[Tensor], Tensor],
    freeze: Sequence[str] = ("z",),
    tokens: Any = "all",
    source_tokens: Any = None,
    receiver_tokens: Any = "all",
    direction: Direction = "noise",
    batch_tokens: int = 8192,
    chat: bool | None = None,
) -> Grid:
    """The effect of senders on a metric along the paths to the receivers alone (IOI, 2211.00593, section 3.1, app. B).

    1. Base and source run once. 2. The base runs with what `freeze` names held at its own values in every layer, and
    with the senders at the source's values; norms, and the MLPs unless they are held, are computed anew. What then
    arrives at the receivers is kept. 3. The base runs with the receivers set to that, and nothing held. Where the
    receivers are the logits, those of step 2 are the answer.

    Args:
        model: the Model.
        base: the run that is patched: a prompt or several, see `Encoder.rows`.
        source: the run that the senders are taken from, a prompt for each of `base`.
        senders: Sites of layers, such as `"z.9.h6"` or `["z.9.h[6,9]", "mlp_out.3"]`, set together.
        receivers: Sites of layers, such as `"q.9.h6"`, `"resid_pre.5"` or `"mlp_in.7"`, or `"logits"`.
        freeze: names of Sites. `("z",)`: paths through MLPs count as direct; `("z", "mlp_out")`: the residual stream
            alone; `()`: ordinary patching where the receivers are the logits.
        tokens: at which tokens the senders are set; a list has a Tokens spec for each prompt.
        source_tokens: the same for the source, where other tokens are meant.
        receiver_tokens: at which tokens the receivers are.
        metric: as in `patch_grid`.
        direction: which run is the clean one, as in `patch_grid`; here `"noise"`, a clean base, is the usual one.
        batch_tokens: the most padded tokens in one forward (one row at least).
        chat: whether plain strings are user turns.

    Returns:
        The metric, float32, over `pair` where there are several. Coordinates: `clean` and `corrupted`, the metric of
        the two runs of each pair.

    Raises:
        CausalError: the prompts do not pair up, a Site has no layer, or the logits are one receiver of several.
        TokensError: the runs of a pair select unequal numbers of tokens.
        InlayError: prompts, Sites, Tokens or answers do not fit the model.
        ExtraError: xarray is not installed.
    """
    paths = _Paths.of(model, base, source, receivers, freeze, tokens, source_tokens, receiver_tokens, chat)
    layout = Layout.joint(model, senders)
    grid = paths.grid(model, layout, Metric.of(metric), direction, batch_tokens)
    return grid.isel(layer=0, token=0, drop=True).drop_vars("component")


@torch.no_grad()
def path_grid(
    model: Model,
    base: Any,
    source: Any,
    senders: Sites = "z.*",
    receivers: Sites = "logits",
    *,
    metric: Metric | Callable[[Tensor], Tensor],
    freeze: Sequence[str] = ("z",),
    tokens: Any = "all",
    source_tokens: Any = None,
    receiver_tokens: Any = "all",
    direction: Direction = "noise",
    batch_tokens: int = 8192,
    chat: bool | None = None,
) -> Grid:
    """`path_patch` with every Site, or every head of it, as the only sender in turn; all of them as rows of batches.

    Args:
        model, base, source, receivers, metric, freeze: as in `path_patch`.
        tokens, source_tokens, receiver_tokens, direction, batch_tokens, chat: as in `path_patch`.
        senders: Sites as in `patch_grid`, by default every head.

    Returns:
        As `patch_grid`, without `token`.

    Raises:
        InlayError: as `path_patch`.
    """
    paths = _Paths.of(model, base, source, receivers, freeze, tokens, source_tokens, receiver_tokens, chat)
    grid = paths.grid(model, Layout.each(model, senders), Metric.of(metric), direction, batch_tokens)
    return grid.isel(token=0, drop=True)


@dataclass(frozen=True)
class _Paths:
    """Base and source runs, and which paths between senders and receivers count; see `path_patch`.

    Attributes:
        base: the base runs.
        source: the source runs.
        receivers: their Sites; none stands for the logits.
        frozen: the Sites that are held.
        tokens, source_tokens, receiver_tokens: Tokens specs, or lists of them.
    """

    base: Rows
    source: Rows
    receivers: Sequence[Site]
    frozen: Sequence[Site]
    tokens: Any
    source_tokens: Any
    receiver_tokens: Any

    @classmethod
    def of(
        cls,
        model: Model,
        base: Any,
        source: Any,
        receivers: Sites,
        freeze: Sequence[str],
        tokens: Any,
        source_tokens: Any,
        receiver_tokens: Any,
        chat: bool | None,
    ) -> _Paths:
        """Of what a caller gave.

        Raises:
            CausalError: the prompts do not pair up, or the receivers are no Sites of layers.
        """
        found = [] if str(receivers) == "logits" else model.sites().expand(receivers)
        for site in found:
            layer_of(site)
        frozen = model.sites().expand([f"{name}.*" for name in freeze]) if freeze else []
        rows, others = Rows.paired(model, base, source, chat)
        theirs = tokens if source_tokens is None else source_tokens
        return cls(rows, others, found, frozen, tokens, theirs, receiver_tokens)

    def grid(self, model: Model, layout: Layout, metric: Metric, direction: Direction, batch_tokens: int) -> Grid:
        """Measure every place of a layout as the sender."""
        pieces = []
        for mine in batches(self.base, batch_tokens // layout.most):
            theirs = self.source.pick(mine.numbers)
            run, acts = Base.run(model, theirs, [], layout.sites)
            assert acts is not None
            starts = {*layout.starts, *(start_of(model, site) for site in self.receivers)}
            base, own = Base.run(model, mine, sorted(starts), self.frozen)
            given, taken = chosen(model, mine, self.tokens), chosen(model, theirs, self.source_tokens)
            where = Columns.of([given], [taken], mine)
            stored = {site: by_head(acts, site) for site in layout.sites}
            cells = layout.cells(1, stored, torch.arange(len(mine)), where.source)
            held = {site: own[site].flatten(2) for site in self.frozen} if own is not None else {}
            ends = Ends.of(mine, base.logits, run.logits, direction)
            measure, mask = metric.bind(model, ends), chosen(model, mine, self.receiver_tokens)
            found = torch.full((len(cells), len(mine)), torch.nan)
            for ran in run_cells(model, base, where, cells, batch_tokens, held, self.receivers):
                logits = self._arrived(model, base, ran, mask) if self.receivers else ran.logits
                found[ran.cells, ran.runs] = measure(logits, ran.runs).cpu()
            pieces.append(Piece.of(mine, where, found[:, None], ends, measure))
        return together(model, layout, pieces, _ONE, (metric.name, metric.units), direction=direction)

    def _arrived(self, model: Model, base: Base, ran: Ran, mask: Tensor) -> Tensor:
        """Logits of the base runs with the receivers set to what a batch's senders changed in them."""
        reached = [site for site in self.receivers if ran.acts is not None and site in ran.acts]
        if not reached:  # all of them lie below the senders
            return base.logits[ran.runs.to(base.logits.device)]
        parts = [p for s in reached for p in Edit(s, Hold(ran.acts[s].flatten(2), mask[ran.runs])).parts]
        cut = min(start_of(model, site) for site in reached)
        return base.go_on(model, cut, ran.runs, Edit.of(tuple(parts)))[0]


_ONE = {"selected": None}
