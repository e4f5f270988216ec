"""Every example runs, asserts an outcome and prints; every use case of pyvene's tutorials has one."""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path

import pytest

from inlay import Intervention

FOLDER = Path(__file__).resolve().parents[1] / "examples"
SLOW = {"iit", "path_patching_with_das"}  # they train

USE_CASES = {
    # pyvene's tutorials
    "attention weights": "attention_weights",
    "zero swap": "zero_activations",
    "mean swap": "mean_ablation",
    "constant swap": "constant_swap",
    "function edit": "function_edit",
    "subspace": "subspace",
    "one neuron of one head at one token": "one_neuron",
    "interchange": "interchange",
    "addition": "addition",
    "one training step": "train_one_step",
    "read": "read_activations",
    "read downstream of an edit": "read_downstream",
    "new class": "own_intervention",
    "across time": "across_time",
    "generate with a constant": "generate_with_constant",
    "generate with a source": "generate_with_source",
    "strength per request": "strength_per_request",
    "save and load": "save_and_load",
    "hub": "share_on_the_hub",
    "multi-source parallel": "sources_in_parallel",
    "multi-source serial": "sources_in_series",
    "multi-source with parts": "sources_in_parts",
    "interchange intervention training": "iit",
    "shared source": "shared_source",
    "skipping an intervention": "skipping",
    "skipping a block": "skip_a_block",
    "linking": "linking",
    "new family": "new_family",
    "path patching": "path_patching",
    "path patching with DAS": "path_patching_with_das",
    "causal tracing in 15 lines": "causal_tracing",
    "inference-time intervention": "inference_time_intervention",
    "LoRA-like edit": "lora_like",
    # beyond them
    "conditional edit": "conditional_edit",
    "joint tokens": "joint_tokens",
    "worlds": "worlds",
    "encoder": "encoder",
    "encoder-decoder": "encoder_decoder",
}
EXAMPLES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "tour")  # test_tour.py runs that one


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in EXAMPLES]
)
def test_an_example_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Intervention, "kinds", dict(Intervention.kinds))  # one of them adds a kind
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert capsys.readouterr().out.strip()
    assert not list(tmp_path.iterdir()), "an example leaves nothing behind"


def test_every_use_case_has_an_example() -> None:
    assert sorted(USE_CASES.values()) == EXAMPLES


def test_the_guide_for_pyvenes_users_names_every_example() -> None:
    guide = (FOLDER.parent / "docs" / "guides" / "pyvene.md").read_text()
    assert sorted(re.findall(r"`(\w+)\.py`", guide)) == EXAMPLES


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_states_and_asserts_its_outcome(name: str) -> None:
    tree = ast.parse((FOLDER / f"{name}.py").read_text())
    said = ast.get_docstring(tree) or ""
    assert "Asserted" in said, "the docstring says what is asserted"
    assert "pyvene" in said.splitlines()[-1] or "pyvene" in said.splitlines()[-2], "it ends with what it stands for"
    checks = [node for node in tree.body if isinstance(node, ast.Assert)]
    assert checks, "an outcome is asserted at the top level"
    assert tree.body[-1] in checks or "assert_close" in ast.unparse(tree.body[-1]), "the example ends with it"
