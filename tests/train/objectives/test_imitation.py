"""Imitate: the distance of states, what it is divided by, and that the unedited model is at 1."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.train.objectives.toy import ROWS, SITES, Row, ToyStep, agree, forward, trained
from torch import Tensor

from inlay.errors import TrainError
from inlay.train.objectives import Imitate, distance, objective


def gap(row: Row, out: dict[str, Tensor]) -> Tensor:
    """The sum over blocks of the mean over response tokens and width, written out."""
    n, teacher = len(row.chosen), forward(row.ids("teacher")[0])
    total = torch.zeros((), dtype=torch.float64)
    for site in SITES:
        mine, theirs = out[site][-n:], teacher[site][-n:]
        for t in range(n):
            total = total + ((mine[t] - theirs[t]) ** 2).mean() / n
    return total


def unedited(rows: list[Row]) -> list[Tensor]:
    return [gap(row, forward(row.ids("chosen")[0])) for row in rows]


def test_against_the_formula() -> None:
    step, imitate = ToyStep(trained()), Imitate()
    imitate.prepare(step.loop())
    alone = unedited(ROWS)
    means = [(alone[0] + alone[1]) / 2, (alone[0] + alone[1]) / 2, alone[2]]
    expected = [
        gap(row, step.out(i, "chosen", step.factors()[i])) / means[i] / mates
        for i, (row, mates) in enumerate(zip(ROWS, [2, 2, 1], strict=True))
    ]
    agree(step, imitate(step), expected)  # type: ignore[arg-type]


def test_the_unedited_model_is_at_one_for_every_concept() -> None:
    """Over all examples of a concept, more of them than are read at once."""
    rows = [Row([i % 7], [(i * 3) % 7, (i + 2) % 7], teacher=[(i + 1) % 7, 2]) for i in range(20)]
    step, imitate = ToyStep(torch.zeros(5, dtype=torch.float64), rows), Imitate()
    imitate.prepare(step.loop())
    assert imitate(step).sum().item() == pytest.approx(1.0, abs=1e-6)  # type: ignore[arg-type]


def test_distance_leaves_pads_out_and_gives_the_teacher_no_gradient() -> None:
    student = torch.randn(2, 3, 4, requires_grad=True)
    teacher = torch.randn(2, 3, 4, requires_grad=True)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    found = distance({"a": student, "b": 2 * student}, {"a": teacher, "b": teacher}, mask)
    short = distance(
        {"a": student[1:, :1], "b": 2 * student[1:, :1]}, {"a": teacher[1:, :1], "b": teacher[1:, :1]}, mask[1:, :1]
    )
    torch.testing.assert_close(found[1:], short)
    mine, theirs = torch.autograd.grad(found.sum(), (student, teacher), allow_unused=True)
    assert theirs is None and mine is not None and mine[1, 1:].eq(0).all()


def test_half_precision_is_compared_in_float32() -> None:
    states = torch.full((1, 1, 2), 300.0, dtype=torch.float16)
    assert distance({"a": states}, {"a": -states}, torch.ones(1, 1, dtype=torch.bool)).item() == 360_000.0


def test_it_must_be_prepared_and_a_copy_is_not() -> None:
    step, imitate = ToyStep(trained()), Imitate()
    with pytest.raises(TrainError, match="call its prepare"):
        imitate(step)  # type: ignore[arg-type]
    imitate.prepare(step.loop())
    with pytest.raises(TrainError, match="call its prepare"):
        objective(imitate)(step)  # type: ignore[arg-type]
    assert repr(imitate) == "Imitate(read='resid_post.*')" and imitate == Imitate()


def test_a_teacher_that_changes_nothing_is_refused() -> None:
    same = [replace(row, teacher=row.prompt) for row in ROWS]
    with pytest.raises(TrainError, match="teacher prompts of 'c0' give the states that the plain ones give"):
        Imitate().prepare(ToyStep(trained(), same).loop())
