"""Which tokens of a run each column of a grid stands for, and which tokens of the source run they are paired with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inlay.errors import CausalError, TokensError
from inlay.model.frame import Prompt
from inlay.model.inputs import Row, pad, plan_batches
from inlay.model.tokens import Tokens
from inlay.model.two_stacks import refuse

if TYPE_CHECKING:
    from inlay.model.model import Model


@dataclass(frozen=True)
class Rows:
    """Some of a job's rows of ids.

    Attributes:
        items: the rows, n of them.
        numbers: which of all rows they are.
        total: how many rows there are in all.
    """

    items: Sequence[Row]
    numbers: Sequence[int]
    total: int

    @classmethod
    def of(cls, model: Model, prompts: Any, chat: bool | None) -> Rows:
        """All rows of prompts; see `Encoder.rows` for what these are and what else is raised.

        Raises:
            ModelError: the model has an encoder and a decoder.
        """
        refuse(model, "patching")
        items = model.encoder.rows(prompts, chat=chat)
        return cls(items, range(len(items)), len(items))

    @classmethod
    def paired(cls, model: Model, base: Any, source: Any, chat: bool | None) -> tuple[Rows, Rows]:
        """The rows of base and source prompts.

        Raises:
            CausalError: there are not equally many.
        """
        mine, theirs = cls.of(model, base, chat), cls.of(model, source, chat)
        if len(mine) != len(theirs):
            raise CausalError(f"{len(mine)} base prompts and {len(theirs)} source prompts: give them in pairs")
        return mine, theirs

    def pick(self, numbers: Sequence[int]) -> Rows:
        """Some of all rows."""
        return Rows([self.items[number] for number in numbers], numbers, self.total)

    def repeated(self, times: int) -> Rows:
        """Each row `times` times in a row."""
        return Rows(
            [row for row in self.items for _ in range(times)],
            [number for number in self.numbers for _ in range(times)],
            self.total,
        )

    def __len__(self) -> int:
        return len(self.items)

    @property
    def ids(self) -> list[list[int]]:
        """The rows as prompts."""
        return [list(row.ids) for row in self.items]

    @property
    def last(self) -> Tensor:
        """The slot of each row's last token in a batch padded on the right, int64 [n]."""
        return torch.tensor([len(row.ids) for row in self.items]) - 1

    @property
    def longest(self) -> int:
        """The most tokens of a row."""
        return max(len(row.ids) for row in self.items)


def batches(rows: Rows, budget: int) -> list[Rows]:
    """All rows in batches of at most `budget` padded tokens (one row at least), of like lengths."""
    return [rows.pick(numbers) for numbers in plan_batches(rows.items, budget)]


@dataclass(frozen=True)
class Columns:
    """The token columns of a batch of n pairs, whose base runs are padded to S slots.

    Attributes:
        base: bool [K, n, S], the slots of a base run that a column covers; none where the pair lacks the column.
        source: int64 [1 or K, n, S], for each such slot the one of the source run that it is paired with.
    """

    base: Tensor
    source: Tensor

    def __len__(self) -> int:
        return len(self.base)

    def repeated(self, times: int) -> Columns:
        """Those of a batch whose rows stand `times` times in a row."""
        return Columns(self.base.repeat_interleave(times, 1), self.source.repeat_interleave(times, 1))

    @classmethod
    def each(cls, base: Tensor, source: Tensor, rows: Rows) -> Columns:
        """One column for each selected token: the k-th of the base run with the k-th of the source run.

        Args:
            base: bool [n, S], the tokens of the base runs.
            source: bool [n, S'], those of the source runs.
            rows: the base runs, for messages.

        Raises:
            TokensError: a pair selects unequal numbers of tokens.
        """
        column = torch.arange(int(base.sum(1).max()))[:, None, None]
        return cls(base & (base.cumsum(1) - 1 == column), _paired(base, source, rows)[None])

    @classmethod
    def of(cls, base: Sequence[Tensor], source: Sequence[Tensor], rows: Rows) -> Columns:
        """One column for each selection: all of its tokens at once, paired in order; arguments as in `each`."""
        paired = [_paired(mine, theirs, rows) for mine, theirs in zip(base, source, strict=True)]
        return cls(torch.stack(list(base)), torch.stack(paired))


