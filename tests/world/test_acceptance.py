"""The bundled models have every phenomenon of their acceptance table, measured on lines of another seed."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
from tests.world import hand

import inlay
from inlay import world
from inlay.errors import WorldError
from inlay.world.acceptance import HELD_OUT, Report, check
from inlay.world.checks.row import Row, auroc

CHECKED = [
    *(("tidepool", section) for section in ("concepts", "facts", "instructions", "circuits", "safety")),
    *(("tidepool-guard", section) for section in ("safety", "guard")),
]


@functools.cache
def bundled(name: str) -> inlay.Model:
    return inlay.load(name)


def causes(name: str) -> dict[str, str]:
    """The bounds that a bundled model is known to miss, and why."""
    path = Path(world.__file__).parent / "models" / name / "misses.json"
    found: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    return found


@pytest.mark.parametrize(("name", "section"), CHECKED)
def test_a_bundled_model_has_its_phenomena(name: str, section: str) -> None:
    """But for those that its card says it misses, and why."""
    report = check(bundled(name), section)
    assert len(report.rows) >= 4
    missed, known = {row.what for row in report.missed}, set(causes(name))
    assert missed == known & {row.what for row in report.rows}, report.markdown()


@pytest.mark.parametrize("name", ["tidepool", "tidepool-guard"])
def test_a_card_says_what_is_missed_and_why(name: str) -> None:
    card = (Path(world.__file__).parent / "models" / name / "README.md").read_text()
    assert card.count("| MISSED |") == card.count("- missed: ") == len(causes(name))
    assert all(cause in card for cause in causes(name).values()) and len(causes(name)) <= 3


@pytest.mark.parametrize("name", ["tidepool", "tidepool-guard"])
def test_a_bundled_model_is_small_and_says_what_it_is(name: str) -> None:
    model, folder = bundled(name), Path(world.__file__).parent / "models" / name
    assert model.name == name and model.encoder.chat
    assert model.hf.config.world["hash"] == world.tidepool().hash
    assert model.config.max_position_embeddings >= 256 and model.config.head_dim >= 32
    assert (folder / "model.safetensors").stat().st_size < 4_000_000
    card, facts = (folder / "README.md").read_text(), json.loads((folder / "training.json").read_text())
    assert facts["world"]["hash"] in card and f"{facts['tokens']:,} tokens" in card
    assert "It must not be used as a language model" in card and "| met |" in card
    seed = facts["config"]["seed"]
    assert seed != HELD_OUT


@pytest.mark.parametrize("name", ["tidepool", "tidepool-guard"])
def test_a_card_tells_what_other_seeds_gave(name: str) -> None:
    """So that a phenomenon which one seed has by luck is not taken for the recipe's."""
    folder = Path(world.__file__).parent / "models" / name
    card, own = (folder / "README.md").read_text(), json.loads((folder / "training.json").read_text())["config"]["seed"]
    seeds = json.loads((folder / "seeds.json").read_text())
    assert seeds and str(own) not in seeds
    for rows in seeds.values():
        assert sum(row["met"] is False for row in rows) <= 2
        for row in rows:
            assert f"| {row['phenomenon']} | {row['accepted']} |" in card and f"{row['value']:.3f}" in card
        assert len(rows) == card.count("| met |") + card.count("| MISSED |") + card.count("|  |  |\n")


def test_all_is_what_the_model_was_made_for() -> None:
    sections = {row.section for row in check(bundled("tidepool-guard")).rows}
    assert sections == {"safety", "guard"}


def test_a_row_is_met_within_its_bounds() -> None:
    assert Row("s", "w", 0.5, least=0.5).met and not Row("s", "w", 0.4, least=0.5).met
    assert Row("s", "w", 0.5, most=0.5).met and not Row("s", "w", 0.6, most=0.5).met
    assert Row("s", "w", float("nan"), least=0.5).met is False and Row("s", "w", 0.5).met is None
    assert Row("s", "w", 0.5, least=0.1, most=0.9).bound == ">= 0.1, <= 0.9"
    report = Report("m", [Row("s", "w", 0.4, least=0.5, note="here"), Row("s", "v", 0.1)])
    assert [row.what for row in report.missed] == ["w"]
    assert "| s | w (here) | 0.400 | >= 0.5 | MISSED |" in report.markdown()
    assert [record["met"] for record in report.records()] == [False, None]


def test_the_area_under_the_curve() -> None:
    assert auroc([2, 3], [0, 1]) == 1 and auroc([0, 1], [2, 3]) == 0
    assert auroc([1, 1], [1, 1]) == 0.5 and auroc([2, 0], [1]) == 0.5


def test_a_model_of_another_world_is_refused(tmp_path: Path) -> None:
    other = world.load(hand.write(tmp_path / "w"))
    with pytest.raises(WorldError, match=r"was trained on tidepool-1 \(.*\), and this is hand-1"):
        check(bundled("tidepool"), "concepts", other)
    with pytest.raises(WorldError, match="there is no check of 'weather'; these are: concepts, facts"):
        check(bundled("tidepool"), "weather")


def test_a_model_of_no_world_is_refused() -> None:
    from tests.world.test_training import config

    hf = config().architecture.build(60, {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2})
    with pytest.raises(WorldError, match="was not trained on a world"):
        check(inlay.load(hf), "facts")
