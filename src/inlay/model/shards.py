"""Activations on disk: shards of safetensors with a manifest, each written whole, opened Site by Site."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from inlay.errors import FolderError


def make_folder(folder: Path) -> None:
    """Make a folder where there is none.

    Raises:
        FolderError: something else is there, or the disk refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FolderError(f"{folder} cannot be a folder: {error}") from error


def path_of(folder: Path, index: int) -> Path:
    """Where a shard lies."""
    return folder / f"shard-{index:05d}.safetensors"


def write(
    folder: Path,
    index: int,
    rows: Tensor,
    sites: Mapping[str, Tensor],
    mask: Tensor | None,
    gradients: Mapping[str, Tensor] | None,
) -> None:
    """Write one shard whole: temporary file, then rename.

    Raises:
        FolderError: the disk refuses.
    """
    tensors = {f"site/{site}": t for site, t in sites.items()} | {"rows": rows}
    if mask is not None:
        tensors["mask"] = mask
    tensors |= {f"grad/{site}": t for site, t in (gradients or {}).items()}
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    seen: set[int] = set()
    for name, tensor in tensors.items():  # one tensor at two Sites is stored twice
        where = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if where in seen else tensor
        seen.add(where)
    path = path_of(folder, index)
    temporary = path.with_suffix(".part")
    try:
        save_file(tensors, temporary)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise FolderError(
            f"shard {index} could not be written to {folder}: {error}; free some space and run again"
        ) from error


def opened(folder: Path, manifest: Mapping[str, Any]) -> tuple[Stored, Tensor | None, Stored | None]:
    """The Sites, mask and gradients of a folder, the tensors still on disk.

    Raises:
        FolderError: a shard is missing or damaged.
    """
    count, sites = manifest["shards"], list(manifest["sites"])
    order = torch.cat(_get(folder, count, "rows")).argsort()
    names = _names(folder, 0)
    mask = join(_get(folder, count, "mask"))[order] if "mask" in names else None
    stored = [Stored(folder, count, prefix, sites, order) for prefix in ("site/", "grad/")]
    return stored[0], mask, stored[1] if f"grad/{sites[0]}" in names else None


class Stored(Mapping[str, Tensor]):
    """Tensors of a folder of shards by Site, read when they are asked for."""

    def __init__(self, folder: Path, count: int, prefix: str, sites: list[str], order: Tensor) -> None:
        self.folder, self.count, self.prefix, self.sites, self.order = folder, count, prefix, sites, order

    def __getitem__(self, site: str) -> Tensor:
        if site not in self.sites:
            raise KeyError(site)
        return join(_get(self.folder, self.count, self.prefix + site))[self.order]

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)


def _names(folder: Path, index: int) -> list[str]:
    path = path_of(folder, index)
    try:
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from error


def _get(folder: Path, count: int, name: str) -> list[Tensor]:
    found = []
    for index in range(count):
        path = path_of(folder, index)
        try:
            with safe_open(path, "pt") as file:
                found.append(file.get_tensor(name))
        except (OSError, SafetensorError) as error:
            raise _damaged(path, error) from error
    return found


def _damaged(path: Path, error: Exception) -> FolderError:
    return FolderError(f"{path} cannot be read ({error}); delete it and run the read again")


def join(tensors: list[Tensor]) -> Tensor:
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


def write_manifest(folder: Path, manifest: Mapping[str, object]) -> None:
    """Write `manifest.json` whole.

    Raises:
        FolderError: the disk refuses.
    """
    temporary = folder / "manifest.json.part"
    try:
        temporary.write_text(json.dumps(dict(manifest), indent=2) + "\n")
        temporary.replace(folder / "manifest.json")
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise FolderError(
            f"the manifest could not be written to {folder}: {error}; free some space and run again"
        ) from error


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """`manifest.json`, `None` where there is none.

    Raises:
        FolderError: it is damaged.
    """
    path = folder / "manifest.json"
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise FolderError(f"{path} is damaged: {error}") from error
    for key, kind in (("shards", int), ("rows", int), ("sites", list), ("layers", int), ("complete", bool)):
        if not isinstance(manifest, dict) or not isinstance(manifest.get(key), kind):
            raise FolderError(f"{path} is damaged: it does not say {key!r}; delete the folder and read again")
    return dict(manifest)
