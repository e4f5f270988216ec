"""An Edit as a folder on disk: `edit.json` says what, `edit.safetensors` holds the tensors. Nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from inlay._version import __version__
from inlay.errors import EditError, FolderError, InlayError
from inlay.interventions.base import Intervention
from inlay.interventions.edit import Edit, Part
from inlay.interventions.source import Source
from inlay.interventions.when import described
from inlay.model.sites import Site
from inlay.model.tokens import Tokens

FORMAT = 1


def write(edit: Edit, folder: Path, model: Any = None) -> Path:
    """Write an Edit's folder. An interrupted write leaves the folder as it was, or one that `read` refuses.

    Args:
        edit: the Edit.
        folder: made where it does not exist.
        model: the `Model` it was made for; its name, revision and shape are recorded.

    Raises:
        EditError: a part lives only in memory (a lambda, a mask, a Source of tensors).
        FolderError: the disk refuses.
    """
    tensors: dict[str, Tensor] = {}
    sources: list[Source] = []
    first: dict[int, int] = {}
    parts = []
    for index, part in enumerate(edit.parts):
        if not part.tokens.storable:
            raise EditError(f"part {index}: tokens={part.tokens} belongs to one batch and cannot be saved")
        row: dict[str, Any] = {"site": str(part.site), "tokens": str(part.tokens), "strength": part.strength}
        if id(part.intervention) in first:
            row["same_as"] = first[id(part.intervention)]
        else:
            first[id(part.intervention)] = index
            row |= _describe(part.intervention, index, sources)
            state = part.intervention.state()
            tensors |= {f"part{index}.{name}": t.detach().cpu().contiguous().clone() for name, t in state.items()}
        row |= {"joint": part.joint, "when": None}
        if part.when is not None:
            decides: dict[str, Tensor] = {}
            row["when"] = part.when.describe(decides, f"part{index}.when")
            tensors |= {name: t.detach().cpu().contiguous().clone() for name, t in decides.items()}
        parts.append(row)
    card = {
        "format": FORMAT,
        "inlay": __version__,
        "base": model.identity() if model is not None else edit.base,
        "sources": [source.to_json() for source in sources],
        "parts": parts,
    }
    _write_both(folder, save(tensors, {"format": "pt"}), card)
    return folder


def _describe(intervention: Intervention, index: int, sources: list[Source]) -> dict[str, Any]:
    if not intervention.kind or Intervention.kinds.get(intervention.kind) is not type(intervention):
        raise EditError(
            f"part {index}: {type(intervention).__name__} has no `kind` of its own, so nothing could load it again; "
            "set kind = '<name>' on the class"
        )
    config = dict(intervention.config())
    if isinstance(source := config.get("source"), Source):
        if source not in sources:
            sources.append(source)
        config["source"] = sources.index(source)
    state = intervention.state()
    parameters = {name: t for name, t in state.items() if isinstance(t, nn.Parameter)}
    return {
        "kind": intervention.kind,
        "config": config,
        "shapes": {name: list(t.shape) for name, t in state.items()},
        "trainable": [name for name, t in parameters.items() if t.requires_grad],
        "frozen": [name for name, t in parameters.items() if not t.requires_grad],
    }


def _write_both(folder: Path, tensors: bytes, card: dict[str, Any]) -> None:
    """Both files beside their targets first, then two renames; the description names the tensors' hash."""
    card["sha256"] = hashlib.sha256(tensors).hexdigest()
    files = {"edit.safetensors": tensors, "edit.json": (json.dumps(card, indent=2) + "\n").encode()}
    written: list[tuple[str, Path]] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
            written.append((temporary, folder / name))
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
        for temporary, target in written:
            os.replace(temporary, target)
    except OSError as error:
        raise FolderError(f"the Edit could not be written to {folder}: {error}") from error
    finally:
        for temporary, _ in written:
            Path(temporary).unlink(missing_ok=True)


