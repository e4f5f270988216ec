"""Training: resumed is uninterrupted, bit for bit; a changed job is refused; a tiny world is learnt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tests.world import hand

import inlay
from inlay import world
from inlay.errors import FolderError, ResumeError
from inlay.world import train as entry
from inlay.world.config import TrainConfig
from inlay.world.stream import Stream
from inlay.world.training import Training, one_cycle, weighted_loss, write_model
from inlay.world.world import World

ARCHITECTURE = {"width": 32, "inner": 48, "layers": 2, "heads": 1, "kv_heads": 1}


def config(**changes: Any) -> TrainConfig:
    base = {"name": "tiny", "architecture": ARCHITECTURE, "mixture": {"concepts": 1.0}, "steps": 8}
    return TrainConfig.model_validate({**base, "batch_tokens": 256, "pieces": 2, **changes})


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> World:
    return world.load(hand.write(tmp_path_factory.mktemp("world") / "w"))


def weights(training: Training) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in training.model.state_dict().items()}


def test_every_weight_of_a_resumed_training_is_the_same(mine: World, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("inlay.world.training.EVERY", 4)
    whole = Training(mine, config())
    whole.run(tmp_path / "a")  # leaves a checkpoint of step 4 and of step 8
    killed = Training(mine, config())
    stopped = iter(range(100))

    class KilledError(Exception):
        pass

    one = killed._one

    def dies(pieces: Any) -> float:
        if next(stopped) == 6:
            raise KilledError
        return one(pieces)

    monkeypatch.setattr(killed, "_one", dies)
    with pytest.raises(KilledError):
        killed.run(tmp_path / "b")
    again = Training(mine, config())
    again.load(tmp_path / "b")
    assert again.step == 4
    again.run(tmp_path / "b")
    assert again.step == whole.step == 8 and again.tokens == whole.tokens
    want, got = weights(whole), weights(again)
    assert all(torch.equal(want[name], got[name]) for name in want)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(mine: World, tmp_path: Path) -> None:
    found = []
    for seed in (0, 0, 1):
        training = Training(World(mine.folder, seed), config(seed=seed, steps=2))
        training.run(tmp_path)
        found.append(weights(training)["lm_head.weight"])
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_a_changed_job_is_refused(mine: World, tmp_path: Path) -> None:
    Training(mine, config()).save(tmp_path)
    with pytest.raises(ResumeError, match="another configuration"):
        Training(mine, config(lr=1e-3)).load(tmp_path)
    other = world.load(hand.write(tmp_path / "w", words={**hand.WORDS, "N": "cup hat box tin"}))
    with pytest.raises(ResumeError, match="is of world"):
        Training(other, config()).load(tmp_path)
    with pytest.raises(FolderError, match="holds no checkpoint to go on from"):
        Training(mine, config()).load(tmp_path / "nowhere")
    with pytest.raises(FolderError, match="holds a model or a checkpoint"):
        entry(mine, config(), tmp_path)


def test_a_training_killed_while_it_writes_keeps_its_last_checkpoint(mine: World, tmp_path: Path) -> None:
    training = Training(mine, config())
    training.save(tmp_path)
    (tmp_path / "checkpoint.part").mkdir()
    (tmp_path / "checkpoint.part" / "state.safetensors").write_bytes(b"half")
    Training(mine, config()).load(tmp_path)
    training.step = 5
    training.save(tmp_path)  # and writes over what was left
    assert json.loads((tmp_path / "checkpoint" / "state.json").read_text())["step"] == 5
    (tmp_path / "checkpoint").rename(tmp_path / "checkpoint.part")  # killed between the two renames
    again = Training(mine, config())
    again.load(tmp_path)
    assert again.step == 5


def test_a_damaged_checkpoint_is_named_and_a_full_disk_keeps_the_old_one(
    mine: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(mine, config())
    training.save(tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("I/O error: No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("inlay.world.training.save_file", full)
        with pytest.raises(FolderError, match="No space left"):
            training.save(tmp_path)
    Training(mine, config()).load(tmp_path)
    path = tmp_path / "checkpoint" / "state.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(FolderError, match="holds no checkpoint to go on from"):
        Training(mine, config()).load(tmp_path)


def test_a_model_is_written_to_be_loaded(mine: World, tmp_path: Path) -> None:
    entry(mine, config(steps=2), tmp_path / "m")
    stored = load_file(tmp_path / "m" / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.bfloat16}
    model = inlay.load(tmp_path / "m")
    assert next(model.hf.parameters()).dtype == torch.float32
    assert model.hf.config.world == {"version": "hand-1", "hash": mine.hash}
    assert isinstance(model.generate("tell me about the cat .", max_new_tokens=4), str)
    facts = json.loads((tmp_path / "m" / "training.json").read_text())
    assert facts["tokens"] > 0 and facts["config"]["steps"] == 2 and facts["curve"]
    assert not (tmp_path / "m" / "checkpoint").exists()


def test_the_loss_is_the_weighted_sum() -> None:
    logits, ids = torch.randn(2, 4, 5), torch.randint(0, 5, (2, 4))
    w = torch.tensor([[9.0, 1.0, 0.0, 2.0], [9.0, 0.5, 1.0, 0.0]])
    wanted = sum(w[r, t] * -logits[r, t - 1].log_softmax(-1)[ids[r, t]] for r in range(2) for t in range(1, 4))
    torch.testing.assert_close(weighted_loss(logits, ids, w), wanted)


def test_padding_changes_no_gradient(mine: World) -> None:
    """A lot of unequal rows is its rows alone."""
    training = Training(mine, config())
    pieces = next(Stream(mine, config()).steps())[0]
    piece = pieces[0]
    whole = weighted_loss(training.model(input_ids=piece.ids).logits, piece.ids, piece.weights)
    alone = torch.zeros(())
    for ids, w in zip(piece.ids, piece.weights, strict=True):
        n = int((w > 0).nonzero().max()) + 1
        alone = alone + weighted_loss(training.model(input_ids=ids[None, :n]).logits, ids[None, :n], w[None, :n])
    torch.testing.assert_close(whole, alone, rtol=1e-5, atol=1e-4)


def test_the_rate_rises_and_falls_once() -> None:
    rates = [one_cycle(step, 100) for step in range(100)]
    assert rates[9] == 1.0 and rates[0] == pytest.approx(0.1) and rates[-1] < 0.01
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.slow
def test_a_world_of_forty_words_is_learnt_from_scratch(mine: World, tmp_path: Path) -> None:
    learnt = config(steps=400, batch_tokens=1024, lr=4e-3, architecture={**ARCHITECTURE, "width": 64, "inner": 128})
    training = Training(World(mine.folder, 0), learnt)
    training.run(tmp_path)
    write_model(training, tmp_path / "m")
    model = inlay.load(tmp_path / "m")
    lines = list(World(mine.folder, 1000).lines("concepts", 60, "test", "talk"))
    said = model.generate([line.prompt for line in lines], do_sample=False, max_new_tokens=40)
    scores = mine.judge().score(lines, said)
    assert scores["fluency"].mean >= 1.8 and scores["instruction"].mean >= 1.8
