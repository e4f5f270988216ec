"""One pass over all texts of all concepts: each text is read once, and what the methods need is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inlay.directions.contrast import Contrast, Text
from inlay.errors import DirectionError
from inlay.model.sites import HEADED, LAYERED, Site
from inlay.model.tokens import Tokens

if TYPE_CHECKING:
    from inlay.model.model import Model

CHUNK = 2**28  # bytes of states that are read at a time


@dataclass(frozen=True)
class States:
    """States of distinct texts at one Site.

    Attributes:
        sums: float64 [texts, width], over a text's tokens.
        counts: int64 [texts], tokens.
        lengths: float64 [texts], the summed length of a text's states.
        tokens: float32 [all tokens, width], text by text, where they were kept.
    """

    sums: Tensor
    counts: Tensor
    lengths: Tensor
    tokens: Tensor | None = None

    def of(self, texts: Sequence[int]) -> Tensor:
        """The token states of some texts, [tokens, width].

        Raises:
            DirectionError: they were not kept.
        """
        if self.tokens is None:
            raise DirectionError("token states were not kept: a Method that takes them says so by tokens=True")
        starts = self.counts.cumsum(0) - self.counts
        picked = [torch.arange(int(starts[i]), int(starts[i] + self.counts[i])) for i in texts]
        return self.tokens[torch.cat(picked)]


@dataclass(frozen=True)
class Gathered:
    """What one pass gave.

    Attributes:
        states: by Site, in the order asked for.
        positives, negatives: for each contrast, the numbers of its texts in the States.
        keys: what each text is, by number.
    """

    states: dict[Site, States]
    positives: list[list[int]]
    negatives: list[list[int]]
    keys: list[str]


def gather(
    model: Model,
    contrasts: Sequence[Contrast],
    sites: Sequence[Site],
    tokens: Any = "all",
    *,
    keep: bool = False,
    batch_tokens: int = 8192,
) -> Gathered:
    """Read every distinct text of the contrasts once.

    Args:
        model: what to read.
        contrasts: the concepts' texts; one that several share is read once.
        sites: where.
        tokens: which tokens; `"all"` leaves out what every prompt begins with (bos, template).
        keep: keep every token's state, not only sums.
        batch_tokens: the most padded tokens in one forward.

    Raises:
        DirectionError: there are no contrasts, one has the same texts on both sides, or as in `chunks`.
        InlayError: texts, Sites or Tokens do not fit the model.
    """
    if not contrasts:
        raise DirectionError("there are no concepts: give at least one contrast")
    number: dict[str, int] = {}
    known: dict[int, int] = {}  # by identity: concepts mostly share the objects, whose content is then compared once
    texts: list[Text] = []

    def numbers(side: Sequence[Text]) -> list[int]:
        for text in side:
            if id(text) not in known:
                known[id(text)] = number.setdefault(_key(text), len(texts))
                if len(number) > len(texts):
                    texts.append(text)
        return [known[id(text)] for text in side]

    positives = [numbers(c.positives) for c in contrasts]
    negatives = [numbers(c.negatives) for c in contrasts]
    for contrast, yes, no in zip(contrasts, positives, negatives, strict=True):
        if sorted(yes) == sorted(no):
            raise DirectionError(f"{contrast.name}: positives and negatives are the same texts")
    pieces: dict[Site, list[States]] = {site: [] for site in sites}
    for values, real in chunks(model, texts, sites, tokens, batch_tokens):
        for site, h in zip(sites, values, strict=True):
            pieces[site].append(_states(h, real, keep))
    return Gathered({site: _joined(found) for site, found in pieces.items()}, positives, negatives, list(number))


def chunks(
    model: Model, texts: Sequence[Text], sites: Sequence[Site], tokens: Any, batch_tokens: int
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """States float32 [texts, tokens, width] at every Site, and which are real; some texts at a time.

    Raises:
        DirectionError: a text has no such token, a state is not finite, a Site has no states of one width, or tokens
            are given as a tensor.
        InlayError: texts, Sites or Tokens do not fit the model.
    """
    spec = Tokens.parse(tokens)
    if not spec.storable:
        raise DirectionError(f"tokens={spec}: a tensor belongs to one batch; give Tokens that hold for every text")
    for site in sites:
        _check_site(model, site)
    skip = model.encoder.prefix() if spec.everything else 0
    answered = any(text.response is not None for text in texts)
    for start, part in _parts(model, texts, sites, answered):
        said = [text.response or "" for text in part] if answered else None
        prompts = [text.prompt for text in part]
        acts = model.read(prompts, list(sites), spec, responses=said, batch_tokens=batch_tokens)
        values = [acts[site].float() if acts.mask is not None else acts[site].float()[:, None] for site in sites]
        real = torch.ones(values[0].shape[:2], dtype=torch.bool) if acts.mask is None else acts.mask.clone()
        real[:, :skip] = False
        if not bool(real.any(1).all()):
            empty = int((~real.any(1)).nonzero()[0])
            raise DirectionError(f"text {start + empty} has no token in {spec}: {part[empty]!r:.120}")
        for site, h in zip(sites, values, strict=True):
            if not bool(torch.isfinite(h[real]).all()):
                raise DirectionError(f"a state at {site} is NaN or infinite; load the model in float32 or bfloat16")
        yield values, real


def _parts(
    model: Model, texts: Sequence[Text], sites: Sequence[Site], answered: bool
) -> Iterator[tuple[int, Sequence[Text]]]:
    """Texts in order, as many at a time as their padded states fit into `CHUNK` bytes (one at least)."""
    said = [text.response or "" for text in texts] if answered else None
    lengths = [len(row.ids) for row in model.encoder.rows([text.prompt for text in texts], said)]
    size = 4 * sum(model.sites().width(site) for site in sites)
    start, longest = 0, 0
    for index, length in enumerate(lengths):
        longest = max(longest, length)
        if index > start and (index + 1 - start) * longest * size > CHUNK:
            yield start, texts[start:index]
            start, longest = index, length
    yield start, texts[start:]


def _check_site(model: Model, site: Site) -> None:
    place = model.sites().place(site) if site.name in LAYERED else None
    if place is None:
        return
    if place.width < 0:
        raise DirectionError(f"{site} is as wide as a text is long, and a direction has one width: take another Site")
    if site.name in HEADED and place.heads and len(site.heads) != 1:
        raise DirectionError(f"{site} is made of heads, and a direction lies in one: {replace(site, heads=(0,))}")


def _key(text: Text) -> str:
    return json.dumps([text.prompt, text.response], sort_keys=True)


def _states(h: Tensor, real: Tensor, keep: bool) -> States:
    h = h.masked_fill(~real[..., None], 0.0)
    lengths = torch.linalg.vector_norm(h, dim=-1).double().sum(1)
    return States(h.sum(1, dtype=torch.float64), real.sum(1), lengths, h[real] if keep else None)


def _joined(pieces: Sequence[States]) -> States:
    kept = [p.tokens for p in pieces if p.tokens is not None]
    return States(
        torch.cat([p.sums for p in pieces]),
        torch.cat([p.counts for p in pieces]),
        torch.cat([p.lengths for p in pieces]),
        torch.cat(kept) if kept else None,
    )
