"""Files that are whole or not there: written beside their targets, then renamed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from inlay.errors import FolderError


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files by name: all of them beside their targets first, then one rename each, in order.

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
