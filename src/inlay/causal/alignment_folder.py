"""An Alignment on disk: the folder of its Edits, and `alignment.json` with what they are. Nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay._files import write_files
from inlay._version import __version__
from inlay.causal.interchange import InterchangeAccuracy
from inlay.errors import FolderError
from inlay.interventions.edit import Edit

if TYPE_CHECKING:
    from inlay.causal.alignment import Alignment
    from inlay.model.model import Model

FORMAT = 1


def write(alignment: Alignment, folder: Path) -> Path:
    """Write the Edits, then the description, which names their hash: a write that was interrupted is refused.

    Raises:
        EditError: an Edit lives only in memory (a lambda, positions of one batch).
        FolderError: the disk refuses.
    """
    first = next(iter(alignment.edits.values()))
    parts = tuple(part for edit in alignment.edits.values() for part in edit.parts)
    Edit.of(parts, first.base).save(folder)
    card = {
        "format": FORMAT,
        "inlay": __version__,
        "edit_sha256": _hash(folder / "edit.json"),
        "variables": list(alignment.edits),
        "accuracy": alignment.accuracy.to_json(),
        "history": dict(alignment.history),
        "facts": dict(alignment.facts),
    }
    write_files(folder, {"alignment.json": (json.dumps(card, indent=2) + "\n").encode()})
    return folder


def read(kind: type[Alignment], folder: Path, model: Model | None) -> Alignment:
    """The Alignment of a folder.

    Args:
        kind: `Alignment`.
        folder: what `write` wrote.
        model: the Model that it will be used on, if it is known.

    Raises:
        FolderError: no such folder, a damaged one, or one of another base model.
    """
    path = folder / "alignment.json"
    try:
        card: Any = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise FolderError(f"{folder} holds no alignment: {error}") from error
    found = card.get("format") if isinstance(card, dict) else None
    if found != FORMAT:
        raise FolderError(f"{path} has format {found!r}; this inlay ({__version__}) reads format {FORMAT}")
    whole = Edit.from_pretrained(folder, model)
    if _hash(folder / "edit.json") != card.get("edit_sha256"):
        raise FolderError(
            f"{folder}: edit.json is not the file that alignment.json describes; save the alignment again"
        )
    try:
        edits = {name: Edit.of((part,), whole.base) for name, part in zip(card["variables"], whole.parts, strict=True)}
        accuracy = InterchangeAccuracy.from_json(card["accuracy"])
        return kind(edits, accuracy, dict(card["history"]), dict(card["facts"]))
    except (KeyError, TypeError, ValueError) as error:
        raise FolderError(f"{path} is damaged: {error!r}") from error


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
