"""The answers of a judge on disk: one line of JSON each, appended as they arrive."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import IO

from filelock import FileLock, Timeout

from inlay.errors import JudgeError


class Cache:
    """Answers by key, in memory and, where a path is given, in an append-only file of JSON lines.

    An answer is on disk when `add` returns. A last line without its end, which a killed run leaves, is cut off when the
    file is next opened. While one has the file open, another, of whatever process, is refused.

    Args:
        path: the file, `None` for memory only.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)
        self._known: dict[str, str] = {}
        self._size = 0  # what was read of the file
        self._file: IO[bytes] | None = None
        self._lock = FileLock(f"{path}.lock", timeout=0, thread_local=False)

    def __enter__(self) -> Cache:
        """Read what is there and open for more.

        Raises:
            JudgeError: a line is no answer, the file cannot be opened, or somebody else has it open.
        """
        if self.path is not None:
            try:
                self._open(self.path)
            except BaseException:  # nobody leaves a block that was not entered
                self._close()
                raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close()

    def get(self, key: str) -> str | None:
        """The answer of a key, `None` where there is none."""
        return self._known.get(key)

    def add(self, key: str, answer: str) -> None:
        """Keep an answer.

        Raises:
            JudgeError: the disk refuses.
        """
        self._known[key] = answer
        if self._file is None:
            return
        line = json.dumps({"key": key, "answer": answer}).encode() + b"\n"
        try:
            if self._file.write(line) < len(line):
                raise OSError("a line was written in part")
            os.fsync(self._file.fileno())
        except OSError as error:
            self._file.close()  # nothing goes behind a torn line
            self._file = None
            raise JudgeError(f"the cache {self.path} cannot be written: {error}; free some space and resume") from error

    def _open(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            self._file = path.open("ab", buffering=0)
            self._read(path)
        except Timeout:
            raise JudgeError(
                f"another judge or process uses the cache {path}: wait for it, or give another path"
            ) from None
        except OSError as error:
            raise JudgeError(f"the cache {path} cannot be used: {error}; give another path") from error

    def _close(self) -> None:
        try:
            if self._file is not None:
                self._file.close()
        finally:
            self._file = None
            self._lock.release()

    def _read(self, path: Path) -> None:
        """Read what is new in the file, and cut off a torn line."""
        if path.stat().st_size < self._size:  # another file by now
            self._size = 0
        with path.open("r+b") as file:
            file.seek(self._size)
            self._take(file)

    def _take(self, file: IO[bytes]) -> None:
        for line in file:
            if not line.endswith(b"\n"):
                file.truncate(self._size)
                return
            try:
                record = json.loads(line)
                self._known[record["key"]] = str(record["answer"])
            except (ValueError, KeyError, TypeError) as error:
                raise JudgeError(
                    f"{self.path} holds a line that is no answer of a judge ({error!r}), {line[:80]!r}: delete it, or "
                    "give another file"
                ) from error
            self._size += len(line)
