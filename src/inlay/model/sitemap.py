"""The Sites of one model: which it has, where they lie, and which it lacks and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from inlay.errors import SiteError
from inlay.model.places import Place
from inlay.model.sites import GLOBAL, LAYERED, Site

ENCODER, DECODER = "encoder", "decoder"


@dataclass
class SiteMap:
    """The Sites of one model.

    Attributes:
        places: Site name to its place in each layer; global Sites are under layer `None`.
        lacks: Site name to the reason why this model has none.
        layers: the number of blocks.
        decoder: path of the module that loops over the blocks; it sees input ids, mask and cache.
        encoder: path of the encoder of an encoder-decoder model, "" for other models.
        blocks: path of each block.
        block_key: which item of a block's output is the hidden state, `None` for a bare tensor.
        block_items: the length of a block's output tuple, 0 for a bare tensor.
        family: the model type, for messages.
    """

    places: dict[str, dict[int | None, Place]] = field(default_factory=dict)
    lacks: dict[str, str] = field(default_factory=dict)
    layers: int = 0
    decoder: str = ""
    encoder: str = ""
    blocks: tuple[str, ...] = ()
    block_key: int | None = None
    block_items: int = 0
    family: str = ""

    def place(self, site: Site) -> Place:
        """Where a Site of one layer lies.

        Raises:
            SiteError: the model has no such Site; the message names those it has.
        """
        found = self.places.get(site.name)
        if not found:
            why = f" ({self.lacks[site.name]})" if site.name in self.lacks else ""
            raise SiteError(f"{self.family} has no Site {site.name!r}{why}. It has: {', '.join(self.places)}")
        layer = self._layer(site)
        if layer not in found:
            have = ", ".join(str(i) for i in found)
            raise SiteError(
                f"{site}: layer {layer} of {self.family} has no {site.name!r}; these layers have one: {have}"
            )
        return found[layer].of_heads(site.heads, str(site))

    def stack(self, site: Site) -> str:
        """`"encoder"` where a raw Site lies in the encoder of an encoder-decoder model, else `"decoder"`."""
        inside = bool(self.encoder) and f"{site.path}.".startswith(f"{self.encoder}.")
        return ENCODER if inside else DECODER

    def width(self, site: Site) -> int:
        """A Site's width; -1 where it grows with the sequence, 0 where a raw Site's is not known."""
        return 0 if site.name == "module" else self.place(site).width

    def _layer(self, site: Site) -> int | None:
        if site.name in GLOBAL:
            return None
        assert site.layer is not None
        if not -self.layers <= site.layer < self.layers:
            raise SiteError(
                f"{site}: layer {site.layer} is out of range; {self.family} has layers 0 to {self.layers - 1}"
            )
        return site.layer % self.layers

    def expand(self, wanted: str | Site | Sequence[str | Site]) -> list[Site]:
        """One Site for each layer that is meant, in the order asked for, with layers counted from 0.

        Raises:
            SiteError: a Site is misspelled or the model has none of it.
        """
        if isinstance(wanted, (str, Site)):
            wanted = [wanted]
        sites: list[Site] = []
        for one in map(Site.parse, wanted):
            if one.every:
                layers = self.places.get(one.name) or {}
                if not layers:
                    self.place(one.at(0))
                sites += [one.at(layer) for layer in layers if layer is not None]
            elif one.name in LAYERED:
                layer = self._layer(one)
                assert layer is not None
                sites.append(one.at(layer))
            else:
                sites.append(one)
        if not sites:
            raise SiteError("no Site was asked for: give at least one, such as 'resid_post.*'")
        for site in sites:
            if site.name != "module":
                self.place(site)
        return list(dict.fromkeys(sites))
