"""Words of a text, and which of them mark one set of texts off from another."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Sequence

from inlay.errors import ExtraError

_WORD = re.compile(r"[^\W\d_][\w'-]+")


def words(text: str) -> list[str]:
    """The words of a text, in lower case; single letters and numbers are none."""
    return _WORD.findall(text.lower())


def log_odds_z(yes: Sequence[Collection[str]], no: Sequence[Collection[str]]) -> list[tuple[str, float]]:
    """Words by how far they lean to the first texts, the farthest first.

    z of the log-odds ratio of document frequencies under an informative Dirichlet prior, the pooled frequencies scaled
    to 10 documents (Monroe, Colaresi and Quinn 2008, equations 15, 16, 22).

    Args:
        yes, no: for each text, its words.

    Returns:
        Words with z > 0.
    """
    counts = [Counter(word for text in texts for word in set(text)) for texts in (yes, no)]
    pooled = counts[0] + counts[1]
    if len(pooled) == 1:  # a word without others has no odds
        return [(word, math.inf) for word in counts[0] if word not in counts[1]]
    whole = sum(pooled.values())
    totals = [sum(c.values()) for c in counts]
    prior, found = 10.0, []
    for word, count in pooled.items():
        a = prior * count / whole
        odds = [
            math.log((c[word] + a) / (total + prior - c[word] - a)) for c, total in zip(counts, totals, strict=True)
        ]
        z = (odds[0] - odds[1]) / math.sqrt(1 / (counts[0][word] + a) + 1 / (counts[1][word] + a))
        if z > 0:
            found.append((word, z))
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))


def distinctive(own: Sequence[str], others: Sequence[str], n: int = 20) -> tuple[str, ...]:
    """The words that mark some texts off from others, common English words left out: a lexicon where none is given.

    Args:
        own, others: texts.
        n: how many words at most.

    Raises:
        ExtraError: scikit-learn is not installed, whose list of common words is used.
    """
    try:
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS as COMMON
    except ImportError as error:
        raise ExtraError("a lexicon from texts needs scikit-learn: pip install 'inlay[bench]'") from error
    sides = [[set(words(text)) - COMMON for text in texts] for texts in (own, others)]
    return tuple(word for word, _ in log_odds_z(*sides)[:n])
