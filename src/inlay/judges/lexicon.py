"""LexiconJudge: a concept is there where its words are."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from inlay.errors import JudgeError
from inlay.judges.judge import Axis, Reply
from inlay.scores import Scores


class LexiconJudge:
    """Scores `concept` alone: the number of different words of the concept's lexicon in the text, at most 2.

    Case does not count, and neither does how an accent is stored or how wide a space is. An entry counts where it
    stands as whole words; one of several words counts as a phrase. Scripts that write no spaces between words have no
    whole words in this sense, so give such text another judge. It rewards dropping words: pair it with a judge of
    fluency.

    Args:
        lexicons: the words of each concept, by its description.

    Raises:
        JudgeError: there is no lexicon, one is empty or is a bare string, or one has a blank entry.
    """

    def __init__(self, lexicons: Mapping[str, Sequence[str]]) -> None:
        if not lexicons:
            raise JudgeError("lexicons is empty: give the words of each concept, by its description")
        self.axes = {"concept": Axis(0.0, 2.0, "different words of the concept's lexicon, at most 2")}
        self._words = {description: _entries(description, words) for description, words in lexicons.items()}

    def score(self, replies: Sequence[Reply]) -> dict[str, Scores]:
        """See `Judge.score`; `raw` has the words that were found.

        Raises:
            JudgeError: there is no lexicon of a reply's concept.
        """
        found = [None if reply.concept is None else self._found(reply.concept, reply.text) for reply in replies]
        values = [None if words is None else min(2.0, float(len(words))) for words in found]
        return {"concept": self.axes["concept"].scores(values, [", ".join(words or ()) for words in found])}

    def identity(self) -> dict[str, Any]:
        """Its kind, and a hash of the lexicons."""
        text = json.dumps({description: sorted(words) for description, words in self._words.items()}, sort_keys=True)
        return {"kind": "lexicon", "lexicons": hashlib.sha256(text.encode()).hexdigest()}

    def _found(self, concept: str, text: str) -> list[str]:
        if concept not in self._words:
            raise JudgeError(f"there is no lexicon of {concept!r}; there are {len(self._words)}: add its words")
        folded = _folded(text)
        return [word for word in self._words[concept] if _says(folded, word)]

    def __repr__(self) -> str:
        return f"LexiconJudge({len(self._words)} concepts)"


def _entries(description: str, words: Sequence[str]) -> list[str]:
    """The different entries of a lexicon, folded."""
    if isinstance(words, str):
        raise JudgeError(f"the lexicon of {description!r} is the string {words!r}: give a list of words")
    folded = list(dict.fromkeys(map(_folded, words)))
    if not folded or "" in folded:
        raise JudgeError(f"the lexicon of {description!r} is empty or has a blank entry: give its words")
    return folded


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold()).split())


def _says(text: str, entry: str) -> bool:
    """Whether a text has an entry that no letter goes on from, on either side."""
    start = text.find(entry)
    while start >= 0:
        end = start + len(entry)
        if not (_joined(text[start - 1 : start], entry[0]) or _joined(entry[-1], text[end : end + 1])):
            return True
        start = text.find(entry, start + 1)
    return False


def _joined(left: str, right: str) -> bool:
    """Whether two characters, either of which may be lacking, are inside one word."""
    return _of_word(left) and _of_word(right)


def _of_word(char: str) -> bool:
    """Letters, marks and numbers. A regex's word characters lack the marks, with which Indic scripts write vowels."""
    return bool(char) and (char == "_" or unicodedata.category(char)[0] in "LMN")
