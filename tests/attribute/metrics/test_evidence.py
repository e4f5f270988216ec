"""Recall and average precision against counts by hand."""

from __future__ import annotations

import pytest
import torch

from inlay.attribute.metrics import evidence


def test_recall_of_as_many_as_there_is_evidence() -> None:
    scores = torch.tensor([[5.0, 4.0, 3.0, 2.0], [1.0, 4.0, 3.0, 2.0], [2.0, 4.0, 3.0, 1.0]])
    assert evidence.recall(scores, torch.tensor([True, False, False, True])).tolist() == [0.5, 0, 0]
    assert evidence.recall(scores, torch.tensor([False, True, True, False])).tolist() == [0.5, 1, 1]


def test_average_precision() -> None:
    """The mean over the evidence of the share of evidence down to its place."""
    torch.manual_seed(0)
    scores, truth = torch.randn(5, 9), torch.tensor([1, 0, 0, 1, 1, 0, 0, 0, 1]).bool()
    found = evidence.auprc(scores, truth)
    for i, mine in enumerate(scores.tolist()):
        order = sorted(range(9), key=lambda f: -mine[f])
        hits, shares = 0, []
        for place, feature in enumerate(order, start=1):
            if truth[feature]:
                hits += 1
                shares.append(hits / place)
        assert float(found[i]) == pytest.approx(sum(shares) / len(shares))


def test_without_evidence_there_is_nothing_to_find() -> None:
    nothing = torch.zeros(3, dtype=torch.bool)
    assert evidence.recall(torch.rand(2, 3), nothing).isnan().all()
    assert evidence.auprc(torch.rand(2, 3), nothing).isnan().all()
