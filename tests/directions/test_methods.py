"""Every method finds what was planted, and is what scikit-learn or the formula says."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from tests.directions.planted import WIDTH, axis, cosine, planted, sample_of, texts
from torch import Tensor

from inlay.directions import METHODS, methods
from inlay.directions.methods import Sample
from inlay.errors import DirectionError, ExtraError

seeds = st.integers(0, 50)


def fit(name: str, sample: Sample) -> Tensor:
    return METHODS[name].fit(sample, **METHODS[name].defaults)


def labelled(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """All token states, and the label of each."""
    yes, no = sample.states.of(sample.positives), sample.states.of(sample.negatives)
    return torch.cat([yes, no]).double().numpy(), np.array([1] * len(yes) + [0] * len(no))


# -- planted directions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["diff_mean", "lda", "probe", "mean"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_planted_direction_is_found(name: str, seed: int) -> None:
    sample, w = planted(seed)
    assert cosine(fit(name, sample), w) > 0.97


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_token_probe_gets_there_with_steps_that_are_long_enough(seed: int) -> None:
    sample, w = planted(seed, c=1.0)
    long = methods.axbench_probe(sample, **METHODS["token_probe"].defaults | {"lr": 0.05})
    assert cosine(long, w) > 0.95 and cosine(fit("token_probe", sample), w) > 0.75


@pytest.mark.parametrize(("name", "least"), [("pca", 0.98), ("lat", 0.95)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_axis_of_the_positives_that_varies_most_is_found(name: str, least: float, seed: int) -> None:
    sample, w = planted(seed, c=1.0, spread=5.0)
    assert cosine(fit(name, sample), w) > least


def test_what_varies_most_is_not_what_tells_the_sides_apart() -> None:
    """PCA takes the loudest axis, the difference of means and its whitened form the one that was planted."""
    w, loud = axis(0), axis(1)
    loud = torch.nn.functional.normalize(loud - (loud @ w) * w, dim=0)
    sides = [
        [h + 20 * torch.randn(len(h), 1) * loud for h in texts(60, w, shift, seed)] for shift, seed in ((2, 1), (-2, 2))
    ]
    sample = sample_of(*sides)
    assert abs(cosine(fit("pca", sample), loud)) > 0.98 and cosine(fit("diff_mean", sample), w) > 0.85
    assert cosine(fit("lda", sample), w) > 0.97
    left = {name: abs(cosine(fit(name, sample), loud)) for name in ("diff_mean", "lda")}
    assert left["lda"] < 0.01 < 0.05 < left["diff_mean"], "whitening takes the loud axis out"


def test_a_random_direction_has_nothing_to_do_with_it() -> None:
    found = []
    for seed in range(40):
        sample, w = planted(0)
        found.append(cosine(fit("random", Sample(sample.states, sample.positives, sample.negatives, seed)), w))
    assert abs(sum(found) / 40) < 0.2 and 0.1 < sum(c * c for c in found) / 40 * WIDTH < 3


# -- formulas --------------------------------------------------------------------------------------------------------


@given(seeds)
def test_means_are_over_tokens_and_not_over_texts(seed: int) -> None:
    sample, _ = planted(seed, count=5)
    x, y = labelled(sample)
    np.testing.assert_allclose(fit("diff_mean", sample), x[y == 1].mean(0) - x[y == 0].mean(0), atol=1e-6)
    np.testing.assert_allclose(fit("mean", sample), x[y == 1].mean(0), atol=1e-6)


@given(seeds)
def test_pca_is_that_of_scikit_learn(seed: int) -> None:
    sample, _ = planted(seed, count=20, spread=2.0)
    x, y = labelled(sample)
    theirs = torch.from_numpy(PCA(1).fit(x[y == 1]).components_[0])
    assert abs(cosine(fit("pca", sample), theirs)) == pytest.approx(1, abs=1e-6)


@given(seeds)
def test_lat_is_the_component_of_differences_of_pairs(seed: int) -> None:
    sample, _ = planted(seed, count=20, spread=2.0)
    h = sample.states.of(sample.positives).double()
    order = torch.randperm(len(h), generator=sample.draws("lat"))
    half = len(h) // 2
    pairs = [h[a] - h[b] for a, b in zip(order[:half], order[half : 2 * half], strict=True)]
    theirs = PCA(1).fit(np.stack([(d / d.norm()).numpy() for d in pairs])).components_[0]
    assert abs(cosine(fit("lat", sample), torch.from_numpy(theirs))) == pytest.approx(1, abs=1e-6)


@given(seeds, st.sampled_from(["pca", "lat"]))
def test_the_sign_is_that_of_the_training_texts(seed: int, name: str) -> None:
    """The positives alone decide the axis; which way it points turns with the side on which the negatives lie."""
    w = axis(seed)
    positives = texts(20, w, 0.0, seed, spread=3.0)
    below, above = (fit(name, sample_of(positives, texts(20, w, shift, 7), seed)) for shift in (-3.0, 3.0))
    torch.testing.assert_close(below, -above)
    assert cosine(below, w) > 0


@given(seeds, st.sampled_from([0.0, 0.1, 0.7, 1.0]))
def test_lda_is_that_of_scikit_learn(seed: int, shrinkage: float) -> None:
    sample, _ = planted(seed, c=0.5, count=20)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(*labelled(sample)).coef_[0]
    torch.testing.assert_close(methods.lda(sample, shrinkage), torch.from_numpy(theirs), atol=1e-5, rtol=1e-4)


@given(seeds)
def test_lda_by_itself_shrinks_as_ledoit_and_wolf(seed: int) -> None:
    sample, _ = planted(seed, c=0.5, count=6, spread=2.0)
    x, y = labelled(sample)
    centred = np.concatenate([x[y == side] - x[y == side].mean(0) for side in (1, 0)])
    share = ledoit_wolf_shrinkage(centred, assume_centered=True)
    assert 0 < share < 1
    torch.testing.assert_close(methods.lda(sample, None), methods.lda(sample, float(share)))


@given(st.integers(0, 10_000), st.integers(3, 60), st.integers(2, 20), st.sampled_from([0.0, 1.0, 5.0]))
def test_ledoit_wolf_is_that_of_scikit_learn(seed: int, n: int, width: int, loud: float) -> None:
    x = torch.randn(n, width, generator=torch.Generator().manual_seed(seed)).double()
    x[:, 0] *= 1 + loud
    x -= x.mean(0)
    assert methods.ledoit_wolf(x) == pytest.approx(ledoit_wolf_shrinkage(x.numpy(), assume_centered=True), abs=1e-9)


def test_lda_where_there_are_fewer_tokens_than_dimensions() -> None:
    w = axis(0)
    sample = sample_of(texts(1, w, 3.0, 1), texts(1, w, -3.0, 2))
    assert sample.states.counts.sum() < 2 * WIDTH
    for shrinkage in (None, 0.0):
        assert methods.lda(sample, shrinkage).isfinite().all()


@given(seeds, st.sampled_from([0.01, 1.0, 100.0]))
def test_probe_is_that_of_scikit_learn(seed: int, c: float) -> None:
    sample, _ = planted(seed, c=0.5, count=15)
    sides = (sample.positives, sample.negatives)
    x = np.stack([sample.states.of([i]).double().mean(0).numpy() for side in sides for i in side])
    x = (x - x.mean(0)) / (x - x.mean(0)).std(ddof=1)
    theirs = LogisticRegression(C=c, max_iter=1000).fit(x, [1] * 15 + [0] * 15).coef_[0]
    torch.testing.assert_close(methods.probe(sample, c), torch.from_numpy(theirs), atol=1e-3, rtol=1e-3)


def test_the_probe_does_not_depend_on_the_scale_of_the_states() -> None:
    w = axis(3)
    yes, no = texts(20, w, 0.5, 1), texts(20, w, -0.5, 2)
    small = methods.probe(sample_of(yes, no), 1.0)
    large = methods.probe(sample_of([500 * h for h in yes], [500 * h for h in no]), 1.0)
    torch.testing.assert_close(small, large, atol=1e-3, rtol=1e-3)


def test_defaults_are_those_of_axbench() -> None:
    assert METHODS["token_probe"].defaults == {"epochs": 24, "batch": 12, "lr": 5e-3, "weight_decay": 1e-3, "l1": 0.0}


# -- draws -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lat", "random", "token_probe"])
def test_what_is_drawn_depends_on_seed_and_concept_alone(name: str) -> None:
    sample, _ = planted(0, c=0.5)

    def at(seed: int, concept: str) -> Tensor:
        return fit(name, Sample(sample.states, sample.positives, sample.negatives, seed, concept))

    first = at(0, "sea")
    torch.manual_seed(5)
    assert torch.equal(at(0, "sea"), first)
    assert not torch.equal(at(1, "sea"), first) and not torch.equal(at(0, "star"), first)


# -- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["diff_mean", "lda", "probe", "pca", "lat"])
def test_states_that_are_all_alike_give_zero(name: str) -> None:
    h = torch.full((3, WIDTH), 1 / 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not fit(name, sample_of([h, h[:2]], [h[:1], h, h])).any()


def test_one_state_has_no_component() -> None:
    sample = sample_of([torch.randn(1, WIDTH)], [torch.randn(2, WIDTH)])
    with pytest.raises(DirectionError, match=r"1 state\(s\) have no principal component; give more text"):
        fit("pca", sample)
    with pytest.raises(DirectionError, match=r"0 state\(s\)"):
        fit("lat", sample)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: methods.lda(s, 1.5), "shrinkage=1.5 is no share: give 0 to 1, or None"),
        (lambda s: methods.lda(s, -0.1), "shrinkage=-0.1 is no share"),
        (lambda s: methods.probe(s, 0.0), "c=0.0: the inverse strength of the penalty is a positive number"),
        (lambda s: methods.probe(s, float("nan")), "c=nan"),
    ],
)
def test_settings_that_cannot_be(call: Callable[[Sample], Tensor], message: str) -> None:
    with pytest.raises(DirectionError, match=message):
        call(planted()[0])


def test_the_probe_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(ExtraError, match=r"the probe needs scikit-learn: pip install 'inlay\[probe\]'"):
        methods.probe(planted()[0], 1.0)
    assert fit("lda", planted()[0]).any(), "nothing else needs it"
