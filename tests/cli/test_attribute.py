"""`inlay attribute`: the numbers of the library, a page, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from tests.cli.random_folder import WIDTH
from typer.testing import Result

import inlay

Command = Callable[..., Result]
TEXT = "the sea was cold and the boat"


def test_its_numbers_are_the_librarys(inlay_command: Command, folder: Path) -> None:
    result = inlay_command(
        "attribute", "--model", folder, "--text", TEXT, "--target", "s", "--foil", "b", "--baseline", "mean"
    )
    assert result.exit_code == 0, result.output
    scores = inlay.attribute.tokens(inlay.load(folder), TEXT, "s", "b", baseline="mean")
    best = int(scores.scores[0].abs().argmax())
    assert f"{float(scores.scores[0, best]):+.4g}" in result.stdout and "gim" in result.stdout
    assert f"m_clean {float(scores.m_clean[0]):+.4g}" in " ".join(result.stdout.split())


def test_several_methods_a_report_and_a_page(inlay_command: Command, folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = inlay_command(
        "attribute", "--model", folder, "--text", TEXT, "--text", "the owl", "--baseline", "zero",
        "--method", "gim", "--method", "occlusion", "--report", "--html", page,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    for said in ("row 0: gim", "row 1: occlusion", "norm ", "attention ", str(page)):
        assert said in result.stdout
    text = page.read_text()
    assert text.startswith("<!DOCTYPE html>") and text.count("occlusion") >= 2 and "http" not in text


def test_a_response_under_an_edit(inlay_command: Command, folder: Path, tmp_path: Path) -> None:
    edit = inlay.Edit("resid_post.1", inlay.Add(4 * torch.ones(WIDTH))).save(tmp_path / "edit", inlay.load(folder))
    common = ("attribute", "--model", folder, "--text", "the sea", "--response", "was cold", "--baseline", "mean")
    plain, edited = inlay_command(*common), inlay_command(*common, "--edit", edit)
    assert plain.exit_code == edited.exit_code == 0, edited.output
    assert "logprob of" in plain.stdout and plain.stdout != edited.stdout


def test_what_is_refused(inlay_command: Command, folder: Path) -> None:
    for options, said in (
        (("--target", "sea boat"), "is 8 tokens for this tokenizer"),
        (("--method", "gmi"), "method='gmi': one of"),
        (("--quantity", "odds"), "one of logit"),
        (("--by", "sentence"), "'token', 'word'"),
    ):
        result = inlay_command("attribute", "--model", folder, "--text", TEXT, "--baseline", "mean", *options)
        assert result.exit_code == 2 and said in " ".join(result.stderr.split()), result.output
