"""Counterfactual data: every row is what the causal model says, rows come by seed, and groups take turns."""

from __future__ import annotations

import random
from random import Random
from typing import Any

import pytest
from tests.causal.planted import entities, hierarchy, quadruples

from inlay.causal import CausalModel, Counterfactual, counterfactuals
from inlay.errors import CausalError


def letters() -> CausalModel:
    """Two letters; the answer is both."""
    return CausalModel(
        ["one", "two", "out"],
        values={"one": "ab", "two": "ab"},
        parents={"out": ["one", "two"]},
        functions={"out": lambda one, two: one + two},
    )


def written(v: dict[str, Any]) -> str:
    return f"{v['one']} {v['two']}"


def test_rows_are_what_the_program_says() -> None:
    for row in counterfactuals(letters(), 60, ["one", ("two",), ("two", "one")], written):
        base, *sources = (text.split() for text in (row.base, *row.sources))
        changed = dict(zip(["one", "two"], base, strict=True))
        assert row.base_label == "".join(base)
        for name, source in zip(row.variables, sources, strict=True):
            changed[name] = source[["one", "two"].index(name)]
        assert row.label == changed["one"] + changed["two"]


def test_computed_variables_are_those_of_the_sources() -> None:
    for row in quadruples(120):
        kept = {"WX": row.base[0] == row.base[1], "YZ": row.base[2] == row.base[3]}
        assert row.base_label == int(kept["WX"] == kept["YZ"])
        for name, (w, x, y, z) in zip(row.variables, row.sources, strict=True):
            kept[name] = w == x if name == "WX" else y == z
        assert row.label == int(kept["WX"] == kept["YZ"]) and type(row.label) is int


def test_groups_take_turns() -> None:
    rows = counterfactuals(letters(), 7, ["one", ["two", "one"]], written)
    assert [row.variables for row in rows] == [("one",), ("two", "one")] * 3 + [("one",)]
    assert [len(row.sources) for row in rows] == [1, 2] * 3 + [1]


def test_the_seed_decides_and_nothing_else() -> None:
    make = lambda seed: counterfactuals(letters(), 30, ["one"], written, seed=seed)  # noqa: E731
    random.seed(5)
    state = random.getstate()
    first = make(1)
    assert random.getstate() == state, "the global generator is left alone"
    random.seed(6)
    assert make(1) == first and make(2) != first
    assert make(1)[:10] == counterfactuals(letters(), 10, ["one"], written, seed=1), (
        "more rows leave the first as they are"
    )


def test_only_changed_labels() -> None:
    rows = counterfactuals(letters(), 50, ["one"], written, changed=True)
    assert all(row.label != row.base_label for row in rows)
    assert any(row.label == row.base_label for row in counterfactuals(letters(), 50, ["one"], written))


def test_inputs_can_be_drawn_otherwise() -> None:
    rows = quadruples(300)
    equal = sum(row.base[0] == row.base[1] for row in rows)
    assert 100 < equal < 200, "entities() makes half of the pairs equal"
    plain = counterfactuals(hierarchy(), 300, ["WX"], lambda v: [v[k] for k in "WXYZ"])
    assert sum(row.base[0] == row.base[1] for row in plain) < 60
    assert set(entities(Random(0))) == set("WXYZ")


def test_labels_are_made_of_the_run_that_ends_in_them() -> None:
    rows = counterfactuals(letters(), 20, ["two"], written, lambda v: f"{v['two']}!")
    assert all(row.label == f"{row.sources[0][-1]}!" and row.base_label == f"{row.base[-1]}!" for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, ["one"]), "n=0 rows"),
        ((3, []), "give at least one of each"),
        ((3, ["three"]), "sources names 'three'"),
        ((3, [()]), "name each variable once"),
        ((3, [("one", "one")]), "name each variable once"),
    ],
)
def test_what_makes_no_rows(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(CausalError, match=message):
        counterfactuals(letters(), *arguments, written)


def test_labels_that_are_none() -> None:
    two = CausalModel(["x", "y"], {"x": [0], "y": [0]}, {}, {})
    with pytest.raises(CausalError, match="the outputs x, y: say with to_label="):
        counterfactuals(two, 1, ["x"], written)
    real = CausalModel(["x", "y"], {"x": [0.5]}, {"y": ["x"]}, {"y": abs})
    with pytest.raises(CausalError, match=r"the output 'y' is 0.5"):
        counterfactuals(real, 1, ["x"], str)


def test_a_label_that_never_changes() -> None:
    same = CausalModel(["x", "y"], {"x": [1]}, {"y": ["x"]}, {"y": abs})
    with pytest.raises(CausalError, match="that set x changes the label"):
        counterfactuals(same, 1, ["x"], str, changed=True)


def test_a_row_says_what_is_wrong_with_it() -> None:
    assert Counterfactual("b", ("s",), ("x",), 1, 0).variables == ("x",)
    for sources, variables in ((("s", "t"), ("x",)), ((), ()), (("s", "t"), ("x", "x"))):
        with pytest.raises(CausalError, match="name each variable once"):
            Counterfactual("b", sources, variables, 1, 0)
