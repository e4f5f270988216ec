from __future__ import annotations

import io
import math
import re

import pytest
import torch
from rich.cells import cell_len
from rich.console import Console
from tests.attribute.pictures.scored import NASTY, scored

from inlay.attribute.pictures.colours import LIGHT, STEPS, step
from inlay.attribute.pictures.panels import number
from inlay.attribute.pictures.terminal import token_terminal
from inlay.attribute.pictures.visible import visible
from inlay.attribute.token_scores import TokenScores

WORDS = ["<bos>", *(f" word{i}" for i in range(30)), " 東京", " of\n", " end"]


def _printed(scores: TokenScores | list[TokenScores], width: int = 80, colour: str | None = None, **how: int) -> str:
    console = Console(
        width=width,
        file=io.StringIO(),
        color_system=colour,  # type: ignore[arg-type]
        force_terminal=colour is not None,
        no_color=colour is None,  # whatever NO_COLOR is
    )
    console.print(token_terminal(scores, **how))  # type: ignore[arg-type]
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_without_colour_the_numbers_are_there() -> None:
    given = scored([WORDS])
    lines = _printed(given, top=7).splitlines()
    scores = given.scores[0].nan_to_num()
    start = next(i for i, line in enumerate(lines) if line.split() == ["token", "score"]) + 1
    for line, place in zip(lines[start:], scores.abs().argsort(descending=True)[:7].tolist(), strict=False):
        at, token, score, bar = line.split()
        assert (int(at), token, score) == (place, visible(WORDS[place]), number(scores[place].item()))
        assert len(bar) == round(20 * abs(scores[place].item()) / scores.abs().max().item())
    assert not lines[start + 7].strip()
    text = " ".join(" ".join(lines).split())
    for said in ("row 0: gim", "logit_diff of ' Paris' against ' Rome'", "baseline space", "m_clean +3.25",
                 f"residual {number(given.residual[0].item())}", "positive", "negative", "scale +-2.512"):  # fmt: skip
        assert said in text, said


@pytest.mark.parametrize("width", [24, 40, 80, 200])
def test_lines_fit_and_end_between_tokens(width: int) -> None:
    lines = _printed(scored([WORDS]), width).splitlines()
    assert max(map(cell_len, lines)) <= width
    begin = next(i for i, line in enumerate(lines) if line.startswith("<bos>"))
    end = next(i for i, line in enumerate(lines) if line.split() == ["token", "score"])
    flow = lines[begin:end]
    assert "".join(flow) == "".join(map(visible, WORDS))
    rest = [visible(text) for text in WORDS]
    for line in flow:
        while line:
            assert line.startswith(rest[0])
            line = line[len(rest.pop(0)) :]


def test_a_token_wider_than_the_console_is_broken() -> None:
    lines = _printed(scored([["a", "b" * 100]]), 30).splitlines()
    assert max(map(cell_len, lines)) <= 30 and "".join(lines).count("b") >= 200  # in the text and in the list


def test_nothing_reaches_the_terminal_as_a_command() -> None:
    printed = _printed(scored([NASTY], "x\x1b[2J", baseline="\x07"))
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", printed)
    assert "[31m" in printed  # as text


def test_colours_are_those_of_the_scale() -> None:
    given = scored([["a", "b", "c"]], scores=torch.tensor([[math.nan, -1.0, 0.5]]))
    printed = _printed(given, colour="truecolor")
    for text, score in (("b", -1.0), ("c", 0.5)):
        back = LIGHT.colour(step(score, 1.0) / STEPS)
        red, green, blue = (int(back[i : i + 2], 16) for i in (1, 3, 5))
        line = "4;" if score < 0 else ""
        assert f"\x1b[{line}38;2;0;0;0;48;2;{red};{green};{blue}m{text}\x1b[0m" in printed


def test_several_methods_and_words() -> None:
    rows = [["the", "harbor", "sleeps"]]
    printed = _printed([scored(rows), scored(rows, "occlusion")])
    assert printed.count("the harbor sleeps") == 2 and "row 0: occlusion" in printed
    assert printed.count("Orange, positive") == 1
