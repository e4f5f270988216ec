"""The tour runs to its end, which checks that the model is untouched; with the shared model and without."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[1] / "examples" / "demo.py"


def toured(shared: Path) -> str:
    environment = {**os.environ, "INLAY_SHARED": str(shared)}
    done = subprocess.run([sys.executable, str(DEMO)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "the loaded edit writes the same text: True" in done.stdout
    assert "CHANGED" not in done.stdout
    return done.stdout


def steered(output: str) -> dict[float, tuple[int, int]]:
    """Boy words and girl words at each strength, from the table of step 3."""
    rows = [line.split() for line in output.partition("strength  boy words")[2].partition("\n4 ")[0].splitlines()[1:]]
    return {float(row[0]): (int(row[1]), int(row[2])) for row in rows if row}


@pytest.mark.slow
def test_with_nothing_but_the_repository(tmp_path: Path) -> None:
    output = toured(tmp_path)
    counts = steered(output)
    assert "Training a Llama" in output
    assert counts[2.0][0] > counts[2.0][1]
    assert counts[-2.0][1] > counts[-2.0][0]


@pytest.mark.slow
def test_on_the_shared_model(shared: Path) -> None:
    output = toured(shared)
    counts = steered(output)
    assert "stories260K" in output
    assert counts[2.0][0] > counts[2.0][1]
    assert counts[-2.0][1] > counts[-2.0][0]
