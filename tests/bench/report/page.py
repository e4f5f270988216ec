"""A report's page, read as a browser reads it."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any


class Page(HTMLParser):
    """Its tags with their attributes, the text in each script and style, and its tables as rows of cells."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[str] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.tables: list[list[list[str]]] = []
        self.marked: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside.append(tag)
        if tag in self.raw:
            self.raw[tag].append("")
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "mark":
            self.marked.append("")

    def handle_endtag(self, tag: str) -> None:
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        here = self.inside[-1] if self.inside else ""
        if here in self.raw:
            self.raw[here][-1] += data
            return
        self.text += data
        if "td" in self.inside or "th" in self.inside:
            self.tables[-1][-1][-1] += f" {data}" if here == "small" else data
        if here == "mark":
            self.marked[-1] += data

    @property
    def specs(self) -> dict[str, Any]:
        """The charts' specs."""
        found: dict[str, Any] = json.loads(self.raw["script"][0])
        return found

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)

    def ids(self) -> set[str]:
        return {str(attrs["id"]) for _, attrs in self.tags if "id" in attrs}


def rows_of(spec: Any) -> list[dict[str, Any]]:
    """The rows about a method in a chart's spec, wherever they lie in it."""
    if isinstance(spec, dict):
        return [spec] if "method" in spec else [row for part in spec.values() for row in rows_of(part)]
    return [row for part in spec for row in rows_of(part)] if isinstance(spec, list) else []
