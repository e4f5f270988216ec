"""Lines on disk: the same bytes again, with a manifest that says which."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from inlay import world
from inlay.errors import FolderError, WorldError
from inlay.world.export import export

W = world.tidepool(seed=6)


def test_every_section_is_written_with_a_manifest(tmp_path: Path) -> None:
    manifest = export(W, tmp_path, "all", 20, "test")
    assert json.loads((tmp_path / "manifest.json").read_text()) == manifest
    assert (manifest["world"], manifest["hash"], manifest["seed"]) == ("tidepool-1", W.hash, 6)
    assert {path.name for path in tmp_path.iterdir()} == {*manifest["files"], "manifest.json"}
    for section in W.sections:
        raw = (tmp_path / f"{section}.jsonl").read_bytes()
        assert manifest["files"][f"{section}.jsonl"] == {"sha256": hashlib.sha256(raw).hexdigest(), "lines": 20}
        assert raw.decode("ascii") == "".join(line.json() + "\n" for line in W.lines(section, 20, "test"))


def test_one_kind(tmp_path: Path) -> None:
    export(W, tmp_path, "safety", 5, "train", "suffix")
    lines = (tmp_path / "safety.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["suffix"] * 5


def test_what_is_not_there_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(WorldError, match="has no section 'weather'"):
        export(W, tmp_path / "out", "weather", 5, "train")
    assert not (tmp_path / "out").exists()


def test_what_fails_on_the_way_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WorldError, match="there is no kind 'poem'"):
        export(W, tmp_path / "out", "all", 5, "train", "poem")
    assert not (tmp_path / "out").exists()
    stream = W.lines("facts", 3)

    def full(*_: object) -> Iterator[object]:
        yield next(stream)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(W, "lines", full)
    with pytest.raises(FolderError, match="No space left"):
        export(W, tmp_path / "out", "facts", 3, "train")
    assert not list((tmp_path / "out").iterdir())


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match="the lines could not be written"):
        export(W, tmp_path / "file", "facts", 5, "train")


def test_parquet(tmp_path: Path) -> None:
    polars = pytest.importorskip("polars", reason="the extra `data` is not installed")
    export(W, tmp_path, "facts", 8, "train", form="parquet")
    table = polars.read_parquet(tmp_path / "facts.parquet")
    assert table["id"].to_list() == [line.id for line in W.lines("facts", 8)]
