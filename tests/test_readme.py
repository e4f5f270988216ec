"""The README's code runs: the first block as it stands, the second on a tiny model in place of the hub's."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.docs.conftest import hub, tiny_qwen
from tests.docs.python_blocks import blocks, run

README = Path(__file__).resolve().parents[1] / "README.md"

__all__ = ["hub", "tiny_qwen"]


def test_the_first_ten_lines(tmp_path: Path) -> None:
    _, code = blocks(README)[0]
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(lines) <= 10
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    readme = README.read_text()
    high, low = map(float, re.findall(r"[\d.]+\d", done.stdout.splitlines()[0]))
    assert f"it detects: {high:.1f} and {low:.1f}" in readme
    assert "beside the kettle" in done.stdout and "`beside the kettle`" in readme


def test_every_block(hub: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = blocks(README)
    assert len(code) == 2
    run(README, code)
    assert (tmp_path / "calm" / "edit.json").exists()


def test_the_tests_it_names_are_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", README.read_text()))
    assert named
    there = (README.parent / "tests" / "test_pyvene_defects.py").read_text()
    assert named <= set(re.findall(r"^def (test_\w+)", there, re.MULTILINE))


def test_its_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)]+)\)", README.read_text()):
        path, _, anchor = link.partition("#")
        page = README.parent / path
        assert page.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in headings}, link
