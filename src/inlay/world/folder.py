"""What lies in a world's folder: its settings, its templates, and the hash of what its lines depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from inlay.errors import WorldError
from inlay.world.concepts import Frame
from inlay.world.grammar import Template
from inlay.world.spec import WorldSpec


def texts(value: Any) -> set[str]:
    """The words of every text in a nested value, without the slots."""
    if isinstance(value, str):
        return {word for word in value.split() if not word.startswith("{")}
    if isinstance(value, Mapping):
        return set().union(*map(texts, value.values()))
    if isinstance(value, (list, tuple)):
        return set().union(*map(texts, value))
    return set()


def hash_of(folder: Path) -> str:
    """Of every file that a model's lines depend on."""
    said = hashlib.sha256()
    files = [
        *folder.glob("words/*.txt"),
        *folder.glob("templates/*.txt"),
        folder / "concepts.jsonl",
        folder / "world.yaml",
    ]
    for path in sorted(path for path in files if path.is_file()):
        said.update(f"{path.relative_to(folder).as_posix()}\n".encode() + path.read_bytes())
    return said.hexdigest()


def read_spec(path: Path) -> WorldSpec:
    """The settings of a `world.yaml`.

    Raises:
        WorldError: there is none, or it is not one.
    """
    if not path.exists():
        raise WorldError(f"{path.parent} holds no world: it has no world.yaml")
    try:
        return WorldSpec.model_validate(yaml.safe_load(path.read_text()))
    except (yaml.YAMLError, ValidationError) as error:
        raise WorldError(f"{path}: {error}") from error


def _rows(path: Path, columns: int) -> Iterator[list[str]]:
    if not path.exists():
        raise WorldError(f"{path} is missing")
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        row = line.split("\t")
        if len(row) != columns:
            raise WorldError(f"{path}, line {number}: {len(row)} columns between tabs, and {columns} are wanted")
        yield row


def read_templates(path: Path) -> list[Template]:
    """Templates of free text: a line is a weight, a tab, and the sentence.

    Raises:
        WorldError: there are none, or a line is not one.
    """
    found = []
    for weight, text in _rows(path, 2):
        try:
            found.append(Template.parse(text, float(weight)))
        except ValueError as error:
            raise WorldError(f"{path}: the weight {weight!r} is no number") from error
    return found


def read_frames(path: Path) -> list[Frame]:
    """Kinds of talk: a line is a name, the instruction, and the first sentence of the reply, between tabs.

    Raises:
        WorldError: there are none, or a line is not one.
    """
    return [Frame(name, Template.parse(ask), Template.parse(first)) for name, ask, first in _rows(path, 3)]
