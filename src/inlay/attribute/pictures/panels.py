"""Panels: what a picture of tokens shows, one for each row and method, before it is drawn in any form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inlay.attribute.pictures.visible import plain
from inlay.errors import InputError

if TYPE_CHECKING:
    from inlay.attribute.token_scores import TokenScores


@dataclass(frozen=True)
class Panel:
    """One row's tokens with the scores of one method.

    Attributes:
        name: the row, as `"row 2"` or `"prompt 0, step 3"`.
        method, title, quantity, baseline: see `TokenScores`; `title` says what is explained.
        tokens: the texts.
        scores: one for each token; NaN where it was not scored.
        limit: the score at the ends of the colour scale; 0 where there is none but 0.
        m_clean, m_baseline, residual: of the row.
        signed: whether scores have a sign; else they are sizes, of no baseline.
    """

    name: str
    method: str
    title: str
    quantity: str
    baseline: str
    tokens: list[str]
    scores: list[float]
    limit: float
    m_clean: float
    m_baseline: float
    residual: float
    signed: bool

    @property
    def words(self) -> bool:
        """Whether no token brings a space before it, so that a picture has to set them apart itself."""
        return not any(text[:1].isspace() for text in self.tokens)

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What stands above the tokens, as names and values: quantity, method, baseline and the row's numbers."""
        if not self.signed:
            return [("explains", self.title), ("method", self.method), ("m_clean", number(self.m_clean))]
        total = math.fsum(score for score in self.scores if not math.isnan(score))
        return [
            ("explains", self.title),
            ("method", self.method),
            ("baseline", self.baseline),
            ("m_clean", number(self.m_clean)),
            ("m_baseline", number(self.m_baseline)),
            ("sum of scores", number(total)),
            ("residual", number(self.residual)),
        ]

    @property
    def meaning(self) -> str:
        """What the colours mean."""
        if not self.signed:
            return f"Orange: the darker, the more {self.quantity} hangs on the token. A size has no sign."
        held = f"with this token, and not the baseline in its place, {self.quantity} is"
        return f"Orange, positive: {held} higher. Blue and underlined, negative: lower."


def panels(
    scores: TokenScores | Sequence[TokenScores],
    row: int | Sequence[int] | None = None,
    *,
    shared: bool = False,
    limit: float | None = None,
) -> list[list[Panel]]:
    """For each row that is shown its panels, one for each method.

    Args:
        scores: of one method, or of several on the same rows.
        row: the rows to show, one or several; by default all.
        shared: one colour scale for all methods. By default each has its own, as their numbers need not be of one
            size (a gradient's are not those of a difference). A method's rows always share one.
        limit: the score at the ends of all scales; by default the largest size of those that share the scale.

    Raises:
        InputError: no scores, methods with unlike tokens, no such row, or a limit that is not above 0.
    """
    several = list(scores) if isinstance(scores, Sequence) else [scores]
    if not several or not len(several[0]):
        raise InputError("there are no scores to draw: give a TokenScores, or a list of at least one")
    first = several[0]
    for other in several[1:]:
        if other.tokens != first.tokens:
            raise InputError(
                f"the scores by {other.method!r} are of other tokens than those by {first.method!r}: "
                "draw methods beside each other that were asked about the same prompts"
            )
    rows = range(len(first)) if row is None else [row] if isinstance(row, int) else row
    if not rows or not all(0 <= r < len(first) for r in rows):
        raise InputError(f"row={row}: there are {len(first)}, from 0")
    limits = [ends([score for r in rows for _, score in one.row(r)], limit) for one in several]
    if shared:
        limits = [max(limits)] * len(several)
    return [[_panel(one, r, end) for one, end in zip(several, limits, strict=True)] for r in rows]


def number(value: float) -> str:
    """A score as text: four digits, with its sign."""
    return "0" if value == 0 else "nan" if math.isnan(value) else f"{value:+.4g}"


def ends(values: Sequence[float], limit: float | None = None) -> float:
    """The number at the ends of a colour scale: the limit, by default the largest size; 0 without a finite value.

    Raises:
        InputError: a limit that is not above 0.
    """
    if limit is None:
        return max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    if not (limit > 0 and math.isfinite(limit)):
        raise InputError(f"limit={limit}: it is the number at the ends of the colour scale, and above 0")
    return limit


def _panel(scores: TokenScores, row: int, limit: float) -> Panel:
    pairs = scores.row(row)
    name = f"row {row}"
    if scores.steps is not None:
        prompt, at = scores.steps[row]
        name = f"prompt {prompt}, step {at}"
    return Panel(
        name=name,
        method=plain(scores.method),
        title=plain(scores.title(row)),
        quantity=plain(scores.quantity),
        baseline=plain(scores.baseline),
        tokens=[text for text, _ in pairs],
        scores=[score for _, score in pairs],
        limit=limit,
        m_clean=float(scores.m_clean[row]),
        m_baseline=float(scores.m_baseline[row]),
        residual=float(scores.residual[row]),
        signed=scores.signed,
    )
