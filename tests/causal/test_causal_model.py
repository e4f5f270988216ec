"""CausalModel: runs, interchanges and live paths against programs written by hand, and every way to misspell one."""

from __future__ import annotations

import itertools
import random
from random import Random
from typing import Any

import pytest

from inlay.causal import CausalModel
from inlay.errors import CausalError

BITS = {"a": [0, 1], "b": [0, 1], "c": [0, 1]}


def gate(**changes: Any) -> CausalModel:
    """d = a and b, e = d or c."""
    given: dict[str, Any] = {
        "variables": ["a", "b", "c", "d", "e"],
        "values": BITS,
        "parents": {"d": ["a", "b"], "e": ["d", "c"]},
        "functions": {"d": lambda a, b: a & b, "e": lambda d, c: d | c},
    }
    return CausalModel(**{**given, **changes})


def settings() -> list[dict[str, int]]:
    return [dict(zip("abc", bits, strict=True)) for bits in itertools.product([0, 1], repeat=3)]


def test_runs_are_the_program() -> None:
    model = gate()
    for s in settings():
        d = s["a"] & s["b"]
        assert model.run(s) == {**s, "d": d, "e": d | s["c"]}
    assert list(model.run({"c": 1, "b": 0, "a": 1})) == ["a", "b", "c", "d", "e"], "in the order of the variables"


def test_a_computed_variable_can_be_set() -> None:
    assert gate().run({"a": 0, "b": 0, "c": 0, "d": 1}) == {"a": 0, "b": 0, "c": 0, "d": 1, "e": 1}


def test_every_interchange_is_the_program_with_values_taken_over() -> None:
    model = gate()
    for base, one, other in itertools.product(settings(), repeat=3):
        a, c = base["a"], base["c"]
        assert model.interchange(base, {"d": one})["e"] == (one["a"] & one["b"]) | c
        assert model.interchange(base, {"d": one, "c": other})["e"] == (one["a"] & one["b"]) | other["c"]
        assert model.interchange(base, {"b": one})["d"] == a & one["b"]
        assert model.interchange(base, {"e": one}) == {**model.run(base), "e": model.run(one)["e"]}


def test_arguments_come_in_the_order_of_the_parents() -> None:
    made = CausalModel(["x", "y", "z"], {"x": [7], "y": [2]}, {"z": ["y", "x"]}, {"z": divmod})
    assert made.run({"x": 7, "y": 2})["z"] == (0, 2)


def test_structure() -> None:
    model = gate()
    assert model.inputs == ("a", "b", "c") and model.outputs == ("e",)
    assert model.depth == {"a": 0, "b": 0, "c": 0, "d": 1, "e": 2}
    assert repr(model) == "CausalModel(a, b, c -> e; 5 variables)"


def test_a_model_keeps_nothing_of_the_callers_and_changes_nothing() -> None:
    values, parents = {"a": [0, 1], "b": [0, 1]}, {"c": ["b", "a"]}
    functions = {"c": lambda b, a: a - b}
    made = CausalModel(["c", "b", "a"], values, parents, functions)
    assert (values, parents) == ({"a": [0, 1], "b": [0, 1]}, {"c": ["b", "a"]}) and made.variables == ("c", "b", "a")
    values["a"].append(99), parents["c"].reverse(), functions.clear()
    setting = {"a": 1, "b": 0}
    assert made.run(setting)["c"] == 1 and setting == {"a": 1, "b": 0}
    assert {made.sample(Random(i))["a"] for i in range(50)} == {0, 1}


def test_models_share_nothing() -> None:
    one, other = gate(), gate(parents={"e": ["a", "c"], "d": ["b"]}, functions={"d": abs, "e": max})
    assert one.parents != other.parents and one.run(settings()[6])["e"] == 1 and other.depth["e"] == 1
    one.depth["e"] = 99
    assert gate().depth["e"] == 2


# -- sampling ----------------------------------------------------------------------------------------------------------


def test_samples_depend_on_the_rng_alone() -> None:
    model = gate()
    assert [model.sample(Random(3)) for _ in range(5)] == [model.sample(Random(3))] * 5
    state = random.getstate()
    model.sample(Random(1))
    assert random.getstate() == state, "the global generator is left alone"
    drawn = [tuple(model.sample(rng).values()) for rng in [Random(0)] for _ in range(200)]
    assert set(drawn) == set(itertools.product([0, 1], repeat=3))


