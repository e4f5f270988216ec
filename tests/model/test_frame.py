"""Positions of a call against a reference that walks over every row's slots in plain Python."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from inlay.errors import TokensError
from inlay.model.frame import Frame, Prompt, Selection, Text
from inlay.model.tokens import Tokens

CPU = torch.device("cpu")


@dataclass
class World:
    """Known slots, padded on one side, and how many slots are generated behind them."""

    attended: list[list[bool]] | None
    prompt: list[list[bool]] | None
    rows: int
    slots: int
    generated: int

    def made(self) -> Prompt:
        def mask(values: list[list[bool]] | None) -> torch.Tensor | None:
            return None if values is None else torch.tensor(values)

        return Prompt(self.rows, self.slots, CPU, mask(self.attended), mask(self.prompt))

    def parts(self, row: int) -> tuple[list[int], list[int]]:
        """Slots of the row's prompt tokens and of its response tokens, in order."""
        prompt, response = [], []
        for slot in range(self.slots):
            if self.attended is None or self.attended[row][slot]:
                is_prompt = self.prompt is None or self.prompt[row][slot]
                (prompt if is_prompt else response).append(slot)
        return prompt, response + list(range(self.slots, self.slots + self.generated))


@st.composite
def worlds(draw: st.DrawFn) -> World:
    rows, slots = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    side = draw(st.sampled_from(["none", "left", "right"]))
    lengths = [draw(st.integers(1, slots)) if side != "none" else slots for _ in range(rows)]
    starts = [slots - n if side == "left" else 0 for n in lengths]
    attended = None
    if side != "none" or draw(st.booleans()):
        attended = [[a <= s < a + n for s in range(slots)] for a, n in zip(starts, lengths, strict=True)]
    prompt = None
    if draw(st.booleans()):
        ends = [a + draw(st.integers(0, n)) for a, n in zip(starts, lengths, strict=True)]
        prompt = [[a <= s < e for s in range(slots)] for a, e in zip(starts, ends, strict=True)]
    return World(attended, prompt, rows, slots, draw(st.integers(0, 4)))


Reference = Callable[[list[int], list[int], int], list[int]]


def _slice(phase: str, a: int | None, b: int | None) -> tuple[str, Reference]:
    text = f"{phase}[{'' if a is None else a}:{'' if b is None else b}]"
    return text, lambda prompt, response, end: (prompt if phase == "prompt" else response)[a:b]


def _one(phase: str, k: int) -> tuple[str, Reference]:
    return (
        f"{phase}[{k}]",
        lambda prompt, response, end: (
            [prompt[k]] if phase == "prompt" else response[k : k + 1]  # an IndexError where the prompt is too short
        ),
    )


