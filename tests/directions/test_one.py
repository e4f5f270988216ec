"""A function for each method: the same as `find` for one concept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.directions.by_hand import SITE, concepts, model

from inlay import directions
from inlay.directions import METHODS, Contrast, find
from inlay.errors import DirectionError

YES, NO = ["the sea", "a deep blue wave"], ["a gull", "rain and wind", "one star"]
SETTINGS: dict[str, dict[str, Any]] = {
    "lda": {"shrinkage": 0.3},
    "probe": {"c": 0.01},
    "token_probe": {"epochs": 2, "batch": 2, "lr": 0.1, "weight_decay": 0.0, "l1": 0.1},
}


def test_there_is_a_function_for_each_method() -> None:
    assert set(METHODS) <= set(directions.__all__)


@pytest.mark.parametrize("name", METHODS)
def test_it_is_find_for_one(name: str) -> None:
    settings = SETTINGS.get(name, {})
    call = getattr(directions, name)
    found = call(model(), YES, NO, SITE, concept="water", seed=2, tokens="prompt", batch_tokens=20, **settings)
    more: dict[str, Any] = {"seed": 2, "tokens": "prompt", "settings": {name: settings}}
    (wanted,) = find(model(), [Contrast.of("water", YES, NO)], [name], SITE, **more)
    torch.testing.assert_close(found.vector, wanted.vector, atol=1e-5, rtol=1e-5)
    assert (found.method, found.concept, found.data) == (name, "water", wanted.data)
    assert found.scale == pytest.approx(wanted.scale) and found.site == wanted.site and found.model is model()
    if settings:
        plain = call(model(), YES, NO, SITE, concept="water", seed=2, tokens="prompt")
        assert abs(plain.cosine(found)) < 0.9999, "the settings do something"


def test_texts_in_any_form() -> None:
    chat = [{"role": "user", "content": "the sea"}]
    as_chats = directions.diff_mean(model(), [chat, (chat, "blue")], NO, SITE)
    as_text = directions.diff_mean(model(), ["the sea", ("the sea", "blue")], NO, SITE)
    torch.testing.assert_close(as_chats.vector, as_text.vector, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positives": []}, "diff_mean: there are no positives; give at least one text"),
        ({"negatives": [], "concept": "water"}, "water: there are no negatives"),
        ({"positives": "the sea"}, "positives are 'the sea'; give a list of texts"),
        ({"negatives": [5]}, "5 is no text"),
        ({"negatives": YES[::-1]}, "positives and negatives are the same texts"),
        (
            {"site": "resid_post.*"},
            r"resid_post\.\* stands for 3 Sites; a Direction has one: use find\(\.\.\.\) for many",
        ),
        ({"site": "z.0"}, r"z\.0 is made of heads, and a direction lies in one: z\.0\.h0"),
        ({"shrinkage": 0.5}, r"diff_mean has no setting \['shrinkage'\]; it has: none"),
    ],
)
def test_bad_arguments(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DirectionError, match=message):
        directions.diff_mean(model(), **{"positives": YES, "negatives": NO, "site": SITE, **change})


def test_an_unknown_method() -> None:
    with pytest.raises(DirectionError, match="there is no method 'dim'; there are: diff_mean"):
        directions.one.one("dim", model(), YES, NO, SITE, shrinkage=1)


def test_concepts_have_draws_of_their_own() -> None:
    first, again, other = (
        directions.random(model(), YES, NO, SITE, concept=name) for name in ("water", "water", "fire")
    )
    assert torch.equal(first.vector, again.vector) and abs(first.cosine(other)) < 0.9
    (wide,) = find(model(), [Contrast.of("water", YES, NO), *concepts(2)], ["random"], SITE)[:1]
    assert torch.equal(wide.vector, first.vector)
