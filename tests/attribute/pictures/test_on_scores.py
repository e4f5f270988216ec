"""The pictures as methods of TokenScores."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.attribute.pictures.scored import NASTY, Document, scored

from inlay.attribute.pictures import token_html, token_latex
from inlay.errors import FolderError

ROWS = [NASTY, ["<bos>", "The", " cat"]]


def test_html_is_the_page_and_can_be_written(tmp_path: Path) -> None:
    given = scored(ROWS)
    assert given.html(tmp_path / "new" / "page.html") == given.html() == token_html(given)
    assert (tmp_path / "new" / "page.html").read_text(encoding="utf-8") == given.html()
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match="could not be written"):
        given.html(tmp_path / "file" / "page.html")


def test_latex_is_one_row() -> None:
    given = scored(ROWS)
    assert given.latex(1) == token_latex(given, 1) != given.latex() == token_latex(given, 0)


def test_notebooks_show_the_first_rows_and_say_so() -> None:
    few, many = Document(scored(ROWS)._repr_html_()), Document(scored(ROWS * 5)._repr_html_())
    assert len(few.tokens) == 2 and len(many.tokens) == 8
    assert "The first 8 of 10 rows" in many.text and "The first" not in few.text


def test_print(capsys: pytest.CaptureFixture[str]) -> None:
    scored(ROWS).print(top=2)
    whole = capsys.readouterr().out
    scored(ROWS).print(1)
    one = capsys.readouterr().out
    assert "row 0: gim" in whole and "row 1: gim" in whole
    assert "row 0" not in one and "<bos>The·cat" in one
