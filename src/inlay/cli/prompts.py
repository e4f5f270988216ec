"""Prompts of a command: given on the line, or one a line in a .txt or .jsonl file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inlay.errors import InputError

_FORMS = (
    'a JSON text, a list of {"role", "content"} turns, or an object with "prompt" or "messages", and "response" where '
    "it has one"
)


@dataclass(frozen=True)
class Prompts:
    """Prompts, and one response for each of them or none at all."""

    prompts: list[Any]
    responses: list[str] | None = None


def gather(given: Sequence[str] | None, file: Path | None) -> Prompts:
    """The prompts of `--prompt` or of `--prompts FILE`.

    Raises:
        InputError: neither was given, or both, or the file does not hold prompts.
    """
    if given and file:
        raise InputError("give --prompt TEXT or --prompts FILE, not both")
    if file:
        return from_file(file)
    if not given:
        raise InputError("no prompts: give --prompt TEXT (as often as you like) or --prompts FILE")
    return Prompts(list(given))


def from_file(path: Path) -> Prompts:
    """One prompt a line, blank lines skipped: plain text in a `.txt` file, JSON in a `.jsonl` file.

    Raises:
        InputError: another kind of file, no prompts, or a line that is no prompt; the message has its number.
    """
    if path.suffix not in (".txt", ".jsonl"):
        raise InputError(f"{path}: prompts come from a .txt file with one text a line, or a .jsonl file")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise InputError(f"{path} holds no prompts: write one a line")
    if path.suffix == ".txt":
        return Prompts([line.rstrip("\r") for _, line in lines])
    pairs = [_parsed(line, f"{path}, line {number}") for number, line in lines]
    answered = [response is not None for _, response in pairs]
    if any(answered) and not all(answered):
        number = lines[answered.index(False)][0]
        raise InputError(f'{path}, line {number} has no "response" and other lines have one: give it in all or none')
    return Prompts([prompt for prompt, _ in pairs], [str(r) for _, r in pairs] if all(answered) else None)


def _parsed(line: str, where: str) -> tuple[Any, str | None]:
    """The prompt and the response of a line of JSON."""
    try:
        value = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is not JSON ({error}): {line[:60]!r}; give {_FORMS}") from None
    response = None
    if isinstance(value, dict):
        found = [value[key] for key in ("prompt", "messages") if key in value]
        response = value.get("response")
        if len(found) != 1 or not isinstance(response, str | None):
            raise InputError(f"{where} is an object with {', '.join(map(repr, value))}; give {_FORMS}")
        value = found[0]
    turns = isinstance(value, list) and all(isinstance(t, dict) and {"role", "content"} <= set(t) for t in value)
    if not isinstance(value, str) and not (turns and value):
        raise InputError(f"{where} is no prompt: {line[:60]!r}; give {_FORMS}")
    return value, response
