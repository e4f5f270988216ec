"""Folders of activations that are damaged, unfinished or full: an error names the file, and nothing is half written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from inlay import Activations
from inlay.errors import FolderError
from inlay.model import shards


def saved(folder: Path) -> Activations:
    mask = torch.tensor([[True, True, False], [True, True, True]])
    values: Tensor = torch.randn(2, 3, 4).masked_fill(~mask[..., None], 0)
    acts = Activations({"b.1": values, "a.0": 2 * values}, mask)
    acts.save(folder)
    return acts


def test_a_site_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    """And each time anew: what is loaded holds no tensor, so that a read larger than memory can be gone through."""
    acts = saved(tmp_path)
    loaded = Activations.load(tmp_path)
    assert torch.equal(loaded["a.0"], acts["a.0"]) and loaded["a.0"] is not loaded["a.0"]
    (tmp_path / "shard-00000.safetensors").unlink()
    assert list(loaded) == ["b.1", "a.0"]
    with pytest.raises(FolderError, match=r"shard-00000\.safetensors cannot be read"):
        loaded["b.1"]


def test_not_a_folder_of_activations(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match=r"holds no activations: it has no manifest\.json"):
        Activations.load(tmp_path)
    with pytest.raises(FolderError, match="holds no activations"):
        Activations.load(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", '"shards"', "{}", '{"complete": true}'])
def test_a_damaged_manifest(text: str, tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(FolderError, match=r"manifest|not finished"):
        Activations.load(tmp_path)


def test_an_unfinished_folder(tmp_path: Path) -> None:
    saved(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "complete": False}))
    with pytest.raises(FolderError, match="has not finished; run it again with the same arguments"):
        Activations.load(tmp_path)


def test_a_damaged_or_missing_shard_is_named(tmp_path: Path) -> None:
    saved(tmp_path)
    shard = tmp_path / "shard-00000.safetensors"
    whole = shard.read_bytes()
    for damaged in (whole[:-1], whole[:20], b""):
        shard.write_bytes(damaged)
        with pytest.raises(FolderError, match=r"shard-00000\.safetensors cannot be read"):
            Activations.load(tmp_path)
    shard.unlink()
    with pytest.raises(FolderError, match=r"shard-00000\.safetensors cannot be read"):
        Activations.load(tmp_path)


def test_a_shard_of_something_else(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    saved(tmp_path)
    save_file({"weight": torch.zeros(2)}, tmp_path / "shard-00000.safetensors")
    with pytest.raises(FolderError, match=r"shard-00000\.safetensors"):
        Activations.load(tmp_path)


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(tensors: object, path: Path, *rest: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards, "save_file", save)
    with pytest.raises(FolderError, match=r"shard 0 could not be written .*No space left on device"):
        saved(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FolderError, match="file"):
        saved(tmp_path / "file")
    with pytest.raises(FolderError, match="file"):
        Activations.load(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
