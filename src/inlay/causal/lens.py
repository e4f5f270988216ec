"""The logit lens: what the model would say if a state of the residual stream were its last one.

Legend: N positions of all prompts, S Sites, W width, V vocabulary, m ids of an answer, k likeliest tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from inlay.causal.selected import Selected
from inlay.causal.tail import check_edit, last_site, residual_sites, tail_logits
from inlay.errors import CausalError
from inlay.model.answers import answer_table
from inlay.model.chosen import token_text
from inlay.model.sites import Site

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from inlay.causal.labelled import Grid
    from inlay.causal.tuned_lens import TunedLens
    from inlay.model.answers import Answer
    from inlay.model.model import Model

AT_ONCE = 512  # positions whose logits are in memory


@dataclass(frozen=True)
class LensReading:
    """What a lens shows. Grids [prompt, token, layer], without `token` where `tokens` is one position a row.

    With Sites of several names there is a dimension `component` before `layer`, which has the names. Cells that do not
    exist are NaN, or "" among texts.

    Attributes:
        kl: KL(final || here) in nats, from the model's own next-token distribution.
        entropy: of the distribution here, in nats.
        logprob: natural logarithm of the answer's probability, summed over its ids.
        rank: of the answer's likeliest id among all tokens, from 1.
        top, top_prob: the likeliest tokens as texts (ids without a tokenizer) and their probabilities, with a last
            dimension `place` from 1.
    """

    kl: Grid
    entropy: Grid
    logprob: Grid
    rank: Grid
    top: Grid
    top_prob: Grid

    def plot(self, prompt: int = 0) -> Figure:
        """The usual picture: layers upwards, tokens along x, each cell with its likeliest token and its probability.

        Args:
            prompt: which one.

        Raises:
            CausalError: the reading has several components, or one position a row.
            ExtraError: matplotlib is not installed.
        """
        words, probability = (grid.isel(prompt=prompt, place=0) for grid in (self.top, self.top_prob))
        if set(words.dims) != {"token", "layer"}:
            raise CausalError(f"the picture has tokens and layers, and this reading has {words.dims}; plot its Grids")
        figure: Figure = probability.plot(limits=(0.0, 1.0))
        axes = figure.axes[0]
        for (y, x), word in np.ndenumerate(words.transpose("layer", "token").values):
            dark = probability.isel(layer=y, token=x).item() > 0.5
            axes.text(x, y, word.strip(), ha="center", va="center", fontsize=6, color="white" if dark else "black")
        widest = max(map(len, words.values.flatten()))
        figure.set_figwidth((0.25 + 0.06 * widest) * words.sizes["token"] + 1.6)
        return figure


def logit_lens(
    model: Model,
    prompts: Any,
    sites: str | Site | Sequence[str | Site] = "resid_post.*",
    tokens: Any = "all",
    answers: Answer | Sequence[Answer] | None = None,
    *,
    lens: TunedLens | None = None,
    top: int = 5,
    **reading: Any,
) -> LensReading:
    """What the model would say if it ended at these states: final norm and head applied to each of them.

    Each state is put in the place of the last block's output and the model's own forward goes on from there, so that
    soft-caps, logit scales, tied and projected heads are the family's own. At the last `resid_post` this is the model's
    own answer. A state is normed by itself; `logit_attribution` holds the norm at the last state instead.

    Early layers often speak another basis than the head's. A `TunedLens` translates them first.

    Source: nostalgebraist 2020, "interpreting GPT: the logit lens".

    Args:
        model: the Model.
        prompts: see `Encoder.rows`.
        sites: `resid_pre`, `resid_mid` and `resid_post` of any layers.
        tokens: at which positions.
        answers: the token that `logprob` and `rank` are of, as in `logit_difference`: one for all prompts, or a list
            with one for each. By default what the model itself finds likeliest at each position.
        lens: translates the states before they are decoded.
        top: how many of the likeliest tokens to name.
        **reading: what else `Model.read` is to know of the run: `responses`, `edit`, `rows`, `strength`, `chat`,
            `batch_tokens`.

    Raises:
        SiteError: a Site is no state of the residual stream, or the lens has no translator for it.
        CausalError: answers that are no tokens, a lens of another Model, an edit of what lies behind the residual
            stream, or `top` below 1.
        ModelError: the model has an encoder and a decoder.
    """
    if top < 1:
        raise CausalError(f"top={top}: name at least one token")
    if lens is not None and lens.model is not model:
        raise CausalError("the lens is of another Model: load it for this one, TunedLens.load(folder, model)")
    check_edit(model, reading.get("edit"))
    at = residual_sites(model, sites)
    end = last_site(model)
    acts = model.read(prompts, list(dict.fromkeys([*at, end])), tokens, **reading)
    where = Selected.of(model, prompts, tokens, acts, reading)
    table = None if answers is None else [each[where.prompt] for each in answer_table(model, answers, len(where.texts))]
    states = {site: where.flat(acts[site]) for site in (*at, end)}
    pieces = []
    with torch.no_grad():
        for start in range(0, len(where.prompt), AT_ONCE):
            here = slice(start, start + AT_ONCE)
            final_NV = _log_probs(model, states[end][here])
            ids_Nm, real_Nm = _own(final_NV) if table is None else (each[here] for each in table)
            looks = []
            for site in at:
                seen_NW = states[site][here] if lens is None else lens.translate(site, states[site][here])
                found_NV = final_NV if site == end else _log_probs(model, seen_NW)
                looks.append(_look(found_NV, final_NV, ids_Nm, real_Nm, top))
            pieces.append([torch.stack(column, 1) for column in zip(*looks, strict=True)])
    return _labelled(model, where, at, [torch.cat(column) for column in zip(*pieces, strict=True)])


def _log_probs(model: Model, states_NW: Tensor) -> Tensor:
    return tail_logits(model, states_NW).float().log_softmax(-1)


def _own(final_NV: Tensor) -> tuple[Tensor, Tensor]:
    """What the model itself finds likeliest, as a table of answers."""
    ids_N1 = final_NV.argmax(-1, keepdim=True)
    return ids_N1, torch.ones_like(ids_N1, dtype=torch.bool)


def _look(found_NV: Tensor, final_NV: Tensor, ids_Nm: Tensor, real_Nm: Tensor, top: int) -> tuple[Tensor, ...]:
    """kl, entropy, logprob and rank [N], and the likeliest ids and their probabilities [N, k]; on the CPU."""
    own_Nm = found_NV.gather(1, ids_Nm.to(found_NV.device)).masked_fill(~real_Nm.to(found_NV.device), -torch.inf)
    best_N1 = own_Nm.amax(1, keepdim=True)
    likeliest = found_NV.topk(min(top, found_NV.shape[1]), dim=-1)
    found = (
        (final_NV.exp() * (final_NV - found_NV)).sum(-1),
        -(found_NV.exp() * found_NV).sum(-1),
        own_Nm.logsumexp(1),
        (found_NV > best_N1).sum(1) + 1.0,
        likeliest.indices,
        likeliest.values.exp(),
    )
    return tuple(tensor.cpu() for tensor in found)


def _labelled(model: Model, where: Selected, at: Sequence[Site], columns: Sequence[Tensor]) -> LensReading:
    """The columns [N, S] and [N, S, k] as Grids over components and layers."""
    names = list(dict.fromkeys(site.name for site in at))
    layers = sorted({site.layer for site in at if site.layer is not None})
    cells = np.array([[names.index(site.name), layers.index(site.layer or 0)] for site in at]).T
    coords: dict[str, Sequence[Any]] = {"component": names, "layer": layers}

    def grid(values: np.ndarray[Any, Any], name: str, units: str, **more: Sequence[Any]) -> Grid:
        empty = "" if values.dtype.kind == "U" else np.nan
        whole = np.full((len(values), len(names), len(layers), *values.shape[2:]), empty, dtype=values.dtype)
        whole[:, cells[0], cells[1]] = values
        made = where.grid(whole, {**coords, **more}, name, units)
        return made.isel(component=0, drop=True) if len(names) == 1 else made

    *numbers, top_NSk, prob_NSk = (column.numpy() for column in columns)
    kl, entropy, logprob, rank = (number.astype(np.float32) for number in numbers)
    texts = {i: token_text(model, i) for i in set(top_NSk.flatten().tolist())}
    words = np.array([texts[i] for i in top_NSk.flatten().tolist()]).reshape(top_NSk.shape)
    places = range(1, top_NSk.shape[-1] + 1)
    return LensReading(
        kl=grid(kl, "KL from the final distribution", "nats"),
        entropy=grid(entropy, "entropy", "nats"),
        logprob=grid(logprob, "log probability of the answer", "nats"),
        rank=grid(rank, "rank of the answer", ""),
        top=grid(words, "likeliest token", "", place=places),
        top_prob=grid(prob_NSk, "probability of the likeliest token", "", place=places),
    )
