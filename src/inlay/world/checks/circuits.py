"""Circuits: the answer's logit above the foil's, and probabilities of sets of answers."""

from __future__ import annotations

from statistics import fmean

import torch
from torch import Tensor

from inlay.model.model import Model
from inlay.world.checks.row import Row, ids, opened
from inlay.world.line import Line
from inlay.world.world import World


def rows(model: Model, world: World, n: int = 300) -> list[Row]:
    """The table's rows on circuits."""
    found = []
    for what, kind, least in (
        ("evidence, answer above foil", "clean evidence", 0.98),
        ("induction, answer above foil", "induction", 0.98),
        ("indirect object, answer above foil", "transfer", 0.95),
    ):
        lines = list(world.lines("circuits", n, "test", kind))
        right = [
            logits[ids(model, [line.truth["answer"]])] > logits[ids(model, [line.truth["foil"]])]
            for line, logits in zip(lines, last_logits(model, lines), strict=True)
        ]
        found.append(Row("circuits", what, fmean(float(r) for r in right), least=least))
    lines = list(world.lines("circuits", n, "test", "greater"))
    gaps = []
    for line, logits in zip(lines, last_logits(model, lines), strict=True):
        p = logits.softmax(-1)
        gaps.append(float(p[ids(model, line.truth["answer"])].sum() - p[ids(model, line.truth["foil"])].sum()))
    found.append(Row("circuits", "greater-than, P(larger) - P(not larger)", fmean(gaps), least=0.75))
    return found


def last_logits(model: Model, lines: list[Line]) -> Tensor:
    """Logits [lines, vocabulary] where each line is to be answered."""
    with torch.no_grad():
        out = model.forward([ids(model, opened(line)) for line in lines])
    last = out.mask.sum(1) - 1
    return out.logits[torch.arange(len(lines)), last].float()
