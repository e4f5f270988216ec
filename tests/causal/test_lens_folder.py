"""A lens on disk: the same bit for bit when it comes back, and refused where it is not what it should be."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.interventions import tiny

import inlay
from inlay import _files
from inlay.causal.tuned_lens import TunedLens
from inlay.errors import FolderError

ROWS = [*tiny.RAGGED, *tiny.EVEN]


@pytest.fixture
def lens() -> TunedLens:
    return TunedLens.fit(tiny.model(), ROWS, ["resid_pre.*", "resid_mid.1"], steps=2, step_tokens=16)


def test_there_and_back(lens: TunedLens, tmp_path: Path) -> None:
    again = TunedLens.load(lens.save(tmp_path / "lens"), tiny.model())
    assert again.sites == lens.sites and again.facts == lens.facts and again.facts["steps"] == 2
    for (name, a), (other, b) in zip(lens.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == other and torch.equal(a, b)
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert sorted(p.name for p in (tmp_path / "lens").iterdir()) == ["lens.json", "lens.safetensors"]


def test_another_model_is_refused(lens: TunedLens, tmp_path: Path) -> None:
    folder = lens.save(tmp_path / "lens")
    with pytest.raises(FolderError, match=r"was fitted on .* with another configuration: fit one for it"):
        TunedLens.load(folder, inlay.load(tiny.llama(num_hidden_layers=4)))


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="holds no tuned lens"):
        TunedLens.load(tmp_path / "none", tiny.model())


def damage(folder: Path, **changes: Any) -> None:
    path = folder / "lens.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": 2}, r"has format 2; this inlay .* reads format 1"),
        ({"sha256": "0"}, r"lens\.safetensors is not the file that lens\.json describes"),
        ({"sites": ["resid_pre.0"]}, "is damaged"),
        ({"sites": ["resid_pre.9"]}, "is damaged"),
        ({"base": {}}, "is damaged"),
    ],
)
def test_a_damaged_card(lens: TunedLens, tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    folder = lens.save(tmp_path / "lens")
    damage(folder, **changes)
    with pytest.raises(FolderError, match=says):
        TunedLens.load(folder, tiny.model())


def test_a_card_that_is_no_object(lens: TunedLens, tmp_path: Path) -> None:
    folder = lens.save(tmp_path / "lens")
    (folder / "lens.json").write_text("[]")
    with pytest.raises(FolderError, match="has format None"):
        TunedLens.load(folder, tiny.model())


def test_values_that_are_not_finite(lens: TunedLens, tmp_path: Path) -> None:
    import hashlib

    folder = lens.save(tmp_path / "lens")
    path = folder / "lens.safetensors"
    tensors = load_file(path)
    tensors["translators.0.bias"][3] = torch.nan
    save_file(tensors, path)
    damage(folder, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(FolderError, match="a translator holds values that are NaN or infinite"):
        TunedLens.load(folder, tiny.model())


@pytest.mark.parametrize("at", [0, 1])
def test_an_interrupted_save_leaves_the_old_lens_or_one_that_is_refused(
    lens: TunedLens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    folder = lens.save(tmp_path / "lens")
    other = TunedLens.fit(tiny.model(), ROWS, ["resid_pre.*", "resid_mid.1"], steps=3, step_tokens=16)
    real, calls = os.replace, []

    def full(source: str, target: Path) -> None:
        calls.append(target)
        if len(calls) == at + 1:
            raise OSError("no space left on device")
        real(source, target)

    monkeypatch.setattr(_files.os, "replace", full)
    with pytest.raises(FolderError, match=r"lens.json could not be written to .*no space left"):
        other.save(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["lens.json", "lens.safetensors"]
    if at == 0:
        again = TunedLens.load(folder, tiny.model())
        assert torch.equal(again.translators[0].weight, lens.translators[0].weight)
    else:
        with pytest.raises(FolderError, match="is not the file that"):
            TunedLens.load(folder, tiny.model())
