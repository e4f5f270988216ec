"""Where a forward stands: resolves Tokens to positions, once per forward, from the attention mask and the cache.

Legend: R rows, S known slots (the prompt, or the whole input of a plain forward), T tokens of this call, k clauses.
A slot is a column of the key/value cache; the slots from S on were generated and are all response.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from inlay.errors import TokensError
from inlay.model.tokens import Clause, Ends, Given, InstEnd, Range, Span, Tokens

Decode = Callable[[Sequence[int]], str]


@dataclass
class Text:
    """What is needed to find words in token ids: a decoder, and the text by which a chat template ends a user turn."""

    decode: Decode
    turn_end: str | None = None


@dataclass
class Prompt:
    """The known slots of a run.

    Attributes:
        rows: R, before any expansion by beams or `num_return_sequences`.
        slots: S.
        attended: bool [R, S], `None` when nothing is padded.
        prompt: bool [R, S], which attended slots are prompt; `None` for all of them.
        ids: int64 [R, S], `None` when the run started from embeddings.
        device: where the masks live.
        tables: for each Tokens of the run its mask over the known slots, bool [R, S], or `None` for all.
        held: what the rows decided so far by each condition that decides once a row.
    """

    rows: int
    slots: int
    device: torch.device
    attended: Tensor | None = None
    prompt: Tensor | None = None
    ids: Tensor | None = None
    tables: list[Tensor | None] = field(default_factory=list)
    numbers: Sequence[int] | None = None
    held: dict[Any, Any] = field(default_factory=dict)

    def resolve(self, wanted: Sequence[Tokens | None], text: Text | None) -> None:
        """Fill `tables`, with `None` for what is not wanted.

        One host synchronisation where a spec names single positions, spans or a chat's turn end.

        Raises:
            TokensError: a row lacks a position or a text; the message names the row.
        """
        self.tables = [None if tokens is None else self._table(tokens, text) for tokens in wanted]

    def part(self, phase: str) -> Tensor:
        """The attended slots of a phase, bool [R, S]."""
        attended = self.attended
        if attended is None:
            attended = torch.ones(self.rows, self.slots, dtype=torch.bool, device=self.device)
        if phase == "all":
            return attended
        if self.prompt is None:
            return attended if phase == "prompt" else torch.zeros_like(attended)
        return attended & (self.prompt if phase == "prompt" else ~self.prompt)

    def _table(self, tokens: Tokens, text: Text | None) -> Tensor | None:
        if tokens.everything:
            return None
        whole = tokens.clauses == (Range("prompt"),)
        if whole and self.attended is None and self.prompt is None:
            return None
        table = torch.zeros(self.rows, self.slots, dtype=torch.bool, device=self.device)
        for clause in tokens.clauses:
            table = table | self._clause(clause, tokens, text)
        return table

    def _clause(self, clause: Clause, tokens: Tokens, text: Text | None) -> Tensor:
        if isinstance(clause, Range):
            return self._range(clause, tokens)
        if isinstance(clause, Ends):
            return self._ends(clause)
        if isinstance(clause, Given):
            return self._given(clause.tensor.to(self.device), tokens)
        return self._words(clause, tokens, text)

    def number(self, row: int) -> int:
        """A row's own number, where the batch is a part of more prompts."""
        return row if self.numbers is None else self.numbers[row]

    def _need_one(self, found: Tensor, count: Tensor, what: str) -> None:
        if not bool(found.all()):
            row = int((~found).nonzero()[0])
            raise TokensError(
                f"{what} is out of range in row {self.number(row)}, whose prompt has {int(count[row])} tokens"
            )

    def _range(self, clause: Range, tokens: Tokens) -> Tensor:
        part = self.part(clause.phase)
        if clause.start == 0 and clause.stop is None:
            return part
        index, count = part.cumsum(1) - 1, part.sum(1, keepdim=True)
        start = clause.start + count if clause.start < 0 else clause.start
        inside = part & (index >= start)
        if clause.stop is not None:
            stop = clause.stop + count if clause.stop < 0 else clause.stop
            inside = inside & (index < stop)
        if clause.exact and clause.phase == "prompt" and not torch.compiler.is_compiling():
            self._need_one(inside.any(1), count, f"tokens={str(tokens)!r}: position {clause.start}")
        return inside

    def _ends(self, clause: Ends) -> Tensor:
        part = self.part("prompt")
        index, count = part.cumsum(1) - 1, part.sum(1, keepdim=True)
        short = count < clause.first + clause.last
        first = torch.where(short, (count // 2).clamp(max=clause.first), clause.first)
        last = torch.where(short, (count - count // 2).clamp(max=clause.last), clause.last)
        place = torch.where(index < first, index, clause.first + clause.last - (count - index))
        stop = clause.first + clause.last if clause.stop is None else clause.stop
        return part & ((index < first) | (index >= count - last)) & (place >= clause.start) & (place < stop)

    def _given(self, given: Tensor, tokens: Tokens) -> Tensor:
        if given.shape[0] not in (1, self.rows):
            raise TokensError(f"tokens={tokens}: {given.shape[0]} rows for a batch of {self.rows}")
        if given.dtype == torch.bool:
            if given.shape[1] != self.slots:
                raise TokensError(f"tokens={tokens}: the mask covers {given.shape[1]} slots, the prompt {self.slots}")
            return given & self.part("prompt")
        part = self.part("prompt")
        index, count = part.cumsum(1) - 1, part.sum(1, keepdim=True)
        wanted = torch.where(given < 0, given + count, given)
        if not torch.compiler.is_compiling():
            self._need_one(((wanted >= 0) & (wanted < count)).all(1), count, f"tokens={tokens}: a position")
        return part & (index[:, :, None] == wanted[:, None, :]).any(-1)

    def _words(self, clause: Span | InstEnd, tokens: Tokens, text: Text | None) -> Tensor:
        if text is None or self.ids is None or torch.compiler.is_compiling():
            why = "the model has no tokenizer" if text is None else "the forward has no token ids it could read"
            raise TokensError(f"tokens={str(tokens)!r} looks for text, and {why}: give positions instead")
        part, ids = self.part("prompt").cpu(), self.ids.cpu()
        table = torch.zeros(part.shape, dtype=torch.bool)
        for row in range(self.rows):
            slots = part[row].nonzero().flatten()
            ends = _ends(ids[row, slots].tolist(), text.decode)
            first, last = _find(clause, ends.whole, text, self.number(row))
            hit = [s for s, (a, b) in zip(slots.tolist(), ends.spans, strict=True) if a < last and b > first]
            table[row, hit if isinstance(clause, Span) else hit[-1:]] = True
        return table.to(self.device)


@dataclass
class _Decoded:
    whole: str
    spans: list[tuple[int, int]]


def _ends(ids: list[int], decode: Decode) -> _Decoded:
    """Characters [start, end) of every token in the decoded row, by decoding growing prefixes."""
    ends = [len(decode(ids[: k + 1])) for k in range(len(ids))]
    return _Decoded(decode(ids), list(zip([0, *ends[:-1]], ends, strict=True)))


def _find(clause: Span | InstEnd, whole: str, text: Text, row: int) -> tuple[int, int]:
    """Characters [start, end) that the clause means in one decoded row."""
    if isinstance(clause, InstEnd):
        if not text.turn_end:
            raise TokensError("tokens='inst_end' needs a tokenizer with a chat template that has a user turn")
        end = len(whole[: max(0, whole.rfind(text.turn_end))].rstrip())
        if end <= 0:
            raise TokensError(
                f"tokens='inst_end': row {row} does not close a user turn (with {text.turn_end!r}); "
                "pass chat messages, or strings with chat=True"
            )
        return 0, end
    starts = [i for i in range(len(whole)) if whole.startswith(clause.text, i)]
    if not -len(starts) <= clause.occurrence < len(starts):
        raise TokensError(
            f"span({clause.text!r}): row {row} holds the text {len(starts)} times, and occurrence "
            f"{clause.occurrence} was asked for: {whole[:80]!r}"
        )
    start = starts[clause.occurrence]
    return start, start + len(clause.text)


@dataclass(frozen=True)
class Selection:
    """The positions of one call that a Tokens spec selects.

    Attributes:
        mask: bool [R, T] or [1, T], `None` when every position is selected.
        empty: nothing is selected, known without looking at a tensor.
    """

    mask: Tensor | None = None
    empty: bool = False


ALL = Selection()
NONE = Selection(empty=True)


@dataclass
class Frame:
    """One forward call: T tokens that start at cache slot `start`.

    Attributes:
        prompt: the known slots.
        rows: R of this call, a multiple of `prompt.rows` under beams or several returned sequences.
        length: T.
        start: the first slot, an int or (static caches) a 0-d tensor on the device.
    """

    prompt: Prompt
    rows: int
    length: int
    start: int | Tensor

    @property
    def expand(self) -> int:
        """How many rows of this call stand for one row of the prompt."""
        return self.rows // self.prompt.rows

    def _rows(self, table: Tensor) -> Tensor:
        return table if self.expand == 1 else table.repeat_interleave(self.expand, 0)

    def _slots(self) -> Tensor:
        return self.start + torch.arange(self.length, device=self.prompt.device)

    def select(self, tokens: Tokens, table: Tensor | None) -> Selection:
        """The positions of this call that `tokens` selects, given its table over the known slots."""
        if tokens.everything:
            return ALL
        known = self.prompt.slots
        if isinstance(self.start, Tensor):
            slots = self._slots()
            return Selection(self._known_at(table, slots) | self._tail(tokens, slots))
        end = self.start + self.length
        if self.start >= known:
            return self._decode(tokens, self.start - known)
        if end <= known:
            return ALL if table is None else Selection(self._rows(table[:, self.start : end]))
        slots = self._slots()
        return Selection(self._known_at(table, slots) | self._tail(tokens, slots))

    def _known_at(self, table: Tensor | None, slots: Tensor) -> Tensor:
        inside = slots < self.prompt.slots
        if table is None:
            return inside[None]
        return self._rows(table.index_select(1, slots.clamp(max=self.prompt.slots - 1))) & inside

    def _responded(self) -> Tensor | None:
        """Response tokens among the known slots, int64 [R, 1]; `None` when there are none."""
        if self.prompt.prompt is None:
            return None
        return self._rows(self.prompt.part("response").sum(1, keepdim=True))

    def _tail(self, tokens: Tokens, slots: Tensor) -> Tensor:
        """Which slots are selected as response steps, bool [1 or R, T]."""
        before = self._responded()
        step = (slots - self.prompt.slots)[None]
        inside = step >= 0
        step = step if before is None else step + before
        chosen = torch.zeros_like(inside)
        for start, stop in tokens.tail:
            chosen = chosen | ((step >= start) if stop is None else ((step >= start) & (step < stop)))
        return chosen & inside

    def _decode(self, tokens: Tokens, step: int) -> Selection:
        """A call that lies wholly behind the known slots, decided on the host where that is possible."""
        if not tokens.tail:
            return NONE
        if any(start == 0 and stop is None for start, stop in tokens.tail):
            return ALL
        if self.length == 1 and self.prompt.prompt is None:
            hit = any(start <= step and (stop is None or step < stop) for start, stop in tokens.tail)
            return ALL if hit else NONE
        return Selection(self._tail(tokens, self._slots()))

    def attended(self) -> Tensor | None:
        """Which positions of this call are not padding, bool [R, T]; `None` for all of them."""
        if self.prompt.attended is None:
            return None
        slots = self._slots()
        generated = slots >= self.prompt.slots
        known = self.prompt.attended.index_select(1, slots.clamp(max=self.prompt.slots - 1))
        return self._rows(known) | generated

    def positions(self) -> Tensor:
        """The attended index of every position, int64 [1 or R, T]: 0 for a row's first real token; padding counts 0."""
        slots = self._slots()
        if self.prompt.attended is None:
            return slots[None]
        index = (self.prompt.attended.cumsum(1) - 1).clamp(min=0)
        known = index.index_select(1, slots.clamp(max=self.prompt.slots - 1))
        after = index[:, -1:] + 1 + (slots - self.prompt.slots)[None]
        return self._rows(torch.where(slots < self.prompt.slots, known, after))

    def order(self, tokens: Tokens, table: Tensor | None) -> Tensor:
        """For every position of this call, its rank among the positions that `tokens` selects, int64 [1 or R, T].

        Meaningful where the position is selected; this is what pairs the k-th selected source token with the k-th
        selected base token.
        """
        if tokens.everything:
            return self.positions()
        known = self.prompt.slots
        slots = self._slots()
        if table is None:
            table = self.prompt.part("prompt")
        rank = (table.cumsum(1) - 1).clamp(min=0)
        inside = self._rows(rank.index_select(1, slots.clamp(max=known - 1)))
        total = self._rows(table.sum(1, keepdim=True))
        steps = self._steps_before(tokens, slots)
        return torch.where(slots < known, inside, total + steps)

    def _steps_before(self, tokens: Tokens, slots: Tensor) -> Tensor:
        """How many selected response steps lie between the known slots and each slot, int64 [1 or R, T].

        The intervals of a spec are taken as disjoint.
        """
        responded = self._responded()
        first = torch.zeros(1, 1, dtype=torch.long, device=slots.device) if responded is None else responded
        step = (slots - self.prompt.slots).clamp(min=0)[None] + first
        before = torch.zeros_like(step)
        for start, stop in tokens.tail:
            for sign, upto in ((1, step), (-1, first)):
                upto = upto if stop is None else upto.clamp(max=stop)
                before = before + sign * (upto - start).clamp(min=0)
        return before
