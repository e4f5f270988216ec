"""An Edit as a folder on disk: `edit.json` says what, `edit.safetensors` holds the tensors. Nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from inlay._files import write_files
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
        EditError: a part lives only in memory (a lambda, tokens given as a tensor).
        FolderError: the disk refuses.
    """
    writing = _Writing()
    parts = writing.parts(edit, "")
    card = {
        "format": FORMAT,
        "inlay": __version__,
        "base": model.identity() if model is not None else edit.base,
        "sources": writing.described,
        "parts": parts,
    }
    content = save(writing.tensors, {"format": "pt"})
    card["sha256"] = hashlib.sha256(content).hexdigest()
    write_files(folder, {"edit.safetensors": content, "edit.json": (json.dumps(card, indent=2) + "\n").encode()})
    return folder


class _Writing:
    """What an Edit's folder is to hold: tensors by name, and the Sources, each behind those that it needs itself."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.sources: list[Source] = []
        self.described: list[dict[str, Any]] = []
        self.homes: dict[int, str] = {}

    def parts(self, edit: Edit, prefix: str) -> list[dict[str, Any]]:
        """The parts of an Edit as JSON values; the names of their tensors begin with `prefix`."""
        first: dict[int, int] = {}
        rows = []
        for index, part in enumerate(edit.parts):
            if not part.tokens.storable:
                raise EditError(f"part {index}: tokens={part.tokens} belongs to one batch and cannot be saved")
            here = f"{prefix}part{index}"
            row: dict[str, Any] = {"site": str(part.site), "tokens": str(part.tokens), "strength": part.strength}
            if id(part.intervention) in first:
                row["same_as"] = first[id(part.intervention)]
            else:
                first[id(part.intervention)] = index
                row |= self.intervention(part.intervention, here)
            row |= {"joint": part.joint, "when": None}
            if part.when is not None:
                decides: dict[str, Tensor] = {}
                row["when"] = part.when.describe(decides, f"{here}.when")
                self.keep(decides)
            rows.append(row)
        return rows

    def intervention(self, intervention: Intervention, here: str) -> dict[str, Any]:
        """Its kind, config and shapes; which parameters are trained, and which an earlier part has, and where."""
        state = intervention.state()
        parameters = {name: t for name, t in state.items() if isinstance(t, nn.Parameter)}
        homes = {name: self.homes.setdefault(id(t), f"{here}.{name}") for name, t in parameters.items()}
        tied = {name: home for name, home in homes.items() if home != f"{here}.{name}"}
        self.keep({f"{here}.{name}": tensor for name, tensor in state.items() if name not in tied})
        return {
            "kind": kind_of(intervention),
            "config": _each_source(intervention.config(), self.source),
            "shapes": {name: list(t.shape) for name, t in state.items()},
            "trainable": [name for name, t in parameters.items() if t.requires_grad],
            "frozen": [name for name, t in parameters.items() if not t.requires_grad],
            "tied": tied,
        }

    def source(self, source: Source) -> int:
        """Its number among the Sources."""
        if source not in self.sources:
            prefix = f"source{len(self.sources)}"
            self.sources.append(source)
            tensors: dict[str, Tensor] = {}
            said = source.describe(tensors, prefix)
            self.keep(tensors)
            self.described.append(said)
            said["parts"] = None if source.edit is None else self.parts(source.edit, f"{prefix}.")
        return self.sources.index(source)

    def keep(self, tensors: Mapping[str, Tensor]) -> None:
        """Copies of tensors, which share no memory: safetensors refuses those that do."""
        self.tensors |= {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _each_source(config: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """A configuration with its source replaced, and that of the intervention inside it (`config`), if any."""
    changed = {name: _each_source(value, change) if name == "config" else value for name, value in config.items()}
    return changed if changed.get("source") is None else {**changed, "source": change(changed["source"])}


def read(name: str | Path, model: Any = None, **kwargs: Any) -> Edit:
    """The Edit of a folder or hub repository; see `Edit.from_pretrained`."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _download(str(name), **kwargs)
    card = _card(folder)
    if model is not None:
        _check_base(card["base"], model.identity(), folder)
    tensors = _tensors(folder)
    reading = _Reading(card["sources"], tensors)
    try:
        parts = reading.parts(card["parts"], "")
        for number in range(len(card["sources"])):
            reading.source(number)
        _check_hash(folder, card)
        return Edit.of(tuple(parts), card["base"])
    except FolderError:
        raise
    except (InlayError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise FolderError(f"{folder / 'edit.json'}: {reading.at} is not readable: {error!r}") from error


class _Reading:
    """An Edit's folder being read; `at` says where."""

    def __init__(self, described: list[Any], tensors: Mapping[str, Tensor]) -> None:
        self.described, self.tensors, self.at = described, tensors, "sources"
        self.sources: dict[int, Source | None] = {}
        self.parameters: dict[str, nn.Parameter] = {}

    def parts(self, rows: list[Any], prefix: str) -> list[Part]:
        """What `_Writing.parts` told of."""
        parts: list[Part] = []
        for index, row in enumerate(rows):
            here = f"{prefix}part{index}"
            self.at = f"{prefix}part {index}"
            if "same_as" not in row:
                made = self.intervention(row, here)
            elif row["same_as"] in range(index):
                made = parts[row["same_as"]].intervention
            else:
                raise ValueError(f"same_as={row['same_as']!r} is no earlier part")
            when = None if row["when"] is None else described(row["when"], self.tensors, f"{here}.when")
            where = Site.parse(row["site"]), made, Tokens.parse(row["tokens"]), row["strength"]
            parts += Edit(*where, when=when, joint=row["joint"]).parts
        return parts

    def intervention(self, row: dict[str, Any], here: str) -> Intervention:
        """What `_Writing.intervention` told of."""
        kind = Intervention.kinds.get(row["kind"])
        if kind is None:
            known = ", ".join(sorted(Intervention.kinds))
            raise FolderError(
                f"{self.at} is of kind {row['kind']!r}; import the module that defines it. Known: {known}"
            )
        state: dict[str, Tensor] = {}
        for name, shape in row["shapes"].items():
            home = row["tied"].get(name, f"{here}.{name}")
            tensor = self.tensors.get(home)
            if tensor is None or list(tensor.shape) != shape:
                have = "missing" if tensor is None else f"of shape {list(tensor.shape)}"
                raise FolderError(
                    f"{self.at}: the tensor {name!r} should be {shape} and is {have}; the folder is damaged"
                )
            if bool(tensor.isnan().any()) or (name not in ("low", "high") and not bool(torch.isfinite(tensor).all())):
                raise FolderError(f"{self.at}: the tensor {name!r} holds values that are NaN or infinite")
            trained, fixed = name in row["trainable"], name in row["frozen"]
            state[name] = (
                self.parameters.setdefault(home, nn.Parameter(tensor, trained)) if trained or fixed else tensor
            )
        config = _each_source(row["config"], self.source)
        made = kind.rebuild(state, config)
        if set(made.config()) != set(config):
            raise ValueError(f"{row['kind']} is not configured by {', '.join(config)}")
        return made

    def source(self, number: int) -> Source:
        """The Source of a number; an Edit of its own is read first."""
        if number in self.sources:
            found = self.sources[number]
            if found is None:
                raise ValueError(f"source {number} needs itself")
            return found
        if number not in range(len(self.described)):
            raise ValueError(f"there is no source {number!r}")
        self.sources[number] = None
        said, prefix = self.described[number], f"source{number}"
        edit = None if said["parts"] is None else Edit.of(tuple(self.parts(said["parts"], f"{prefix}.")))
        made = self.sources[number] = Source.described(said, self.tensors, prefix, edit)
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