def read(name: str | Path, model: Any = None, **kwargs: Any) -> Edit:
    """The Edit of a folder or hub repository; see `Edit.from_pretrained`."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _download(str(name), **kwargs)
    card = _card(folder)
    if model is not None:
        _check_base(card["base"], model.identity(), folder)
    tensors = _tensors(folder)
    parts: list[Part] = []
    index = -1
    try:
        sources = [Source.from_json(stored) for stored in card["sources"]]
        for index, row in enumerate(card["parts"]):
            parts.append(_part(row, index, parts, tensors, sources))
        _check_hash(folder, card)
        return Edit.of(tuple(parts), card["base"])
    except FolderError:
        raise
    except (InlayError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise FolderError(f"{folder / 'edit.json'}: part {index} is not readable: {error!r}") from error


def _part(row: Any, index: int, parts: list[Part], tensors: Mapping[str, Tensor], sources: list[Source]) -> Part:
    if "same_as" in row:
        if row["same_as"] not in range(index):
            raise ValueError(f"same_as={row['same_as']!r} is no earlier part")
        made = parts[row["same_as"]].intervention
    else:
        made = _rebuild(row, index, tensors, sources)
    when = None if row["when"] is None else described(row["when"], tensors, f"part{index}.when")
    where = Site.parse(row["site"]), made, Tokens.parse(row["tokens"]), row["strength"]
    checked = Edit(*where, when=when, joint=row["joint"])
    return checked.parts[0]


def _rebuild(row: dict[str, Any], index: int, tensors: Mapping[str, Tensor], sources: list[Source]) -> Intervention:
    kind = Intervention.kinds.get(row["kind"])
    if kind is None:
        known = ", ".join(sorted(Intervention.kinds))
        raise FolderError(f"part {index} is of kind {row['kind']!r}; import the module that defines it. Known: {known}")
    state: dict[str, Tensor] = {}
    for name, shape in row["shapes"].items():
        tensor = tensors.get(f"part{index}.{name}")
        if tensor is None or list(tensor.shape) != shape:
            have = "missing" if tensor is None else f"of shape {list(tensor.shape)}"
            raise FolderError(
                f"part {index}: the tensor {name!r} should be {shape} and is {have}; the folder is damaged"
            )
        if bool(tensor.isnan().any()) or (name not in ("low", "high") and not bool(torch.isfinite(tensor).all())):
            raise FolderError(f"part {index}: the tensor {name!r} holds values that are NaN or infinite")
        trained, fixed = name in row["trainable"], name in row["frozen"]
        state[name] = nn.Parameter(tensor, trained) if trained or fixed else tensor
    config = dict(row["config"])
    if config.get("source") is not None:
        config["source"] = sources[config["source"]]
    made = kind.rebuild(state, config)
    if set(made.config()) != set(config):
        raise ValueError(f"{row['kind']} is not configured by {', '.join(config)}")
    return made


def _card(folder: Path) -> dict[str, Any]:
    path = folder / "edit.json"
    try:
        card = json.loads(path.read_text())
    except FileNotFoundError:
        raise FolderError(f"{folder} is no Edit folder: it has no edit.json") from None
    except (OSError, ValueError) as error:
        raise FolderError(f"{path} cannot be read: {error}") from error
    found = card.get("format") if isinstance(card, dict) else None
    if found != FORMAT:
        raise FolderError(f"{path} has format {found!r}; this inlay ({__version__}) reads format {FORMAT}")
    for key, kind in (("base", dict), ("sources", list), ("parts", list), ("sha256", str)):
        if not isinstance(card.get(key), kind):
            raise FolderError(f"{path} is damaged: {key!r} is {card.get(key)!r:.60}")
    return dict(card)


def _tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / "edit.safetensors"
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise FolderError(f"{path} cannot be read ({error}); save the Edit again") from error


def _check_hash(folder: Path, card: dict[str, Any]) -> None:
    """An interrupted write can leave new tensors beside an old description of the same shapes."""
    path = folder / "edit.safetensors"
    if hashlib.sha256(path.read_bytes()).hexdigest() != card["sha256"]:
        raise FolderError(f"{path} is not the file that edit.json describes; save the Edit again")


def _check_base(stored: dict[str, Any], here: dict[str, Any], folder: Path) -> None:
    if stored and stored.get("config_hash") != here["config_hash"]:
        raise FolderError(
            f"the Edit in {folder} was made for {stored.get('name')!r} (revision {stored.get('revision')!r}), "
            f"and this model is {here['name']!r} with another configuration; leave model= out to load it all the same"
        )


def _download(name: str, **kwargs: Any) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    if Path(name).is_absolute() or name.startswith((".", "~")):
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
