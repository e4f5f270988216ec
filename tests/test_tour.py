"""The tour runs to its end, and shows what it says: steering, a swapped fact, and a model that is untouched."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

TOUR = Path(__file__).resolve().parents[1] / "examples" / "tour.py"


def test_the_tour() -> None:
    done = subprocess.run([sys.executable, str(TOUR)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert "the loaded edit writes the same text: True" in said and "CHANGED" not in said
    table = re.findall(r"^ +(\d\.\d) +(\d\.\d\d) +(\d\.\d\d) +(\d\.\d\d) ", said, re.MULTILINE)
    concept = {float(strength): float(score) for strength, score, *_ in table}
    assert len(table) == 6 and concept[0.0] == 0 and max(concept.values()) > 0.5
    chances = {
        name.strip(): (float(base), float(source))
        for name, base, source in re.findall(
            r"^  (no edit|block \d) +\w+ (\d\.\d+)  \w+ (\d\.\d+)$", said, re.MULTILINE
        )
    }
    assert chances["no edit"][0] > 0.5 > chances["no edit"][1]
    assert chances["block 0"][1] > 0.5 > chances["block 0"][0]
