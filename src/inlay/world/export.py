"""Lines as files: JSONL or Parquet, written whole, with a manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from inlay.errors import ExtraError, FolderError
from inlay.world.line import Line
from inlay.world.share import Sentence
from inlay.world.world import World


def export(
    world: World, out: Path, section: str, n: int, split: str, kind: str | None = None, form: str = "jsonl"
) -> dict[str, Any]:
    """Write n lines of a section, or of all, to a folder.

    Args:
        world: makes the lines.
        out: the folder; a file a section, and `manifest.json` with world, hashes and counts.
        section: its name, `"all"`, or `"share"` for the corpus with a planted share of machine text.
        n: lines a section; of `"share"`, documents of each month and field.
        split: `"train"` or `"test"`.
        kind: one kind only.
        form: `"jsonl"` or `"parquet"`.

    Returns:
        The manifest.

    Raises:
        WorldError: no such section, kind or split.
        FolderError: the disk refuses.
        ExtraError: Parquet is asked for, and polars is not installed.
    """
    names = list(world.sections) if section == "all" else [section]
    streams: dict[str, Iterator[Line | Sentence]] = {
        name: world.corpus().sentences(n) if name == "share" else world.lines(name, n, split, kind) for name in names
    }
    files: dict[str, Any] = {}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, lines in streams.items():
            path = out / f"{name}.{form}"
            part = path.with_suffix(".part")
            count = _parquet(lines, part) if form == "parquet" else _jsonl(lines, part)
            part.replace(path)
            files[path.name] = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "lines": count}
        about = {"world": world.spec.version, "hash": world.hash, "seed": world.seed, "split": split, "kind": kind}
        manifest = {**about, "files": files}
        part = out / "manifest.json.part"
        part.write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
        part.replace(out / "manifest.json")
    except OSError as error:
        raise FolderError(f"the lines could not be written to {out}: {error}; free some space and run again") from error
    finally:
        for part in out.glob("*.part"):  # of what was not finished
            part.unlink(missing_ok=True)
    return manifest


def _jsonl(lines: Iterable[Line | Sentence], path: Path) -> int:
    count = 0
    with path.open("w", encoding="ascii", newline="\n") as file:
        for line in lines:
            file.write(line.json() + "\n")
            count += 1
    return count


def _parquet(lines: Iterable[Line | Sentence], path: Path) -> int:
    """Nested values become JSON text, since lines differ in what is true of them."""
    try:
        import polars
    except ImportError as error:
        raise ExtraError("writing Parquet needs polars: pip install 'inlay[data]'") from error
    records = [json.loads(line.json()) for line in lines]
    flat = [{k: json.dumps(v) if isinstance(v, (dict, list)) else v for k, v in r.items()} for r in records]
    polars.DataFrame(flat, infer_schema_length=None).write_parquet(path)
    return len(records)
