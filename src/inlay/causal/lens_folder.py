"""A tuned lens on disk: `lens.json` says what it is, `lens.safetensors` holds the translators. Nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse
from safetensors.torch import save as serialise

from inlay._files import write_files
from inlay._version import __version__
from inlay.errors import FolderError, InlayError

if TYPE_CHECKING:
    from inlay.causal.tuned_lens import TunedLens
    from inlay.model.model import Model

FORMAT = 1
Lens = TypeVar("Lens", bound="TunedLens")


def write(lens: TunedLens, folder: Path) -> Path:
    """Write a lens's folder. An interrupted write leaves the folder as it was, or one that `read` refuses.

    Raises:
        FolderError: the disk refuses.
    """
    tensors = serialise(
        {name: t.detach().cpu().contiguous() for name, t in lens.state_dict().items()}, {"format": "pt"}
    )
    card = {
        "format": FORMAT,
        "inlay": __version__,
        "base": lens.model.identity(),
        "sites": [str(site) for site in lens.sites],
        "facts": lens.facts,
        "sha256": hashlib.sha256(tensors).hexdigest(),
    }
    files = {"lens.safetensors": tensors, "lens.json": (json.dumps(card, indent=2) + "\n").encode()}
    write_files(folder, files)
    return folder


def read(kind: type[Lens], folder: Path, model: Model) -> Lens:
    """The lens of a folder.

    Args:
        kind: `TunedLens`, or a class derived from it.
        folder: what `write` wrote.
        model: the Model that it is used on.

    Raises:
        FolderError: no such folder, a damaged one, or one of another base model.
    """
    try:
        card: Any = json.loads((folder / "lens.json").read_text())
        raw = (folder / "lens.safetensors").read_bytes()
    except (OSError, ValueError) as error:
        raise FolderError(f"{folder} holds no tuned lens: {error}") from error
    found = card.get("format") if isinstance(card, dict) else None
    if found != FORMAT:
        raise FolderError(f"{folder} has format {found!r}; this inlay ({__version__}) reads format {FORMAT}")
    if hashlib.sha256(raw).hexdigest() != card.get("sha256"):
        raise FolderError(f"{folder}: lens.safetensors is not the file that lens.json describes; save the lens again")
    try:
        base, here = card["base"], model.identity()
        if base["config_hash"] != here["config_hash"]:
            raise FolderError(
                f"the lens in {folder} was fitted on {base['name']!r} (revision {base['revision']!r}), and this model "
                f"is {here['name']!r} with another configuration: fit one for it"
            )
        lens = kind(model, card["sites"])
        lens.load_state_dict(parse(raw))
        lens.facts = dict(card["facts"])
    except FolderError:
        raise
    except (SafetensorError, InlayError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise FolderError(f"{folder} is damaged: {error!r}") from error
    if not all(bool(torch.isfinite(parameter).all()) for parameter in lens.parameters()):
        raise FolderError(f"{folder} is damaged: a translator holds values that are NaN or infinite")
    return lens.requires_grad_(False)
