"""Configurations of trainings: those that ship, and what is broken in one."""

from __future__ import annotations

from pathlib import Path

import pytest

from inlay.errors import WorldError
from inlay.world import read_config


@pytest.mark.parametrize(("name", "window"), [("tidepool", 0), ("tidepool-guard", 4)])
def test_those_that_ship(name: str, window: int) -> None:
    config = read_config(name)
    assert config.name == name and config.architecture.window == window
    assert config.architecture.head_size >= 32 and config.architecture.context >= 256
    hf = config.architecture.build(958, {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2})
    assert (getattr(hf.config, "sliding_window", None) or 0) == window
    assert not hf.config.tie_word_embeddings
    assert sum(p.numel() for p in hf.parameters()) * 2 < 4e6  # bytes on disk, in bfloat16


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\ncolour: red\n", "colour"),
        ("name: [x\n", "x"),
        ("name: x\n", "architecture"),
    ],
)
def test_what_is_none(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(WorldError, match=f"(?s)c.yaml.*{message}"):
        read_config(tmp_path / "c.yaml")


def test_a_name_that_is_none_lists_those_that_ship() -> None:
    with pytest.raises(WorldError, match="there is no configuration 'ocean'; give a file, or one of: tidepool"):
        read_config("ocean")
