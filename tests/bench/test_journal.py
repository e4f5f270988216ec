"""Rows on disk: torn lines, broken lines, full disks, and folders of other runs."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from inlay.bench.journal import Journal, claim
from inlay.errors import FolderError, ResumeError

ROWS = [{"key": f"row {n}", "text": f'a "quoted"\nline {n} é'} for n in range(3)]


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_was_appended_is_on_disk(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "deep" / "rows.jsonl")
    journal.append(ROWS[:2])
    assert [json.loads(line) for line in (tmp_path / "deep" / "rows.jsonl").read_text().splitlines()] == ROWS[:2]
    journal.append(ROWS[2:])
    again = Journal(tmp_path / "deep" / "rows.jsonl")
    assert again.rows == journal.rows == {row["key"]: row for row in ROWS}
    assert "row 1" in again and "row 7" not in again


def test_rows_are_synced_before_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    real = os.fsync

    def sync(descriptor: int) -> None:
        real(descriptor)
        synced.append(os.fstat(descriptor).st_size)

    monkeypatch.setattr(os, "fsync", sync)
    Journal(tmp_path / "rows.jsonl").append(ROWS)
    assert synced == [(tmp_path / "rows.jsonl").stat().st_size] and synced[0] > 0


def test_rows_in_memory() -> None:
    journal = Journal(None)
    journal.append(ROWS)
    assert list(journal.rows.values()) == ROWS


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "rows.jsonl"
    Journal(path).append(ROWS)
    path.write_bytes(path.read_bytes()[:-cut])
    journal = Journal(path)
    assert list(journal.rows) == ["row 0", "row 1"]
    journal.append(ROWS[2:])
    assert list(Journal(path).rows.values()) == ROWS


def test_a_file_that_is_one_torn_line(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"key": "ro')
    assert Journal(tmp_path / "rows.jsonl").rows == {}
    assert (tmp_path / "rows.jsonl").read_text() == ""


@pytest.mark.parametrize("line", ['{"key": "x', "[1]", '"text"', '{"text": "no key"}', "", "\xff"])
def test_a_broken_line_in_the_middle(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"key": "a"}\n' + line.encode("latin-1") + b'\n{"key": "b"}\n')
    with pytest.raises(FolderError, match=r"rows\.jsonl, line 2 is no row of a run .*delete it"):
        Journal(path)


def test_a_journal_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").mkdir()
    with pytest.raises(FolderError, match="cannot be read"):
        Journal(tmp_path / "rows.jsonl")


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "rows.jsonl")
    journal.append(ROWS[:1])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            FolderError, match=r"rows\.jsonl cannot be written: .*No space left.*free some space and run"
        ):
            journal.append(ROWS[1:])
    assert list(journal.rows) == ["row 0"]
    assert Journal(tmp_path / "rows.jsonl").rows["row 0"] == ROWS[0]


# -- claim -----------------------------------------------------------------------------------------------------------

CONFIG = {"model": {"name": "tidepool", "weights": "ab"}, "config": {"seed": 0, "factors": (0.5, 1.0), "site": None}}


def test_a_run_claims_a_folder_and_comes_back(tmp_path: Path) -> None:
    for folder in (tmp_path / "new" / "run", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        claim(folder, CONFIG)
        (folder / "replies.jsonl").write_text("")
        claim(folder, CONFIG)
        assert sorted(path.name for path in folder.iterdir()) == ["config.json", "replies.jsonl"]


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({**CONFIG, "config": {"seed": 1, "factors": (0.5, 1.0), "site": None}}, r"\(config\.seed\)"),
    ({**CONFIG, "config": {"seed": 0, "factors": (0.5,), "site": None}}, r"\(config\.factors\)"),
    ({**CONFIG, "config": {"seed": 0, "factors": (0.5, 1.0)}}, r"\(config\.site\)"),
    ({"model": {"name": "gpt2", "weights": "cd"}, "config": CONFIG["config"]}, r"\(model\.name, model\.weights\)"),
    ({"config": CONFIG["config"]}, r"\(model\)"),
]


@pytest.mark.parametrize(("changed", "named"), CHANGES)
def test_other_settings_are_refused_by_name(tmp_path: Path, changed: dict[str, Any], named: str) -> None:
    claim(tmp_path, CONFIG)
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(ResumeError, match=f"holds a run with other settings {named}; give another folder"):
        claim(tmp_path, changed)
    assert (tmp_path / "config.json").read_text() == before


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(FolderError, match="is not empty and holds no run"):
        claim(tmp_path, CONFIG)
    with pytest.raises(FolderError, match="cannot be a run's folder"):
        claim(tmp_path / "thesis.tex", CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_broken_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"mod')
    with pytest.raises(FolderError, match="cannot be a run's folder"):
        claim(tmp_path, CONFIG)


def test_a_disk_that_was_full_when_the_run_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(FolderError, match="No space left"):
            claim(tmp_path, CONFIG)
    assert not (tmp_path / "config.json").exists()
    claim(tmp_path, CONFIG)  # and what was half written is in nobody's way
    claim(tmp_path, CONFIG)
