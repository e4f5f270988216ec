"""Journal: rows of a run on disk, one JSON a line, written as they are finished, so that a killed run goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from inlay.errors import FolderError, ResumeError

_NONE = object()  # what a key that is not there has, which is not `None`


class Journal:
    """An append-only file of rows, each with a key of its own.

    Args:
        path: the file; `None` keeps the rows in memory.

    Attributes:
        rows: what is there, by key.

    Raises:
        FolderError: the file cannot be read, or a line in its middle is broken.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            self._open(path)

    def _open(self, path: Path) -> None:
        try:
            raw = path.read_bytes()
            whole, _, torn = raw.rpartition(b"\n")
            if torn:  # the line that a killed run was writing
                with path.open("r+b") as file:
                    file.truncate(len(raw) - len(torn))
        except OSError as error:
            raise FolderError(f"{path} cannot be read: {error}") from error
        for number, line in enumerate(whole.split(b"\n"), 1) if whole else ():
            try:
                row = json.loads(line)
                self.rows[row["key"]] = row
            except (ValueError, KeyError, TypeError) as error:
                raise FolderError(
                    f"{path}, line {number} is no row of a run ({error!r}); delete it, or the folder"
                ) from None

    def __contains__(self, key: object) -> bool:
        return key in self.rows

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows, all of them on disk before this returns.

        Raises:
            FolderError: the disk refuses.
        """
        new = [dict(row) for row in rows]
        if self.path is not None:
            text = "".join(json.dumps(row, sort_keys=True) + "\n" for row in new)
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="ascii") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise FolderError(
                    f"{self.path} cannot be written: {error}; free some space and run again, and it goes on"
                ) from error
        self.rows.update((row["key"], row) for row in new)


def claim(folder: Path, config: Mapping[str, Any]) -> None:
    """Make a folder a run's own, or check that it already is this run's.

    Args:
        folder: made where it does not exist.
        config: all that decides what the run gives.

    Raises:
        ResumeError: the folder holds a run of another configuration; the message names what differs.
        FolderError: it holds something else, or the disk refuses.
    """
    path = folder / "config.json"
    mine = json.loads(json.dumps(config))
    try:
        if path.exists():
            theirs = json.loads(path.read_text())
            if theirs != mine:
                differs = sorted(_differences(theirs, mine))
                raise ResumeError(
                    f"{folder} holds a run with other settings ({', '.join(differs)}); give another folder, or delete "
                    "this one"
                )
            return
        part = folder / "config.json.part"  # one that is there is from a run that was killed right here
        if folder.exists() and any(found != part for found in folder.iterdir()):
            raise FolderError(f"{folder} is not empty and holds no run; give another folder")
        folder.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(mine, indent=2, sort_keys=True) + "\n")
        part.replace(path)
    except (OSError, ValueError) as error:
        raise FolderError(f"{folder} cannot be a run's folder: {error}") from error


def _differences(theirs: Any, mine: Any, where: str = "") -> Iterable[str]:
    if not (isinstance(theirs, dict) and isinstance(mine, dict)):
        return [where] if theirs != mine else []
    return [
        found
        for key in {*theirs, *mine}
        for found in _differences(theirs.get(key, _NONE), mine.get(key, _NONE), f"{where}.{key}" if where else key)
    ]


@contextmanager
def alone(folder: Path | None) -> Iterator[None]:
    """Be the only process that runs in a folder.

    Raises:
        ResumeError: another one does.
        FolderError: the disk refuses.
    """
    if folder is None:
        yield
        return
    lock = FileLock(f"{folder}.lock", timeout=0)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise ResumeError(f"another process runs in {folder}: wait for it, or give another folder") from None
    except OSError as error:
        raise FolderError(f"{folder} cannot be a run's folder: {error}") from error
    try:
        yield
    finally:
        lock.release()
