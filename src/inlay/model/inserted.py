"""Feed a model embeddings of one's own, whatever it does with them on the way in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inlay.errors import SiteError
from inlay.model import patch
from inlay.model.passes import Stop
from inlay.model.places import Place, pick, put_back
from inlay.model.reading import until_stopped
from inlay.model.sites import Site

if TYPE_CHECKING:
    from inlay.model.model import Model


class _Given(patch.Layer):
    """The tensor that stands in for the embeddings. It acts before any Edit of them."""

    order = -1

    def __init__(self, here: patch.Here, place: Place, embeds: Tensor) -> None:
        super().__init__(here)
        self.place, self.embeds = place, embeds

    def after(self, args: patch.Args, kwargs: patch.Kwargs, output: Any) -> Any:
        whole = pick(output, self.place.key)
        if whole.shape != self.embeds.shape:
            raise SiteError(
                f"embeddings {list(self.embeds.shape)} were given for ids of which the model makes {list(whole.shape)}"
            )
        return put_back(output, self.place.key, self.embeds.to(whole.dtype))


class _Seen(patch.Layer):
    """Takes what the table gives, before any Edit of it, and ends the call."""

    order = -1
    found: Tensor

    def __init__(self, here: patch.Here, place: Place) -> None:
        super().__init__(here)
        self.place = place

    def after(self, args: patch.Args, kwargs: patch.Kwargs, output: Any) -> Any:
        self.found = pick(output, self.place.key)
        raise Stop


@contextmanager
def _on_the_table(model: Model, layer: patch.Layer) -> Iterator[None]:
    module = model.base.get_submodule(model.sites().place(Site("embed")).path)
    patch.put(module, "forward", layer)
    layer.here.on = True
    try:
        yield
    finally:
        layer.here.on = False
        patch.lift(module, "forward", layer)


def embeddings(model: Model, ids: Tensor) -> Tensor:
    """What the table gives for ids, before any Edit of it, [rows, tokens, width], without gradient.

    Args:
        model: the Model.
        ids: int64 [rows, tokens].

    Raises:
        SiteError: the model has no `embed`.
    """
    place = model.sites().place(Site("embed"))
    layer = _Seen(patch.Here(), place)
    with torch.no_grad(), _on_the_table(model, layer), until_stopped():
        model.base.get_submodule(place.path)(ids.to(model.device))
    return layer.found


@contextmanager
def inserted(model: Model, embeds: Tensor) -> Iterator[None]:
    """Inside, and in this thread, the model computes from these embeddings; the ids give the shape alone.

    What comes after the table (a scale, positions, a norm) is the model's own. An Edit of `embed` acts on them.

    Args:
        model: the Model.
        embeds: [rows, tokens, width], may carry gradient.

    Raises:
        SiteError: the model has no `embed`, or looks its ids up in a second table too, or a forward inside has ids of
            another shape.
    """
    config: Any = getattr(model.base, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    if getattr(config, "hidden_size_per_layer_input", 0):
        raise SiteError(
            f"{model.sites().family} looks each id up a second time, in embeddings of every layer "
            "(hidden_size_per_layer_input): other embeddings alone would leave half of a token in place"
        )
    with _on_the_table(model, _Given(patch.Here(), model.sites().place(Site("embed")), embeds)):
        yield
