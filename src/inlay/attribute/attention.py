"""Methods that read attention: its weights, their rollout, and what is lost with a token's value vectors.

Legend: R rows, T tokens, n rows of one batch, t tokens of its longest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from inlay.attribute.asked import Asked
from inlay.errors import InputError
from inlay.interventions.closed_form import Zero
from inlay.interventions.edit import Edit
from inlay.model.sites import Site

_BEFORE_MIXING = ("resid_pre", "attn_in", "q", "k", "v", "q_rot", "k_rot", "pattern")
_AT_ONCE = 2**28  # numbers of patterns that are held at a time


def attention(asked: Asked, site: str | Site | None = None) -> Tensor:
    """Attention weights from the token that is asked about, [R, T]; a mean over heads and layers where these are more.

    A weight says where a head looks, not what it moves: values, later layers and the sign are left out.

    Args:
        asked: what is asked.
        site: the pattern: a layer `"pattern.3"`, a head `"pattern.3.h0"`, heads `"pattern.3.h[0,2]"`, or all layers
            `"pattern.*"`; by default the last layer's that the number depends on.

    Raises:
        SiteError: the model has no such pattern.
        InputError: the Site is no pattern.
    """
    wanted = Site.parse(site) if site is not None else Site("pattern", _layers(asked)[-1])
    if wanted.name != "pattern":
        raise InputError(f"site={site!r} holds no attention weights: give 'pattern.<layer>'")
    sites = asked.model.sites().expand(wanted)
    found = torch.zeros(len(asked.rows), asked.longest, device=asked.model.device)
    for rows in asked.batches():
        mean = torch.stack(list(_patterns(asked, rows, sites))).mean(0)
        found[rows, : mean.shape[1]] = _from_read(asked, rows, mean)
    return torch.where(asked.scored, found, 0)


def rollout(asked: Asked) -> Tensor:
    """Attention rollout, [R, T]: the product of (A + 1) / 2 over layers, A the mean over heads (2005.00928, section 3).

    What reaches the token that is asked about from each token, if attention and residual stream carried equal parts.
    Each row adds up to 1 where all of its tokens are scored. The layers are those below what is asked.

    Raises:
        SiteError: a layer's attention weights cannot be read, and so the product has a gap.
    """
    sites = _every(asked, "pattern", _layers(asked))
    found = torch.zeros(len(asked.rows), asked.longest, device=asked.model.device)
    for rows in asked.batches():
        product: Tensor | None = None
        for pattern in _patterns(asked, rows, sites):
            mixed = pattern + torch.eye(pattern.shape[1], device=pattern.device)
            mixed = mixed / mixed.sum(-1, keepdim=True)
            product = mixed if product is None else mixed @ product
        assert product is not None
        found[rows, : product.shape[1]] = _from_read(asked, rows, product)
    return torch.where(asked.scored, found, 0)


def value_zeroing(asked: Asked, layer: int | None = None) -> Tensor:
    """How far a block's output turns when a token's value vectors in it are 0, [R, T] (Mohebbi et al., 2301.12971).

    C_ij = 1 - cos(h_i, h_i without v_j) for the output h of a block, each row of C scaled to add up to 1; the score of
    j is C_ij for the token i that is asked about. It has no sign, and does not look at the target: for these see
    `value_occlusion`. It takes T forwards up to the layer.

    Args:
        asked: what is asked.
        layer: which block; by default the product of C over all blocks below what is asked (the paper's rollout),
            of T forwards each.

    Raises:
        SiteError: a block's value vectors cannot be reached.
    """
    layers = _layers(asked) if layer is None else [layer]
    _every(asked, "v", layers)
    found = torch.zeros(len(asked.rows), asked.longest, device=asked.model.device)
    for row, own in enumerate(asked.rows):
        length = len(own.ids)
        product = torch.eye(length, dtype=torch.float64, device=asked.model.device)
        for one in layers:
            product = _turned(asked, row, one) @ product
        found[row, :length] = _from_read(asked, [row], product[None])[0].float()
    return torch.where(asked.scored, found, 0)


def value_occlusion(asked: Asked, layer: int | None = None) -> Tensor:
    """M(x) - M(x with the feature's value vectors at 0), [R, T]; a forward for each feature.

    The tokens are still attended to, and carry nothing.

    Args:
        asked: what is asked.
        layer: in which block; by default in all blocks below what is asked.

    Raises:
        SiteError: a block's value vectors cannot be reached.
    """
    sites = _every(asked, "v", _layers(asked) if layer is None else [layer])
    zero = Zero()
    found = torch.zeros(len(asked.rows), asked.longest, device=asked.model.device)
    for row, own in enumerate(asked.rows):
        length = len(own.ids)
        table = asked.table(row)[:, :length]
        scores = torch.empty(len(table), device=table.device)
        for part in asked.chunks(len(table), length):
            mask = torch.cat([torch.zeros_like(table[:1]), table[part]])
            edit = Edit.of(tuple(p for site in sites for p in Edit(site, zero, tokens=mask).parts))
            with torch.no_grad(), asked.model.edited(edit):
                values = asked.values([row] * len(mask))
            scores[part] = (values[0] - values[1:]).to(scores)
        found[row] = asked.spread(row, scores)
    return found


def _layers(asked: Asked) -> list[int]:
    """The layers whose attention the number depends on: all but for a target inside of the model.

    Raises:
        InputError: there are none.
    """
    count, projection = asked.model.layers, asked.question.projection
    if projection is not None:
        site = asked.model.sites().expand(projection.site)[0]
        if site.name == "embed":
            count = 0
        elif site.layer is not None:
            count = site.layer + (site.name not in _BEFORE_MIXING)
    if not count:
        raise InputError(
            f"no attention lies below {projection.site if projection else 'the logits'}: take another Site"
        )
    return list(range(count))


def _every(asked: Asked, name: str, layers: Sequence[int]) -> list[Site]:
    """A Site of each of the layers.

    Raises:
        SiteError: a layer lacks it.
    """
    sites = [Site(name, layer) for layer in layers]
    for site in sites:
        asked.model.sites().place(site)
    return sites


def _from_read(asked: Asked, rows: Sequence[int], maps: Tensor) -> Tensor:
    """From maps [n, t, t] the lines of the slots that are read, [n, t]: their mean, where a row reads several."""
    return torch.stack([one[list(asked.question.slots[row])].mean(0) for row, one in zip(rows, maps, strict=True)])


def _patterns(asked: Asked, rows: Sequence[int], sites: Sequence[Site]) -> Iterator[Tensor]:
    """The attention weights of a batch, from each token to each, a layer at a time: [n, t, t], means over heads."""
    longest = max(len(asked.rows[row].ids) for row in rows)
    heads = max(asked.model.sites().place(site).heads for site in sites)
    step = max(1, _AT_ONCE // (len(rows) * max(1, heads) * longest**2))
    for start in range(0, len(sites), step):
        some = sites[start : start + step]
        acts = asked.model.read(
            [asked.rows[row].ids for row in rows],
            some,
            batch_tokens=len(rows) * longest,
            device=asked.model.device,
        )
        for site in some:
            found = acts[site].to(torch.promote_types(acts[site].dtype, torch.float32))
            yield found if found.ndim == 3 else found.mean(2)


def _turned(asked: Asked, row: int, layer: int) -> Tensor:
    """C [T, T] of one block, float64: a line for each token, its sum 1."""
    ids = asked.rows[row].ids
    found = torch.empty(len(ids), len(ids), dtype=torch.float64, device=asked.model.device)
    for part in asked.chunks(len(ids), len(ids)):
        mask = torch.eye(len(ids), dtype=torch.bool)[part]
        mask = torch.cat([torch.zeros_like(mask[:1]), mask])  # the whole row goes along, so that rounding is the same
        acts = asked.model.read(
            [ids] * len(mask),
            f"resid_post.{layer}",
            edit=Edit(f"v.{layer}", Zero(), tokens=mask),
            batch_tokens=mask.numel(),
            device=asked.model.device,
        )
        h = torch.nn.functional.normalize(next(iter(acts.values())).double(), dim=-1)
        found[:, part] = (h[1:] - h[0]).square().sum(-1).T / 2  # 1 - cos, without cancellation
    total = found.sum(1, keepdim=True)
    return torch.where(total > 0, found / total, torch.eye(len(ids), dtype=found.dtype, device=found.device))
