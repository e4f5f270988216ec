"""An Edit as a folder on disk: `edit.json` says what, `edit.safetensors` holds the tensors. Nothing is unpickled."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from inlay._version import __version__
from inlay.errors import EditError, FolderError, InlayError
from inlay.interventions.base import Intervention
from inlay.interventions.edit import Edit, Part
from inlay.model.sites import Site
from inlay.model.tokens import Tokens

FORMAT = 1


def write(edit: Edit, folder: Path, model: Any = None) -> Path:
    """Write an Edit's folder. Each file appears whole or not at all, the description last.

    Args:
        edit: the Edit.
        folder: made where it does not exist.
        model: the `Model` it was made for; its name, revision and shape are recorded.

    Raises:
        EditError: a part lives only in memory (a lambda, a mask, a Source of tensors).
        FolderError: the disk refuses.
    """
    tensors: dict[str, Tensor] = {}
    parts, first = [], dict[int, int]()
    for index, part in enumerate(edit.parts):
        if not part.tokens.storable:
            raise EditError(
                f"part {index}: tokens={part.tokens} belongs to one batch and cannot be saved; use positions or text"
            )
        row: dict[str, Any] = {"site": str(part.site), "tokens": str(part.tokens), "strength": part.strength}
        intervention = part.intervention
        if id(intervention) in first:
            row["same_as"] = first[id(intervention)]
        else:
            first[id(intervention)] = index
            row |= _describe(intervention, index)
            state = intervention.state()
            row["shapes"] = {name: list(t.shape) for name, t in state.items()}
            row["trainable"] = [name for name, t in state.items() if isinstance(t, nn.Parameter) and t.requires_grad]
            tensors |= {f"part{index}.{name}": t.detach().cpu().contiguous().clone() for name, t in state.items()}
        parts.append(row)
    base = model.identity() if model is not None else edit.base
    card = {"format": FORMAT, "inlay": __version__, "base": base, "parts": parts}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _whole(folder / "edit.safetensors", lambda path: save_file(tensors, path, {"format": "pt"}))
        text = json.dumps(card, indent=2) + "\n"
        _whole(folder / "edit.json", lambda path: Path(path).write_text(text))
    except OSError as error:
        raise FolderError(f"the Edit could not be written to {folder}: {error}") from error
    return folder


def _describe(intervention: Intervention, index: int) -> dict[str, Any]:
    if not intervention.kind or Intervention.kinds.get(intervention.kind) is not type(intervention):
        raise EditError(
            f"part {index}: {type(intervention).__name__} has no `kind` of its own, so nothing could load it again; "
            "set kind = '<name>' on the class"
        )
    return {"kind": intervention.kind, "config": intervention.config()}


def _whole(path: Path, make: Any) -> None:
    """Write through a temporary file beside the target, synced and renamed."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        make(temporary)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read(name: str | Path, model: Any = None, **kwargs: Any) -> Edit:
    """The Edit of a folder or hub repository; see `Edit.from_pretrained`."""
    folder = Path(name)
    if not folder.is_dir():
        folder = _download(str(name), **kwargs)
    card = _card(folder)
    if model is not None:
        _check_base(card["base"], model.identity(), folder)
    try:
        tensors = load_file(folder / "edit.safetensors")
    except (OSError, SafetensorError) as error:
        raise FolderError(f"{folder / 'edit.safetensors'} cannot be read ({error}); save the Edit again") from error
    parts: list[Part] = []
    for index, row in enumerate(card["parts"]):
        try:
            made = parts[row["same_as"]].intervention if "same_as" in row else _rebuild(row, index, tensors)
            parts.append(Part(Site.parse(row["site"]), Tokens.parse(row["tokens"]), made, row["strength"]))
        except FolderError:
            raise
        except (InlayError, KeyError, IndexError, TypeError, ValueError) as error:
            raise FolderError(f"{folder / 'edit.json'}: part {index} is not readable: {error}") from error
    return Edit.of(tuple(parts), card["base"])


def _rebuild(row: dict[str, Any], index: int, tensors: dict[str, Tensor]) -> Intervention:
    kind = Intervention.kinds.get(row["kind"])
    if kind is None:
        known = ", ".join(sorted(Intervention.kinds))
        raise FolderError(
            f"part {index} is of kind {row['kind']!r}; import the module that defines it. Known kinds: {known}"
        )
    prefix = f"part{index}."
    state: dict[str, Tensor] = {}
    for name, shape in row["shapes"].items():
        tensor = tensors.get(prefix + name)
        if tensor is None or list(tensor.shape) != shape:
            have = "missing" if tensor is None else f"of shape {list(tensor.shape)}"
            raise FolderError(
                f"part {index}: the tensor {name!r} should be {shape} and is {have}; the folder is damaged"
            )
        state[name] = nn.Parameter(tensor) if name in row["trainable"] else tensor
    return kind.rebuild(state, row["config"])


def _card(folder: Path) -> dict[str, Any]:
    path = folder / "edit.json"
    try:
        card = json.loads(path.read_text())
    except FileNotFoundError:
        raise FolderError(f"{folder} is no Edit folder: it has no edit.json") from None
    except (OSError, ValueError) as error:
        raise FolderError(f"{path} cannot be read: {error}") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT or not isinstance(card.get("parts"), list):
        found = card.get("format") if isinstance(card, dict) else None
        raise FolderError(f"{path} has format {found!r}; this inlay ({__version__}) reads format {FORMAT}")
    return card


def _check_base(stored: dict[str, Any], here: dict[str, Any], folder: Path) -> None:
    if stored and stored.get("config_hash") != here["config_hash"]:
        raise FolderError(
            f"the Edit in {folder} was made for {stored.get('name')!r} (revision {stored.get('revision')!r}), "
            f"and this model is {here['name']!r} with another configuration; leave model= out to load it all the same"
        )


def _download(name: str, **kwargs: Any) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    if Path(name).is_absolute() or name.startswith("."):
        raise FolderError(f"there is no folder {name}")
    try:
        return Path(snapshot_download(name, allow_patterns=["edit.json", "edit.safetensors"], **kwargs))
    except HFValidationError:
        raise FolderError(f"{name!r} is neither a folder nor a hub id") from None
    except Exception as error:
        raise FolderError(f"{name!r} is no folder here, and the hub did not give it: {error}") from error


def push(edit: Edit, repo_id: str, model: Any = None, **kwargs: Any) -> Any:
    """Upload an Edit's folder; see `Edit.push_to_hub`."""
    from huggingface_hub import HfApi

    token = kwargs.pop("token", None)
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as temporary:
        folder = write(edit, Path(temporary) / "edit", model)
        api.create_repo(repo_id, exist_ok=True, **kwargs)
        return api.upload_folder(repo_id=repo_id, folder_path=str(folder), commit_message="Upload an inlay Edit")


__all__ = ["FORMAT", "push", "read", "write"]
