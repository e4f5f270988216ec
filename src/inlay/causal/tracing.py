"""Causal tracing: corrupt a subject's embeddings, restore one clean state at a time, and see what brings the fact back.

Legend: n prompts, D draws, N = n D corrupted runs (run p D + d is draw d of prompt p), A places, K token columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inlay.causal.cells import WHOLE, Base, Cells, Writes, by_head, run_cells
from inlay.causal.columns import Columns, Rows, about_how_many, batches, chosen, columns
from inlay.causal.layout import Layout, layer_of
from inlay.causal.measured import Piece, together
from inlay.causal.metrics import Ends, probability
from inlay.errors import CausalError
from inlay.interventions.bank import Bank
from inlay.interventions.closed_form import Noise
from inlay.interventions.edit import Edit
from inlay.model.answers import Answer, token_ids
from inlay.model.chosen import token_text
from inlay.model.tokens import span

if TYPE_CHECKING:
    from inlay.causal.labelled import Grid
    from inlay.model.activations import Activations
    from inlay.model.model import Model
    from inlay.model.sites import Site


@torch.no_grad()
def causal_trace(
    model: Model,
    prompts: Any,
    subject: Any,
    answer: Answer | Sequence[Answer] | None = None,
    tokens: Any = "all",
    *,
    kinds: Sequence[str] = ("resid_post", "mlp_out", "attn_out"),
    noise: float | None = None,
    draws: int = 10,
    window: int = 10,
    severed: str | None = None,
    seed: int = 0,
    batch_tokens: int = 8192,
    chat: bool | None = None,
) -> Grid:
    """The indirect effect of every token, layer and kind of state on the answer's probability.

    ROME (Meng et al. 2022, arXiv 2202.05262), sections 2.1 and B.1: the subject's embeddings get noise N(0, nu), once
    for each draw. Then, with the same noise, one clean state is restored: one layer's residual stream, or `mlp_out` or
    `attn_out` over a window of layers. P is the mean over draws of the answer's probability; TE = P_clean -
    P_corrupted and IE = P_restored - P_corrupted. All cells are rows of batches that start at the corrupted runs'
    stored states.

    Args:
        model: the Model.
        prompts: one or several, see `Encoder.rows`.
        subject: the subject's text in the prompts, or any other Tokens spec than a string; a list has one for each
            prompt (a list of ints is one spec: these positions).
        answer: the token whose probability is traced, see `logit_difference`; the clean run's likeliest by default.
        tokens: the columns, as in `patch_grid`.
        kinds: names of Sites; those of the residual stream are restored at one layer, all others over the window.
        noise: nu, in units of `embed`; by default 3 standard deviations of the subjects' token embeddings, as in
            ROME's code.
        draws: how many; draw d is the noise of `Noise(nu, seed + d)`.
        window: how many layers: l - (window - 1) // 2 to l + window // 2, cut at the ends (l - 4 to l + 5 for 10).
        severed: a kind, such as `"mlp_out"`, that stays at its corrupted values in all layers at the restored tokens,
            so that what passes through it is left out (section 2.2 and ROME's code).
        seed: of the first draw.
        batch_tokens: the most padded tokens in one forward (one row at least).
        chat: whether plain strings are user turns.

    Returns:
        IE, float32, over `component` (the kinds), `layer`, `token` and `prompt` (where there are several).
        Coordinates: `text`; of each prompt `clean` = P_clean, `corrupted` = P_corrupted, `total_effect` and `answer`.
        The means over prompts are in `attrs`, with the noise.

    Raises:
        CausalError: draws or window below 1, a severed kind that is also restored, Sites that are made of heads, or a
            model whose residual stream is not known.
        TokensError: a prompt does not hold its subject.
        InlayError: prompts, Sites or answers do not fit the model.
        ExtraError: xarray is not installed.
    """
    if draws < 1 or window < 1:
        raise CausalError(f"draws={draws} and window={window} must be at least 1")
    if severed in kinds:
        raise CausalError(f"severed={severed!r} is also restored: leave it out of kinds={tuple(kinds)}")
    layout, rows = Layout.windows(model, kinds, window), Rows.of(model, prompts, chat)
    if WHOLE in layout.starts:
        raise CausalError(f"{model.name}: tracing goes on from stored residual streams, and its map has none")
    spec = [_spec(one) for one in subject] if isinstance(subject, (list, tuple)) else _spec(subject)
    nu = _three_sigma(model, rows, spec) if noise is None else float(noise)
    given = None if answer is None else token_ids(model, answer, len(rows))
    stay = [] if severed is None else model.sites().expand(f"{severed}.*")
    bank = Bank([Noise(nu, seed + draw) for draw in range(draws)])
    trace = _Trace(layout, stay, bank, spec, tokens, batch_tokens)
    pieces, answers = [], [""] * len(rows)
    most = layout.most * draws * about_how_many(model, rows, tokens)
    for mine in batches(rows, batch_tokens // most):  # as many prompts as make full batches of cells
        piece, ids = trace.piece(model, mine, given)
        pieces.append(piece)
        for number, each in zip(mine.numbers, ids, strict=True):
            answers[number] = " | ".join(token_text(model, one) for one in each)
    grid = together(model, layout, pieces, tokens, ("indirect effect", "probability"), "prompt")
    grid = grid.assign_coords(
        total_effect=grid["clean"] - grid["corrupted"],
        answer=("prompt", answers) if len(rows) > 1 else answers[0],
    )
    means = {name: float(grid[name].mean()) for name in ("clean", "corrupted", "total_effect")}
    return grid.assign_attrs(noise=nu, draws=draws, window=window, severed=severed or "", **means)


@dataclass(frozen=True)
class _Trace:
    """What is traced; see `causal_trace`.

    Attributes:
        layout: the places, with what is restored there.
        severed: the Sites that stay at their corrupted values.
        bank: the noise, a row for each draw.
        subject: a Tokens spec, or a list with one for each prompt.
        tokens: the columns.
        batch_tokens: the most padded tokens in one forward.
    """

    layout: Layout
    severed: Sequence[Site]
    bank: Bank
    subject: Any
    tokens: Any
    batch_tokens: int

    def piece(self, model: Model, mine: Rows, answers: Sequence[Sequence[int]] | None) -> tuple[Piece, list[list[int]]]:
        """IE in some prompts, with P_clean and P_corrupted, and their answers."""
        draws = len(self.bank)
        clean, acts = Base.run(model, mine, [], self.layout.sites)
        assert acts is not None
        if answers is None:
            ids = clean.logits.argmax(-1, keepdim=True).tolist()
        else:
            ids = [list(answers[number]) for number in mine.numbers]
        measure = probability(ids).bind(model, Ends(range(len(mine)), len(mine), clean.logits))
        where = columns(model, mine, mine, self.tokens)
        base, cells = self._corrupted(model, mine, where, acts)
        found = torch.full((len(cells), len(base.rows)), torch.nan)
        for ran in run_cells(model, base, where.repeated(draws), cells, self.batch_tokens):
            found[ran.cells, ran.runs] = measure(ran.logits, ran.runs // draws).cpu()
        of = torch.arange(len(mine))
        corrupted = measure(base.logits, of.repeat_interleave(draws)).cpu().unflatten(0, (-1, draws)).mean(1)
        effect = found.unflatten(1, (-1, draws)).mean(2) - corrupted
        values = effect.unflatten(0, (len(self.layout), -1))
        return Piece(mine, where, values, measure(clean.logits, of).cpu(), corrupted), ids

    def _corrupted(self, model: Model, mine: Rows, where: Columns, clean: Activations) -> tuple[Base, Cells]:
        """The corrupted runs, and the cells that restore clean states in them."""
        draws = len(self.bank)
        runs, every = mine.repeated(draws), torch.arange(len(mine) * draws)
        edit = Edit("embed", self.bank, chosen(model, mine, self.subject).repeat_interleave(draws, 0))
        picks = list(range(1, draws + 1)) * len(mine)
        base, kept = Base.run(model, runs, self.layout.starts, self.severed, edit, picks)
        stored = {site: by_head(clean, site) for site in self.layout.sites}
        cells = self.layout.cells(len(where), stored, every // draws, where.repeated(draws).source)
        return base, replace(cells, writes=[*cells.writes, *self._stays(kept, where, every)])

    def _stays(self, kept: Activations | None, where: Columns, every: Tensor) -> Iterator[Writes]:
        """Settings of the severed Sites, from a cell's start up, to what they are in the corrupted run itself."""
        for site in self.severed:
            assert kept is not None
            places = (self.layout.start <= layer_of(site)).nonzero().flatten()
            slot, values = torch.arange(where.base.shape[2])[None, None], by_head(kept, site)
            yield Writes.at(site, places, None, len(where), values=values, run=every, slot=slot)


def _three_sigma(model: Model, rows: Rows, subject: Any) -> float:
    """3 standard deviations of the numbers in all subjects' token embeddings."""
    embedded = model.read(rows.ids, "embed")["embed"]
    return 3.0 * float(embedded[chosen(model, rows, subject)].float().std())


def _spec(subject: Any) -> Any:
    return span(subject) if isinstance(subject, str) else subject
