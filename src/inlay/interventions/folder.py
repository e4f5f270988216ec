"""An Edit as a folder on disk: `edit.json` says what, `edit.safetensors` holds the tensors. Nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from inlay._version import __version__
from inlay.errors import EditError, FolderError, InlayError
from inlay.interventions.base import Intervention, kind_of
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
    homes: dict[int, str] = {}
    parts = []
    for index, part in enumerate(edit.parts):
        if not part.tokens.storable:
            raise EditError(f"part {index}: tokens={part.tokens} belongs to one batch and cannot be saved")
        row: dict[str, Any] = {"site": str(part.site), "tokens": str(part.tokens), "strength": part.strength}
        if id(part.intervention) in first:
            row["same_as"] = first[id(part.intervention)]
        else:
            first[id(part.intervention)] = index
            row |= _describe(part.intervention, sources)
            row["tied"] = _store(part.intervention.state(), index, tensors, homes)
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
    content = save(tensors, {"format": "pt"})
    card["sha256"] = hashlib.sha256(content).hexdigest()
    write_files(folder, {"edit.safetensors": content, "edit.json": (json.dumps(card, indent=2) + "\n").encode()})
    return folder


def _store(
    state: Mapping[str, Tensor], index: int, tensors: dict[str, Tensor], homes: dict[int, str]
) -> dict[str, str]:
    """Put the tensors of part `index` among those to be stored; which of them an earlier part has, and where."""
    tied: dict[str, str] = {}
    for name, tensor in state.items():
        here = f"part{index}.{name}"
        home = homes.setdefault(id(tensor), here) if isinstance(tensor, nn.Parameter) else here
        if home == here:
            tensors[here] = tensor.detach().cpu().contiguous().clone()
        else:
            tied[name] = home
    return tied


def _describe(intervention: Intervention, sources: list[Source]) -> dict[str, Any]:
    def number(source: Source) -> int:
        if source not in sources:
            sources.append(source)
        return sources.index(source)

    config = _each_source(intervention.config(), number)
    state = intervention.state()
    parameters = {name: t for name, t in state.items() if isinstance(t, nn.Parameter)}
    return {
        "kind": kind_of(intervention),
        "config": config,
        "shapes": {name: list(t.shape) for name, t in state.items()},
        "trainable": [name for name, t in parameters.items() if t.requires_grad],
        "frozen": [name for name, t in parameters.items() if not t.requires_grad],
    }


def _each_source(config: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """A configuration with its source replaced, and that of the intervention inside it (`config`), if any."""
    changed = {name: _each_source(value, change) if name == "config" else value for name, value in config.items()}
    return changed if changed.get("source") is None else {**changed, "source": change(changed["source"])}


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files by name: all of them beside their targets first, then one rename each.

    Raises:
        FolderError: the disk refuses.
    """
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
        raise FolderError(f"{', '.join(files)} could not be written to {folder}: {error}") from error
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
    parameters: dict[str, nn.Parameter] = {}
    index = -1
    try:
        sources = [Source.from_json(stored) for stored in card["sources"]]
        for index, row in enumerate(card["parts"]):
            parts.append(_part(row, index, parts, tensors, sources, parameters))
        _check_hash(folder, card)
        return Edit.of(tuple(parts), card["base"])
    except FolderError:
        raise
    except (InlayError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise FolderError(f"{folder / 'edit.json'}: part {index} is not readable: {error!r}") from error


def _part(
    row: Any,
    index: int,
    parts: list[Part],
    tensors: Mapping[str, Tensor],
    sources: list[Source],
    parameters: dict[str, nn.Parameter],
) -> Part:
    if "same_as" in row:
        if row["same_as"] not in range(index):
            raise ValueError(f"same_as={row['same_as']!r} is no earlier part")
        made = parts[row["same_as"]].intervention
    else:
        made = _rebuild(row, index, tensors, sources, parameters)
    when = None if row["when"] is None else described(row["when"], tensors, f"part{index}.when")
    where = Site.parse(row["site"]), made, Tokens.parse(row["tokens"]), row["strength"]
    checked = Edit(*where, when=when, joint=row["joint"])
    return checked.parts[0]


def _rebuild(
    row: dict[str, Any],
    index: int,
    tensors: Mapping[str, Tensor],
    sources: list[Source],
    parameters: dict[str, nn.Parameter],
) -> Intervention:
    kind = Intervention.kinds.get(row["kind"])
    if kind is None:
        known = ", ".join(sorted(Intervention.kinds))
        raise FolderError(f"part {index} is of kind {row['kind']!r}; import the module that defines it. Known: {known}")
    state: dict[str, Tensor] = {}
    for name, shape in row["shapes"].items():
        home = row["tied"].get(name, f"part{index}.{name}")
        tensor = tensors.get(home)
        if tensor is None or list(tensor.shape) != shape:
            have = "missing" if tensor is None else f"of shape {list(tensor.shape)}"
            raise FolderError(
                f"part {index}: the tensor {name!r} should be {shape} and is {have}; the folder is damaged"
            )
        if bool(tensor.isnan().any()) or (name not in ("low", "high") and not bool(torch.isfinite(tensor).all())):
            raise FolderError(f"part {index}: the tensor {name!r} holds values that are NaN or infinite")
        trained, fixed = name in row["trainable"], name in row["frozen"]
        state[name] = parameters.setdefault(home, nn.Parameter(tensor, trained)) if trained or fixed else tensor
    config = _each_source(row["config"], lambda number: sources[number])
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
