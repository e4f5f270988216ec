"""Scores of tokens as HTML: the text itself, each token on the colour of its score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from inlay.attribute.pictures.colours import step
from inlay.attribute.pictures.page import bar, page, picture, shade
from inlay.attribute.pictures.panels import Panel, number, panels
from inlay.attribute.pictures.visible import EMPTY, NEWLINE, SPACE, TAB, direction, special, visible

if TYPE_CHECKING:
    from inlay.attribute.token_scores import TokenScores


def token_html(
    scores: TokenScores | Sequence[TokenScores],
    row: int | Sequence[int] | None = None,
    *,
    shared: bool = False,
    limit: float | None = None,
) -> str:
    """A page that needs nothing beside it: no script, no file, no network.

    Several methods stand side by side, each as wide as the others, and under one another where the window is narrow.
    A token's score shows on hover. Tokens that were not scored are hatched. The page follows the reader's light or dark
    scheme.

    Args:
        scores, row, shared, limit: see `panels`: by default each method has a colour scale of its own.

    Raises:
        InputError: see `panels`.
    """
    several = panels(scores, row, shared=shared, limit=limit)
    title = ", ".join(dict.fromkeys(panel.title for panel in several[0]))
    return page(title, _picture(several))


def token_fragment(
    scores: TokenScores | Sequence[TokenScores],
    row: int | Sequence[int] | None = None,
    *,
    shared: bool = False,
    limit: float | None = None,
) -> str:
    """What `token_html` shows as one element for a page or a notebook: one `div` with its own style sheet.

    Args:
        scores, row, shared, limit: see `panels`.

    Raises:
        InputError: see `panels`.
    """
    return _picture(panels(scores, row, shared=shared, limit=limit))


def _picture(rows: list[list[Panel]]) -> str:
    used = [
        step(score, panel.limit) for row in rows for panel in row for score in panel.scores if not math.isnan(score)
    ]
    shown = "\n".join(_row(row) for row in rows)
    return picture(f"{_legend(rows[0])}\n{shown}", used)


def _legend(row: list[Panel]) -> str:
    meanings = " ".join(dict.fromkeys(panel.meaning for panel in row))
    signs = f"{SPACE} space, {NEWLINE} line break, {TAB} tab, {EMPTY} no text."
    residual = " residual = m_clean - m_baseline - sum of scores." * any(panel.signed for panel in row)
    return (
        f'<p class="legend">{escape(meanings)} Hatched: not scored. Each token shows its score on hover. '
        f"{signs}{residual}</p>"
    )


def _row(row: list[Panel]) -> str:
    titles = list(dict.fromkeys(panel.title for panel in row))
    said = {"method", "explains"} if len(titles) == 1 else {"method"}  # elsewhere than among the facts
    drawn = "\n".join(_panel(panel, said) for panel in row)
    head = f"{escape(row[0].name)}: {', '.join(f'<bdi>{escape(title)}</bdi>' for title in titles)}"
    return f'<section>\n<h1>{head}</h1>\n<div class="panels">\n{drawn}\n</div>\n</section>'


def _panel(panel: Panel, said: set[str]) -> str:
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd><bdi>{escape(value)}</bdi></dd></div>"
        for name, value in panel.facts
        if name not in said
    )
    tokens = "".join(
        _token(place, text, score, panel.limit)
        for place, (text, score) in enumerate(zip(panel.tokens, panel.scores, strict=True))
    )
    words = " words" if panel.words else ""
    return (
        f'<figure>\n<figcaption>\n<div class="name"><span class="method">{escape(panel.method)}</span>'
        f'{bar(panel.limit)}</div>\n<dl class="facts">{facts}</dl>\n</figcaption>\n'
        f'<p class="tokens{words}" dir="{direction(panel.tokens)}">{tokens}</p>\n</figure>'
    )


def _token(place: int, text: str, score: float, limit: float) -> str:
    """One token; a line may end before it, and ends after a line break of its own."""
    unscored = math.isnan(score)
    classes = "t unscored" if unscored else f"t {shade(step(score, limit))}"
    said = "not scored" if unscored else number(score)
    end = "<br>" if "\n" in text else "<wbr>"
    return (
        f'<span class="{classes}{" special" * special(text)}" title="{escape(f"{place} {text!r}: {said}")}">'
        f"{escape(visible(text))}</span>{end}"
    )
