"""A training as a YAML file: what it does, what is wrong in it by its place, and its plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import inlay
from inlay import Edit
from inlay.errors import TrainError
from inlay.train.config import TrainConfig
from inlay.train.fit import fit
from inlay.train.objectives import RePS
from inlay.train.parameterise import steering

ROWS = [
    {"instruction": f"say {word}", "output": f"the {word} was cold .", "bad": f"the {word} was red .", "about": about}
    for word, about in zip(("sea", "boat", "owl", "cat"), "xxyy", strict=True)
]
GOOD: dict[str, Any] = {
    "model": "tidepool",
    "train": {"way": "steering", "site": "resid_post.3"},
    "objective": {"name": "reps", "length": "sequence"},
    "data": {"path": "rows.jsonl", "columns": {"rejected": "bad"}},
    "factors": [1, 2],
    "recipe": {"epochs": 2, "lr": 0.05, "batch": 2},
}


def written(folder: Path, change: dict[str, Any] | None = None) -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump({**GOOD, **(change or {})}))
    return path


def test_a_config_trains_what_its_calls_would(tmp_path: Path) -> None:
    config = TrainConfig.read(written(tmp_path))
    model = inlay.load(config.model)
    found = config.run(model, tmp_path / "out")
    edit = steering(model, "resid_post.3")
    rows = [{"prompt": row["instruction"], "chosen": row["output"], "rejected": row["bad"]} for row in ROWS]
    fit(model, edit, RePS(length="sequence"), rows, factors=[1, 2], epochs=2, lr=0.05, batch=2)
    mine, theirs = found.edit.parts[0].intervention, edit.parts[0].intervention
    assert torch.equal(mine.vector, theirs.vector) and torch.equal(mine.bias, theirs.bias)
    again = Edit.from_pretrained(tmp_path / "out" / "edit", model).parts[0].intervention
    assert torch.equal(again.vector, theirs.vector)


def test_a_rate_as_yaml_reads_it(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_text(path.read_text().replace("lr: 0.05", "lr: 5e-2"))  # a string to YAML 1.1
    assert TrainConfig.read(path).numbers().lr == 0.05


def test_held_out_rows_are_planned_for(tmp_path: Path) -> None:
    config = written(tmp_path, {"data": {**GOOD["data"], "held_out": "held.jsonl"}})
    with pytest.raises(TrainError, match=r"held\.jsonl cannot be read"):
        TrainConfig.read(config).plan(inlay.load("tidepool"))
    (tmp_path / "held.jsonl").write_text(json.dumps({**ROWS[0], "output": "the moon was cold ."}) + "\n")
    assert TrainConfig.read(config).plan(inlay.load("tidepool")).sequences == 9


def test_a_column_of_concepts_trains_one_for_each(tmp_path: Path) -> None:
    data = {**GOOD["data"], "concept": "about", "held_out": "rows.jsonl"}
    found = TrainConfig.read(written(tmp_path, {"data": data})).run(inlay.load("tidepool"), tmp_path / "out")
    assert found.concepts == ["x", "y"]
    assert sorted(path.name for path in (tmp_path / "out" / "concepts").iterdir()) == ["00000-x", "00001-y"]
    assert all("held_out" in found.facts["concepts"][name] for name in "xy")


def test_the_plan(tmp_path: Path) -> None:
    model = inlay.load("tidepool")
    plan = TrainConfig.read(written(tmp_path)).plan(model)
    assert (plan.concepts, plan.examples, plan.sequences, plan.steps) == (1, 4, 8, 4)
    assert plan.parameters == model.width + 1 and plan.base == sum(p.numel() for p in model.base.parameters())
    assert plan.starts_at == "resid_post.3" and plan.blocks == (2, 6)
    assert plan.store_bytes == plan.tokens * model.width * 4 + 4 * plan.sequences  # states, and RePS's log-probs
    assert plan.train_bytes == 16 * (model.width + 1)
    said = str(plan)
    for part in ("8 distinct sequences", "from kept resid_post.3: 2 of 6 blocks", f"{model.width + 1} a concept"):
        assert part in said
    more = {"resume": False, "data": {**GOOD["data"], "concept": "about"}, "at_once": 1}
    plan = TrainConfig.read(written(tmp_path, more)).plan(model)
    assert (plan.concepts, plan.at_once, plan.steps, plan.store_bytes) == (2, 1, 4, 4 * 4)  # log-probs alone
    assert "all 6 blocks" in str(plan) and "2, 1 at once" in str(plan)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"optimizer": "adam"}, "train.yaml: optimizer: no such key"),
        ({"data": {"path": "rows.jsonl", "colums": {}}}, "data.colums: no such key"),
        ({"train": {"way": "magic"}}, "train.way is 'magic': one of reft, steering, reft_r1, lora"),
        ({"train": {"way": "steering", "sight": 3}}, "steering does not take sight; it takes site, tokens"),
        ({"train": {"way": "steering", "model": "x"}}, "steering does not take model"),
        ({"recipe": {"learning_rate": 1}}, "recipe: no learning_rate; it has epochs, lr"),
        ({"autocast": "float8"}, "autocast: Input should be 'bfloat16'"),
        ({"recipe": {"epochs": "many"}}, "recipe: epochs: Input should be a valid integer"),
        ({"recipe": {"epochs": 2.5}}, "recipe: epochs: Input should be a valid integer"),
        ({"log": ["mlflow"]}, "log.0"),
        ({"model": None}, "model: Input should be a valid string"),
    ],
)
def test_a_key_or_a_value_that_is_wrong_is_named(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=said):
        TrainConfig.read(written(tmp_path, change))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"objective": "love"}, "love"),
        ({"objective": {"length": "response"}}, "give its name"),
        ({"objective": {"name": "reps", "beta": 1}}, "beta"),
        ({"recipe": {"lr": -1.0}}, "lr=-1.0"),
        ({"train": {"way": "reft", "rank": 4, "colour": "red"}}, "train: .*colour"),
        ({"train": {"way": "reft", "kind": "daft"}}, "kind='daft'"),
        ({"data": {"path": "nowhere.jsonl"}}, "nowhere.jsonl cannot be read"),
        ({"data": {"path": "rows.jsonl"}}, "has no 'rejected', and this objective runs 'rejected'"),
    ],
)
def test_what_only_the_plan_shows(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=said):
        TrainConfig.read(written(tmp_path, change)).plan(inlay.load("tidepool"))


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="cannot be read as YAML"):
        TrainConfig.read(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(TrainError, match="cannot be read as YAML"):
        TrainConfig.read(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(TrainError, match="holds no keys"):
        TrainConfig.read(tmp_path / "list.yaml")
