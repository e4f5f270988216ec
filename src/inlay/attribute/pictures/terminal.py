"""Scores of tokens in a terminal: the text on colours, and under it the largest scores as numbers and bars."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inlay.attribute.pictures.colours import LIGHT, STEPS, step
from inlay.attribute.pictures.panels import Panel, number, panels
from inlay.attribute.pictures.visible import visible

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, Group
    from rich.table import Table
    from rich.text import Text

    from inlay.attribute.token_scores import TokenScores

_BAR = 20


def token_terminal(
    scores: TokenScores | Sequence[TokenScores],
    row: int | Sequence[int] | None = None,
    *,
    shared: bool = False,
    limit: float | None = None,
    top: int = 10,
) -> Group:
    """What `rich.print` and a `rich.console.Console` of any width show; without colours the numbers still say it all.

    A bar is as long as its score is large, with the end of the scale as its full length.

    Args:
        scores, row, shared, limit: see `panels`: by default each method has a colour scale of its own.
        top: how many tokens are listed with their numbers, those with the largest sizes first.

    Raises:
        InputError: see `panels`.
    """
    from rich.console import Group
    from rich.text import Text

    several = [panel for one in panels(scores, row, shared=shared, limit=limit) for panel in one]
    parts: list[Text | Table | _Flow] = []
    for panel in several:
        facts = [f"{name} {value}" for name, value in panel.facts if name != "method"]
        parts += [
            Text(f"{panel.name}: {panel.method}", style="bold"),
            Text("; ".join([*facts, f"scale +-{panel.limit:.4g}"]), style="dim"),
            _Flow(panel),
            _list(panel, top),
            Text(),
        ]
    meanings = dict.fromkeys(panel.meaning for panel in several)
    return Group(*parts, Text(" ".join(meanings), style="dim"))


@dataclass(frozen=True)
class _Flow:
    """The tokens as running text. Lines end between tokens; one that is wider than the console is broken."""

    panel: Panel

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        from rich.cells import cell_len
        from rich.text import Text

        flow, used, gap = Text(overflow="fold"), 0, " " * self.panel.words
        for text, score in zip(self.panel.tokens, self.panel.scores, strict=True):
            shown = visible(text)
            wide = cell_len(shown)
            if used and used + wide > options.max_width:
                flow.append("\n")
                used = 0
            flow.append(shown, style="dim" if math.isnan(score) else _style(score, self.panel.limit))
            flow.append("\n" if "\n" in text else gap)
            used = 0 if "\n" in text else used + wide + len(gap)
        flow.rstrip()
        yield flow


def _style(score: float, limit: float) -> str:
    """Ink and colour of the light scheme, whatever the terminal's own; underlined where negative."""
    place = step(score, limit)
    return f"{'underline ' if place < 0 else ''}{LIGHT.ink} on {LIGHT.colour(place / STEPS)}"


def _list(panel: Panel, top: int) -> Table:
    """The tokens with the largest scores."""
    from rich.table import Table
    from rich.text import Text

    table = Table("", "token", "score", "", box=None, pad_edge=False, header_style="dim")
    table.columns[0].justify = table.columns[2].justify = "right"
    table.columns[0].no_wrap = table.columns[2].no_wrap = True
    scored = [place for place, score in enumerate(panel.scores) if not math.isnan(score)]
    for place in sorted(scored, key=lambda place: -abs(panel.scores[place]))[: max(top, 0)]:
        score = panel.scores[place]
        length = round(_BAR * abs(step(score, panel.limit)) / STEPS)
        table.add_row(
            Text(str(place)),
            Text(visible(panel.tokens[place]), overflow="fold"),
            Text(number(score)),
            Text("█" * length, style=LIGHT.colour(math.copysign(1.0, score)), overflow="crop", no_wrap=True),
        )
    return table
