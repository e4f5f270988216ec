"""Settings of a run: what is taken and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from inlay.bench.config import DEFAULT_METHODS, FACTORS, BenchConfig
from inlay.errors import BenchError

BAD: list[tuple[dict[str, Any], str]] = [
    ({"factor": (1.0,)}, r"bench setting factor: .*\(given \(1\.0,\)\); the settings are: methods, site, tokens"),
    ({"methods": ("diff_mean", "magic")}, "there is no method 'magic'; there are: diff_mean, pca, lat"),
    ({"methods": ("pca", "pca")}, "methods are pca, pca: give each once"),
    ({"methods": ()}, "methods are none"),
    ({"methods": "pca"}, "bench setting methods: .*given 'pca'"),
    ({"factors": ()}, "give at least one"),
    ({"factors": (1.0, 1.0)}, "each once"),
    ({"factors": (0.0, 1.0)}, "none is 0 or infinite; 0 is the unsteered row"),
    ({"factors": (float("inf"),)}, "none is 0 or infinite"),
    ({"factors": (float("nan"),)}, "none is 0 or infinite"),
    ({"factors": "all"}, "bench setting factors"),
    ({"split": 0.0}, "bench setting split"),
    ({"split": 1.0}, "bench setting split"),
    ({"pick": "best"}, "'concept' or 'global'"),
    ({"max_new_tokens": 0}, "bench setting max_new_tokens"),
    ({"batch_rows": 0}, "bench setting batch_rows"),
    ({"temperature": -1.0}, "bench setting temperature"),
    ({"seed": "one"}, "bench setting seed"),
]


@pytest.mark.parametrize(("given", "message"), BAD, ids=lambda value: str(value) if isinstance(value, dict) else "")
def test_what_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        BenchConfig.of(**given)


def test_defaults() -> None:
    config = BenchConfig.of()
    assert config.methods == DEFAULT_METHODS and config.grid == FACTORS
    assert config.all_methods == (*DEFAULT_METHODS, "random")
    assert BenchConfig.of(methods=("random", "pca")).all_methods == ("random", "pca")
    assert BenchConfig.of(factors=[2, -0.5]).grid == (2.0, -0.5)
    assert BenchConfig.of(site=["resid_post.1", "resid_post.2"]).site == ("resid_post.1", "resid_post.2")


def test_a_configuration_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        BenchConfig.of().seed = 1  # type: ignore[misc]
