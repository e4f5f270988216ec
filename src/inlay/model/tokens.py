"""Tokens: which positions of a sequence an edit or a read touches. A description only; `frame.py` resolves it."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inlay.errors import TokensError

_CLAUSE = re.compile(r"(?P<name>[a-z_]+?)(?P<count>\d+)?(?:\[(?P<range>[-\d:\s]*)\])?")
_SPAN = re.compile(
    r"""span\((?P<words>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")(?:,\s*(?P<occurrence>-?\d+))?\)""", re.DOTALL
)
_ENDS = re.compile(r"ends\(\s*(?P<first>\d+)\s*,\s*(?P<last>\d+)\s*\)(?:\[(?P<range>[\d:\s]*)\])?")
_GRAMMAR = (
    "'all', 'prompt', 'response', 'response[a:b]', 'prompt[a:b]', 'first', 'first4', 'last', 'last4', 'first4+last4', "
    "'ends(4, 4)', 'inst_end', 'prompt_end', an int, a slice, a list of ints, span('text'), a bool mask "
    "[rows, prompt length] or an int tensor [rows, k] with each row's own positions"
)


@dataclass(frozen=True)
class Range:
    """Tokens `start:stop` of the prompt, the response or both, counted over attended tokens.

    `exact` marks single positions that every row must have; a range may be cut short by a short row.
    """

    phase: str
    start: int = 0
    stop: int | None = None
    exact: bool = False


@dataclass(frozen=True)
class Ends:
    """The first p and the last s tokens of the prompt, which never meet; ReFT's positions, 2404.03592 section 4.1.

    A prompt of n < p + s tokens has min(p, floor(n / 2)) and min(s, ceil(n / 2)) of them, and the others are nowhere.
    `start:stop` picks some of the p + s places, counted from the first token to the last.
    """

    first: int
    last: int
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True)
class Span:
    """The prompt tokens that overlap a piece of text; `occurrence` counts from 0, negative from the end."""

    text: str
    occurrence: int = 0


@dataclass(frozen=True)
class InstEnd:
    """The last token of the last user message's content, before the chat template closes the turn."""


@dataclass(frozen=True, eq=False)
class Given:
    """Positions given as a tensor: a bool mask over prompt slots, or each row's own attended positions."""

    tensor: Tensor


Clause = Range | Ends | Span | InstEnd | Given
TokensLike = Any


def span(text: str, occurrence: int = 0) -> Tokens:
    """The prompt tokens that overlap `text`.

    Args:
        text: a piece of the prompt, as the tokenizer decodes it.
        occurrence: which occurrence in the row, from 0; -1 is the last.

    Raises:
        TokensError: later, in the forward, where a row does not hold the text.
    """
    if not text:
        raise TokensError("span('') selects nothing: give the text whose tokens are meant")
    return Tokens((Span(text, occurrence),), f"span({text!r})" if not occurrence else f"span({text!r}, {occurrence})")


@dataclass(frozen=True)
class Tokens:
    """A union of clauses. `Tokens.parse` reads every spelling; `str()` gives it back.

    `first`, `last`, `ends`, ints, slices and spans count **attended tokens of the prompt**: padding never counts, and
    -1 is the prompt's last token. Text with no marked response is all prompt. `response[a:b]` picks response tokens,
    which in generation are the decode steps: token k is the k-th *input* of decoding, so an edit on `response` acts
    from the second generated token on.
    """

    clauses: tuple[Clause, ...]
    text: str

    @classmethod
    def parse(cls, spec: TokensLike) -> Tokens:
        """Read a Tokens spec.

        Raises:
            TokensError: the spec is not one; the message lists the spellings.
        """
        if isinstance(spec, Tokens):
            return spec
        if isinstance(spec, bool):
            raise TokensError(f"tokens={spec!r} is not a Tokens spec. Spellings: {_GRAMMAR}")
        if isinstance(spec, int):
            return cls((_single("prompt", spec),), str(spec))
        if isinstance(spec, slice):
            if spec.step not in (None, 1):
                raise TokensError(f"tokens={spec}: a slice has no step; use a list of ints")
            a, b = spec.start or 0, spec.stop
            return cls((Range("prompt", a, b),), f"prompt[{a}:{'' if b is None else b}]")
        if isinstance(spec, (list, tuple)) and spec and all(type(i) is int for i in spec):
            return cls(tuple(_single("prompt", i) for i in spec), "+".join(f"prompt[{i}]" for i in spec))
        if isinstance(spec, Tensor):
            if spec.ndim != 2 or spec.dtype not in (torch.bool, torch.int64, torch.int32):
                shape = list(spec.shape)
                raise TokensError(
                    f"tokens as a tensor is a bool mask [rows, prompt length] or an int tensor [rows, k], "
                    f"not {spec.dtype} {shape}"
                )
            return cls((Given(spec),), f"<{spec.dtype} tensor {list(spec.shape)}>".replace("torch.", ""))
        if isinstance(spec, str):
            return _parse_text(spec)
        raise TokensError(f"tokens={spec!r} is not a Tokens spec. Spellings: {_GRAMMAR}")

    def __add__(self, other: TokensLike) -> Tokens:
        other = Tokens.parse(other)
        return Tokens(self.clauses + other.clauses, f"{self.text}+{other.text}")

    @property
    def everything(self) -> bool:
        """Whether this is `"all"`: every position of every call, so that no mask is ever needed."""
        return any(isinstance(c, Range) and c.phase == "all" for c in self.clauses)

    @property
    def tail(self) -> tuple[tuple[int, int | None], ...]:
        """The intervals of response steps that are selected, as (start, stop) with `None` for no end."""
        return tuple((c.start, c.stop) for c in self.clauses if isinstance(c, Range) and c.phase == "response")

    def pick(self, rows: Sequence[int], total: int, longest: int | None = None) -> Tokens:
        """The same for some of `total` rows: positions given as a tensor are cut to them, a mask to `longest` slots."""
        if self.storable:
            return self

        def cut(tensor: Tensor) -> Tensor:
            tensor = tensor[list(rows)] if len(tensor) == total else tensor
            return tensor[:, :longest] if tensor.dtype == torch.bool else tensor

        return Tokens(tuple(Given(cut(c.tensor)) if isinstance(c, Given) else c for c in self.clauses), self.text)

    @property
    def optional(self) -> bool:
        """Whether a prompt may be too short to have any: some of the places of `ends`."""
        return all(isinstance(c, Ends) and (c.start > 0 or c.stop is not None) for c in self.clauses)

    @property
    def storable(self) -> bool:
        """Whether `parse(str(self))` gives this back: a tensor belongs to one batch and is not storable."""
        return not any(isinstance(c, Given) for c in self.clauses)

    def __str__(self) -> str:
        return self.text


