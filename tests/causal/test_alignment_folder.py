"""An Alignment on disk: everything comes back, shared parameters shared, and what is damaged is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.interventions import tiny
from tests.interventions.tiny import WIDTH

from inlay import Edit, Function, LowRank, Rotate
from inlay.causal import Alignment, Counterfactual, das
from inlay.errors import EditError, FolderError
from inlay.interventions import Intervention

ROWS = [
    Counterfactual(base, (source, base), ("x", "y"), 3, 4)
    for base, source in zip(tiny.EVEN * 2, tiny.OTHER * 2, strict=True)
]


def trained(seed: int = 0) -> Alignment:
    return das(tiny.model(), ROWS, "resid_post.1", {"x": 2, "y": 3}, epochs=2, batch=4, lr=0.05, seed=seed)


def test_everything_comes_back(tmp_path: Path) -> None:
    found, model = trained(), tiny.model()
    assert found.save(tmp_path / "deep" / "folder") == tmp_path / "deep" / "folder"
    for again in (Alignment.load(tmp_path / "deep" / "folder"), Alignment.load(tmp_path / "deep" / "folder", model)):
        assert again.accuracy == found.accuracy and again.history == found.history and again.facts == found.facts
        source = {"x": tiny.OTHER, "y": [[1, 2, 3]]}
        for mine, theirs in ((found, again), (again, found)):
            logits = [model.forward(tiny.EVEN, edit=one.edit(source)).logits for one in (mine, theirs)]
            assert torch.equal(*logits)
        x, y = again.intervention("x"), again.intervention("y")
        assert isinstance(x, Rotate) and isinstance(y, Rotate) and x.raw is y.raw
        assert repr(again) == repr(found)


def test_a_folder_holds_what_an_edit_can_read(tmp_path: Path) -> None:
    found = trained()
    edit = Edit.from_pretrained(found.save(tmp_path), tiny.model())
    assert [part.site for part in edit.parts] == [found.edits[name].parts[0].site for name in "xy"]


def test_another_base_model_is_refused(tmp_path: Path) -> None:
    trained().save(tmp_path)
    with pytest.raises(FolderError, match="another configuration"):
        Alignment.load(tmp_path, tiny.model(num_hidden_layers=2))


def test_what_is_damaged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="holds no alignment"):
        Alignment.load(tmp_path / "nothing")
    folder = trained().save(tmp_path)
    card = json.loads((folder / "alignment.json").read_text())

    def written(**changes: Any) -> None:
        (folder / "alignment.json").write_text(json.dumps({**card, **changes}))

    written(format=99)
    with pytest.raises(FolderError, match="format 99"):
        Alignment.load(folder)
    for change in ({"variables": ["x"]}, {"accuracy": [{"rows": 1}]}, {"history": None}, {"facts": 3}):
        written(**change)
        with pytest.raises(FolderError, match="damaged"):
            Alignment.load(folder)
    (folder / "alignment.json").write_text("{")
    with pytest.raises(FolderError, match="holds no alignment"):
        Alignment.load(folder)
    written()
    (folder / "edit.safetensors").unlink()
    with pytest.raises(FolderError):
        Alignment.load(folder)


@pytest.mark.parametrize("stop", ["edit.safetensors", "edit.json", "alignment.json"])
@pytest.mark.parametrize("before", [False, True])
def test_an_interrupted_save_is_refused_or_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: str, before: bool
) -> None:
    old, new = trained(0), trained(1)
    if before:
        old.save(tmp_path)
    rename = os.replace

    def replace(source: Any, target: Any) -> None:
        if Path(target).name == stop:
            raise OSError("the disk is full")
        rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(FolderError, match="the disk is full"):
        new.save(tmp_path)
    monkeypatch.undo()
    if before and stop == "edit.safetensors":
        assert Alignment.load(tmp_path).history == old.history
    else:
        with pytest.raises(FolderError):
            Alignment.load(tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], "no leftovers"
    new.save(tmp_path)
    assert Alignment.load(tmp_path).history == new.history


class Nameless(Intervention):
    """Has no `kind`."""


def test_what_lives_in_memory_alone_cannot_be_saved(tmp_path: Path) -> None:
    found = trained()
    for made in (Nameless(), Function(lambda h: h)):
        edits = {"x": Edit("resid_post.1", made, "last")}
        with pytest.raises(EditError):
            Alignment(edits, found.accuracy, found.history, found.facts).save(tmp_path)
        assert not (tmp_path / "alignment.json").exists()
    edits = {"x": Edit("resid_post.1", LowRank(None, WIDTH, 2), torch.tensor([[1]]))}
    with pytest.raises(EditError, match="belongs to one batch"):
        Alignment(edits, found.accuracy, found.history, found.facts).save(tmp_path)
