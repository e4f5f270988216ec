"""`inlay world`: lines on disk, a training from a file, and an acceptance table with its exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.world import hand
from typer.testing import CliRunner

from inlay.cli import app

TINY = {"width": 32, "inner": 48, "layers": 2, "heads": 1, "kv_heads": 1}


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["world", *map(str, arguments)], env={"COLUMNS": "200"})


def test_lines_are_written_and_the_same_again(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        done = run(
            "generate", "--section", "facts", "--split", "test", "--n", 12, "--seed", 4, "--out", tmp_path / folder
        )
        assert done.exit_code == 0 and "facts.jsonl: 12 lines" in done.stdout
    assert (tmp_path / "one" / "facts.jsonl").read_bytes() == (tmp_path / "two" / "facts.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--section", "weather"), "has no section 'weather'"),
        (("--n", "-3"), "n is -3"),
        (("--section", "facts", "--kind", "poem"), "there is no kind 'poem'"),
        (("--world", "nowhere"), "holds no world"),
    ],
)
def test_what_cannot_be_generated(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = run("generate", "--out", tmp_path / "out", *arguments)
    assert done.exit_code == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.jsonl"))


def test_a_training_from_a_file_is_checked_and_has_a_card(tmp_path: Path) -> None:
    folder = hand.write(tmp_path / "w")
    spec = {"name": "tiny", "world": str(folder), "architecture": TINY, "mixture": {"concepts": 1.0}, "steps": 2}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**spec, "batch_tokens": 256}))
    done = run("train", "--config", tmp_path / "c.yaml", "--out", tmp_path / "m", "--section", "none")
    assert done.exit_code == 2  # there is no such option
    done = run("train", "--config", tmp_path / "c.yaml", "--out", tmp_path / "m")
    assert done.exit_code == 0, done.output
    assert "| concepts | fluency of 200 unsteered replies |" in done.stdout
    card = (tmp_path / "m" / "README.md").read_text()
    assert card.startswith("---") and "hand-1" in card and "MISSED" in card
    again = run("train", "--config", tmp_path / "c.yaml", "--out", tmp_path / "m")
    assert again.exit_code == 2 and "holds a model or a checkpoint" in again.stderr


def test_a_table_of_acceptance() -> None:
    done = run("check", "tidepool", "--section", "circuits")
    assert done.exit_code == 0, done.output
    assert "| circuits | induction, answer above foil |" in done.stdout
    records = json.loads(run("check", "tidepool", "--section", "circuits", "--json").stdout)
    assert all(record["met"] for record in records)


def test_a_miss_is_an_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    from inlay.world.checks import circuits
    from inlay.world.checks.row import Row

    monkeypatch.setattr(circuits, "rows", lambda model, world: [Row("circuits", "made up", 0.1, least=0.9)])
    done = run("check", "tidepool", "--section", "circuits")
    assert done.exit_code == 1 and "MISSED" in done.stdout


def test_a_model_that_is_of_no_world(tmp_path: Path) -> None:
    done = run("check", tmp_path)
    assert done.exit_code == 2 and "error:" in done.stderr
