"""The studies run to their end, which is where they assert what they found; those that draw a figure save it."""

from __future__ import annotations

import ast
import re
import runpy
import sys
from pathlib import Path

import pytest

pytest.importorskip("xarray", reason="patching grids are labelled arrays: pip install 'inlay[causal]'")

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "studies"
STUDIES = sorted(path.stem for path in FOLDER.glob("*.py"))
SLOW = {"hierarchical_equality", "ioi_heads", "ioi_several_tokens", "probe_or_das", "sae_read_and_steer"}  # they train

NOTEBOOKS = {  # of pyvene, and what stands for each
    "a capital, patched": ["facts_grid"],
    "Gemma Scope, read and steer": ["sae_read_and_steer"],
    "price tag, Boundless DAS": ["boundless_price_tag"],
    "causal tracing": ["rome_tracing"],
    "hierarchical equality, DAS": ["hierarchical_equality"],
    "indirect objects": ["ioi_heads", "ioi_paths", "ioi_several_tokens"],
    "MQNLI": ["mqnli"],
    "probe against DAS": ["probe_or_das"],
    "two contradicting sites": ["contradicting_sites"],
    "memorised text": ["memorised_facts"],
    "gpt-oss": ["gpt_oss_grid"],
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in STUDIES]
)
def test_a_study_finds_what_it_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    figure = tmp_path / "figure.png"
    monkeypatch.setattr(sys, "argv", [name, str(figure)])
    found = runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert capsys.readouterr().out.strip()
    assert figure.exists() == ("[figure.png]" in found["__doc__"])


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_says_what_it_asserts_and_why(name: str) -> None:
    tree = ast.parse((FOLDER / f"{name}.py").read_text())
    said = ast.get_docstring(tree) or ""
    assert "pyvene" in said and "Asserted" in said and f"python examples/studies/{name}.py" in said
    (main,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"]
    assert any(isinstance(node, ast.Assert) for node in ast.walk(main)), "an outcome is asserted"


def test_every_notebook_has_its_studies_and_the_guide_names_them() -> None:
    assert sorted(name for names in NOTEBOOKS.values() for name in names) == STUDIES
    guide = (FOLDER.parents[1] / "docs" / "guides" / "pyvene.md").read_text()
    rows = re.findall(r"^\| (.+?) \| ((?:`\w+`(?:, )?)+) \|$", guide, re.MULTILINE)
    assert {notebook: re.findall(r"`(\w+)`", names) for notebook, names in rows} == NOTEBOOKS
