"""Token columns: which slots they cover, what these are paired with, and what cannot be paired."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.interventions import tiny

import inlay
from inlay.causal.columns import Columns, Rows, about_how_many, batches, chosen, columns
from inlay.errors import CausalError, InputError, TokensError
from inlay.model.tokens import span

LONG, SHORT = [3, 4, 5, 6, 7], [8, 9]


@pytest.fixture(scope="module")
def model() -> inlay.Model:
    return inlay.load(tiny.llama(num_hidden_layers=1), tokenizer=tiny.words())


def rows(model: inlay.Model, *prompts: Any) -> Rows:
    return Rows.of(model, list(prompts), None)


def test_rows(model: inlay.Model) -> None:
    every = rows(model, LONG, SHORT, [1])
    assert len(every) == every.total == 3 and every.longest == 5 and every.ids == [LONG, SHORT, [1]]
    assert every.last.tolist() == [4, 1, 0]
    some = every.pick([2, 0])
    assert some.ids == [[1], LONG] and list(some.numbers) == [2, 0] and some.total == 3
    twice = some.repeated(2)
    assert twice.ids == [[1], [1], LONG, LONG] and list(twice.numbers) == [2, 2, 0, 0] and twice.total == 3


def test_batches_hold_every_row_once_within_the_budget(model: inlay.Model) -> None:
    every = rows(model, *[[1] * n for n in (3, 5, 1, 2, 5, 4)])
    found = batches(every, 8)
    assert sorted(n for batch in found for n in batch.numbers) == list(range(6))
    assert all(len(batch) == 1 or len(batch) * batch.longest <= 8 for batch in found) and len(found) < 6
    assert [len(batch) for batch in batches(every, 0)] == [1] * 6, "one row at least"


def test_chosen_slots(model: inlay.Model) -> None:
    every = rows(model, LONG, SHORT)
    t, f = True, False
    assert chosen(model, every, "all").tolist() == [[t, t, t, t, t], [t, t, f, f, f]], "no padding"
    assert chosen(model, every, -1).tolist() == [[f, f, f, f, t], [f, t, f, f, f]]
    assert chosen(model, every, [0, 1]).tolist() == [[t, t, f, f, f]] * 2, "a list of ints is one spec"
    assert chosen(model, every, [span("w4 w5"), "last"]).tolist() == [[f, t, t, f, f], [f, t, f, f, f]], "one for each"
    assert chosen(model, every.pick([1]), [span("w4"), span("w8")]).tolist() == [[t, f]], "by the row's own number"
    each = torch.tensor([[4], [0]])
    assert chosen(model, every.pick([1, 0]), each).tolist() == [[t, f, f, f, f], [f, f, f, f, t]]


def test_a_column_for_each_token(model: inlay.Model) -> None:
    base, source = rows(model, LONG, SHORT), rows(model, [1, 2, 3, 4, 5], [6, 7])
    found = columns(model, base, source, "all")
    assert len(found) == 5
    for k in range(5):
        assert found.base[k, 0].tolist() == [s == k for s in range(5)]
        assert found.base[k, 1].tolist() == [s == k and k < 2 for s in range(5)], "a short pair lacks the column"
    assert found.source.shape[0] == 1 and found.source[0, 0].tolist() == [0, 1, 2, 3, 4]
    assert found.source[0, 1, :2].tolist() == [0, 1]


def test_the_kth_token_is_paired_with_the_kth(model: inlay.Model) -> None:
    """Other lengths, other places."""
    base, source = rows(model, LONG), rows(model, [9, 9, 9, 9, 9, 9, 1, 2])
    found = columns(model, base, source, [1, 3], "last2")
    assert found.base[:, 0].nonzero().tolist() == [[0, 1], [1, 3]]
    assert found.source[0, 0, [1, 3]].tolist() == [6, 7]


def test_a_column_for_each_name(model: inlay.Model) -> None:
    base, source = rows(model, LONG, SHORT), rows(model, SHORT, [1, *LONG])
    names = {"first": [0, 1], "last": -1}
    theirs = {"last": -1, "first": [span("w8 w9"), [3, 4]]}
    found = columns(model, base, source, names, theirs)
    assert len(found) == 2 and found.base[0].tolist() == [[True, True, False, False, False]] * 2
    assert found.source[0, 0, :2].tolist() == [0, 1] and found.source[0, 1, :2].tolist() == [3, 4]
    assert found.base[1].nonzero().tolist() == [[0, 4], [1, 1]]
    assert found.source[1, 0, 4].item() == 1 and found.source[1, 1, 1].item() == 5


def test_repeated(model: inlay.Model) -> None:
    one = columns(model, rows(model, LONG, SHORT), rows(model, LONG, SHORT), "all")
    two = one.repeated(3)
    assert torch.equal(two.base, one.base[:, [0, 0, 0, 1, 1, 1]])
    assert torch.equal(two.source, one.source[:, [0, 0, 0, 1, 1, 1]]) and isinstance(two, Columns)


def test_how_many_columns_there_will_be(model: inlay.Model) -> None:
    base = rows(model, SHORT, LONG)
    for tokens in ("all", "last", [0, 1], {"a": 0, "b": -1}, [0, span("w4 w5 w6")], torch.tensor([[0, 1], [1, 3]])):
        assert about_how_many(model, base, tokens) == len(columns(model, base, base, tokens))


def test_what_does_not_pair_up(model: inlay.Model) -> None:
    base, source = rows(model, SHORT, LONG), rows(model, SHORT, LONG[:3])
    with pytest.raises(TokensError, match=r"pair 1 selects 5 tokens of its base and 3 of its source.*source_tokens="):
        columns(model, base, source, "all")
    with pytest.raises(TokensError, match="pair 1 selects 2 tokens of its base and 1 of its source"):
        columns(model, base.pick([1]), source.pick([1]), {"one": [1, 2]}, {"one": [0]})
    with pytest.raises(CausalError, match="the same names"):
        columns(model, base, base, {"one": 0}, {"two": 0})
    with pytest.raises(CausalError, match="the same names, one at least"):
        columns(model, base, base, {})
    with pytest.raises(CausalError, match="the same names"):
        columns(model, base, base, {"one": 0}, "last")
    with pytest.raises(CausalError, match="3 token specs for 2 prompts"):
        chosen(model, base, ["last", "last", "last"])
    with pytest.raises(TokensError, match="out of range in row 0"):
        chosen(model, base, 4)
    with pytest.raises(TokensError, match="row 1 holds the text 0 times"):
        chosen(model, base, ["last", span("w8")])
    with pytest.raises(CausalError, match="2 base prompts and 1 source prompts"):
        Rows.paired(model, [SHORT, LONG], [SHORT], None)
    with pytest.raises(InputError, match="empty"):
        Rows.of(model, [], None)
