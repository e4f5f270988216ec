"""What an EditedModel keeps on disk: the Edit's own folder, and the trained tensors where Trainer looks for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from inlay._files import write_files
from inlay.errors import FolderError, TrainError
from inlay.interventions.edit import Edit

WEIGHTS = "model.safetensors"
"""The name under which transformers' Trainer looks for a checkpoint's weights."""


def head(base: Any, wanted: bool | Sequence[str]) -> dict[str, nn.Parameter]:
    """The parameters of a head by name: all outside of `base.base_model`, or those at or below the given paths.

    Raises:
        TrainError: there are none.
    """
    if wanted is True:
        trunk = {id(parameter) for parameter in base.base_model.parameters()}
        found = {name: p for name, p in base.named_parameters() if id(p) not in trunk}
        if not found:
            raise TrainError(
                f"{type(base).__name__} has no head with weights of its own (there is none, or they are tied to the "
                "embeddings): leave train_head out"
            )
        return found
    named, found = dict(base.named_parameters()), {}
    for path in wanted or ():
        mine = {name: p for name, p in named.items() if name == path or name.startswith(f"{path}.")}
        if not mine:
            raise TrainError(f"{type(base).__name__} has no parameters at {path!r}, which the head is to have")
        found |= mine
    return found


def check_whole(edit: Edit, base: nn.Module, head: Mapping[str, nn.Parameter]) -> None:
    """Check that one process can write what is trained.

    Raises:
        TrainError: some of it is sharded, a head also after it was taken: `fully_shard` makes parameters anew.
    """
    now = {f"head.{name}": base.get_parameter(name) for name in head}
    for name, tensor in {**edit.state_dict(), **now}.items():
        if hasattr(tensor, "placements"):
            raise TrainError(
                f"{name!r} is sharded, and one process writes what is trained: fully_shard blocks of the base before "
                "making the EditedModel, neither the head that it trains nor the EditedModel itself"
            )


def load_state(mine: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Any:
    """Copy tensors by name into those that are there.

    Raises:
        TrainError: one is missing, unknown or of another shape; nothing is changed then.
    """
    for name in sorted(mine.keys() | given.keys()):
        shapes = [list(one[name].shape) if name in one else None for one in (mine, given)]
        if shapes[0] != shapes[1]:
            raise TrainError(
                f"the state does not fit this EditedModel: {name!r} is {shapes[1] or 'missing'} there and "
                f"{shapes[0] or 'missing'} here; make it with the Edit and the train_head that were saved"
            )
    with torch.no_grad():
        for name, tensor in mine.items():
            tensor.copy_(given[name])
    return _IncompatibleKeys([], [])


def write(edit: Edit, identity: dict[str, Any], state: Mapping[str, Tensor], folder: Path) -> None:
    """Write the folder of an Edit made for the base of this identity, and the state beside it."""
    Edit.of(edit.parts, identity).save(folder)
    apart = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    write_files(folder, {WEIGHTS: save(apart, {"format": "pt"})})


def tensors(folder: Path) -> dict[str, Tensor]:
    """The state in a folder.

    Raises:
        FolderError: there is none, or it is damaged.
    """
    path = folder / WEIGHTS
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise FolderError(
            f"{path} cannot be read ({error}); a folder of an Edit alone is loaded with Edit.from_pretrained"
        ) from error


def local(name: str | Path, **kwargs: Any) -> Path:
    """The folder of a name; of a hub repository, what it holds of an EditedModel.

    Raises:
        FolderError: neither a folder nor a repository.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    if folder.is_absolute() or str(name).startswith((".", "~")):
        raise FolderError(f"there is no folder {name}")
    try:
        return Path(snapshot_download(str(name), allow_patterns=["edit.json", "edit.safetensors", WEIGHTS], **kwargs))
    except Exception as error:
        raise FolderError(f"{str(name)!r} is no folder here, and the hub did not give it: {error}") from error
