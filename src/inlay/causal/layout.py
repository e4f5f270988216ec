"""What the places of a grid are, and what is set there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from inlay.causal.cells import Cells, Writes, start_of
from inlay.errors import CausalError
from inlay.model.sites import HEADED, Site

if TYPE_CHECKING:
    from inlay.model.model import Model


Sites = str | Site | Sequence[str | Site]


@dataclass(frozen=True)
class Layout:
    """A places, at each of which one or several Sites are set. With K token columns, cell a K + k is place a, column k.

    Attributes:
        sites: the Sites that are set, each of one layer and without heads.
        place: int64 [m], ascending: the place that each of m settings belongs to.
        site: int64 [m], the Site that it sets.
        head: int64 [m], the head of it, 0 where it has none.
        start: int64 [A], see `start_of`.
        labels: name, layer and head of each place, (A, 3).
        headed: whether places are heads.
    """

    sites: tuple[Site, ...]
    place: Tensor
    site: Tensor
    head: Tensor
    start: Tensor
    labels: Sequence[tuple[str, int, int]]
    headed: bool = False

    @classmethod
    def _of(
        cls, model: Model, sites: Sequence[Site], places: Sequence[Sequence[tuple[int, int]]], **more: Any
    ) -> Layout:
        """Of what each place sets: a list of (number of a Site, head)."""
        place = [index for index, settings in enumerate(places) for _ in settings]
        site, head = torch.tensor([one for settings in places for one in settings]).unbind(1)
        starts = [start_of(model, one) for one in sites]
        start = torch.tensor([min(starts[index] for index, _ in settings) for settings in places])
        return cls(tuple(sites), torch.tensor(place), site, head, start, **more)

    @classmethod
    def each(cls, model: Model, wanted: Sites) -> Layout:
        """Each Site of one layer is a place; where Sites are made of heads, each of these.

        Raises:
            CausalError: a Site has no layer, or Sites with and without heads are mixed.
            SiteError: the model has no such Site.
        """
        heads = _heads(model, wanted)
        headed = {bool(found) for found in heads.values()}
        if len(headed) > 1:
            raise CausalError(
                f"{', '.join(map(str, heads))}: some of these Sites are made of heads and some are not; give each kind "
                "in a call of its own"
            )
        flat = [(i, head) for i, found in enumerate(heads.values()) for head in found or [0]]
        sites = list(heads)
        labels = [(sites[i].name, layer_of(sites[i]), head) for i, head in flat]
        return cls._of(model, sites, [[one] for one in flat], labels=labels, headed=headed == {True})

    @classmethod
    def joint(cls, model: Model, wanted: Sites) -> Layout:
        """One place, at which all of the Sites are set together; raises as `each`, and may mix."""
        heads = _heads(model, wanted)
        flat = [(i, head) for i, found in enumerate(heads.values()) for head in found or [0]]
        return cls._of(model, list(heads), [flat], labels=[("together", 0, 0)])

    @classmethod
    def windows(cls, model: Model, kinds: Sequence[str], window: int) -> Layout:
        """Each layer of each kind is a place; beside a residual stream's own, all Sites of the window are set there.

        Raises:
            CausalError: Sites that are made of heads.
            SiteError: the model has no such Site.
        """
        sites = list(_heads(model, [f"{kind}.*" for kind in kinds]))
        if headed := [site for site in sites if site.name in HEADED]:
            raise CausalError(f"{headed[0]} is made of heads, and tracing restores whole states")
        places = []
        for site in sites:
            below, above = (0, 0) if site.name.startswith("resid") else ((window - 1) // 2, window // 2)
            layers = range(layer_of(site) - below, layer_of(site) + above + 1)
            places.append([(i, 0) for i, one in enumerate(sites) if one.name == site.name and one.layer in layers])
        return cls._of(model, sites, places, labels=[(site.name, layer_of(site), 0) for site in sites])

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def starts(self) -> list[int]:
        """All starts there are."""
        return [int(start) for start in self.start.unique()]

    @property
    def most(self) -> int:
        """How many places share a start, at most."""
        return int(self.start.unique(return_counts=True)[1].max())

    def cells(self, columns: int, stored: Mapping[Site, Tensor], run: Tensor, slot: Tensor) -> Cells:
        """The cells, which set stored activations at their place and column.

        Args:
            columns: how many token columns there are.
            stored: by Site, [q, slots, H, width of a head].
            run, slot: as in `Writes`.
        """
        writes = []
        for index, site in enumerate(self.sites):
            here = self.site == index
            writes.append(
                Writes.at(site, self.place[here], self.head[here], columns, values=stored[site], run=run, slot=slot)
            )
        return Cells(torch.arange(columns).repeat(len(self)), self.start.repeat_interleave(columns), writes)

    def spread(self, values: np.ndarray[Any, Any]) -> tuple[dict[str, Any], np.ndarray[Any, Any]]:
        """Numbers of places, [A, ...], over component, layer, head and what follows; NaN where no place is."""
        names = list(dict.fromkeys(name for name, _, _ in self.labels))
        layers, heads = (sorted({label[i] for label in self.labels}) for i in (1, 2))
        at = [(names.index(name), layers.index(layer), heads.index(head)) for name, layer, head in self.labels]
        whole = np.full((len(names), len(layers), len(heads), *values.shape[1:]), np.nan, dtype=np.float32)
        whole[tuple(np.array(at).T)] = values
        return {"component": names, "layer": layers, "head": heads}, whole


def layer_of(site: Site) -> int:
    """The layer of a Site that has one.

    Raises:
        CausalError: it has none.
    """
    if site.layer is None:
        raise CausalError(f"{site}: cells are set at Sites of a layer, such as 'resid_pre.0' for the embeddings")
    return site.layer


def _heads(model: Model, wanted: Sites) -> dict[Site, list[int]]:
    """The Sites that are meant, one for each layer and without heads, and the heads of each; none where it has none."""
    found: dict[Site, list[int]] = {}
    for site in model.sites().expand(wanted):
        whole = Site(site.name, layer_of(site))
        count = model.sites().place(whole).heads if site.name in HEADED else 0
        heads = found.setdefault(whole, [])
        heads += [head for head in (site.heads or range(count)) if head not in heads]
    return found
