"""The ways to find a direction: one function each, from the states of one concept's texts to a vector.

Names and definitions are AxBench's (2501.17148, appendix), with the sign of PCA and LAT set by the training texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from inlay.directions.gather import States
from inlay.directions.token_probe import token_probe
from inlay.errors import DirectionError, ExtraError


@dataclass(frozen=True)
class Sample:
    """One concept's texts at one Site.

    Attributes:
        states: of all texts.
        positives, negatives: this concept's numbers in them.
        seed: of what the method draws.
        name: the concept's.
    """

    states: States
    positives: Sequence[int]
    negatives: Sequence[int]
    seed: int = 0
    name: str = ""

    def mean(self, texts: Sequence[int]) -> Tensor:
        """The mean token state of some texts, float64 [width]."""
        index = list(texts)
        return self.states.sums[index].sum(0) / self.states.counts[index].sum()

    def draws(self, purpose: str) -> torch.Generator:
        """A random stream of this concept's own, whatever other concepts are found beside it."""
        key = f"{self.seed}/{purpose}/{self.name}".encode()
        return torch.Generator().manual_seed(int.from_bytes(blake2b(key, digest_size=7).digest()))


@dataclass(frozen=True)
class Method:
    """A way to find a direction.

    Attributes:
        name: of the method.
        fit: from a Sample and the method's settings to a vector [width] of any length.
        tokens: whether it needs the states of single tokens, and not their sums alone.
        kind: `"method"`, or `"control"` for what any method has to beat.
        defaults: its settings.
    """

    name: str
    fit: Callable[..., Tensor]
    tokens: bool = False
    kind: str = "method"
    defaults: dict[str, Any] = field(default_factory=dict)


def diff_mean(sample: Sample) -> Tensor:
    """The mean token state of the positives minus that of the negatives; 0 where only rounding tells them apart."""
    yes, no = sample.mean(sample.positives), sample.mean(sample.negatives)
    found = yes - no
    return found if float(found.norm()) > 1e-12 * float(yes.norm()) else torch.zeros_like(found)


def pca(sample: Sample) -> Tensor:
    """The first principal component of the positives' token states."""
    return _oriented(_first_component(sample.states.of(sample.positives)), sample)


def lat(sample: Sample) -> Tensor:
    """The first principal component of the unit-normalised differences of random pairs of positive token states.

    Linear artificial tomography (2310.01405), as AxBench pairs it.
    """
    h = sample.states.of(sample.positives)
    order = torch.randperm(len(h), generator=sample.draws("lat"))
    half = len(h) // 2
    differences = torch.nn.functional.normalize(h[order[:half]] - h[order[half : 2 * half]], dim=-1)
    return _oriented(_first_component(differences), sample)


def lda(sample: Sample, shrinkage: float | None) -> Tensor:
    """Linear discriminant analysis: the difference of means, whitened by the covariance within both classes.

    Args:
        sample: the concept's states.
        shrinkage: the share of the covariance that is replaced by its mean variance, 0 to 1; `None` takes Ledoit and
            Wolf's (2004) optimal share.

    Raises:
        DirectionError: the shrinkage is no share.
    """
    if shrinkage is not None and not 0 <= shrinkage <= 1:
        raise DirectionError(f"shrinkage={shrinkage} is no share: give 0 to 1, or None for Ledoit and Wolf's")
    groups = [sample.states.of(texts).double() for texts in (sample.positives, sample.negatives)]
    centred = torch.cat([h - h.mean(0) for h in groups])
    if shrinkage is None:
        shrinkage = ledoit_wolf(centred)
    within = centred.T @ centred / len(centred)
    within = (1 - shrinkage) * within + shrinkage * within.diagonal().mean() * torch.eye(len(within)).double()
    whitened: Tensor = torch.linalg.lstsq(within, diff_mean(sample)[:, None]).solution[:, 0]
    return whitened


def ledoit_wolf(centred: Tensor) -> float:
    """The shrinkage of a covariance toward its mean variance that loses least (Ledoit and Wolf 2004, lemma 3.3).

    Args:
        centred: float [n, width], of mean 0.
    """
    n, width = centred.shape
    covariance = centred.T @ centred / n
    mean = covariance.diagonal().mean()
    spread = float((covariance**2).sum() / width - mean**2)  # d^2
    fourth = float((centred**2).sum(1).square().sum() / n**2 / width)
    noise = fourth - float((covariance**2).sum()) / width / n  # b^2
    return 1.0 if spread <= 0 else min(max(noise, 0.0), spread) / spread


def probe(sample: Sample, c: float) -> Tensor:
    """The weights of a logistic regression on the mean states of the texts (scikit-learn, l2).

    Args:
        sample: the concept's states.
        c: the inverse strength of the penalty, for features scaled by their common standard deviation.

    Raises:
        DirectionError: `c` is not positive.
        ExtraError: scikit-learn is not installed.
    """
    if not 0 < c < float("inf"):
        raise DirectionError(f"c={c}: the inverse strength of the penalty is a positive number")
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise ExtraError("the probe needs scikit-learn: pip install 'inlay[probe]'") from error
    index = [*sample.positives, *sample.negatives]
    means = sample.states.sums[index] / sample.states.counts[index, None]
    means = means - means.mean(0)
    if not bool(means.any()):
        return torch.zeros(means.shape[1])
    labels = [1] * len(sample.positives) + [0] * len(sample.negatives)
    fitted = LogisticRegression(C=c, max_iter=1000).fit((means / means.std()).numpy(), labels)
    return torch.from_numpy(fitted.coef_[0])


def axbench_probe(sample: Sample, **settings: Any) -> Tensor:
    """AxBench's probe on tokens; see `token_probe`."""
    yes, no = ([sample.states.of([i]) for i in texts] for texts in (sample.positives, sample.negatives))
    return token_probe(yes, no, sample.draws("token_probe"), **settings)


def random(sample: Sample) -> Tensor:
    """A direction drawn uniformly."""
    return torch.randn(sample.states.sums.shape[1], generator=sample.draws("random"))


def mean(sample: Sample) -> Tensor:
    """The mean token state of the positives, which no negative has a say in."""
    return sample.mean(sample.positives)


def _first_component(h: Tensor) -> Tensor:
    """The axis of most variance; 0 where there is none."""
    if len(h) < 2:
        raise DirectionError(f"{len(h)} state(s) have no principal component; give more text")
    centred = h.double() - h.double().mean(0)
    variances, axes = torch.linalg.eigh(centred.T @ centred)
    return axes[:, -1] if float(variances[-1]) > 0 else torch.zeros_like(axes[:, -1])


def _oriented(vector: Tensor, sample: Sample) -> Tensor:
    """The vector or its opposite: the one along which the positives lie higher than the negatives."""
    return vector if float(vector @ diff_mean(sample)) >= 0 else -vector


METHODS = {
    method.name: method
    for method in (
        Method("diff_mean", diff_mean),
        Method("pca", pca, tokens=True),
        Method("lat", lat, tokens=True),
        Method("lda", lda, tokens=True, defaults={"shrinkage": None}),
        Method("probe", probe, defaults={"c": 1.0}),
        Method(
            "token_probe",
            axbench_probe,
            tokens=True,
            defaults={"epochs": 24, "batch": 12, "lr": 5e-3, "weight_decay": 1e-3, "l1": 0.0},
        ),
        Method("random", random, kind="control"),
        Method("mean", mean, kind="control"),
    )
}
