"""What a read gives back: one named tensor a Site, in memory or as shards of safetensors on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inlay.errors import FolderError, SiteError
from inlay.model import shards
from inlay.model.sites import Site


class Activations(Mapping[str, Tensor]):
    """Activations of n rows, by Site: `acts["resid_post.3"]`, or as it was asked for, `acts["resid_post.-1"]`.

    A tensor is [n, width] where every row gave exactly one position, else [n, k, width] with zeros behind a row's own
    positions, and `mask` says which are real. Sites that are made of heads have [heads, head width] in place of width;
    a pattern has [heads, keys].

    Attributes:
        mask: bool [n, k], which positions are real; `None` where every row gave one.
        gradients: gradients of the loss by Site, of the same shapes, where they were asked for.
        layers: the model's number of blocks, which negative layers count back from; 0 where that is not known.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        mask: Tensor | None = None,
        gradients: Mapping[str, Tensor] | None = None,
        layers: int = 0,
    ) -> None:
        self._tensors = tensors
        self.mask = mask
        self.gradients = None if gradients is None else Activations(gradients, mask, layers=layers)
        self.layers = layers

    def _name(self, site: object) -> str | None:
        """What a Site is called here, however it was spelled; `None` where it was not read."""
        if isinstance(site, str) and site in self._tensors:
            return site
        try:
            found = Site.parse(site)  # type: ignore[arg-type]
        except SiteError:
            return None
        if found.layer is not None and -self.layers <= found.layer < 0:
            found = found.at(found.layer + self.layers)
        return str(found) if str(found) in self._tensors else None

    def __getitem__(self, site: str | Site) -> Tensor:
        name = self._name(site)
        if name is None:
            raise SiteError(f"{str(site)!r} was not read; these were: {', '.join(self._tensors)}")
        return self._tensors[name]

    def get(self, site: str | Site, default: Any = None) -> Any:
        """The tensor of a Site, or `default` where it was not read."""
        name = self._name(site)
        return default if name is None else self._tensors[name]

    def __contains__(self, site: object) -> bool:
        return self._name(site) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def pick(self, rows: Sequence[int]) -> Activations:
        """The activations of some rows, in that order."""
        index = list(rows)
        gradients = None if self.gradients is None else {name: t[index] for name, t in self.gradients.items()}
        mask = None if self.mask is None else self.mask[index]
        return Activations({name: t[index] for name, t in self.items()}, mask, gradients, self.layers)

    def rows(self, site: str | Site) -> list[Tensor]:
        """Each row's own positions at a Site, as a list of [k_i, width]."""
        values = self[site]
        if self.mask is None:
            return [row[None] for row in values]
        return [row[real.to(row.device)] for row, real in zip(values, self.mask, strict=True)]

    def stack(self) -> Tensor:
        """All Sites in one tensor [sites, n, ...].

        Raises:
            SiteError: the Sites differ in shape.
        """
        shapes = {tuple(t.shape) for t in self._tensors.values()}
        if len(shapes) > 1:
            raise SiteError(
                f"these Sites differ in shape and cannot be stacked: { {s: list(t.shape) for s, t in self.items()} }"
            )
        return torch.stack(list(self._tensors.values()))

    def save(self, folder: str | Path) -> Path:
        """Write them as one shard that `Activations.load` reads."""
        folder = Path(folder)
        shards.make_folder(folder)
        count = len(next(iter(self.values())))
        shards.write(folder, 0, torch.arange(count), self._tensors, self.mask, self.gradients)
        facts = {"shards": 1, "rows": count, "sites": list(self), "layers": self.layers}
        shards.write_manifest(folder, {**facts, "complete": True})
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Activations:
        """Open a folder that `save` or a streamed read wrote, rows in their original order.

        Every Site is read from disk when it is asked for, each time anew, so that a read larger than memory can be gone
        through Site by Site.

        Raises:
            FolderError: it is no such folder, it is not complete, or a shard is damaged.
        """
        folder = Path(folder)
        manifest = shards.read_manifest(folder)
        if manifest is None:
            raise FolderError(f"{folder} holds no activations: it has no manifest.json")
        if not manifest.get("complete"):
            raise FolderError(
                f"the read into {folder} has not finished; run it again with the same arguments and it goes on"
            )
        return cls(*shards.opened(folder, manifest), manifest["layers"])

    def __repr__(self) -> str:
        first = next(iter(self._tensors.values()))
        more = "" if len(self) < 4 else f", ... {len(self)} Sites"
        names = ", ".join(list(self._tensors)[:3])
        return f"Activations({names}{more}; {list(first.shape)} {str(first.dtype).removeprefix('torch.')})"


def merge(pieces: list[tuple[Tensor, Activations]]) -> Activations:
    """Batches of rows put back into one, in the order of their row numbers, padded to the longest."""
    order = torch.cat([rows for rows, _ in pieces]).argsort()
    every = [acts for _, acts in pieces]
    tensors = {site: shards.join([a[site] for a in every])[order] for site in every[0]}
    gradients = None
    if every[0].gradients is not None:
        gradients = {
            site: shards.join([a.gradients[site] for a in every if a.gradients])[order] for site in every[0].gradients
        }
    mask = None if every[0].mask is None else shards.join([a.mask for a in every if a.mask is not None])[order]
    return Activations(tensors, mask, gradients, every[0].layers)
