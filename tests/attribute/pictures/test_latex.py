from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.attribute.pictures.scored import NASTY, scored

from inlay.attribute.pictures.colours import LIGHT, STEPS, step
from inlay.attribute.pictures.latex import escape, token_latex
from inlay.attribute.pictures.visible import visible

LATIN = [text for text in NASTY if text.isascii() or text == " ü"]
PIECES = ["<bos>", *LATIN, "[x]", " a,,b", "\n", "\n", "?`", "''", "<<", " c"]


def test_letters_that_latex_obeys_are_escaped() -> None:
    assert escape("\\{}$&#%_") == r"\textbackslash{}\{\}\$\&\#\%\_"
    assert escape("^~<>|`") == (
        r"\textasciicircum{}\textasciitilde{}\textless{}\textgreater{}\textbar{}\textasciigrave{}"
    )
    assert escape("--,,") == "-{}-{},{},{}"  # no dash, no quote
    assert escape("größe 東京") == "größe 東京"


def test_braces_balance_and_nothing_is_left_active() -> None:
    made = token_latex([scored([PIECES], "a_b{%"), scored([PIECES], "occlusion")])
    code = re.sub(r"(?m)(^%.*$|%$)", "", made)  # comments
    bare = re.sub(r"\\[\\{}$&#%_]", "", code)
    depth = 0
    for letter in bare:
        depth += (letter == "{") - (letter == "}")
        assert depth >= 0
    assert depth == 0
    assert not set(bare) & set('&#_^~|<>"`')
    assert bare.count("%") == 0 and bare.count("$") == 2 * 2 * 5  # the numbers of two colour scales
    assert made.count(r"\begingroup") == made.count(r"\endgroup") == 1


def test_every_token_is_there_on_its_colour() -> None:
    given = scored([PIECES])
    limit = given.scores.nan_to_num().abs().max().item()
    lines = token_latex(given).splitlines()
    places = [line for line in lines if line.endswith("%")]
    assert len(places) == len(PIECES)
    assert places[0].startswith(rf"\textcolor[HTML]{{{LIGHT.muted[1:].upper()}}}{{\textless{{}}bos")
    for place, line in enumerate(places[1:], 1):
        at = step(given.scores[0, place].item(), limit)
        shown = escape(visible(PIECES[place]))
        shown = rf"\underline{{{shown}}}" if at < 0 else shown
        colour = LIGHT.colour(at / STEPS)[1:].upper()
        end = r"\\" if "\n" in PIECES[place] else r"\hspace{1pt}"
        assert line == rf"\colorbox[HTML]{{{colour}}}{{\strut {shown}}}{end}%"


def test_the_legend_and_the_note_on_other_scripts() -> None:
    made = token_latex(scored([PIECES]))
    for said in (r"logit\_diff of", "baseline space", r"m\_clean +3.25", "residual", "Orange,{} positive"):
        assert said in made, said
    assert "lualatex" not in made and made.startswith("% Needs \\usepackage{xcolor}.\n")
    assert "% Holds letters that pdflatex does not know: compile with lualatex" in token_latex(scored([NASTY]))


@pytest.mark.slow
@pytest.mark.parametrize("program, tokens", [("pdflatex", PIECES), ("lualatex", [*PIECES, *NASTY])])
def test_it_compiles(program: str, tokens: list[str], tmp_path: Path) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"no {program} here")
    body = token_latex([scored([tokens], "a_b{%"), scored([tokens], "occlusion")])
    page = f"\\documentclass{{article}}\n\\usepackage{{xcolor}}\n\\begin{{document}}\n{body}\\end{{document}}\n"
    (tmp_path / "page.tex").write_text(page, encoding="utf-8")
    run = [program, "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=300)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "page.pdf").stat().st_size > 1000