def _single(phase: str, index: int) -> Range:
    return Range(phase, index, index + 1 if index != -1 else None, exact=True)


def _parse_text(text: str) -> Tokens:
    found = _SPAN.finditer(text)
    bare = _SPAN.sub("\0", text)
    clauses: list[Clause] = []
    for piece in bare.split("+"):
        piece = piece.strip()
        if piece == "\0":
            match = next(found)
            clauses.append(Span(ast.literal_eval(match["words"]), int(match["occurrence"] or 0)))
        else:
            clauses.append(_parse_clause(piece, text))
    return Tokens(tuple(clauses), text)


def _parse_clause(piece: str, text: str) -> Clause:
    def bad(why: str) -> TokensError:
        return TokensError(f"tokens={text!r}: {why}. Spellings: {_GRAMMAR}")

    if re.fullmatch(r"-?\d+", piece):
        return _single("prompt", int(piece))
    if ends := _ENDS.fullmatch(piece):
        return _ends(ends, bad)
    match = _CLAUSE.fullmatch(piece)
    if not match:
        raise bad(f"{piece!r} is not understood")
    name, count, inside = match["name"], match["count"], match["range"]
    if name in ("first", "last") and inside is None:
        n = int(count or 1)
        if n == 0:
            raise bad(f"{piece!r} selects nothing")
        return Range("prompt", 0, n) if name == "first" else Range("prompt", -n, None)
    if count is not None:
        raise bad(f"{piece!r} is not understood")
    if name in ("inst_end", "prompt_end", "all") and inside is None:
        return InstEnd() if name == "inst_end" else Range("all") if name == "all" else Range("prompt", -1, None)
    if name not in ("prompt", "response"):
        raise bad(f"{piece!r} is not understood")
    if inside is None:
        return Range(name)
    start, colon, stop = inside.partition(":")
    try:
        a = int(start) if start.strip() else 0
        b = int(stop) if stop.strip() else None
    except ValueError:
        raise bad(f"{piece!r} has no number in its range") from None
    if not colon and not start.strip():
        raise bad(f"{piece!r} has an empty range")
    if name == "response" and (a < 0 or (b or 0) < 0):
        raise bad(f"{piece!r} counts from the end of a response, and a generation's end is not known while it runs")
    if not colon:
        return _single(name, a)
    if b is not None and (a < 0) == (b < 0) and b <= a:
        raise bad(f"{piece!r} is an empty range")
    return Range(name, a, b)


def _ends(match: re.Match[str], bad: Callable[[str], TokensError]) -> Ends:
    first, last = int(match["first"]), int(match["last"])
    if match["range"] is None:
        if not first + last:
            raise bad("it selects nothing")
        return Ends(first, last)
    start, colon, stop = (part.strip() for part in match["range"].partition(":"))
    if not start and not colon:
        raise bad("it has an empty range")
    a = int(start or 0)
    b = int(stop) if stop else None if colon else a + 1
    if not a < (first + last if b is None else b) <= first + last:
        raise bad(f"its places are 0 to {first + last - 1}")
    return Ends(first, last, a, b)
