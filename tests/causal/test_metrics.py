"""Metrics against the same numbers written out row by row."""

from __future__ import annotations

import math

import pytest
import torch
from tests.interventions import tiny
from torch import Tensor

import inlay
from inlay.causal.columns import Rows
from inlay.causal.metrics import (
    Ends,
    Metric,
    accuracy,
    kl_divergence,
    log_probability,
    logit_difference,
    normalised,
    probability,
)
from inlay.errors import CausalError, TargetError

PAIR = [0, 0, 2, 1, 2]
ANSWERS = [[3, 5], 7, [1]]
FOILS = [0, [2, 4, 6], [9, 8]]


@pytest.fixture(scope="module")
def model() -> inlay.Model:
    return inlay.load(tiny.llama(num_hidden_layers=1), tokenizer=tiny.words())


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(5, 10) * 3


@pytest.fixture
def ends() -> Ends:
    return Ends([0, 1, 2], 3, torch.randn(3, 10), torch.randn(3, 10))


def listed(answers: list[list[int] | int]) -> list[list[int]]:
    return [[one] if isinstance(one, int) else one for one in answers]


def test_logit_difference(model: inlay.Model, logits: Tensor, ends: Ends) -> None:
    found = logit_difference(ANSWERS, FOILS).bind(model, ends)(logits, torch.tensor(PAIR))
    for row, pair in enumerate(PAIR):
        yes, no = ([float(logits[row, i]) for i in listed(of)[pair]] for of in (ANSWERS, FOILS))
        assert float(found[row]) == pytest.approx(sum(yes) / len(yes) - sum(no) / len(no), abs=1e-6)


def test_probabilities(model: inlay.Model, logits: Tensor, ends: Ends) -> None:
    pair = torch.tensor(PAIR)
    found = probability(ANSWERS).bind(model, ends)(logits, pair)
    logs = log_probability(ANSWERS).bind(model, ends)(logits, pair)
    for row, one in enumerate(PAIR):
        total = sum(math.exp(float(x)) for x in logits[row])
        wanted = sum(math.exp(float(logits[row, i])) for i in listed(ANSWERS)[one]) / total
        assert float(found[row]) == pytest.approx(wanted, rel=1e-5)
        assert float(logs[row]) == pytest.approx(math.log(wanted), rel=1e-5)


def test_accuracy(model: inlay.Model, ends: Ends) -> None:
    logits = torch.zeros(4, 10)
    logits[torch.arange(4), torch.tensor([5, 4, 7, 1])] = 1
    found = accuracy(ANSWERS).bind(model, ends)(logits, torch.tensor([0, 0, 1, 2]))
    assert found.tolist() == [1, 0, 1, 1]


def test_divergence_from_the_clean_run(model: inlay.Model, logits: Tensor, ends: Ends) -> None:
    measure = kl_divergence().bind(model, ends)
    found = measure(logits, torch.tensor(PAIR))
    for row, pair in enumerate(PAIR):
        p, q = ends.clean[pair].softmax(-1), logits[row].softmax(-1)
        wanted = sum(float(a) * math.log(float(a / b)) for a, b in zip(p, q, strict=True))
        assert float(found[row]) == pytest.approx(wanted, rel=1e-4)
    assert torch.equal(measure(ends.clean, torch.arange(3)), torch.zeros(3)), "none from itself"


def test_normalised_is_0_where_corrupted_and_1_where_clean(model: inlay.Model, ends: Ends) -> None:
    every = torch.arange(3)
    plain, scaled = (m.bind(model, ends) for m in (logit_difference(1, 2), normalised(logit_difference(1, 2))))
    assert ends.corrupted is not None
    torch.testing.assert_close(scaled(ends.corrupted, every), torch.zeros(3))
    torch.testing.assert_close(scaled(ends.clean, every), torch.ones(3))
    between = (ends.clean + ends.corrupted) / 2  # the difference is linear in the logits
    torch.testing.assert_close(scaled(between, every), torch.full((3,), 0.5))
    low, high = plain(ends.corrupted, every), plain(ends.clean, every)
    torch.testing.assert_close(scaled(ends.clean * 3, every), (plain(ends.clean * 3, every) - low) / (high - low))


def test_some_pairs_of_all(model: inlay.Model, logits: Tensor) -> None:
    """A batch holds pairs 2 and 0 of 3: their answers go with them."""
    ends = Ends([2, 0], 3, torch.randn(2, 10))
    found = probability(ANSWERS).bind(model, ends)(logits[:2], torch.tensor([0, 1]))
    wanted = logits[:2].softmax(-1)
    torch.testing.assert_close(found, torch.stack([wanted[0, 1], wanted[1, [3, 5]].sum()]))


def test_functions_are_metrics(model: inlay.Model, logits: Tensor, ends: Ends) -> None:
    def top(logits: Tensor) -> Tensor:
        return logits.max(-1).values

    metric = Metric.of(top)
    assert metric.name == "top" and Metric.of(metric) is metric
    assert torch.equal(metric.bind(model, ends)(logits, torch.tensor(PAIR)), logits.max(-1).values)
    assert torch.allclose(normalised(top).bind(model, ends)(ends.clean, torch.arange(3)), torch.ones(3))


@pytest.mark.parametrize("made", [lambda logits: logits, lambda logits: 0.5])
def test_functions_that_give_something_else(model: inlay.Model, logits: Tensor, ends: Ends, made: object) -> None:
    with pytest.raises(CausalError, match="it gives one number a row"):
        Metric.of(made).bind(model, ends)(logits, torch.tensor(PAIR))


def test_answers_that_do_not_fit(model: inlay.Model, ends: Ends) -> None:
    with pytest.raises(TargetError, match="the answer 10 is no token: the model has ids from 0 to 9"):
        probability([1, 2, 10]).bind(model, ends)
    with pytest.raises(CausalError, match="metric='kl'"):
        Metric.of("kl")


def test_scales_that_are_none(model: inlay.Model) -> None:
    logits = torch.randn(2, 10)
    with pytest.raises(CausalError, match="needs a clean and a corrupted run"):
        normalised(logit_difference(1, 2)).bind(model, Ends([0, 1], 2, logits))
    clean, corrupted = logits[[1, 1]], logits[[0, 1]]
    with pytest.raises(CausalError, match=r"pair 7 has .* in its clean and in its corrupted run"):
        normalised(logit_difference(1, 2)).bind(model, Ends([3, 7], 9, clean, corrupted))


def test_which_run_is_clean(model: inlay.Model) -> None:
    rows = Rows.of(model, [[1], [2]], None)
    base, source = torch.randn(2, 10), torch.randn(2, 10)
    for direction, clean, corrupted in (("noise", base, source), ("denoise", source, base)):
        ends = Ends.of(rows, base, source, direction)
        assert ends.clean is clean and ends.corrupted is corrupted and ends.total == 2
    alone = Ends.of(rows, base, None, None)
    assert alone.clean is base and alone.corrupted is None
    with pytest.raises(CausalError, match="direction='restore': 'denoise' is a corrupted base and 'noise' a clean one"):
        Ends.of(rows, base, source, "restore")
