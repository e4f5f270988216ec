from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inlay.attribute.pictures.visible import direction, plain, special, visible


def test_what_does_not_show_is_made_visible() -> None:
    assert visible(" a b\n\t") == "·a·b⏎⇥"
    assert visible("") == "∅"
    assert visible("\x1b[0m\r\u202e\u200b\u00a0\u2028\ud800") == r"\x1b[0m\x0d\u202e\u200b\xa0\u2028\ud800"
    joined = "\u0645\u06cc\u200c\u062e"  # Persian: the joiner is part of the word
    assert visible(joined) == joined
    assert plain("ig (n=50)\n") == "ig (n=50)⏎"


@given(st.text())
def test_no_letter_moves_or_controls_anything(text: str) -> None:
    for shown in (visible(text), plain(text).replace(" ", "")):
        left = shown.replace("\u200c", "").replace("\u200d", "")
        assert not {unicodedata.category(letter) for letter in left} & {"Cc", "Cf", "Cs", "Zs", "Zl", "Zp"}
        left.encode()


@pytest.mark.parametrize("text", ["<bos>", "<|im_start|>", "</s>", "[CLS]", "<start_of_turn>"])
def test_special_tokens(text: str) -> None:
    assert special(text) and not special(f" {text}") and not special(text[:-1])


def test_direction_is_that_of_most_letters_and_special_tokens_do_not_count() -> None:
    assert direction(["<start_of_turn>", "שלום", " a"]) == "rtl"
    assert direction(["سلام", " hello", " you"]) == "ltr"
    assert direction(["<bos>", "1"]) == "ltr"
