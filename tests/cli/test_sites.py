from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.random_folder import LAYERS, WIDTH
from transformers import AutoModelForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM
from typer.testing import Result

from inlay.cli.sites import _ranges
from inlay.model.sites import GLOBAL, LAYERED

Command = Callable[..., Result]


@pytest.fixture(scope="session")
def parallel_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-NeoX: parallel blocks and a fused qkv projection."""
    folder = tmp_path_factory.mktemp("neox")
    config = GPTNeoXConfig(
        vocab_size=40, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=36
    )
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    return folder


def test_table(inlay_command: Command, folder: Path) -> None:
    result = inlay_command("sites", folder)
    assert result.exit_code == 0, result.output
    lines = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line.strip()}
    assert f"llama, {LAYERS} layers, width {WIDTH}" in result.stdout
    assert lines["resid_post"] == ["resid_post", "0-2", "32", "model.layers.*", "out"]
    assert lines["k"] == ["k", "0-2", "16", "2", "model.layers.*.self_attn.k_proj", "out"]
    assert lines["pattern"] == ["pattern", "0-2", "keys", "4", "model.layers.*.self_attn", "pattern"]
    assert lines["logits"] == ["logits", "261", "lm_head", "out"]
    assert "It lacks router: " in result.stdout


def test_json_names_modules_that_exist(inlay_command: Command, folder: Path) -> None:
    result = inlay_command("sites", folder, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    hf = AutoModelForCausalLM.from_pretrained(folder)
    assert (found["family"], found["layers"], found["width"]) == ("llama", LAYERS, WIDTH)
    assert {row["site"] for row in found["sites"]} | set(found["lacks"]) == set(LAYERED + GLOBAL)
    for row in found["sites"]:
        for layer in row["layers"] or [None]:
            hf.get_submodule(row["module"].format(layer=layer))
    by_name = {row["site"]: row for row in found["sites"]}
    assert by_name["v"]["width"] == hf.model.layers[0].self_attn.v_proj.weight.shape[0]
    assert by_name["mlp_act"]["width"] == hf.model.layers[0].mlp.down_proj.weight.shape[1]
    assert by_name["embed"]["layers"] is None
    assert by_name["z"]["layers"] == [0, 1, 2]


def test_what_is_lacking_has_its_reason(inlay_command: Command, parallel_folder: Path) -> None:
    result = inlay_command("sites", parallel_folder)
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("It lacks") and "resid_mid" in line]
    assert line.partition(": ")[2]
    assert "out, some columns" in result.stdout  # q, k, v of the fused projection
    lacks = json.loads(inlay_command("sites", parallel_folder, "--json").stdout)["lacks"]
    assert "resid_mid" in lacks
    assert all(lacks.values())


def test_layers_that_differ_have_a_row_each() -> None:
    assert _ranges((0, 1, 2, 4, 6, 7)) == "0-2, 4, 6-7"
    assert _ranges(()) == ""


def test_no_such_folder(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "there is no folder" in refused("sites", tmp_path / "nowhere")


def test_a_folder_without_a_model(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "could not be loaded as a language model" in refused("sites", tmp_path)


def test_debug_lets_the_error_through(inlay_command: Command, tmp_path: Path) -> None:
    result = inlay_command("sites", tmp_path / "nowhere", "--debug")
    assert type(result.exception).__name__ == "ModelError"
    assert result.exit_code == 1


def test_stories(inlay_command: Command, shared: Path) -> None:
    found = json.loads(inlay_command("sites", shared / "data/models/stories260K", "--json").stdout)
    assert (found["layers"], found["width"]) == (5, 64)
    heads = {row["site"]: (row["width"], row["heads"]) for row in found["sites"]}
    assert heads["z"] == heads["q"] == (64, 8)
    assert heads["k"] == heads["v"] == (32, 4)
