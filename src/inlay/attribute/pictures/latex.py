r"""Scores of tokens as LaTeX: each token in a `\colorbox`, for a paper's figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from inlay.attribute.pictures.colours import LIGHT, STEPS, step
from inlay.attribute.pictures.panels import Panel, number, panels
from inlay.attribute.pictures.visible import EMPTY, NEWLINE, SPACE, TAB, visible

if TYPE_CHECKING:
    from inlay.attribute.token_scores import TokenScores

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\symbol{34}",  # babel makes it active in some languages
    "`": r"\textasciigrave{}",
    "'": r"\textquotesingle{}",
    "-": "-{}",  # two would be a dash, two commas a quote
    ",": ",{}",
    SPACE: r"\textperiodcentered{}",
    NEWLINE: r"\ensuremath{\hookleftarrow}",
    TAB: r"\ensuremath{\mapsto}",
    EMPTY: r"\ensuremath{\emptyset}",
}
_LATIN = 0x17F  # what pdflatex knows with no package ends here
_HEAD = r"""% Needs \usepackage{xcolor}.
"""
_UNICODE = r"""% Holds letters that pdflatex does not know: compile with lualatex or xelatex, and a font that has them.
"""


def token_latex(
    scores: TokenScores | Sequence[TokenScores],
    row: int | Sequence[int] | None = None,
    *,
    shared: bool = False,
    limit: float | None = None,
) -> str:
    r"""A piece of LaTeX for the body of a document whose preamble has `\usepackage{xcolor}`.

    Latin text compiles with pdflatex; where there are other letters, a comment at the top says what to use instead.
    Lines end between tokens. Tokens that were not scored are grey, without a box.

    Args:
        scores, row, shared, limit: see `panels`: by default each method has a colour scale of its own.

    Raises:
        InputError: see `panels`.
    """
    several = panels(scores, row, shared=shared, limit=limit)
    drawn = "\\medskip\n".join(_panel(panel) for one in several for panel in one)
    meanings = escape(" ".join(dict.fromkeys(panel.meaning for panel in several[0])))
    body = (
        f"\\begingroup\\setlength{{\\fboxsep}}{{1pt}}\\raggedright\n{drawn}"
        f"{{\\noindent\\footnotesize {meanings}\\par}}\n\\endgroup\n"
    )
    return _HEAD + _UNICODE * any(ord(letter) > _LATIN for letter in body) + body


def escape(text: str) -> str:
    """Text as LaTeX shows it letter by letter."""
    return "".join(_ESCAPES.get(letter, letter) for letter in text)


def _panel(panel: Panel) -> str:
    facts = "; ".join(f"{name} {value}" for name, value in panel.facts if name != "method")
    gap = r"\hspace{.4em}" if panel.words else r"\hspace{1pt}"
    tokens = "".join(
        _token(text, score, panel.limit) + (r"\\" if "\n" in text else gap) + "%\n"
        for text, score in zip(panel.tokens, panel.scores, strict=True)
    )
    return (
        f"\\noindent\\textbf{{{escape(f'{panel.name}: {panel.method}')}}}\\quad {_scale(panel.limit)}\\par\n"
        f"{{\\noindent\\footnotesize {escape(facts)}\\par}}\n"
        f"\\noindent\n{tokens}\\par\n"
    )


def _token(text: str, score: float, limit: float) -> str:
    r"""One token; `\strut` makes all boxes as high as a line."""
    shown = escape(visible(text))
    if math.isnan(score):
        return rf"\textcolor[HTML]{{{LIGHT.muted[1:].upper()}}}{{{shown}}}"
    return _box(step(score, limit), shown)


def _box(place: int, shown: str) -> str:
    inside = rf"\underline{{{shown}}}" if place < 0 else shown
    return rf"\colorbox[HTML]{{{LIGHT.colour(place / STEPS)[1:].upper()}}}{{\strut {inside}}}"


def _scale(limit: float) -> str:
    """The colour scale with its numbers."""
    parts = (-1.0, -0.5, 0.0, 0.5, 1.0)
    return "".join(_box(step(part, 1.0), f"${number(part * limit)}$") for part in parts)
