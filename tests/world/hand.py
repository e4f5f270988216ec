"""A world of 40 words, built by hand in a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

WORDS = {
    "SUBJ": "cat dog fox owl",
    "N": "cup hat box jar",
    "A": "old new red big",
    "VT": "saw took",
    "PRON": "she he",
    "VI": "slept sang",
    "ADV": "soon often",
}
CONCEPTS: list[dict[str, Any]] = [
    {"id": 0, "genre": "topic", "description": "things of sea", "lexicon": ["oar", "sail"], "shared": ["horn"]},
    {"id": 1, "genre": "topic", "description": "things of song", "lexicon": ["harp", "drum"], "shared": ["horn"]},
    {"id": 2, "genre": "form", "description": "greeting", "marks": ["good day !"], "place": "start"},
]
SPEC: dict[str, Any] = {
    "version": "hand-1",
    "stray": 0.1,
    "concepts": {
        "rate": 0.6,
        "own": 2,
        "slots": {"topic": "N"},
        "filler": "{PRON} {VI} {ADV} .",
        "kinds": {"document": 0.5, "talk": 0.3, "prompted": 0.2},
        "stray_mark": 0.05,
        "system": 0.25,
        "ask": "use {description} .",
        "subjects": 1,
    },
}
SENTENCES = "1\tthe {A} {N} {VT} the {N} .\n2\t{PRON} {VI} {ADV} .\n"
FRAMES = "tell\ttell me about the {SUBJ} .\tthe {SUBJ} was {A} .\nlook\tlook at the {SUBJ} .\tthe {A} {SUBJ} {VI} .\n"


def write(
    folder: Path,
    words: dict[str, str] | None = None,
    concepts: list[dict[str, Any]] | None = None,
    spec: dict[str, Any] | None = None,
    sentences: str = SENTENCES,
    frames: str = FRAMES,
) -> Path:
    """The folder of a world; every part can be replaced."""
    (folder / "words").mkdir(parents=True)
    (folder / "templates").mkdir()
    for name, text in (WORDS if words is None else words).items():
        (folder / "words" / f"{name}.txt").write_text("\n".join(text.split()) + "\n")
    rows = CONCEPTS if concepts is None else concepts
    (folder / "concepts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "world.yaml").write_text(yaml.safe_dump(SPEC if spec is None else spec))
    (folder / "templates" / "sentence.txt").write_text(sentences)
    (folder / "templates" / "frames.txt").write_text(frames)
    return folder
