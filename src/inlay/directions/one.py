"""One concept's direction by one method: a function for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from inlay.directions.contrast import Contrast
from inlay.directions.direction import Direction
from inlay.directions.find import find
from inlay.errors import DirectionError
from inlay.model.sites import Site

if TYPE_CHECKING:
    from inlay.model.model import Model


def one(
    name: str,
    model: Model,
    positives: Sequence[Any],
    negatives: Sequence[Any],
    site: str | Site,
    *,
    concept: str = "",
    tokens: Any = "all",
    seed: int = 0,
    batch_tokens: int = 8192,
    **settings: Any,
) -> Direction:
    """One concept's direction by the method of a name, at one Site.

    Args:
        name: of the method, in `METHODS`.
        model: the Model.
        positives: texts that have the concept: strings, chats, or pairs (prompt, response).
        negatives: texts that do not.
        site: where.
        concept: its name, for messages and records.
        tokens: which tokens are used; `"all"` leaves out what every prompt begins with (bos, template).
        seed: of what the method draws.
        batch_tokens: the most padded tokens in one forward.
        **settings: of the method.

    Raises:
        DirectionError: no texts, an unknown method or setting, no direction found, or the Site stands for several.
        InlayError: texts, Site or Tokens do not fit the model.
    """
    contrast = Contrast.of(concept or name, positives, negatives)
    sites = model.sites().expand(site)
    if len(sites) > 1:
        raise DirectionError(f"{site} stands for {len(sites)} Sites; a Direction has one: use find(...) for many")
    given = {name: settings} if settings else None
    more: dict[str, Any] = {"tokens": tokens, "seed": seed, "batch_tokens": batch_tokens}
    return find(model, [contrast], [name], sites, settings=given, **more)[0]


def diff_mean(
    model: Model, positives: Sequence[Any], negatives: Sequence[Any], site: str | Site, **options: Any
) -> Direction:
    """The mean token state of the positives minus that of the negatives; arguments as `one`."""
    return one("diff_mean", model, positives, negatives, site, **options)


def pca(
    model: Model, positives: Sequence[Any], negatives: Sequence[Any], site: str | Site, **options: Any
) -> Direction:
    """The first principal component of the positives' token states; arguments as `one`."""
    return one("pca", model, positives, negatives, site, **options)


def lat(
    model: Model, positives: Sequence[Any], negatives: Sequence[Any], site: str | Site, **options: Any
) -> Direction:
    """The first principal component of differences of random pairs of positive states; arguments as `one`."""
    return one("lat", model, positives, negatives, site, **options)


def lda(
    model: Model, positives: Sequence[Any], negatives: Sequence[Any], site: str | Site, **options: Any
) -> Direction:
    """The difference of means, whitened by the covariance within the classes; arguments as `one`.

    Setting `shrinkage`: 0 to 1, or `None` for Ledoit and Wolf's.
    """
    return one("lda", model, positives, negatives, site, **options)


def probe(
    model: Model, positives: Sequence[Any], negatives: Sequence[Any], site: str | Site, **options: Any
) -> Direction:
    """The weights of a logistic regression on mean states; arguments as `one`.

    Setting `c`: the inverse strength of the l2 penalty.
    """
    return one("probe", model, positives, negatives, site, **options)


def token_probe(
    model: Model, positives: Sequence[Any], negatives: Sequence[Any], site: str | Site, **options: Any
) -> Direction:
    """AxBench's probe on tokens; arguments as `one`.

    Settings `epochs`, `batch`, `lr`, `weight_decay`, `l1`.
    """
    return one("token_probe", model, positives, negatives, site, **options)


def random(
    model: Model, positives: Sequence[Any], negatives: Sequence[Any], site: str | Site, **options: Any
) -> Direction:
    """A control: a direction drawn uniformly, with the scale of the texts' states; arguments as `one`."""
    return one("random", model, positives, negatives, site, **options)


def mean(
    model: Model, positives: Sequence[Any], negatives: Sequence[Any], site: str | Site, **options: Any
) -> Direction:
    """A control: the mean state of the positives, without a contrast; arguments as `one`."""
    return one("mean", model, positives, negatives, site, **options)
