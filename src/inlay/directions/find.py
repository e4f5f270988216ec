"""Find directions: many concepts, methods and Sites in one pass over the texts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from inlay.directions.contrast import Contrast
from inlay.directions.direction import Direction
from inlay.directions.gather import gather
from inlay.directions.methods import METHODS, Method, Sample
from inlay.errors import DirectionError
from inlay.model.sites import Site
from inlay.model.tokens import Tokens

if TYPE_CHECKING:
    from inlay.model.model import Model


def find(
    model: Model,
    contrasts: Sequence[Contrast],
    methods: Sequence[str] = ("diff_mean",),
    site: str | Site | Sequence[str | Site] = "resid_post.-1",
    *,
    tokens: Any = "all",
    seed: int = 0,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    batch_tokens: int = 8192,
) -> list[Direction]:
    """Directions of every concept by every method at every Site, from one forward over the union of their texts.

    The result is what each concept alone would give. Where a method needs the states of single tokens (PCA, LAT, LDA,
    the token probe), those of all texts are kept in memory: tokens x width x 4 bytes a Site.

    Args:
        model: the Model.
        contrasts: the concepts, each with its texts.
        methods: names in `METHODS`.
        site: one Site or several; `"resid_post.*"` is every layer.
        tokens: which tokens are used; `"all"` leaves out what every prompt begins with (bos, template).
        seed: of what methods draw.
        settings: by method, those that differ from its defaults.
        batch_tokens: the most padded tokens in one forward.

    Returns:
        Site by Site, method by method, concept by concept.

    Raises:
        DirectionError: an unknown method or setting, no contrasts, or a method finds no direction.
        InlayError: texts, Sites or Tokens do not fit the model.
    """
    options = options_of(methods, settings or {})
    wanted = [METHODS[name] for name in options]
    sites = model.sites().expand(site)
    keep = any(m.tokens for m in wanted)
    got = gather(model, contrasts, sites, tokens, keep=keep, batch_tokens=batch_tokens)
    read, found = str(Tokens.parse(tokens)), []
    for where in sites:
        for method in wanted:
            for contrast, yes, no in zip(contrasts, got.positives, got.negatives, strict=True):
                sample = Sample(got.states[where], yes, no, seed, contrast.name)
                vector = _fitted(method, sample, where, options[method.name])
                count, scale = _size(sample)
                data = {"positives": len(yes), "negatives": len(no), "tokens": count, "read": read, "seed": seed}
                data |= {"texts": _digest(got.keys, yes, no)} | options[method.name]
                found.append(Direction(vector, where, scale, method.name, contrast.name, data, model))
    return found


def _fitted(method: Method, sample: Sample, where: Site, settings: Mapping[str, Any]) -> Tensor:
    vector = method.fit(sample, **settings)
    if not bool(vector.any()):
        raise DirectionError(
            f"{method.name} finds no direction for {sample.name!r} at {where}: its vector is 0, as where all states "
            "are alike"
        )
    return vector


def _size(sample: Sample) -> tuple[int, float]:
    """The number of a concept's tokens, and the mean length of their states."""
    every = [*sample.positives, *sample.negatives]
    count = int(sample.states.counts[every].sum())
    return count, float(sample.states.lengths[every].sum()) / count


def _digest(keys: Sequence[str], yes: Sequence[int], no: Sequence[int]) -> str:
    """SHA-256, in hex, of a concept's texts, in whatever order."""
    sides = [sorted(keys[i] for i in side) for side in (yes, no)]
    return hashlib.sha256("\n".join([*sides[0], "", *sides[1]]).encode()).hexdigest()


def method_of(name: str) -> Method:
    """The method of a name.

    Raises:
        DirectionError: there is none.
    """
    if name not in METHODS:
        raise DirectionError(f"there is no method {name!r}; there are: {', '.join(METHODS)}")
    return METHODS[name]


def options_of(methods: Sequence[str], settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By method, all of its settings: those given, and its defaults.

    Raises:
        DirectionError: no methods, an unknown one, or an unknown setting.
    """
    if not methods:
        raise DirectionError(f"no methods: give some of {', '.join(METHODS)}")
    options = {name: _options(method_of(name), settings.get(name, {})) for name in methods}
    if unknown := set(settings) - set(options):
        raise DirectionError(f"there are settings for {sorted(unknown)}, and the methods are {', '.join(options)}")
    return options


def _options(method: Method, given: Mapping[str, Any]) -> dict[str, Any]:
    if unknown := set(given) - set(method.defaults):
        has = ", ".join(method.defaults) or "none"
        raise DirectionError(f"{method.name} has no setting {sorted(unknown)}; it has: {has}")
    return {**method.defaults, **given}
