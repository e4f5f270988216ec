"""What a read gives back: one named tensor a Site, in memory or as shards of safetensors on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from inlay.errors import FolderError, SiteError


class Activations(Mapping[str, Tensor]):
    """Activations of n rows, by Site name.

    A tensor is [n, width] where every row gave exactly one position, else [n, k, width] with zeros behind a row's own
    positions, and `mask` says which are real. Sites that are made of heads have [heads, head width] in place of width;
    a pattern has [heads, keys].

    Attributes:
        mask: bool [n, k], which positions are real; `None` where every row gave one.
        gradients: gradients of the loss by Site, of the same shapes, where they were asked for.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        mask: Tensor | None = None,
        gradients: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._tensors = dict(tensors)
        self.mask = mask
        self.gradients = dict(gradients) if gradients is not None else None

    def __getitem__(self, site: str) -> Tensor:
        if site not in self._tensors:
            raise SiteError(f"{site!r} was not read; these were: {', '.join(self._tensors)}")
        return self._tensors[site]

    def __contains__(self, site: object) -> bool:
        return site in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def pick(self, rows: Sequence[int]) -> Activations:
        """The activations of some rows, in that order."""
        index = list(rows)
        gradients = None if self.gradients is None else {name: t[index] for name, t in self.gradients.items()}
        mask = None if self.mask is None else self.mask[index]
        return Activations({name: t[index] for name, t in self.items()}, mask, gradients)

    def rows(self, site: str) -> list[Tensor]:
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
        folder.mkdir(parents=True, exist_ok=True)
        count = len(next(iter(self.values())))
        write_shard(folder, 0, torch.arange(count), self)
        write_manifest(folder, {"shards": 1, "rows": count, "complete": True})
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Activations:
        """Read a folder that `save` or a streamed read wrote, rows in their original order.

        Raises:
            FolderError: it is no such folder, it is not complete, or a shard is damaged.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        if manifest is None:
            raise FolderError(f"{folder} holds no activations: it has no manifest.json")
        if not manifest.get("complete"):
            raise FolderError(
                f"the read into {folder} has not finished; run it again with the same arguments and it goes on"
            )
        pieces = [read_shard(folder, k) for k in range(manifest["shards"])]
        return merge(pieces)

    def __repr__(self) -> str:
        first = next(iter(self._tensors.values()))
        more = "" if len(self) < 4 else f", ... {len(self)} Sites"
        names = ", ".join(list(self._tensors)[:3])
        return f"Activations({names}{more}; {list(first.shape)} {str(first.dtype).removeprefix('torch.')})"


def merge(pieces: list[tuple[Tensor, Activations]]) -> Activations:
    """Batches of rows put back into one, in the order of their row numbers, padded to the longest."""
    order = torch.cat([rows for rows, _ in pieces]).argsort()
    every = [acts for _, acts in pieces]
    tensors = {site: _join([a[site] for a in every])[order] for site in every[0]}
    gradients = None
    if every[0].gradients is not None:
        gradients = {
            site: _join([a.gradients[site] for a in every if a.gradients])[order] for site in every[0].gradients
        }
    mask = None if every[0].mask is None else _join([a.mask for a in every if a.mask is not None])[order]
    return Activations(tensors, mask, gradients)


def _join(tensors: list[Tensor]) -> Tensor:
    """Concatenate along rows, zero-padding every other dimension to the largest."""
    if len(tensors) == 1:
        return tensors[0]
    shape = [max(t.shape[d] for t in tensors) for d in range(1, tensors[0].ndim)]
    if all(list(t.shape[1:]) == shape for t in tensors):
        return torch.cat(tensors)
    padded = []
    for tensor in tensors:
        room = tensor.new_zeros(tensor.shape[0], *shape)
        room[(slice(None), *(slice(0, n) for n in tensor.shape[1:]))] = tensor
        padded.append(room)
    return torch.cat(padded)


def shard_path(folder: Path, index: int) -> Path:
    """Where a shard lies."""
    return folder / f"shard-{index:05d}.safetensors"


def write_shard(folder: Path, index: int, rows: Tensor, acts: Activations) -> None:
    """Write one shard whole: temporary file, then rename."""
    tensors = {f"site/{site}": t.contiguous() for site, t in acts.items()} | {"rows": rows}
    if acts.mask is not None:
        tensors["mask"] = acts.mask.contiguous()
    for site, gradient in (acts.gradients or {}).items():
        tensors[f"grad/{site}"] = gradient.contiguous()
    path = shard_path(folder, index)
    temporary = path.with_suffix(".part")
    try:
        save_file({name: t.cpu() for name, t in tensors.items()}, temporary)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise FolderError(
            f"shard {index} could not be written to {folder}: {error}; free some space and run again"
        ) from error


def read_shard(folder: Path, index: int) -> tuple[Tensor, Activations]:
    """A shard's row numbers and activations.

    Raises:
        FolderError: it is missing or damaged.
    """
    path = shard_path(folder, index)
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise FolderError(f"{path} cannot be read ({error}); delete it and run the read again") from error
    sites = {n.removeprefix("site/"): t for n, t in tensors.items() if n.startswith("site/")}
    gradients = {n.removeprefix("grad/"): t for n, t in tensors.items() if n.startswith("grad/")} or None
    return tensors["rows"], Activations(sites, tensors.get("mask"), gradients)


def write_manifest(folder: Path, manifest: Mapping[str, object]) -> None:
    """Write `manifest.json` whole."""
    temporary = folder / "manifest.json.part"
    temporary.write_text(json.dumps(dict(manifest), indent=2) + "\n")
    temporary.replace(folder / "manifest.json")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """`manifest.json`, `None` where there is none.

    Raises:
        FolderError: it is not JSON.
    """
    path = folder / "manifest.json"
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text())
    except ValueError as error:
        raise FolderError(f"{path} is damaged: {error}") from error
    return dict(manifest)
