"""Detection: projections of texts on directions, every direction from one forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inlay.directions.contrast import Text
from inlay.directions.gather import chunks
from inlay.errors import DirectionError

if TYPE_CHECKING:
    from inlay.directions.direction import Direction
    from inlay.model.model import Model

POOLS = ("max", "mean", "last")


def scores(
    model: Model,
    texts: Sequence[Any],
    directions: Sequence[Direction],
    pool: str | None = "max",
    *,
    tokens: Any = "all",
    batch_tokens: int = 8192,
) -> Any:
    """Projections h.vector of every text on every direction, from one forward that ends behind the last Site.

    Args:
        model: the Model.
        texts: strings, chats, or pairs (prompt, response).
        directions: K of them; those of one Site are one matrix product.
        pool: over a text's tokens: `"max"` (AxBench), `"mean"`, `"last"`; `None` keeps every token.
        tokens: which tokens; `"all"` leaves out what every prompt begins with.
        batch_tokens: the most padded tokens in one forward.

    Returns:
        float32 [K, texts]; without a pool a list, for each text float32 [tokens, K].

    Raises:
        DirectionError: no texts or directions, an unknown pool, or a direction of another width.
        InlayError: texts, Sites or Tokens do not fit the model.
    """
    if pool is not None and pool not in POOLS:
        raise DirectionError(f"pool={pool!r}: give {', '.join(map(repr, POOLS))} or None")
    given = [Text.of(text) for text in texts]
    if not given or not directions:
        raise DirectionError(f"there is nothing to score: {len(given)} texts, {len(directions)} directions")
    sites = list(dict.fromkeys(d.site for d in directions))
    mine = {site: [k for k, d in enumerate(directions) if d.site == site] for site in sites}
    order = torch.tensor([k for site in sites for k in mine[site]]).argsort()
    pooled: list[Tensor] = []
    every: list[Tensor] = []
    for values, real in chunks(model, given, sites, tokens, batch_tokens):
        along = [_along(h, [directions[k] for k in mine[site]]) for site, h in zip(sites, values, strict=True)]
        whole = torch.cat(along, -1)[..., order]
        if pool is None:
            every += [row[keep] for row, keep in zip(whole, real, strict=True)]
        else:
            pooled.append(_pooled(whole, real, pool))
    return every if pool is None else torch.cat(pooled).T.contiguous()


def _along(h: Tensor, directions: Sequence[Direction]) -> Tensor:
    """[..., width] -> [..., K], for the K directions of one Site."""
    for d in directions:
        if d.width != h.shape[-1]:
            raise DirectionError(f"{d.site} is {h.shape[-1]} wide, and a direction for it {d.width}")
    return h @ torch.stack([d.vector for d in directions]).T


def _pooled(along: Tensor, real: Tensor, pool: str) -> Tensor:
    """[texts, tokens, K] -> [texts, K]."""
    mask = real[..., None]
    if pool == "max":
        return along.masked_fill(~mask, -torch.inf).amax(1)
    if pool == "mean":
        return along.masked_fill(~mask, 0.0).sum(1) / mask.sum(1)
    places = torch.arange(real.shape[1]).expand_as(real)
    last = places.masked_fill(~real, -1).amax(1)
    return along[torch.arange(len(along)), last]
