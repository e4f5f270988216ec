"""Strengths: what is drawn, on what it depends, and how it is written."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from inlay.errors import TrainError
from inlay.train.factors import Between, Choice, Factors, Fixed, factors

ALL = [Fixed(1.5), Choice([2, 4, 6, 8]), Between(-1, 3)]


@pytest.mark.parametrize("kind", ALL)
def test_a_draw_depends_on_its_arguments_alone(kind: Factors) -> None:
    torch.manual_seed(0)
    first = kind.draw(9, 42, 3, 1)
    state = torch.get_rng_state()
    assert first.shape == (9,) and first.dtype == torch.float32
    assert torch.equal(first, kind.draw(9, 42, 3, 1)), "whatever was drawn before"
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"
    assert torch.equal(first[:4], kind.draw(4, 42, 3, 1)), "an example's does not depend on how many follow it"


@pytest.mark.parametrize("kind", ALL[1:])
def test_seed_step_and_which_each_draw_apart(kind: Factors) -> None:
    drawn = [kind.draw(32, *key).tolist() for key in ((42, 3, 1), (43, 3, 1), (42, 4, 1), (42, 3, 2), (42, 1, 3))]
    assert len({tuple(one) for one in drawn}) == len(drawn)


def test_fixed_is_what_it_says() -> None:
    assert Fixed(-2).draw(3, 0, 0, 0).tolist() == [-2.0] * 3


def test_every_choice_is_as_likely() -> None:
    """40,000 draws in 4 values: a count's standard deviation is 87, and five of these are allowed."""
    counts = torch.cat([Choice([2, 4, 6, 8]).draw(400, 1, step, 0) for step in range(100)])
    for value in (2, 4, 6, 8):
        assert abs(int((counts == value).sum()) - 10_000) < 5 * 87


def test_between_is_uniform() -> None:
    """Mean (a + b) / 2 and variance (b - a)^2 / 12; the mean's standard deviation is .0058 for 40,000 draws."""
    drawn = torch.cat([Between(-1, 3).draw(400, 1, step, 0) for step in range(100)]).double()
    assert float(drawn.min()) >= -1 and float(drawn.max()) <= 3
    assert float(drawn.mean()) == pytest.approx(1.0, abs=5 * 0.0058)
    assert float(drawn.var()) == pytest.approx(16 / 12, rel=0.03)
    assert float((drawn < 0).double().mean()) == pytest.approx(0.25, abs=5 * 0.0022)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (3, Fixed(3.0)),
        ("3", Fixed(3.0)),
        ([1, 2.5], Choice((1.0, 2.5))),
        ((1,), Choice((1.0,))),
        (range(2, 8, 2), Choice((2.0, 4.0, 6.0))),
        ("2,4..20", Choice(tuple(float(i) for i in range(2, 21, 2)))),
        ("2, 4..20, 25,30", Choice((*(float(i) for i in range(2, 21, 2)), 25.0, 30.0))),
        ("2,4..9", Choice((2.0, 4.0, 6.0, 8.0))),
        ("1..3", Choice((1.0, 2.0, 3.0))),
        ("-1,0..1", Choice((-1.0, 0.0, 1.0))),
        ("2,1..-1", Choice((2.0, 1.0, 0.0, -1.0))),
        ({"between": [0.5, 2]}, Between(0.5, 2.0)),
        (Between(0, 1), Between(0.0, 1.0)),
    ],
)
def test_how_strengths_are_written(spec: Any, expected: Factors) -> None:
    assert factors(spec) == expected


def test_a_step_of_tenths_reaches_its_end() -> None:
    found = factors(".2,.4..2.0")
    assert isinstance(found, Choice) and found.values == pytest.approx([0.2 * i for i in range(1, 11)])


def test_whatever_draws_is_taken() -> None:
    class Mine:
        def draw(self, n: int, seed: int, step: int, which: int) -> torch.Tensor:
            return torch.zeros(n)

    mine = Mine()
    assert factors(mine) is mine


def test_the_repr_tells_the_settings_apart() -> None:
    """A run's fingerprint is made of it."""
    assert repr(factors([1, 2])) == repr(factors("1,2")) != repr(factors([1, 3]))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ([], "an empty list has no strength to choose"),
        ([1, float("nan")], "factors=nan is no finite number"),
        ([1, "x"], "factors='x' is no finite number"),
        (float("inf"), "factors=inf is no finite number"),
        (None, "factors=None is no finite number"),
        (Fixed, "is no finite number"),
        ("2,x..20", "factors='2,x..20': 'x' is no finite number"),
        ("", "factors='': '' is no finite number"),
        ("2..", "factors='2..': '' is no finite number"),
        ("4,2..20", "steps of -2 do not lead from 2 to 20"),
        ("2,2..20", "steps of 0 do not lead from 2 to 20"),
        ({"betwen": [0, 1]}, "a mapping is {'between': [low, high]}"),
        ({"between": [0]}, "a mapping is {'between': [low, high]}"),
        ({"between": [2, 1]}, "Between(2, 1): low must be below high"),
    ],
)
def test_what_is_refused(spec: Any, message: str) -> None:
    with pytest.raises(TrainError, match=re.escape(message)):
        factors(spec)