def test_samples_can_be_filtered_and_asked_for_a_value() -> None:
    model, rng = gate(), Random(0)
    assert all(model.run(model.sample(rng, where=lambda v: v["d"] == v["c"]))["e"] in (0, 1) for _ in range(20))
    for _ in range(20):
        found = model.sample(rng, where=lambda v: v["d"] == 1)
        assert set(found) == {"a", "b", "c"} and found["a"] == found["b"] == 1
        assert model.run(model.sample_for("e", 0, rng))["e"] == 0
        assert model.sample_for("a", 1, rng)["a"] == 1


def test_values_can_be_drawn_by_a_function() -> None:
    made = CausalModel(["x", "y"], {"x": lambda rng: rng.uniform(2, 3)}, {"y": ["x"]}, {"y": lambda x: x > 2.5})
    drawn = [made.sample(Random(i))["x"] for i in range(20)]
    assert all(2 <= x <= 3 for x in drawn) and len(set(drawn)) == 20
    assert made.sample_for("y", True, Random(0))["x"] > 2.5
    assert made.sample_for("x", 7.0, Random(0)) == {"x": 7.0}


def test_a_value_that_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    from inlay.causal import causal_model

    monkeypatch.setattr(causal_model, "_TRIES", 20)
    with pytest.raises(CausalError, match="none of 20 draws"):
        gate().sample_for("e", 2, Random(0))
    with pytest.raises(CausalError, match="sample_for names 'z'"):
        gate().sample_for("z", 2, Random(0))


# -- live paths --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "live"),
    [
        ((1, 1, 0), {"ade", "bde"}),  # c changed to 1 leaves e at 1
        ((1, 1, 1), set()),  # either alone keeps e at 1
        ((0, 1, 0), {"ade", "ce"}),
        ((0, 0, 0), {"ce"}),
        ((0, 1, 1), {"ce"}),
    ],
)
def test_live_paths(setting: tuple[int, ...], live: set[str]) -> None:
    found = gate().live_paths(dict(zip("abc", setting, strict=True)))
    assert {"".join(path) for path in found} == live and len(found) == len(live)


def test_a_path_that_another_one_cancels_is_live() -> None:
    made = CausalModel(
        ["x", "y", "out"],
        {"x": [0, 1]},
        {"y": ["x"], "out": ["x", "y"]},
        {"y": lambda x: x, "out": lambda x, y: x ^ y},
    )
    assert {made.run({"x": x})["out"] for x in (0, 1)} == {0}, "in all, x makes no difference"
    assert made.live_paths({"x": 0}) == [("x", "y", "out"), ("x", "out")]
    assert made.live_paths({"x": 0, "y": 0}) == [("x", "out")], "y is held, and passes nothing on"


def test_live_paths_need_the_values() -> None:
    made = CausalModel(["x", "y"], {"x": lambda rng: rng.random()}, {"y": ["x"]}, {"y": abs})
    with pytest.raises(CausalError, match="every value of 'x'"):
        made.live_paths({"x": 0.5})


# -- what is no causal model -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variables": []}, "give each name once"),
        ({"variables": ["a", "a"]}, "give each name once"),
        ({"values": {**BITS, "z": [0]}}, "values names 'z'"),
        ({"parents": {"d": ["a", "q"], "e": ["d"]}}, "parents\\['d'\\] names 'q'"),
        ({"functions": {"d": min, "e": max, "f": max}}, "functions names 'f'"),
        ({"functions": {"e": max}}, "'d' has parents and no function"),
        ({"values": {"a": [0], "b": [0]}}, "the input 'c' has no values"),
        ({"values": {**BITS, "c": []}}, "the input 'c' has no values"),
        ({"values": {**BITS, "d": [0]}}, "'d' is computed from its parents"),
        ({"functions": {"a": abs, "d": min, "e": max}}, "'a' has a function and no parents"),
    ],
)
def test_what_is_no_causal_model(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CausalError, match=message):
        gate(**changes)


def test_a_cycle_is_named() -> None:
    with pytest.raises(CausalError, match=r"depends on itself: (d -> e -> d|e -> d -> e)"):
        CausalModel(["c", "d", "e"], {"c": [0]}, {"d": ["e"], "e": ["d", "c"]}, {"d": abs, "e": max})
    with pytest.raises(CausalError, match="depends on itself: d -> d"):
        CausalModel(["d"], {}, {"d": ["d"]}, {"d": abs})


def test_a_setting_that_is_none() -> None:
    with pytest.raises(CausalError, match="no value for the input 'c'"):
        gate().run({"a": 0, "b": 0})
    with pytest.raises(CausalError, match="the setting names 'q'"):
        gate().run({"a": 0, "b": 0, "c": 0, "q": 0})
    with pytest.raises(CausalError, match="sources names 'q'"):
        gate().interchange({"a": 0, "b": 0, "c": 0}, {"q": {"a": 0, "b": 0, "c": 0}})
