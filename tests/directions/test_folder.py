"""Saved and loaded directions are the same; a folder that is damaged or of another base model is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.directions.by_hand import SITE, concepts, model, sentences
from tests.model import chat

from inlay.directions import Direction, find, load, save
from inlay.errors import DirectionError, FolderError

TEXTS = sentences(5, seed=8)


def found() -> list[Direction]:
    return find(model(), concepts(2), ["diff_mean", "lda", "random"], [SITE, "z.1.h2"], seed=4)


def edited(folder: Path, **changes: Any) -> None:
    """Change fields of the card."""
    card = json.loads((folder / "directions.json").read_text())
    (folder / "directions.json").write_text(json.dumps(card | changes))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(found(), tmp_path / "new" / "folder")


def test_loaded_are_the_saved_ones(folder: Path) -> None:
    again = load(folder, model())
    for a, b in zip(again, found(), strict=True):
        torch.testing.assert_close(a.vector, b.vector, atol=1e-7, rtol=0)
        assert (a.site, a.scale, a.method, a.concept, a.data) == (b.site, b.scale, b.method, b.concept, b.data)
        assert a.model is model()
        torch.testing.assert_close(a.score(TEXTS), b.score(TEXTS))


def test_what_lies_in_the_folder(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["directions.json", "directions.safetensors"]
    card = json.loads((folder / "directions.json").read_text())
    assert card["base"] == model().identity() and len(card["directions"]) == 12
    (first, _) = concepts(2)
    tokens = sum(len(text.prompt.split()) + 2 for text in (*first.positives, *first.negatives))  # <end> <assistant>
    facts = {"positives": 5, "negatives": 6, "tokens": tokens, "read": "all", "seed": 4}
    data = card["directions"][0]["data"]
    assert len(data.pop("texts")) == 64 and data == facts


def test_without_a_model(folder: Path) -> None:
    again = load(str(folder))
    with pytest.raises(DirectionError, match="no model to read with"):
        again[0].score(TEXTS)
    bare = Direction(torch.ones(32), model().sites().expand(SITE)[0], 1.0, "mine")
    save([bare], folder)
    assert load(folder, model())[0].score(TEXTS).shape == (5,), "one of no known base fits any"


def test_another_base_model_is_refused(folder: Path) -> None:
    other = chat.wrapped("llama", num_hidden_layers=2)
    with pytest.raises(FolderError, match=r"holds directions of .*, and this model is "):
        load(folder, other)


def test_the_same_direction_twice(tmp_path: Path) -> None:
    one = found()[0]
    assert len(load(save([one, one], tmp_path))) == 2


def test_saving_again_replaces(folder: Path) -> None:
    save(found()[:1], folder)
    assert len(load(folder)) == 1


def test_no_directions(tmp_path: Path) -> None:
    with pytest.raises(DirectionError, match="there are no directions to save"):
        save([], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_disk_that_refuses(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match="could not be written to"):
        save(found(), tmp_path / "file" / "folder")


def test_an_interrupted_write_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The vectors are replaced and the card is not."""
    real = Path.replace

    def dies(self: Path, target: Path) -> Path:
        if target.name == "directions.json":
            raise OSError("no space left")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", dies)
    with pytest.raises(FolderError, match=r"could not be written to .*no space left"):
        save(found()[:1], folder)
    with pytest.raises(FolderError, match=r"directions\.safetensors is not the file that directions\.json describes"):
        load(folder)


@pytest.mark.parametrize("name", ["directions.json", "directions.safetensors"])
def test_a_file_that_is_missing(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(FolderError, match=f"holds no directions: .*{name}"):
        load(folder)


def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="holds no directions"):
        load(tmp_path / "nowhere")


def test_a_changed_vector(folder: Path) -> None:
    path = folder / "directions.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(FolderError, match="is not the file that"):
        load(folder)


@pytest.mark.parametrize("text", ["{", "[]", "5", "\udcff"])
def test_a_card_that_is_none(folder: Path, text: str) -> None:
    (folder / "directions.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(FolderError, match=r"holds no directions|is damaged: directions\.json holds a"):
        load(folder)


def test_another_format(folder: Path) -> None:
    edited(folder, format=2)
    with pytest.raises(FolderError, match="has format 2, and this inlay reads 1"):
        load(folder)


ROW = {"site": SITE, "scale": 1.0, "method": "mine", "concept": "", "data": {}}


@pytest.mark.parametrize(
    "rows",
    [
        [ROW] * 13,
        [{"site": SITE}],
        [ROW | {"site": "residual"}],
        [ROW | {"scale": -1.0}],
        [ROW | {"scale": "long"}],
        None,
    ],
    ids=["more than there are", "too little", "no Site", "no scale", "no number", "no rows"],
)
def test_a_card_that_does_not_fit(folder: Path, rows: Any) -> None:
    edited(folder, directions=rows)
    with pytest.raises(FolderError, match="is damaged: "):
        load(folder)
