"""Weights & Biases by its own client, offline: what its file holds is what the run's log says."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from tests.interventions import tiny
from tests.train.rows import ragged
from torch import nn
from wandb.proto.wandb_internal_pb2 import Record

from inlay import Add, Edit
from inlay.errors import ExtraError
from inlay.train.fit import fit, train_bank
from inlay.train.log import RunLog, WandB

BLOCK, HEADER = 32768, 7


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "settings"))
    monkeypatch.chdir(tmp_path)


def records(folder: Path) -> Iterator[Record]:
    """The records of the one offline run in a folder, whose file is a LevelDB log.

    After seven bytes that name the format come chunks of (checksum, length, kind), none across a border of 32 KiB; a
    record is one chunk of kind 1, or chunks of kinds 2, 3, ..., 4.
    """
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    data, at, whole = path.read_bytes(), HEADER, b""
    assert data[:4] == b":W&B"
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        whole += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):
            yield Record.FromString(whole)
            whole = b""


def said(folder: Path) -> list[dict[str, Any]]:
    """What the run was told, in order."""
    rows = [record.history.item for record in records(folder) if record.WhichOneof("record_type") == "history"]
    return [{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row} for row in rows]


def added() -> Edit:
    return Edit("resid_post.1", Add(nn.Parameter(torch.linspace(-0.1, 0.1, tiny.WIDTH))))


def test_a_run_is_on_disk_number_by_number(tmp_path: Path) -> None:
    found = fit(tiny.model(), added(), "lm", ragged(4, 1), epochs=3, lr=0.05, batch=2, out=tmp_path, log=["wandb"])
    rows = [row for row in said(tmp_path) if "loss" in row]
    assert [row["loss"] for row in rows] == found.log.losses() and len(rows) == 6
    assert [row["train/step"] for row in rows] == list(range(6))
    mine = [row for row in found.log.rows if "loss" in row]
    for name in ("lr", "norm", "factor"):
        assert [row[name] for row in rows] == [row[name] for row in mine], name
    (last,) = [record for record in records(tmp_path) if record.WhichOneof("record_type") == "exit"]
    assert last.exit.exit_code == 0 and wandb.run is None


def test_charts_are_drawn_over_the_step_of_training(tmp_path: Path) -> None:
    fit(tiny.model(), added(), "lm", ragged(2, 1), epochs=1, out=tmp_path, log=["wandb"])
    metrics = [record.metric for record in records(tmp_path) if record.WhichOneof("record_type") == "metric"]
    assert [one.step_metric for one in metrics if one.glob_name == "*"] == ["train/step"]


def test_concepts_have_curves_of_their_own(tmp_path: Path) -> None:
    data = {"a": ragged(4, 1), "b": ragged(2, 2)}
    found = train_bank(tiny.model(), added(), "lm", data, epochs=2, batch=2, out=tmp_path, log=["wandb"])
    for name in data:
        rows = [row for row in said(tmp_path) if f"loss/{name}" in row]
        assert [row[f"loss/{name}"] for row in rows] == found.log.losses(name)
        assert [row["train/step"] for row in rows] == list(range(len(rows)))


def test_previews_are_texts(tmp_path: Path) -> None:
    log = RunLog(sinks=[WandB(dir=str(tmp_path), project="tests", name="texts")])
    log.add([{"concept": "", "step": 3, "preview": "the sea"}, {"concept": "a", "step": 3, "preview": "x" * 2 * BLOCK}])
    log.close()
    rows = [{k: v for k, v in row.items() if not k.startswith("_")} for row in said(tmp_path)]
    assert rows == [{"preview": "the sea", "train/step": 3}, {"preview/a": "x" * 2 * BLOCK, "train/step": 3}]
    (run,) = [record.run for record in records(tmp_path) if record.WhichOneof("record_type") == "run"]
    assert (run.project, run.display_name) == ("tests", "texts")


def test_without_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ExtraError, match="pip install wandb"):
        fit(tiny.model(), added(), "lm", ragged(2, 1), log=["wandb"])