def chosen(model: Model, rows: Rows, tokens: Any) -> Tensor:
    """The slots that a Tokens spec selects in rows padded on the right, bool [n, S] on the CPU.

    Args:
        model: the Model.
        rows: the rows.
        tokens: a Tokens spec, or a list with one for each of all rows (a list of ints is one spec: these positions).

    Raises:
        TokensError: a row lacks a position or a text.
        CausalError: another number of specs than of rows.
    """
    if not isinstance(tokens, (list, tuple)) or all(type(one) is int for one in tokens):
        return _table(model, rows, Tokens.parse(tokens))
    if len(tokens) != rows.total:
        raise CausalError(f"{len(tokens)} token specs for {rows.total} prompts: give one for all, or one for each")
    tables = torch.zeros(len(rows), rows.longest, dtype=torch.bool)
    for index, (row, number) in enumerate(zip(rows.items, rows.numbers, strict=True)):
        alone = _table(model, Rows([row], [number], rows.total), Tokens.parse(tokens[number]))
        tables[index, : len(row.ids)] = alone[0]
    return tables


def _table(model: Model, rows: Rows, tokens: Tokens) -> Tensor:
    padded = pad(rows.items, model.pad_id, torch.device("cpu"))
    count, slots = padded.ids.shape
    mask = padded.mask.bool()
    prompt = Prompt(count, slots, mask.device, mask, padded.prompt, padded.ids, numbers=rows.numbers)
    prompt.resolve([tokens.pick(rows.numbers, rows.total, slots)], model.text)
    (table,) = prompt.tables
    return mask if table is None else table


def _paired(base: Tensor, source: Tensor, rows: Rows) -> Tensor:
    """For each slot of a base run, where it is selected, the source slot of the same rank, int64 [n, S]."""
    have, given = base.sum(1), source.sum(1)
    wrong = (have != given).nonzero().flatten()
    if len(wrong):
        row = int(wrong[0])
        raise TokensError(
            f"pair {rows.numbers[row]} selects {int(have[row])} tokens of its base and {int(given[row])} of its "
            "source. They are paired one by one: make the prompts equally long, or name tokens that correspond, as in "
            "tokens={'subject': span('Paris'), 'last': -1} with source_tokens= where the source has others"
        )
    slots = (~source).to(torch.uint8).argsort(dim=1, stable=True)
    return slots.gather(1, (base.cumsum(1) - 1).clamp(min=0))


def columns(model: Model, base: Rows, source: Rows, tokens: Any, source_tokens: Any = None) -> Columns:
    """The columns of a Tokens spec (one for each token), or of a mapping from names to specs (one for each name).

    Args:
        model: the Model.
        base: the base runs' rows.
        source: those of the source runs.
        tokens: the spec, or the mapping; see `chosen`.
        source_tokens: the same for the source runs where it differs.

    Raises:
        TokensError: a row lacks a token, or the runs of a pair select unequal numbers of them.
        CausalError: `source_tokens` has other names.
    """
    theirs = tokens if source_tokens is None else source_tokens
    if not isinstance(tokens, Mapping):
        return Columns.each(chosen(model, base, tokens), chosen(model, source, theirs), base)
    if not tokens or not isinstance(theirs, Mapping) or set(theirs) != set(tokens):
        raise CausalError(f"tokens={tokens!r} and source_tokens={theirs!r}: give both the same names, one at least")
    mine = [chosen(model, base, spec) for spec in tokens.values()]
    return Columns.of(mine, [chosen(model, source, theirs[name]) for name in tokens], base)


def about_how_many(model: Model, rows: Rows, tokens: Any) -> int:
    """How many columns `columns` gives, as far as the longest row tells: what batches are planned by.

    Raises:
        TokensError: the row lacks a token.
    """
    if isinstance(tokens, Mapping):
        return max(1, len(tokens))
    longest = max(range(len(rows)), key=lambda index: len(rows.items[index].ids))
    return max(1, int(chosen(model, rows.pick([longest]), tokens).sum()))
