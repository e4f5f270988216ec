"""Objectives by name: settings, what is refused, and what every one of them has."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import inlay.train.objectives as objectives
from inlay.errors import TrainError
from inlay.train.objectives import DPO, OBJECTIVES, Lang, RePS, objective


def test_a_name_makes_the_objective_with_its_settings() -> None:
    assert objective("lm") == Lang()
    assert objective("reps", length="sequence", shared_factor=True) == RePS("sequence", True)


def test_an_object_is_copied_and_may_be_changed() -> None:
    given = DPO(0.5)
    assert objective(given) == given and objective(given) is not given
    assert objective(given, beta=2.0) == DPO(2.0) and given.beta == 0.5


def test_a_function_is_taken_as_it_is() -> None:
    def mine(step: Any) -> torch.Tensor:
        return torch.zeros(step.size)

    assert objective(mine) is mine
    with pytest.raises(TrainError, match="is a function and takes no settings"):
        objective(mine, beta=1)


@pytest.mark.parametrize(
    ("of", "settings", "message"),
    [
        ("rep", {}, "objective='rep': one of lm, reps, bipo"),
        ("reps", {"beta": 1}, "RePS has no setting 'beta'; it has length, shared_factor"),
        ("lm", {"beta": 1}, "Lang has no setting 'beta'; it has none"),
        (DPO(), {"gamma": 1}, "DPO has no setting 'gamma'; it has beta"),
        ("imitate", {"_unedited": {}}, "Imitate has no setting '_unedited'; it has read"),
        (RePS, {}, "give RePS()"),
        (3, {}, "objective=3: give a name or a function of a Step"),
    ],
)
def test_what_is_refused(of: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainError, match=re.escape(message)):
        objective(of, **settings)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_every_objective_has(name: str) -> None:
    """Sides that an Example has, references among them, a repr with its settings (a run's fingerprint), no state."""
    from inlay.train.examples import SIDES

    made: Any = objective(name)
    assert set(made.sides) <= set(SIDES) and set(getattr(made, "references", ())) <= set(made.sides)
    assert eval(repr(made), vars(objectives)) == made
    with pytest.raises(AttributeError):
        made.sides_of = ()
