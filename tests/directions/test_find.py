"""Many concepts in one pass are the concepts one by one, in any batch, and what plain forwards give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.directions import by_hand
from tests.directions.by_hand import LAYER, SITE, concepts, model, rows_read
from tests.directions.planted import sample_of

from inlay.directions import METHODS, Contrast, Direction, find
from inlay.directions.methods import Sample
from inlay.errors import DirectionError, SiteError, TokensError

EVERY = tuple(METHODS)
DRAWN = ("lat", "random", "token_probe")


def same(found: Sequence[Direction], wanted: Sequence[Direction]) -> None:
    assert [(d.site, d.method, d.concept, d.data) for d in found] == [
        (d.site, d.method, d.concept, d.data) for d in wanted
    ]
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.vector, b.vector, atol=1e-5, rtol=1e-5, msg=lambda m, a=a: f"{a.method}: {m}")
        assert a.scale == pytest.approx(b.scale, rel=1e-5)


@pytest.mark.parametrize("method", EVERY)
def test_many_concepts_are_one_at_a_time(method: str) -> None:
    many = concepts(4)
    alone = [found for concept in many for found in find(model(), [concept], [method], SITE, seed=3)]
    same(find(model(), many, [method], SITE, seed=3), alone)
    backward = find(model(), many[::-1], [method], SITE, seed=3, batch_tokens=1)
    same(backward[::-1], alone)
    same(find(model(), many, [method], SITE, seed=3, batch_tokens=33), alone)


@pytest.mark.parametrize("method", [name for name in EVERY if name not in DRAWN])
def test_the_order_of_a_side_does_not_matter(method: str) -> None:
    (one,) = concepts(1)
    turned = Contrast(one.name, one.positives[::-1], one.negatives[::-1])
    same(find(model(), [turned], [method], SITE), find(model(), [one], [method], SITE))


@pytest.mark.parametrize("method", EVERY)
def test_a_naive_loop_over_plain_forwards(method: str) -> None:
    many = concepts(2)
    for concept, found in zip(many, find(model(), many, [method], SITE, seed=5), strict=True):
        yes, no = (by_hand.kept([t.prompt for t in side]) for side in (concept.positives, concept.negatives))
        sample = sample_of(yes, no, seed=5, name=concept.name)
        wanted = METHODS[method].fit(sample, **METHODS[method].defaults)
        torch.testing.assert_close(found.vector, (wanted / wanted.norm()).float(), atol=1e-4, rtol=1e-4)
        lengths = torch.cat([*yes, *no]).norm(dim=-1)
        assert found.scale == pytest.approx(float(lengths.mean()), rel=1e-5), "of this concept's texts alone"
        assert found.data["tokens"] == len(lengths)


def test_each_text_is_read_once_for_all_methods_and_sites() -> None:
    many = concepts(3)
    with rows_read() as seen:
        find(model(), many, EVERY, ["resid_post.0", SITE])
    texts = {t.prompt for c in many for t in (*c.positives, *c.negatives)}
    assert len(seen) == len(set(seen)) == len(texts) < sum(len(c.positives) + len(c.negatives) for c in many)


def test_layers_behind_the_last_site_do_not_run() -> None:
    ran: list[int] = []
    handles = [
        layer.register_forward_pre_hook(lambda *_, k=k: ran.append(k))
        for k, layer in enumerate(model().hf.model.layers)
    ]
    find(model(), concepts(1), site="resid_post.0")
    for handle in handles:
        handle.remove()
    assert set(ran) == {0}


def test_the_order_is_site_by_site_method_by_method_concept_by_concept() -> None:
    found = find(model(), concepts(2), ["mean", "diff_mean"], "resid_post.*")
    assert [(str(d.site), d.method, d.concept) for d in found] == [
        (f"resid_post.{layer}", method, f"concept {k}")
        for layer in range(3)
        for method in ("mean", "diff_mean")
        for k in range(2)
    ]
    assert all(d.model is model() for d in found)
    (alone, *_) = find(model(), concepts(2), ["mean"], f"resid_post.{LAYER - 3}")
    assert str(alone.site) == SITE
    torch.testing.assert_close(alone.vector, found[4].vector, atol=1e-5, rtol=1e-5)


def test_what_it_was_fitted_on_is_recorded() -> None:
    (found,) = find(
        model(), concepts(1), ["lda"], SITE, tokens=slice(1, 3), seed=7, settings={"lda": {"shrinkage": 0.5}}
    )
    wanted = {"positives": 5, "negatives": 6, "read": "prompt[1:3]", "seed": 7, "shrinkage": 0.5, "tokens": 22}
    texts = found.data.pop("texts")
    assert found.data == wanted and len(texts) == 64

    def hashed(n: int) -> list[str]:
        return [d.data["texts"] for d in find(model(), concepts(n), site=SITE)]

    assert hashed(2)[0] == hashed(1)[0] == texts != hashed(2)[1]  # of this concept's texts alone


def test_settings_reach_the_method() -> None:
    """At full shrinkage the covariance is a multiple of the identity, and whitening turns nothing."""
    plain, whitened = find(model(), concepts(1), ["diff_mean", "lda"], SITE, settings={"lda": {"shrinkage": 1.0}})
    torch.testing.assert_close(whitened.vector, plain.vector, atol=1e-5, rtol=1e-5)
    other = find(model(), concepts(1), ["lda"], SITE)[0]
    assert other.cosine(plain) < 0.99


def test_a_head() -> None:
    (found,) = find(model(), concepts(1), site="z.1.h2")
    assert found.width == 8 and str(found.site) == "z.1.h2"


# -- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            {"methods": ["diffmean"]},
            DirectionError,
            "there is no method 'diffmean'; there are: diff_mean, pca, lat, lda, ",
        ),
        ({"methods": []}, DirectionError, "no methods: give some of diff_mean, pca"),
        ({"settings": {"pca": {}}}, DirectionError, r"settings for \['pca'\], and the methods are diff_mean"),
        (
            {"methods": ["lda"], "settings": {"lda": {"shrink": 1}}},
            DirectionError,
            r"lda has no setting \['shrink'\]; it has: shrinkage",
        ),
        (
            {"settings": {"diff_mean": {"shrink": 1}}},
            DirectionError,
            r"diff_mean has no setting \['shrink'\]; it has: none",
        ),
        ({"contrasts": []}, DirectionError, "there are no concepts: give at least one contrast"),
        ({"site": "resid_post.3"}, SiteError, "layer 3 is out of range"),
        ({"tokens": "middle"}, TokensError, "'middle' is not understood"),
    ],
)
def test_bad_arguments(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with rows_read() as seen, pytest.raises(error, match=message):
        find(model(), **{"contrasts": concepts(1), "site": SITE, **given})
    assert not seen, "known before the model runs"


@pytest.mark.parametrize("method", ["diff_mean", "pca", "lda", "probe"])
def test_where_all_states_are_alike(method: str) -> None:
    """The last token of every turn is the same, and its embedding is too."""
    message = f"{method} finds no direction for 'concept 0' at embed: its vector is 0, as where all states are alike"
    with pytest.raises(DirectionError, match=message):
        find(model(), concepts(1), [method], "embed", tokens="last")


def test_a_method_of_your_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from inlay.directions.methods import Method

    def longest(sample: Sample) -> torch.Tensor:
        h = sample.states.of(sample.positives)
        return h[h.norm(dim=-1).argmax()]

    monkeypatch.setitem(METHODS, "longest", Method("longest", longest, tokens=True))
    (found,) = find(model(), concepts(1), ["longest"], SITE)
    h = torch.cat(by_hand.kept([t.prompt for t in concepts(1)[0].positives]))
    wanted = h[h.norm(dim=-1).argmax()]
    torch.testing.assert_close(found.vector, wanted / wanted.norm(), atol=1e-5, rtol=1e-5)
    monkeypatch.setitem(METHODS, "longest", Method("longest", longest))
    with pytest.raises(DirectionError, match="not kept: a Method that takes them says so by tokens=True"):
        find(model(), concepts(1), ["longest"], SITE)