def _ends(first: int, last: int) -> Reference:
    def found(prompt: list[int], response: list[int], end: int) -> list[int]:
        n = len(prompt)
        short = n < first + last
        p, s = (min(first, n // 2), min(last, -(-n // 2))) if short else (first, last)
        return prompt[:p] + prompt[n - s :]

    return found


edge = st.none() | st.integers(0, 5)
signed = st.none() | st.integers(-5, 5)
clauses = st.one_of(
    st.just(("all", lambda prompt, response, end: list(range(end)))),
    st.just(("prompt", lambda prompt, response, end: prompt)),
    st.just(("response", lambda prompt, response, end: response)),
    st.just(("prompt_end", lambda prompt, response, end: prompt[-1:])),
    st.integers(1, 4).map(lambda n: (f"first{n}", lambda prompt, response, end: prompt[:n])),
    st.integers(1, 4).map(lambda n: (f"last{n}", lambda prompt, response, end: prompt[-n:])),
    st.just(("first", lambda prompt, response, end: prompt[:1])),
    st.just(("last", lambda prompt, response, end: prompt[-1:])),
    st.tuples(st.integers(1, 4), st.integers(0, 4)).map(lambda pq: (f"ends({pq[0]}, {pq[1]})", _ends(*pq))),
    st.integers(-4, 4).map(lambda k: (str(k), _one("prompt", k)[1])),
    st.integers(-4, 4).map(lambda k: _one("prompt", k)),
    st.integers(0, 4).map(lambda k: _one("response", k)),
    st.tuples(signed, signed).map(lambda ab: _slice("prompt", *ab)),
    st.tuples(edge, edge).map(lambda ab: _slice("response", *ab)),
)
specs = st.lists(clauses, min_size=1, max_size=3).map(
    lambda many: ("+".join(text for text, _ in many), [ref for _, ref in many])
)


def parsed(spec: str) -> Tokens:
    try:
        return Tokens.parse(spec)
    except TokensError as error:
        assert "empty range" in str(error)  # "prompt[3:1]": refused where it is written
        assume(False)
        raise


def reference(world: World, refs: list[Reference]) -> tuple[list[set[int]], list[int]]:
    """The selected slots of every row, and the rows that lack a single position."""
    chosen, lacking = [], []
    for row in range(world.rows):
        prompt, response = world.parts(row)
        try:
            chosen.append({s for ref in refs for s in ref(prompt, response, world.slots + world.generated)})
        except IndexError:
            lacking.append(row)
    return chosen, lacking


def calls(world: World, cuts: list[int]) -> list[tuple[int, int]]:
    """(start, length) of calls that cover all slots, cut at `cuts`."""
    end = world.slots + world.generated
    edges = sorted({0, end, *(c for c in cuts if c < end)})
    return list(zip(edges, (b - a for a, b in pairwise(edges)), strict=False))


def as_mask(selection: Selection, rows: int, length: int) -> torch.Tensor:
    if selection.mask is None:
        return torch.full((rows, length), not selection.empty)
    assert selection.mask.dtype == torch.bool and selection.mask.shape[1] == length
    return selection.mask.expand(rows, length)


def _alone(text: str, start: int) -> tuple[str, list[Reference]]:
    return text, [lambda prompt, response, end: response[start:]]


cuts = st.lists(st.integers(1, 9), max_size=4)


@settings(max_examples=200)
@given(worlds(), specs, cuts, st.integers(1, 2), st.booleans())
def test_selection_equals_the_reference(world: World, spec: Any, cuts: list[int], expand: int, on_device: bool) -> None:
    text, refs = spec
    tokens, prompt, (want, lacking) = parsed(text), world.made(), reference(world, refs)
    if lacking:
        if not tokens.everything:
            with pytest.raises(TokensError, match=f"out of range in row ({'|'.join(map(str, lacking))}), "):
                prompt.resolve([tokens], None)
        return
    prompt.resolve([tokens], None)
    for start, length in calls(world, cuts):
        at = torch.tensor(start) if on_device else start
        frame = Frame(prompt, world.rows * expand, length, at)
        got = as_mask(frame.select(tokens, prompt.tables[0]), world.rows * expand, length)
        for row in range(world.rows * expand):
            selected = want[row // expand]
            assert got[row].tolist() == [s in selected for s in range(start, start + length)], (row, start)


@given(worlds(), cuts, st.integers(1, 2), st.booleans())
def test_attended_and_positions_equal_the_reference(
    world: World, cuts: list[int], expand: int, on_device: bool
) -> None:
    prompt = world.made()
    for start, length in calls(world, cuts):
        frame = Frame(prompt, world.rows * expand, length, torch.tensor(start) if on_device else start)
        here, positions = frame.attended(), frame.positions().expand(world.rows * expand, length)
        for row in range(world.rows * expand):
            real = sorted(s for part in world.parts(row // expand) for s in part)
            for column, slot in enumerate(range(start, start + length)):
                assert here is None or bool(here[row, column]) == (slot in real)
                if slot in real:
                    assert int(positions[row, column]) == real.index(slot)


@example(World(None, [[True, False]], 1, 2, 3), _alone("response[2:]", 2), [3], 1)
@given(worlds(), specs, cuts, st.integers(1, 2))
def test_order_is_the_rank_among_selected_tokens(world: World, spec: Any, cuts: list[int], expand: int) -> None:
    text, refs = spec
    tokens, (want, lacking) = parsed(text), reference(world, refs)
    assume(not lacking)
    steps = [k for a, b in tokens.tail for k in range(20)[a:b]]
    assume(len(steps) == len(set(steps)))  # overlapping intervals of a response are not ranked
    prompt = world.made()
    prompt.resolve([tokens], None)
    for start, length in calls(world, cuts):
        frame = Frame(prompt, world.rows * expand, length, start)
        order = frame.order(tokens, prompt.tables[0]).expand(world.rows * expand, length)
        for row in range(world.rows * expand):
            real = sorted(s for part in world.parts(row // expand) for s in part)
            selected = [s for s in real if s in want[row // expand]]
            for column, slot in enumerate(range(start, start + length)):
                if slot in selected:
                    assert int(order[row, column]) == selected.index(slot), (row, slot)


@given(worlds(), st.data())
def test_each_rows_own_positions(world: World, data: st.DataObject) -> None:
    lengths = [len(world.parts(row)[0]) for row in range(world.rows)]
    assume(min(lengths) > 0)
    width = data.draw(st.integers(1, 3))
    wanted = [[data.draw(st.integers(-n, n - 1)) for _ in range(width)] for n in lengths]
    prompt = world.made()
    prompt.resolve([Tokens.parse(torch.tensor(wanted))], None)
    assert prompt.tables[0] is not None
    for row, positions in enumerate(wanted):
        slots = {world.parts(row)[0][k] for k in positions}
        assert prompt.tables[0][row].tolist() == [s in slots for s in range(world.slots)]
    row = data.draw(st.integers(0, world.rows - 1))
    for outside in (lengths[row], -lengths[row] - 1):
        wrong = [list(r) for r in wanted]
        wrong[row][-1] = outside
        with pytest.raises(TokensError, match=f"out of range in row {row}, whose prompt has {lengths[row]} tokens"):
            prompt.resolve([Tokens.parse(torch.tensor(wrong))], None)


@given(worlds(), st.data())
def test_a_mask_selects_prompt_slots_and_never_padding_or_response(world: World, data: st.DataObject) -> None:
    one = data.draw(st.booleans())
    mask = [[data.draw(st.booleans()) for _ in range(world.slots)] for _ in range(1 if one else world.rows)]
    prompt = world.made()
    prompt.resolve([Tokens.parse(torch.tensor(mask))], None)
    assert prompt.tables[0] is not None
    for row in range(world.rows):
        mine = mask[0 if one else row]
        inside = world.parts(row)[0]
        assert prompt.tables[0][row].tolist() == [mine[s] and s in inside for s in range(world.slots)]


def test_given_tensors_of_another_shape_are_refused() -> None:
    prompt = Prompt(2, 4, CPU)
    with pytest.raises(TokensError, match="3 rows for a batch of 2"):
        prompt.resolve([Tokens.parse(torch.zeros(3, 1, dtype=torch.long))], None)
    with pytest.raises(TokensError, match="the mask covers 5 slots, the prompt 4"):
        prompt.resolve([Tokens.parse(torch.zeros(2, 5, dtype=torch.bool))], None)


def test_text_needs_a_tokenizer_and_ids() -> None:
    with pytest.raises(TokensError, match="no tokenizer"):
        Prompt(1, 3, CPU, ids=torch.ones(1, 3, dtype=torch.long)).resolve([Tokens.parse("span('a')")], None)
    with pytest.raises(TokensError, match="no token ids"):
        Prompt(1, 3, CPU).resolve([Tokens.parse("span('a')")], Text(lambda ids: "a b c"))


# -- spans, on characters: one token a piece -------------------------------------------------------------------------

PIECES = ["ab", "a", "b", "abc", " c", " ", "c"]


@given(
    st.lists(st.lists(st.integers(0, len(PIECES) - 1), min_size=1, max_size=6), min_size=1, max_size=3),
    st.data(),
)
def test_a_span_is_every_token_that_overlaps_the_text(ids: list[list[int]], data: st.DataObject) -> None:
    whole = ["".join(PIECES[i] for i in row) for row in ids]
    start = data.draw(st.integers(0, len(whole[0]) - 1))
    words = whole[0][start : start + data.draw(st.integers(1, 4))]
    occurrence = data.draw(st.integers(-3, 2))
    longest = max(map(len, ids))
    table = torch.tensor([[0] * (longest - len(row)) + row for row in ids])
    attended = torch.tensor([[False] * (longest - len(row)) + [True] * len(row) for row in ids])
    prompt = Prompt(len(ids), longest, CPU, attended, None, table)
    text = Text(lambda numbers: "".join(PIECES[i] for i in numbers))
    found: list[list[int]] = []
    for row in whole:
        starts = [i for i in range(len(row)) if row[i : i + len(words)] == words]
        if not -len(starts) <= occurrence < len(starts):
            with pytest.raises(TokensError, match=f"row {len(found)} holds the text {len(starts)} times"):
                prompt.resolve([Tokens.parse(f"span({words!r}, {occurrence})")], text)
            return
        begin, characters, hit = starts[occurrence], 0, []
        for k, i in enumerate(ids[len(found)]):
            if any(begin <= c < begin + len(words) for c in range(characters, characters + len(PIECES[i]))):
                hit.append(k)
            characters += len(PIECES[i])
        found.append(hit)
    prompt.resolve([Tokens.parse(f"span({words!r}, {occurrence})")], text)
    assert prompt.tables[0] is not None
    for row, hit in enumerate(found):
        assert prompt.tables[0][row].nonzero().flatten().tolist() == [longest - len(ids[row]) + k for k in hit]
