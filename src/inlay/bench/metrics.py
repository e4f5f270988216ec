"""The numbers of the bench: AUROC, thresholds, the overall score, the choice of a factor, bootstrap intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

Numbers = Sequence[float]
RESAMPLES = 1000


def auroc(positives: Numbers, negatives: Numbers) -> float:
    """P(a positive scores above a negative), ties counting half.

    Args:
        positives, negatives: scores, at least one each; NaN is not a score.

    Raises:
        ValueError: a side is empty or has NaN.
    """
    yes, no = np.asarray(positives, float), np.asarray(negatives, float)
    if not len(yes) or not len(no) or np.isnan(yes).any() or np.isnan(no).any():
        raise ValueError(f"{len(yes)} and {len(no)} scores; AUROC needs both, without NaN")
    ordered = np.sort(no)
    below, upto = np.searchsorted(ordered, yes, "left"), np.searchsorted(ordered, yes, "right")
    return float((below + upto).sum() / 2 / len(yes) / len(no))


def threshold_youden(positives: Numbers, negatives: Numbers) -> float:
    """The score from which on a text counts as positive: the greatest TPR - FPR, the highest on ties."""
    yes, no = np.sort(positives), np.sort(negatives)
    at = np.unique(np.concatenate([yes, no]))
    missed, spared = np.searchsorted(yes, at, "left"), np.searchsorted(no, at, "left")
    gain = spared * len(yes) - missed * len(no)  # (TPR - FPR) x both counts: whole numbers, so that ties are ties
    return float(at[np.flatnonzero(gain == gain.max())[-1]])


@dataclass(frozen=True)
class F1:
    """Precision, recall and F1 at the threshold with the best F1, and the accuracy there."""

    precision: float
    recall: float
    f1: float
    accuracy: float
    threshold: float


def best_f1(positives: Numbers, negatives: Numbers) -> F1:
    """The threshold with the best F1, the lowest on ties."""
    best: F1 | None = None
    yes, no = np.asarray(positives, float), np.asarray(negatives, float)
    for at in np.unique(np.concatenate([yes, no])):
        hit, false = int((yes >= at).sum()), int((no >= at).sum())
        precision, recall = hit / (hit + false), hit / len(yes)
        f1 = 2 * hit / (hit + false + len(yes))  # one division of whole numbers, so that ties are ties
        accuracy = (hit + len(no) - false) / (len(yes) + len(no))
        if best is None or f1 > best.f1:
            best = F1(precision, recall, f1, accuracy, float(at))
    assert best is not None
    return best


def macro_accuracy(positives: Numbers, hard: Numbers, threshold: float) -> float | None:
    """The mean of the accuracies on positives and on hard negatives at a threshold; `None` without hard negatives."""
    if not len(hard):
        return None
    return float((np.asarray(positives) >= threshold).mean() + (np.asarray(hard) < threshold).mean()) / 2


def overall(concept: float | None, instruction: float | None, fluency: float | None) -> float | None:
    """The harmonic mean of three ratings 0 to 2; 0 where one is 0, `None` where one is missing (AxBench, section 3.3).

    (2, 2, 1) is 1.5, (1, 1, 2) is 1.2, (2, 2, 0) is 0.
    """
    ratings = (concept, instruction, fluency)
    known = [rating for rating in ratings if rating is not None]
    if len(known) < len(ratings):
        return None
    return 0.0 if min(known) <= 0 else len(known) / sum(1 / rating for rating in known)


def pick_factor(scores: Mapping[float, Sequence[float | None]]) -> float:
    """The factor with the best mean overall score; the smallest on ties.

    Args:
        scores: for each factor, the overall scores of the choosing prompts; those that failed are `None`.

    Raises:
        ValueError: there are no factors.
    """
    if not scores:
        raise ValueError("there are no factors to choose from")
    return max(sorted(scores, key=abs), key=lambda factor: worth(scores[factor]))


def worth(scores: Sequence[float | None]) -> float:
    """The mean of the scores that are known; minus infinity where most failed, since the rest say too little."""
    known = mean(scores)
    return float("-inf") if known is None or 2 * sum(s is not None for s in scores) < len(scores) else known


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of those that are known, `None` without any; exact, so that no order decides a tie."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def interval(values: Numbers, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float | None, float | None]:
    """The 95 % bootstrap interval of a mean over concepts (percentiles 2.5 and 97.5); `None` for fewer than two.

    The same seed draws the same concepts, so that intervals of methods on one concept set are comparable, and that of a
    difference is paired.
    """
    given: NDArray[np.float64] = np.asarray(values, float)
    if len(given) < 2:
        return None, None
    draws = np.random.default_rng(seed).integers(0, len(given), (resamples, len(given)))
    low, high = np.percentile(given[draws].mean(1), [2.5, 97.5])
    return float(low), float(high)
