"""A result's tables: their columns, on disk and back, and what is missing."""

from __future__ import annotations

import errno
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from inlay.bench.result import SCHEMAS, BenchResult
from inlay.errors import FolderError

CONCEPTS = [{"concept_id": 0, "name": "the sea", "genre": "text", "lexicon": ["oar", "sail"], "n_positive": 3}]
EFFECTS = [{"method": "pca", "concept_id": 0, "site": "embed", "factor": 1, "kl": 0.5, "logprob_drop": None}]
INFO = {"title": "é", "warnings": ["short"], "seconds": {"steering": 1.5}}


def made() -> BenchResult:
    return BenchResult.of(INFO, concepts=CONCEPTS, side_effects=EFFECTS)


def test_every_table_has_its_columns() -> None:
    result = made()
    assert {field.name for field in fields(BenchResult)} == {*SCHEMAS, "info"}
    for name, schema in SCHEMAS.items():
        assert getattr(result, name).columns == list(schema)
    assert result.detection.is_empty() and result.detection.schema["auroc"] == pl.Float64
    assert result.concepts.schema["lexicon"] == pl.List(pl.String)
    assert result.concepts.row(0, named=True) == CONCEPTS[0] | {"n_negative": None, "n_hard": None}
    assert result.side_effects.row(0, named=True) == EFFECTS[0]


def test_saved_and_loaded(tmp_path: Path) -> None:
    folder = made().save(tmp_path / "deep" / "tables")
    assert {path.name for path in folder.iterdir()} == {*(f"{name}.parquet" for name in SCHEMAS), "info.json"}
    back = BenchResult.load(folder)
    assert back.info == INFO
    for name in SCHEMAS:
        assert (
            getattr(back, name).equals(getattr(made(), name))
            and getattr(back, name).schema == getattr(made(), name).schema
        )


@pytest.mark.parametrize("name", ["info.json", "dose.parquet"])
@pytest.mark.parametrize("content", [None, b"nothing of the kind"])
def test_a_file_that_is_missing_or_broken(tmp_path: Path, name: str, content: bytes | None) -> None:
    made().save(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(FolderError, match="holds no finished result"):
        BenchResult.load(tmp_path)


def test_a_full_disk_leaves_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, left = Path.replace, [3]

    def fill(path: Path, target: Any) -> Path:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fill)
        with pytest.raises(FolderError, match=f"could not be written to {tmp_path}.*No space left"):
            made().save(tmp_path)
    with pytest.raises(FolderError, match="holds no finished result"):
        BenchResult.load(tmp_path)
    assert BenchResult.load(made().save(tmp_path)).info == INFO


def test_a_report_of_it(tmp_path: Path) -> None:
    path = BenchResult.of(
        {
            "title": "one",
            "model": {"name": "m"},
            "concept_set": "s",
            "config": {},
            "judge": {"identity": {}, "axes": {}},
        }
        | {"seconds": {}, "versions": {}, "machine": "", "created": "", "units": "", "warnings": [], "limits": ""},
        concepts=CONCEPTS,
    ).save_report(tmp_path / "report.html")
    assert "<html" in path.read_text()
