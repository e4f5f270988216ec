from __future__ import annotations

import math
import re

import pytest
import torch
from tests.attribute.pictures.scored import NASTY, Document, needs_nothing, scored

from inlay.attribute.pictures.colours import DARK, LIGHT, STEPS, step
from inlay.attribute.pictures.html import token_fragment, token_html
from inlay.attribute.pictures.panels import number
from inlay.attribute.pictures.visible import visible

ROWS = [NASTY, ["<bos>", "The", " cat", " sat"]]


def test_every_token_is_there_once_in_order_with_its_score() -> None:
    several = [scored(ROWS), scored(ROWS, "occlusion")]
    page = Document(token_html(several))
    assert len(page.tokens) == 4  # two rows, each by two methods
    for row, texts in enumerate(ROWS):
        for found in page.tokens[2 * row : 2 * row + 2]:
            assert [text for text, _, _ in found] == [visible(text) for text in texts]
            for place, (_, classes, title) in enumerate(found):
                score = several[0].scores[row, place].item()
                said = "not scored" if math.isnan(score) else number(score)
                assert title == f"{place} {texts[place]!r}: {said}"
                assert ("unscored" in classes.split()) == math.isnan(score)
                assert ("special" in classes.split()) == (texts[place] in ("<bos>", "<b>"))


def test_pages_need_nothing_and_escape_everything() -> None:
    strange = "<script>alert(1)</script> & \"q\" 'p' \ud800"
    given = scored(ROWS, strange, baseline=strange, quantity=strange, target=[strange] * 2, foil=None)
    page = token_html(given)
    needs_nothing(page)
    page.encode()
    text = Document(page).text
    assert text.count("<script>") >= 4 and "\x1b" not in page and "\u202e" not in page
    assert page.startswith("<!DOCTYPE html>") and not token_fragment(given).startswith("<!DOCTYPE")
    needs_nothing(token_fragment(given))


def test_the_legend_says_what_the_numbers_are() -> None:
    given = scored(ROWS, "gim")
    text = Document(token_html(given)).text
    for said in (
        "positive", "negative", "logit_diff of ' Paris' against ' Rome'", "gim", "baselinespace", "m_clean+3.25",
        "m_baseline-0.5", f"residual{number(given.residual[1].item())}", "residual = m_clean - m_baseline - sum",
    ):  # fmt: skip
        assert said in text, said
    top = number(given.scores.nan_to_num().abs().max().item())
    assert text.count(top) >= 2 and text.count(top.replace("+", "-")) >= 2  # both ends of each row's bar


def _shades(style: str) -> dict[str, tuple[str, str]]:
    return {
        name: (back, ink)
        for name, back, ink in re.findall(r"\.(up\d+|down\d+|zero)\{background:(#\w+);color:(#\w+)", style)
    }


def test_colours_are_those_of_the_scale_in_both_schemes() -> None:
    given = scored(ROWS)
    page = Document(token_html(given))
    light, dark = page.style.split("@media (prefers-color-scheme:dark)")[-2:]
    limit = given.scores.nan_to_num().abs().max().item()
    for rules, scheme in ((_shades(light), LIGHT), (_shades(dark), DARK)):
        for row, found in enumerate(page.tokens):
            for place, (_, classes, _) in enumerate(found[1:], 1):
                wanted = scheme.colour(step(given.scores[row, place].item(), limit) / STEPS)
                assert rules[classes.split()[-1 - ("special" in classes)]] == (wanted, scheme.ink)


def test_negative_scores_are_told_without_colour() -> None:
    ((_, low, zero, high),) = Document(
        token_html(scored([["a", "b", "c", "d"]], scores=torch.tensor([[math.nan, -1.0, 0.0, 1.0]])))
    ).tokens
    assert "down" in low[1].split() and zero[1] == "t zero" and high[1] == f"t up{STEPS}"
    assert re.search(r"\.down\{text-decoration:underline", token_html(scored(ROWS)))


def test_lines_end_at_line_breaks_and_may_end_between_tokens() -> None:
    tags = [tag for tag, _ in Document(token_html(scored([["a", " b\n", " c"]]))).tags]
    flow = tags[tags.index("p", tags.index("figure")) :]
    assert flow == ["p", "span", "wbr", "span", "br", "span", "wbr"]


def test_rows_from_the_right() -> None:
    page = Document(token_html(scored([["<bos>", "שלום", " עולם"], ["<bos>", "hello"]])))
    assert [given["dir"] for _, given in page.tags if "dir" in given] == ["rtl", "ltr"]


def test_titles_that_differ_stand_with_their_method() -> None:
    other = scored(ROWS, "occlusion", target=[" Oslo"] * 2)
    text = Document(token_html([scored(ROWS), other], 0)).text
    assert "explainslogit_diff of ' Oslo'" in text and "explainslogit_diff of ' Paris'" in text
    assert "explains" not in Document(token_html(scored(ROWS))).text


def test_scores_that_are_all_0() -> None:
    page = Document(token_html(scored(ROWS, scores=torch.zeros(2, len(NASTY)))))
    assert {classes for found in page.tokens for _, classes, _ in found} == {"t zero", "t zero special"}
    assert "all 0" in page.text


@pytest.mark.parametrize("tokens", [3, 4000])
def test_the_style_does_not_grow_with_the_text(tokens: int) -> None:
    page = Document(token_html(scored([[f" {i}" for i in range(tokens)]])))
    assert len(page.style) < 12_000
