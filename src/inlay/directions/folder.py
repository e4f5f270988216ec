"""Directions on disk: `directions.json` says what they are, `directions.safetensors` holds the vectors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load as parse
from safetensors.torch import save as serialise

from inlay._version import __version__
from inlay.directions.direction import Direction
from inlay.errors import DirectionError, FolderError, InlayError
from inlay.model.sites import Site

if TYPE_CHECKING:
    from inlay.model.model import Model

FORMAT = 1


def save(directions: Sequence[Direction], folder: str | Path) -> Path:
    """Write directions as a folder; an interrupted write leaves one that `load` refuses.

    Raises:
        DirectionError: there are none.
        FolderError: the disk refuses.
    """
    if not directions:
        raise DirectionError("there are no directions to save")
    folder = Path(folder).expanduser()
    tensors = serialise({str(k): d.vector.clone() for k, d in enumerate(directions)}, {"format": "pt"})
    rows = [
        {"site": str(d.site), "scale": d.scale, "method": d.method, "concept": d.concept, "data": d.data}
        for d in directions
    ]
    model = directions[0].model
    card = {
        "format": FORMAT,
        "inlay": __version__,
        "base": None if model is None else model.identity(),
        "sha256": hashlib.sha256(tensors).hexdigest(),
        "directions": rows,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in (
            ("directions.safetensors", tensors),
            ("directions.json", (json.dumps(card, indent=2) + "\n").encode()),
        ):
            part = folder / f"{name}.part"
            part.write_bytes(content)
            part.replace(folder / name)
    except OSError as error:
        raise FolderError(f"the directions could not be written to {folder}: {error}") from error
    return folder


def load(folder: str | Path, model: Model | None = None) -> list[Direction]:
    """Directions that `save` wrote.

    Args:
        folder: the folder.
        model: what they will be used on; another base model than the stored one is an error.

    Raises:
        FolderError: no such folder, a damaged one, or one of another base model.
    """
    folder = Path(folder).expanduser()
    try:
        card: Any = json.loads((folder / "directions.json").read_text())
        raw = (folder / "directions.safetensors").read_bytes()
    except (OSError, ValueError) as error:
        raise FolderError(f"{folder} holds no directions: {error}") from error
    if not isinstance(card, dict):
        raise FolderError(f"{folder} is damaged: directions.json holds a {type(card).__name__}")
    if card.get("format") != FORMAT:
        raise FolderError(f"{folder} has format {card.get('format')!r}, and this inlay reads {FORMAT}")
    if hashlib.sha256(raw).hexdigest() != card.get("sha256"):
        raise FolderError(f"{folder}: directions.safetensors is not the file that directions.json describes")
    base = card.get("base")
    if model is not None and base is not None and base.get("config_hash") != model.identity()["config_hash"]:
        raise FolderError(f"{folder} holds directions of {base.get('name')!r}, and this model is {model.name!r}")
    try:
        vectors = parse(raw)
        return [
            Direction(vectors[str(k)], Site.parse(r["site"]), r["scale"], r["method"], r["concept"], r["data"], model)
            for k, r in enumerate(card["directions"])
        ]
    except (SafetensorError, KeyError, TypeError, InlayError) as error:
        raise FolderError(f"{folder} is damaged: {error!r}") from error
