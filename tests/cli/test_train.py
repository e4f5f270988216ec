"""`inlay train`: a plan, a training, the same again, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.train.test_config import GOOD, written
from typer.testing import Result

Command = Callable[..., Result]


def test_a_dry_run_says_what_it_will_do_and_writes_nothing(inlay_command: Command, tmp_path: Path) -> None:
    config = written(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    done = inlay_command("train", config, "--dry-run", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    for line in ("concepts    1", "steps       4", "parameters  129 a concept", "memory"):
        assert line in done.stdout
    assert sorted(tmp_path.rglob("*")) == before


def test_a_training_and_the_same_again(inlay_command: Command, tmp_path: Path) -> None:
    config, out = written(tmp_path, {"preview": "say hello", "preview_every": 2}), tmp_path / "out"
    done = inlay_command("train", config, "--out", out)
    assert done.exit_code == 0, done.output
    assert "in 4 steps" in done.stdout and done.stdout.rstrip().endswith(str(out / "edit"))
    tensors, log = (out / "edit" / "edit.safetensors").read_bytes(), (out / "log.jsonl").read_text()
    assert "preview" in log
    assert inlay_command("train", config, "--out", out).exit_code == 0
    assert (out / "edit" / "edit.safetensors").read_bytes() == tensors and (out / "log.jsonl").read_text() == log


def test_what_is_refused(refused: Any, inlay_command: Command, tmp_path: Path) -> None:
    assert "optimizer: no such key" in refused("train", written(tmp_path, {"optimizer": "adam"}))
    assert "cannot be read as YAML" in refused("train", tmp_path / "none.yaml")
    out = tmp_path / "out"
    assert inlay_command("train", written(tmp_path), "--out", out).exit_code == 0
    changed = written(tmp_path, {"recipe": {**GOOD["recipe"], "lr": 0.5}})
    assert "other settings, data, Edit or model" in refused("train", changed, "--out", out)
