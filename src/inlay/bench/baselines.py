"""Detectors that know nothing of the inside: length, style, and bags of words. They are shown in every table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from inlay.errors import ExtraError

if TYPE_CHECKING:
    from inlay.bench.concept_set import Row

_CHAT = "<start_of_turn>user\n{input}<end_of_turn>\n<start_of_turn>model\n{output}"
_LIST = re.compile(r"^\s*(?:[-*+]|\d+[.)])\s", re.MULTILINE)
_BOLD = re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__")


def styled(row: Row) -> float:
    """How many marks of style a response has: bold markdown, list marks; 0, 1 or 2."""
    return float(bool(_BOLD.search(row.output))) + float(bool(_LIST.search(row.output)))


def style(rows: Sequence[Row]) -> list[float]:
    """Fewer marks of style count as more of the concept, as AxBench's training positives have it."""
    return [-styled(row) for row in rows]


def length_chars(rows: Sequence[Row]) -> list[float]:
    """The characters of each response: longer counts as more of the concept."""
    return [float(len(row.output)) for row in rows]


def bow(train: tuple[Sequence[Row], Sequence[Row]], rows: Sequence[Row]) -> list[float]:
    """P(positive) by a logistic regression on word counts (C 100, 1,000 iterations; AxBench's BoW).

    The text is the chat as Gemma's template writes it, whose words count too, as in AxBench.

    Args:
        train: positives and negatives.
        rows: what is scored.

    Raises:
        ExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
    except ImportError as error:
        raise ExtraError("the bag of words needs scikit-learn: pip install 'inlay[bench]'") from error
    fitted = make_pipeline(CountVectorizer(), LogisticRegression(C=100, max_iter=1000))
    fitted.fit(_chats([*train[0], *train[1]]), [1] * len(train[0]) + [0] * len(train[1]))
    return [float(p) for p in fitted.predict_proba(_chats(rows))[:, 1]]


def _chats(rows: Sequence[Row]) -> list[str]:
    return [_CHAT.format(input=row.input, output=row.output) for row in rows]
