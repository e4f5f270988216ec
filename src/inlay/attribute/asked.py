"""Asked: rows, what is asked of them, and what a token is held against; runs the model on changed embeddings.

Legend: R rows, n copies, T tokens, d width, F features of a row.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from inlay.attribute.baselines import Baseline
from inlay.attribute.features import Feature
from inlay.attribute.question import Question, read_logits
from inlay.model import patch
from inlay.model.inputs import Batch, Row, pad, plan_batches
from inlay.model.inserted import embeddings, inserted
from inlay.model.passes import Want
from inlay.model.running import make_run
from inlay.model.sites import Site
from inlay.model.tokens import Tokens

if TYPE_CHECKING:
    from inlay.model.model import Model

_PARTS, _WORTH_PARTS = 4, 16  # copies of a row are run in so many parts, each from where its own first change is
_KEYS_AND_VALUES = {DynamicLayer, DynamicSlidingWindowLayer}


@dataclass(frozen=True, eq=False)
class Asked:
    """Everything that a method of attribution needs; a method is a function of this that gives scores [R, T].

    Attributes:
        model: the Model.
        question: what is explained.
        baseline: what a token is held against.
        features: for each row what is scored, each a tuple of slots.
        batch_tokens: the most padded tokens of one forward.
        seed: of all random draws of a method.
        known: the number on rows as they are, by row, where a run for something else gave it.
    """

    model: Model
    question: Question
    baseline: Baseline
    features: list[list[Feature]]
    batch_tokens: int = 8192
    seed: int = 0
    known: dict[int, Tensor] = field(default_factory=dict, init=False)

    @property
    def rows(self) -> tuple[Row, ...]:
        """The R rows."""
        return self.question.rows

    @cached_property
    def longest(self) -> int:
        """T."""
        return max(len(row.ids) for row in self.rows)

    @cached_property
    def embeds(self) -> Tensor:
        """The rows' embeddings, [R, T, d], in the model's dtype."""
        return embeddings(self.model, self.batch(range(len(self.rows))).ids)

    @cached_property
    def base(self) -> Tensor:
        """The baseline at every token, [R, T, d]; what is no feature keeps its own embedding."""
        return torch.where(self.scored[..., None], self.baseline.embeds.to(self.embeds), self.embeds)

    @cached_property
    def scored(self) -> Tensor:
        """Which tokens are part of a feature, bool [R, T]."""
        mask = torch.zeros(len(self.rows), self.longest, dtype=torch.bool, device=self.model.device)
        for row, some in enumerate(self.features):
            mask[row, [slot for feature in some for slot in feature]] = True
        return mask

    def table(self, row: int) -> Tensor:
        """Which tokens each feature of a row has, bool [F, T]."""
        found = torch.zeros(len(self.features[row]), self.longest, dtype=torch.bool, device=self.model.device)
        for index, feature in enumerate(self.features[row]):
            found[index, list(feature)] = True
        return found

    def spread(self, row: int, scores: Tensor) -> Tensor:
        """Scores of a row's features [F] over its tokens [T]: each token of a feature gets an equal part of it."""
        table = self.table(row).to(scores)
        return (scores[:, None] * table / table.sum(1, keepdim=True)).sum(0)

    # -- values ------------------------------------------------------------------------------------------------------

    def batches(self) -> list[list[int]]:
        """The rows in batches of about one length, of at most `batch_tokens` padded tokens."""
        return plan_batches(list(self.rows), self.batch_tokens)

    def chunks(self, count: int, length: int) -> Iterator[slice]:
        """`count` copies of `length` tokens in parts of at most `batch_tokens`."""
        step = max(1, self.batch_tokens // length)
        for start in range(0, count, step):
            yield slice(start, min(count, start + step))

    def values(self, which: Sequence[int], embeds: Tensor | None = None) -> Tensor:
        """The number that is explained, [n] in float32 at least, in one forward, under the ambient gradient mode.

        Args:
            which: the row that each copy is of.
            embeds: what the model computes from, [n, T or fewer, d]; by default the rows' own embeddings.
        """
        batch = self.batch(which)
        if embeds is None:
            return self._read(batch, which)
        with inserted(self.model, embeds[:, : batch.ids.shape[1]]):
            return self._read(batch, which)

    @torch.no_grad()
    def all_values(self, base: bool) -> Tensor:
        """The number on every row, or on its baseline, float32 [R], on the CPU."""
        if not base and len(self.known) == len(self.rows):
            return torch.stack([self.known[row] for row in range(len(self.rows))])
        found = torch.empty(len(self.rows))
        for rows in self.batches():
            found[rows] = self.values(rows, self.base[rows] if base else None).float().cpu()
        return found

    def batch(self, which: Sequence[int]) -> Batch:
        """Padded rows, one for each copy."""
        return pad([self.rows[row] for row in which], self.model.pad_id, self.model.device)

    def _read(self, batch: Batch, which: Sequence[int], offset: int = 0, **kwargs: Any) -> Tensor:
        question = self.question
        if question.projection is not None:
            return self._projected(batch, which)
        slots = [[slot - offset for slot in question.slots[row]] for row in which]
        logits = read_logits(self.model, batch, slots, **kwargs)
        owner = torch.tensor([copy for copy, some in enumerate(slots) for _ in some], device=logits.device)
        reads = torch.tensor([read for row in which for read in self._reads[row]])
        found = question.measure(logits, reads)
        return found.new_zeros(len(which)).index_add(0, owner, found)

    @cached_property
    def _reads(self) -> list[range]:
        """The numbers of each row's reads."""
        ends = torch.tensor([0, *(len(some) for some in self.question.slots)]).cumsum(0).tolist()
        return [range(a, b) for a, b in pairwise(ends)]

    def _projected(self, batch: Batch, which: Sequence[int]) -> Tensor:
        assert self.question.projection is not None
        site = Site.parse(self.question.projection.site)
        mask = torch.zeros(batch.ids.shape, dtype=torch.bool)
        for copy, row in enumerate(which):
            mask[copy, list(self.question.slots[row])] = True
        want = Want(self.model.sites().expand(site)[0], Tokens.parse(mask))
        # no prompt is marked: a mask is one of the prompt, and the slot may lie in the response
        run = make_run(self.model, None, [want], attended=batch.mask, whole=True)
        self.model.run_batch(run, batch)
        values = run.taken[0][-1].values[:, 0]
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        return values @ self.question.projection.vector.to(values)

    # -- without some features ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def without(self, row: int, dropped: Tensor) -> Tensor:
        """The value of copies of a row in which some tokens are the baseline's, [n].

        Copies that begin alike share the run of that beginning, where the model keeps a cache.

        Args:
            row: which row.
            dropped: bool [n, T], the tokens that are replaced.
        """
        length = len(self.rows[row].ids)
        dropped = dropped[:, :length].to(self.model.device)
        first = torch.where(dropped.any(1), dropped.int().argmax(1), length)
        order = first.argsort(descending=True, stable=True)
        found = torch.empty(len(dropped), device=self.model.device, dtype=torch.float64)
        share = len(dropped) if len(dropped) < _WORTH_PARTS else math.ceil(len(dropped) / _PARTS)
        parts = [order[i : i + share] for i in range(0, len(order), share)]  # by where they first differ
        for mine in [some[part] for some in parts for part in self.chunks(len(some), length)]:
            start = min(int(first[mine].min()), min(self.question.slots[row]))
            found[mine] = self._without(row, dropped[mine], start).double()
        return found

    def _without(self, row: int, dropped: Tensor, start: int) -> Tensor:
        """The same for copies of which none is changed before slot `start`."""
        n, length = dropped.shape
        embeds = torch.where(dropped[..., None], self.base[row, :length], self.embeds[row, :length])
        which = [row] * n
        # an Edit in force finds its tokens in whole rows
        if start < 1 or self.goes_on_from is None or patch.shadowed(self.model.base, "forward"):
            return self.values(which, embeds)
        one = self.batch([row])
        head = Batch(one.ids[:, :start], one.mask[:, :start], None, one.positions[:, :start])
        cache = self._begun(head, self.goes_on_from)
        cache.batch_repeat_interleave(n)
        batch = self.batch(which)
        tail = Batch(batch.ids[:, start:], batch.mask, None, batch.positions[:, start:])
        with inserted(self.model, embeds[:, start:]):
            return self._read(tail, which, start, **{self.goes_on_from: cache})

    def _begun(self, head: Batch, name: str) -> Any:
        """The cache that a forward leaves."""
        args, kwargs = self.model.arguments(head, use_cache=True, logits_to_keep=1)
        return getattr(self.model.hf(*args, **kwargs), name, None)

    @cached_property
    def goes_on_from(self) -> str | None:
        """What the argument is called that a forward goes on from, `None` where none can.

        The cache must hold keys and values alone, as a recurrent layer's state does not take several tokens at once,
        and logits be asked for.
        """
        takes = inspect.signature(self.model.base.forward).parameters
        name = next((one for one in ("cache", "past_key_values") if one in takes), None)  # the first since 5.24
        if name is None or "logits_to_keep" not in takes or self.question.projection is not None:
            return None
        one = pad([Row(self.rows[0].ids[:1], 1)], self.model.pad_id, self.model.device)
        layers = getattr(self._begun(one, name), "layers", None)
        return name if layers and {type(layer) for layer in layers} <= _KEYS_AND_VALUES else None
