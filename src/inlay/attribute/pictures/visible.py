"""A token's text with everything in it visible, and the direction in which a text reads."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

SPACE, NEWLINE, TAB, EMPTY = "\u00b7", "\u23ce", "\u21e5", "\u2205"
"""What stands for a space, a line break, a tab, and a token without text."""
_SIGNS = {" ": SPACE, "\n": NEWLINE, "\t": TAB}
_SPECIAL = re.compile(r"<[^<>\s]+>|\[[A-Z_]+\]")
# Joiners belong to the letters beside them: Persian and Indic words, and composed emoji, fall apart without.
_JOINERS = "\u200c\u200d"


def visible(text: str) -> str:
    r"""A token's text: spaces, breaks and tabs as signs, and what shows nothing or moves others as `\xNN`, `\uNNNN`.

    The second are control characters (a terminal obeys some), other white space, marks that turn the direction of
    writing, and surrogates.
    """
    return "".join(_SIGNS.get(letter) or _escaped(letter) for letter in text) or EMPTY


def plain(text: str) -> str:
    """A text, such as a method's name, with its spaces as they are and the rest as `visible` shows it."""
    return "".join(letter if letter == " " else _SIGNS.get(letter) or _escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    category = unicodedata.category(letter)
    if letter in _JOINERS or category not in ("Cc", "Cf", "Cs", "Zs", "Zl", "Zp"):
        return letter
    code = ord(letter)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


def special(text: str) -> bool:
    """Whether a token has the look of one that the tokenizer adds, as `<bos>`, `<|im_end|>` or `[CLS]`."""
    return _SPECIAL.fullmatch(text) is not None


def direction(tokens: Sequence[str]) -> str:
    """`"rtl"` where more letters read from the right than from the left, else `"ltr"`; special tokens do not count."""
    sides = [unicodedata.bidirectional(letter) for text in tokens if not special(text) for letter in text]
    from_right = sum(side in ("R", "AL") for side in sides)
    return "rtl" if from_right > sides.count("L") else "ltr"
