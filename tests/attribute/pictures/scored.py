"""Made-up scores, and HTML read as a browser reads it."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser

import torch

from inlay.attribute.token_scores import TokenScores

NASTY = ["<bos>", "<b>", " \"a'&", "\n", "", "\t{", "\\", "%$#_^~}", " ü", "\x1b[31m", "\u202e", "עברית", "--", "`"]
_VOID = {"meta", "br", "wbr"}


def scored(tokens: list[list[str]], method: str = "gim", **facts: object) -> TokenScores:
    """Scores that grow along each row, from below 0 to above it; the first token of each row is not scored."""
    wide = max(map(len, tokens))
    scores = torch.full((len(tokens), wide), math.nan)
    for row, texts in enumerate(tokens):
        scores[row, 1 : len(texts)] = torch.linspace(-1.5, 2.5 + row, len(texts) - 1) + 0.0123
    given = {
        "scores": scores,
        "tokens": tokens,
        "ids": [list(range(len(texts))) for texts in tokens],
        "target": [" Paris"] * len(tokens),
        "foil": [" Rome"] * len(tokens),
        "quantity": "logit_diff",
        "method": method,
        "baseline": "space",
        "m_clean": torch.full((len(tokens),), 3.25),
        "m_baseline": torch.full((len(tokens),), -0.5),
    }
    return TokenScores(**(given | facts))  # type: ignore[arg-type]


class Document(HTMLParser):
    """A page's text, tags and tokens.

    Attributes:
        tokens: for each `.tokens` element its tokens, each the text, the classes and the title.
        cells: for each table row the classes and titles of its cells.
        tags: all tags with their attributes.
        text: what is read, without style.
    """

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[tuple[str, str]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tokens: list[list[tuple[str, str, str]]] = []
        self.cells: list[list[tuple[str, str]]] = []
        self.heads: list[str] = []
        self.text = self.style = ""
        self.feed(page)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append((tag, given))
        classes = given.get("class") or ""
        if tag not in _VOID:
            self.open.append((tag, classes))
        if "tokens" in classes.split():
            self.tokens.append([])
        if classes.split()[:1] == ["t"]:
            self.tokens[-1].append(("", classes, given["title"] or ""))
        if tag == "tr":
            self.cells.append([])
        if tag == "td":
            self.cells[-1].append((classes, given["title"] or ""))
        if tag == "th":
            self.heads.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1][0] == tag, f"</{tag}> in {self.open}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1][0] == "style":
            self.style += data
            return
        self.text += data
        if self.open and self.open[-1][1].split()[:1] == ["t"]:
            text, classes, title = self.tokens[-1][-1]
            self.tokens[-1][-1] = (text + data, classes, title)
        if any(tag == "th" for tag, _ in self.open):
            self.heads[-1] += data


def needs_nothing(page: str) -> None:
    """Assert that a page fetches and runs nothing."""
    found = Document(page)
    assert not {"script", "link", "img", "iframe", "object", "base"} & {tag for tag, _ in found.tags}
    for _, attributes in found.tags:
        assert not {"src", "href", "srcset"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"url\(|@import|//", found.style)
