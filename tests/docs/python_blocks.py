"""The Python of a Markdown page, run block by block in one namespace."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[int, str]]:
    """The number of the first line, and the code, of every block."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, found.start(1)) + 1, found[1]) for found in _BLOCK.finditer(text)]


def run(page: Path, code: list[tuple[int, str]]) -> dict[str, Any]:
    """Run the blocks in order; a traceback names the page and its own line numbers."""
    names: dict[str, Any] = {"__name__": page.stem}
    for line, block in code:
        exec(compile("\n" * (line - 1) + block, str(page), "exec"), names)
    return names
