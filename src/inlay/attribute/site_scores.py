"""SiteScores: what each part of the model adds, by Site: positions, heads, neurons, latents.

Legend: R rows, k positions of a row, H heads, W width of a Site, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inlay.errors import SiteError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class SiteScores:
    """Scores of Sites. Positive: with this activation, and not the baseline's, the number is higher.

    Attributes:
        scores: by Site, float32 [R, k], [R, k, H] by head, or [R, k, W] by unit; 0 where a row has no position.
        mask: bool [R, k], which positions are real.
        tokens: for each row the text of its positions.
        level: `"position"`, `"head"` or `"unit"`.
        target, foil, quantity, method, baseline: as in `TokenScores`.
        m_clean, m_baseline: float32 [R], the number on the row, and on its baseline.
        report: what the backward rules hit, as text.
    """

    scores: Mapping[str, Tensor]
    mask: Tensor
    tokens: list[list[str]]
    level: str
    target: list[str]
    foil: list[str] | None
    quantity: str
    method: str
    baseline: str
    m_clean: Tensor
    m_baseline: Tensor
    report: str = field(default="", repr=False)

    @property
    def caption(self) -> str:
        """What a figure of these scores has to say: number, method, baseline and sign."""
        return f"{self.quantity} by {self.method}, baseline {self.baseline}; positive: it raises the number"

    def __getitem__(self, site: str) -> Tensor:
        if site not in self.scores:
            raise SiteError(f"{site!r} was not scored; these were: {', '.join(self.scores)}")
        return self.scores[site]

    def stack(self) -> Tensor:
        """All Sites in one tensor, [Sites, R, k, ...].

        Raises:
            SiteError: the Sites differ in shape.
        """
        shapes = {tuple(found.shape) for found in self.scores.values()}
        if len(shapes) > 1:
            raise SiteError(f"the Sites differ in shape: { {s: list(t.shape) for s, t in self.scores.items()} }")
        return torch.stack(list(self.scores.values()))

    def matrix(self, row: int = 0) -> Tensor:
        """One row's scores by layer and position, summed over heads or units, float32 [Sites, k]."""
        found = self.stack()[:, row]
        return found if found.ndim == 2 else found.sum(-1)

    def heads(self, row: int = 0) -> Tensor:
        """One row's scores by layer and head, summed over positions, float32 [Sites, H].

        Raises:
            SiteError: the scores are not by head.
        """
        if self.level != "head":
            raise SiteError(f"these scores are by {self.level}: ask with level='head' at a Site that is made of heads")
        return self.stack()[:, row].sum(1)

    def html(self, row: int = 0) -> str:
        """One row as a page: layers x heads where the scores are by head, else layers x tokens."""
        from inlay.attribute.pictures import head_html, matrix_html

        names = list(self.scores)
        if self.level == "head":
            return head_html(self.heads(row), self.caption, layers=names)
        return matrix_html(self._matrix(row), names, self.tokens[row], self.caption, upward=True)

    def figure(self, row: int = 0) -> Figure:
        """The same as a matplotlib figure.

        Raises:
            ExtraError: matplotlib is not installed.
        """
        from inlay.attribute.pictures import head_figure, matrix_figure

        names = list(self.scores)
        if self.level == "head":
            return head_figure(self.heads(row), self.caption, layers=names)
        return matrix_figure(self._matrix(row), names, self.tokens[row], self.caption, upward=True)

    def _matrix(self, row: int) -> Tensor:
        """`matrix` at the row's own positions."""
        return self.matrix(row)[:, : len(self.tokens[row])]

    def top(self, n: int = 10, row: int = 0) -> list[tuple[str, str, int | None, float]]:
        """A row's n largest scores by size: Site, token, head or unit (`None` at level `position`), score."""
        found: list[tuple[str, str, int | None, float]] = []
        for site, values in self.scores.items():
            mine = values[row]
            flat = mine.flatten()
            for index in flat.abs().topk(min(n, flat.numel())).indices.tolist():
                at, unit = (index, None) if mine.ndim == 1 else divmod(index, mine.shape[1])
                if self.mask[row, at]:
                    found.append((site, self.tokens[row][at], unit, float(flat[index])))
        return sorted(found, key=lambda one: -abs(one[3]))[:n]
