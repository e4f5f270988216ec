"""Metrics where it is known which features the answer follows from."""

from __future__ import annotations

import torch
from torch import Tensor

from inlay.attribute.metrics.games import ranking
from inlay.errors import ExtraError


def recall(scores: Tensor, evidence: Tensor) -> Tensor:
    """The share of the evidence E among the |E| highest features, float64 [n]; up. NaN where there is none.

    Args:
        scores: [n, m].
        evidence: bool [m].
    """
    count = int(evidence.sum())
    top = ranking(scores)[..., :count]
    return evidence[top].double().sum(-1) / (count or torch.nan)


def auprc(scores: Tensor, evidence: Tensor) -> Tensor:
    """The average precision of the scores for the evidence, float64 [n]; up. NaN where there is none.

    Args:
        scores: [n, m].
        evidence: bool [m].

    Raises:
        ExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.metrics import average_precision_score
    except ImportError as error:
        raise ExtraError("auprc needs scikit-learn: pip install 'inlay[probe]'") from error
    if not evidence.any():
        return torch.full((len(scores),), torch.nan, dtype=torch.float64)
    found = [float(average_precision_score(evidence.numpy(), one.numpy())) for one in scores]
    return torch.tensor(found, dtype=torch.float64)
