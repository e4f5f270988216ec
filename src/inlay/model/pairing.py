"""Pair a source's positions with the base's: the k-th selected one of a row with the k-th of the same row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inlay.errors import SiteError, TokensError
from inlay.model.frame import Frame, Prompt
from inlay.model.windows import Live

if TYPE_CHECKING:
    from inlay.model.engine import Run

Values = tuple[Tensor, "Tensor | None"]  # [rows, k, width], and which are real


def paired(run: Run, index: int, h: Tensor, frame: Frame) -> tuple[Tensor, Tensor]:
    """The source's values paired with h, [R, T, W], and where there is one to pair, bool [R, T]."""
    values, real = _values(run, index)
    need_width(run, index, values, h)
    spec = run.spec_of[index]
    rank = frame.order(run.specs[spec], frame.prompt.tables[spec])
    count: Tensor | int = values.shape[1] if real is None else _spread(real.sum(1, keepdim=True), h.shape[0])
    inside = rank < (count.to(rank.device) if isinstance(count, Tensor) else count)
    values = _spread(values, h.shape[0]).to(h.device, h.dtype)
    place = rank.clamp(max=values.shape[1] - 1).to(h.device).expand(h.shape[0], -1)
    return values.gather(1, place[..., None].expand(-1, -1, h.shape[-1])), inside


def need_width(run: Run, index: int, values: Tensor, h: Tensor) -> None:
    """Raise where a source's width is not the state's, which only the forward shows of patterns and raw Sites."""
    if values.shape[-1] != h.shape[-1]:
        raise SiteError(
            f"{run.parts[index].site}: the source has width {values.shape[-1]}, and the state {h.shape[-1]}; "
            "a pattern's width is heads x keys, so both runs need as many keys"
        )


def _spread(values: Tensor, rows: int) -> Tensor:
    """Values of some rows, [r, ...], for the R rows of a batch: one for all, or each for its own share."""
    if values.shape[0] == 1:
        return values.expand(rows, *values.shape[1:])
    return values if values.shape[0] == rows else values.repeat_interleave(rows // values.shape[0], 0)


def _values(run: Run, index: int) -> Values:
    """What part `index` takes."""
    found = run.sources[index]
    return found.values(run.site_names[index]) if isinstance(found, Live) else found


def check(run: Run, prompt: Prompt, stack: str) -> None:
    """Raise where a row selects another number of positions than its source gives.

    Raises:
        TokensError: naming the row.
    """
    for index, source in run.sources.items():
        at = run.spec_of[index]
        spec, table = run.specs[at], prompt.tables[at]
        if run.stacks[at] != stack or spec.tail or torch.compiler.is_compiling():
            continue
        mine = prompt.part("all" if spec.everything else "prompt") if table is None else table
        have = mine.sum(1)
        given = _counts(source, have)
        if given.shape[0] not in (1, have.shape[0]):
            raise TokensError(
                f"{run.parts[index].site}: the source has {given.shape[0]} rows, the batch {have.shape[0]}"
            )
        wrong = (have != given).nonzero().flatten()
        if len(wrong):
            row = int(wrong[0])
            raise TokensError(
                f"{run.parts[index].site}: row {row} selects {int(have[row])} positions (tokens={str(spec)!r}), "
                f"its source {int(given.expand_as(have)[row])}"
            )


def _counts(source: Values | Live, have: Tensor) -> Tensor:
    """How many positions a source gives in each of its rows, int64 [rows]."""
    if isinstance(source, Live):
        return source.counts()
    values, real = source
    return torch.full_like(have, values.shape[1]) if real is None else real.sum(1).to(have.device)
