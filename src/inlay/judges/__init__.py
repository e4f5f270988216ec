"""Judges: who scores a text. The world's truth, a lexicon, a local model's probabilities, or any chat endpoint."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from inlay.judges.judge import Axis, Combined, Judge, Reply, combined
from inlay.judges.lexicon import LexiconJudge
from inlay.judges.odds import preference_odds, utility_odds

if TYPE_CHECKING:
    from inlay.judges.chat import ChatJudge
    from inlay.judges.logprob import LogprobJudge
    from inlay.judges.world import WorldJudge

_HOME_OF = {
    "ChatJudge": "inlay.judges.chat",
    "LogprobJudge": "inlay.judges.logprob",
    "WorldJudge": "inlay.judges.world",
}

__all__ = [
    "Axis",
    "ChatJudge",
    "Combined",
    "Judge",
    "LexiconJudge",
    "LogprobJudge",
    "Reply",
    "WorldJudge",
    "combined",
    "preference_odds",
    "utility_odds",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'inlay.judges' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value
