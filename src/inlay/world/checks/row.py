"""One line of an acceptance table, and what the checks of all sections share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inlay.errors import ExtraError
from inlay.model.model import Model
from inlay.world.line import BOS, DOC, Line


@dataclass(frozen=True)
class Row:
    """What was measured and what it must reach.

    Attributes:
        section: the section of the world.
        what: the phenomenon.
        value: as measured.
        least: the smallest value that is accepted, `None` for no such bound.
        most: the largest.
        note: which layer or strength it was measured at, where one was chosen.
    """

    section: str
    what: str
    value: float
    least: float | None = None
    most: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the value is within its bounds; `None` for a row without bounds, which is only reported."""
        if self.least is None and self.most is None:
            return None
        return (self.least is None or self.value >= self.least) and (self.most is None or self.value <= self.most)

    @property
    def bound(self) -> str:
        """The bounds in words."""
        low = [] if self.least is None else [f">= {self.least:g}"]
        return ", ".join(low + ([] if self.most is None else [f"<= {self.most:g}"]))


def replies(model: Model, prompts: Sequence[Any], new: int = 48, batch: int = 256, **edit: Any) -> list[str]:
    """Greedy replies; `edit` holds an Edit with its rows and strength, one value a prompt where they are lists."""
    found: list[str] = []
    for start in range(0, len(prompts), batch):
        end = start + batch
        mine: dict[str, Any] = {k: v[start:end] if isinstance(v, list) else v for k, v in edit.items()}
        found += model.generate(list(prompts[start:end]), do_sample=False, max_new_tokens=new, **mine)
    return found


def ids(model: Model, tokens: Sequence[str]) -> list[int]:
    """The ids of rendered tokens."""
    found: list[int] = model.tokenizer.convert_tokens_to_ids(list(tokens))
    return found


def opened(line: Line) -> list[str]:
    """The tokens of a document up to where its question is to be answered."""
    return [BOS, DOC, *str(line.truth["question"]).split()]


def auroc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Area under the ROC curve.

    Raises:
        ExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.metrics import roc_auc_score
    except ImportError as error:
        raise ExtraError("checking a world's model needs scikit-learn: pip install 'inlay[probe]'") from error
    return float(roc_auc_score([1] * len(positive) + [0] * len(negative), [*positive, *negative]))
