"""Writes one API page for each public module of inlay, and their table of contents, during `mkdocs build`.

A module is public when no part of its dotted name starts with an underscore. mkdocstrings reads the sources
without importing them, so neither torch nor transformers is needed to build the pages.
"""

from __future__ import annotations

from pathlib import Path

import mkdocs_gen_files
from mkdocs.structure.files import InclusionLevel

SRC = Path(__file__).resolve().parent.parent / "src"


def public_modules() -> list[tuple[str, ...]]:
    """The dotted names of the public modules, split at the dots; packages come before what they hold."""
    names = set()
    for path in (SRC / "inlay").rglob("*.py"):
        parts = path.relative_to(SRC).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if not any(part.startswith("_") for part in parts):
            names.add(parts)
    return sorted(names)


def main() -> None:
    """Writes `api/<dotted name>.md` for each module, and `api/SUMMARY.md`, the nested list of them."""
    nav = mkdocs_gen_files.Nav()
    for parts in public_modules():
        name = ".".join(parts)
        page = f"{name}.md"
        nav[parts] = page
        with mkdocs_gen_files.open(f"api/{page}", "w") as file:
            file.write(f"# `{name}`\n\n::: {name}\n")
    with mkdocs_gen_files.open("api/SUMMARY.md", "w") as file:
        file.writelines(nav.build_literate_nav())
    files = mkdocs_gen_files.FilesEditor.current().files
    # literate-nav reads the list; it is not a page of the site.
    files.src_uris["api/SUMMARY.md"].inclusion = InclusionLevel.EXCLUDED


main()
