"""`inlay bench`: a run from start to report, again from where it was, and every way of asking for what is not there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.judges.stub import serving
from typer.testing import Result

Command = Callable[..., Result]
SMALL = (
    "--limit",
    2,
    "--methods",
    "diff_mean",
    "--site",
    "resid_post.1",
    "--factors",
    "0.3,0.6",
    "--max-new-tokens",
    8,
)


def rows(path: Path, n: int = 12) -> Path:
    """A concept set of one's own: what is about the sea, and what is not."""
    made = []
    for k in range(n):
        for category, output in (("positive", f"the sea and the oar {k}"), ("negative", f"the hen and the egg {k}")):
            split = "train" if k < n // 2 else "eval"
            row = {"concept": "sea", "category": category, "input": f"say something {k} .", "output": output}
            made.append(row | {"split": split})
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


def test_a_run_ends_with_its_report_and_goes_on_where_it_was(inlay_command: Command, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = inlay_command("bench", "run", *SMALL, "--out", out)
    assert done.exit_code == 0, done.output
    assert done.stdout.rstrip().endswith(f"report: {out / 'report.html'}")
    for name in ("diff_mean", "random", "prompt", "unsteered", "bow", "length_chars"):
        assert name in done.stdout
    page = (out / "report.html").read_text()
    assert "tools of the sea" in page and page.startswith("<!DOCTYPE html>")
    replies = (out / "replies.jsonl").read_bytes()
    assert inlay_command("bench", "run", *SMALL, "--out", out).exit_code == 0
    assert (out / "replies.jsonl").read_bytes() == replies
    again = inlay_command("bench", "report", out, "--out", tmp_path / "again.html")
    assert again.exit_code == 0 and (tmp_path / "again.html").exists() and "diff_mean" in again.stdout


def test_a_folder_of_another_run_is_refused(inlay_command: Command, refused: Any, tmp_path: Path) -> None:
    out, detect = tmp_path / "run", ("--no-steer", "--limit", 2, "--methods", "diff_mean", "--site", "resid_post.1")
    assert inlay_command("bench", "run", *detect, "--out", out).exit_code == 0
    assert "other settings (config.seed)" in refused("bench", "run", *detect, "--seed", 1, "--out", out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--methods", "astrology"), "there is no method 'astrology'; there are: diff_mean"),
        (("--concepts", "nowhere"), "nowhere: there is no such concept set"),
        (("--factors", "much"), "--factors 'much' is not a list of numbers"),
        (("--factors", "0,1"), "none is 0 or infinite"),
        (("--site", "resid_post.77"), "resid_post.77"),
        (("--judge", "oracle"), "there is no judge 'oracle'; give auto, lexicon, logprob or chat:MODEL"),
    ],
)
def test_what_cannot_be_run(refused: Any, arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    assert message in refused("bench", "run", "--limit", 1, "--out", tmp_path / "run", *arguments)
    assert not list(tmp_path.rglob("*.jsonl"))


def test_a_broken_row_is_named(refused: Any, tmp_path: Path) -> None:
    path = rows(tmp_path / "mine.jsonl")
    path.write_text(path.read_text() + '{"concept": "sea", "category": "maybe", "output": "x"}\n')
    assert "mine.jsonl, line 25: category is 'maybe'" in refused("bench", "concepts", path)


def test_concepts_of_ones_own_on_another_model(inlay_command: Command, chat_folder: Path, tmp_path: Path) -> None:
    path = rows(tmp_path / "mine.jsonl")
    shown = inlay_command("bench", "concepts", path)
    assert shown.exit_code == 0 and "sea" in shown.stdout and "oar" in shown.stdout
    arguments = ("--concepts", path, "--model", chat_folder, "--methods", "diff_mean", "--factors", "0.5")
    done = inlay_command(
        "bench", "run", *arguments, "--judge", "lexicon", "--max-new-tokens", 4, "--out", tmp_path / "r"
    )
    assert done.exit_code == 0, done.output
    assert "diff_mean" in done.stdout


def test_a_chat_model_judges_and_its_answers_are_kept(
    inlay_command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with serving() as stub:
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        judge = ("--judge", "chat:stub", "--base-url", stub.url, "--limit", 1, "--factors", "0.5")
        for _ in range(2):
            done = inlay_command("bench", "run", *judge, *SMALL[2:6], "--max-new-tokens", 4, "--out", tmp_path / "run")
            assert done.exit_code == 0, done.output
        asked = len((tmp_path / "run.judge.jsonl").read_text().splitlines())
    assert asked > 0 and sum(stub.asked.values()) == asked


def test_the_methods(inlay_command: Command) -> None:
    done = inlay_command("bench", "methods")
    assert done.exit_code == 0 and "diff_mean" in done.stdout and "shrinkage=None" in done.stdout
