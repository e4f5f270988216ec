"""Redundant evidence in the bundled world: one to four words decide, and what finds all of them is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import inlay
import inlay.world
from inlay.attribute.score_tokens import tokens
from inlay.world.checks.row import ids, opened

SIGNS = 18  # words of a line


class Lines:
    """Rows of ids, answers, and where the evidence is."""

    def __init__(self, model: inlay.Model, n: int) -> None:
        lines = list(inlay.world.tidepool().lines("circuits", n, "test", "evidence"))
        self.rows = [ids(model, opened(line)) for line in lines]
        self.answers, self.foils = ([line.truth[key] for line in lines] for key in ("answer", "foil"))
        self.evidence, self.signs = [], []
        for line, row in zip(lines, self.rows, strict=True):
            said, other = line.truth["question"].split(), line.truth["counterfactual"].split()
            start = len(row) - len(said)
            self.evidence.append([start + i for i, (a, b) in enumerate(zip(said, other, strict=True)) if a != b])
            self.signs.append(range(start + 2, start + 2 + SIGNS))

    def recall(self, model: inlay.Model, method: str, **settings: Any) -> float:
        """The share of a line's evidence among as many highest-scored words, the mean over lines with two or more."""
        found = tokens(model, self.rows, self.answers, self.foils, method, baseline="<|mask|>", **settings)
        return self.found_by(found.scores)

    def found_by(self, scores: torch.Tensor) -> float:
        shares = []
        for row, (evidence, signs) in enumerate(zip(self.evidence, self.signs, strict=True)):
            if len(evidence) > 1:
                top = sorted(signs, key=lambda slot: -float(scores[row, slot]))[: len(evidence)]
                shares.append(len({*top} & {*evidence}) / len(evidence))
        return sum(shares) / len(shares)


@pytest.fixture(scope="module")
def model() -> inlay.Model:
    return inlay.load("tidepool")


@pytest.fixture(scope="module")
def lines(model: inlay.Model) -> Lines:
    return Lines(model, 32)


def test_gim_finds_what_repairs_itself(model: inlay.Model, lines: Lines) -> None:
    assert lines.recall(model, "gim") > 0.97
    assert lines.recall(model, "grad") < 0.85
    chance = torch.rand(len(lines.rows), 40, generator=torch.Generator().manual_seed(0))
    assert lines.found_by(chance) < 0.4


@pytest.mark.slow
def test_leaving_out_one_word_at_a_time_does_not(model: inlay.Model, lines: Lines) -> None:
    assert lines.recall(model, "occlusion") < 0.9
    assert lines.recall(model, "ig", n=20) > 0.97
    for rules in ("attnlrp", "relp", "relp_ah", "transformer_lrp", "cp_lrp"):
        assert lines.recall(model, rules) > 0.97, rules
