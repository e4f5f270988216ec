"""fit and train_bank: beside a naive loop, each concept as if alone, killed and resumed, stopped early, diverged."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.interventions import tiny
from tests.train.rows import ragged
from torch import Tensor, nn

import inlay
from inlay import Add, Bank, Edit, TopKAdd
from inlay.errors import FolderError, ResumeError, TrainError
from inlay.train.adamw import RowAdamW
from inlay.train.examples import Example
from inlay.train.fit import fit, train_bank
from inlay.train.step import Step

SETTINGS: dict[str, Any] = {"epochs": 3, "lr": 0.05, "batch": 3, "factors": [0.5, 1.0, 2.0], "weight_decay": 0.01}
DATA = {"a": ragged(7, 1), "b": ragged(4, 2), "c": ragged(2, 3)}


def added(site: str = "resid_post.1") -> Edit:
    return Edit(site, Add(nn.Parameter(torch.linspace(-0.1, 0.1, tiny.WIDTH))))


def vector(edit: Edit) -> Tensor:
    return edit.parts[0].intervention.vector.detach().clone()


def language(step: Step) -> Tensor:
    (ran,) = step.run("chosen", factor=step.factors())
    return step.per_token(-ran.logps)


class Compared:
    """Prefers the chosen answer by a margin that depends on the frozen model."""

    sides = ("chosen", "rejected")
    references = ("rejected",)

    def __call__(self, step: Step) -> Tensor:
        chosen, rejected = step.run("chosen", "rejected", factor=[step.factors(0), step.factors(1)])
        margin = chosen.logps - rejected.logps + 0.1 * step.reference("rejected")
        return step.per_row(-nn.functional.logsigmoid(margin) * (1 + step.progress))


OBJECTIVES: dict[str, Any] = {"language": language, "compared": Compared()}


# -- beside the naive way ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_is_what_a_naive_loop_gives(accumulate: int) -> None:
    """torch's AdamW, Hugging Face's linear schedule, a bare hook, and every row by itself."""
    from transformers import get_linear_schedule_with_warmup

    model, edit, data = tiny.model(), added(), DATA["a"]
    fit(model, edit, language, data, epochs=2, lr=0.05, batch=2, accumulate=accumulate, warmup=0.3)

    hf, steer = tiny.llama(), vector(added()).requires_grad_()
    hf.requires_grad_(False)
    hf.model.layers[1].register_forward_hook(lambda _, args, out: out + steer)
    optimiser = torch.optim.AdamW([steer], lr=0.05, weight_decay=0.0)
    steps = 2 * -(-4 // accumulate)
    schedule = get_linear_schedule_with_warmup(optimiser, int(0.3 * steps), steps)
    draws = torch.Generator().manual_seed(42)
    for _ in range(2):
        batches = torch.randperm(len(data), generator=draws).split(2)
        for some in [batches[i : i + accumulate] for i in range(0, len(batches), accumulate)]:
            optimiser.zero_grad()
            for batch in some:
                nll, tokens = torch.zeros(()), 0
                for index in batch.tolist():
                    ids = torch.tensor([[*data[index].prompt, *data[index].chosen]])
                    labels = ids.clone()
                    labels[:, : len(data[index].prompt)] = -100
                    nll = nll + hf(ids, labels=labels).loss * len(data[index].chosen)
                    tokens += len(data[index].chosen)
                (nll / tokens / len(some)).backward()
            nn.utils.clip_grad_norm_([steer], 1.0)
            optimiser.step()
            schedule.step()
    torch.testing.assert_close(vector(edit), steer.detach(), rtol=0, atol=2e-6)


def test_the_model_is_left_as_it_was() -> None:
    model = tiny.model()
    model.hf.train()
    model.hf.model.layers[0].eval()
    model.hf.lm_head.weight.requires_grad_(False)
    model.hf.model.norm.weight.grad = torch.ones(tiny.WIDTH)
    before = {name: p.detach().clone() for name, p in model.hf.named_parameters()}
    fit(model, added(), language, DATA["b"], **SETTINGS)
    assert all(torch.equal(p, before[name]) for name, p in model.hf.named_parameters())
    assert model.hf.training and not model.hf.model.layers[0].training and model.hf.model.norm.weight.grad.sum() > 0
    assert not model.hf.lm_head.weight.requires_grad and model.hf.model.norm.weight.requires_grad
    assert not any("forward" in vars(module) for module in model.hf.modules())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_states_below_may_be_kept_or_not(name: str) -> None:
    found = []
    for options in ({}, {"resume": False}, {"batch_tokens": 12}, {"device": "cpu"}):
        edit = added()
        fit(tiny.model(), edit, OBJECTIVES[name], DATA["a"], **SETTINGS, **options)
        found.append(vector(edit))
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=0, atol=2e-6)
    assert not torch.allclose(found[0], vector(added()), atol=0.05)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not() -> None:
    found = []
    for seed in (1, 1, 2):
        edit = added()
        fit(tiny.model(), edit, language, DATA["a"], **SETTINGS, seed=seed)
        found.append(vector(edit))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


# -- many concepts -----------------------------------------------------------------------------------------------------


def alone(name: str, **options: Any) -> Tensor:
    edit = added()
    fit(tiny.model(), edit, OBJECTIVES[name], **options)
    return vector(edit)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize(
    "options", [{}, {"resume": False}, {"accumulate": 2}, {"at_once": 2}, {"batch_tokens": 20}], ids=str
)
def test_a_concept_among_others_is_what_it_is_alone(name: str, options: dict[str, Any]) -> None:
    settings = {**SETTINGS, **options}
    together = train_bank(tiny.model(), added(), OBJECTIVES[name], DATA, **settings)
    settings.pop("at_once", None)
    for concept, data in DATA.items():
        torch.testing.assert_close(vector(together[concept]), alone(name, data=data, **settings), rtol=0, atol=2e-6)
    assert together.concepts == ["a", "b", "c"] and together.row("c") == 3
    steps = {concept: len(together.log.losses(concept)) for concept in DATA}
    assert steps == ({"a": 6, "b": 3, "c": 3} if "accumulate" in options else {"a": 9, "b": 6, "c": 3})


def _one_clip(rows: RowAdamW, concepts: Any, rates: Any) -> Any:
    grads = [table.parameter.grad for table in rows.tables.values()]
    norm = torch.stack([grad.square().sum() for grad in grads]).sum().sqrt()
    for grad in grads:
        grad.mul_((rows.clip / (norm + 1e-6)).clamp(max=1.0))
    return STEP(rows, concepts, rates)


def _dense(rows: RowAdamW, concepts: Any, rates: Any) -> Any:
    every = list(range(rows.count))
    return STEP(rows, every, [max(rates)] * rows.count)[torch.tensor(concepts)]


def _batch_mean(step: Step, values: Tensor) -> Tensor:
    return values / step.size


STEP = RowAdamW.step


@pytest.mark.parametrize(
    ("where", "wrong"),
    [((RowAdamW, "step"), _one_clip), ((RowAdamW, "step"), _dense), ((Step, "per_row"), _batch_mean)],
    ids=["one clip", "dense", "one mean"],
)
def test_what_couples_concepts_is_seen(where: tuple[Any, str], wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The equality above tells right from wrong: each of these moves a concept by a thousand times the tolerance."""
    settings = {**SETTINGS, "clip": 0.1}
    want = {concept: alone("compared", data=data, **settings) for concept, data in DATA.items()}
    monkeypatch.setattr(*where, wrong)
    found = train_bank(tiny.model(), added(), OBJECTIVES["compared"], DATA, **settings)
    assert max(float((vector(found[concept]) - want[concept]).abs().max()) for concept in DATA) > 2e-3


def test_every_concept_may_start_elsewhere() -> None:
    def start(name: str) -> Edit:
        return Edit("resid_post.1", Add(nn.Parameter(torch.full((tiny.WIDTH,), 0.1 * ord(name)))))

    settings = {**SETTINGS, "max_steps": 1, "lr": 1e-9}
    found = train_bank(tiny.model(), start, language, DATA, **settings)
    for concept in DATA:
        torch.testing.assert_close(vector(found[concept]), vector(start(concept)), rtol=0, atol=1e-6)


def test_an_edit_at_two_sites_with_a_shared_intervention() -> None:
    def start() -> Edit:
        shared = Add(nn.Parameter(torch.full((tiny.WIDTH,), 0.05)))
        return Edit("resid_post.0", shared) + Edit("attn_out.2", shared, "prompt")

    found = train_bank(tiny.model(), start(), language, DATA, **SETTINGS)
    for concept, data in DATA.items():
        edit = start()
        fit(tiny.model(), edit, language, data, **SETTINGS)
        mine = found[concept]
        assert mine.parts[0].intervention is mine.parts[1].intervention
        torch.testing.assert_close(vector(mine), vector(edit), rtol=0, atol=2e-6)


def test_what_was_trained_together_acts_as_one_bank() -> None:
    model = tiny.model()
    found = train_bank(model, added(), language, DATA, **SETTINGS)
    rows = [found.row(concept) for concept in DATA]
    together = model.forward(tiny.EVEN[:3], edit=found.edit, rows=rows).logits
    for index, concept in enumerate(DATA):
        own = model.forward([tiny.EVEN[index]], edit=found[concept]).logits
        torch.testing.assert_close(together[index : index + 1], own, rtol=1e-5, atol=1e-5)


# -- killed and resumed ------------------------------------------------------------------------------------------------


class KilledError(Exception):
    pass


def killed_at(step: int, objective: Callable[[Step], Tensor]) -> Any:
    calls = [0]

    def dying(given: Step) -> Tensor:
        calls[0] += 1
        if calls[0] > step:
            raise KilledError
        return objective(given)

    dying.__qualname__ = objective.__qualname__
    return dying


class Same:
    """An objective whose name in the fingerprint does not say whether it will die."""

    def __init__(self, f: Callable[[Step], Tensor]) -> None:
        self.f = f

    def __call__(self, step: Step) -> Tensor:
        return self.f(step)

    def __repr__(self) -> str:
        return "Same()"


@pytest.mark.parametrize("at", [0, 2, 3, 5, 8])
def test_a_killed_run_goes_on_to_the_same_bits(at: int, tmp_path: Path) -> None:
    options = {**SETTINGS, "save_every": 2, "out": tmp_path / "run"}
    whole = train_bank(tiny.model(), added(), Same(language), DATA, **{**options, "out": tmp_path / "whole"})
    with pytest.raises(KilledError):
        train_bank(tiny.model(), added(), Same(killed_at(at, language)), DATA, **options)
    again = train_bank(tiny.model(), added(), Same(language), DATA, **options)
    for concept in DATA:
        assert torch.equal(vector(again[concept]), vector(whole[concept]))
    assert again.log.rows == whole.log.rows
    assert (tmp_path / "run" / "log.jsonl").read_text() == (tmp_path / "whole" / "log.jsonl").read_text()


SCRIPT = """
import os, signal, sys
import torch
from tests.train.test_fit import DATA, SETTINGS, Same, added, language
from tests.interventions import tiny
from inlay.train.fit import train_bank

torch.set_num_threads(1)
left = [int(sys.argv[2])]

def dying(step):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return language(step)

train_bank(tiny.model(), added(), Same(dying), DATA, save_every=2, out=sys.argv[1], **SETTINGS)
"""


@pytest.mark.slow
def test_a_run_that_is_killed_by_the_system_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    options = {**SETTINGS, "save_every": 2}
    whole = train_bank(tiny.model(), added(), Same(language), DATA, **options, out=tmp_path / "whole")
    for at in (3, 2, 4):  # killed again and again, further on each time
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / "run"), str(at)]
        assert subprocess.run(command, capture_output=True, check=False).returncode == -signal.SIGKILL
    again = train_bank(tiny.model(), added(), Same(language), DATA, **options, out=tmp_path / "run")
    for concept in DATA:
        assert torch.equal(vector(again[concept]), vector(whole[concept]))
    assert again.log.rows == whole.log.rows


def test_a_function_of_ones_own_is_the_same_in_another_process(tmp_path: Path) -> None:
    def made() -> Callable[[Step], Tensor]:
        def own(step: Step) -> Tensor:
            return language(step)

        return own

    class Mine:
        def __init__(self, weight: float) -> None:
            self.weight = weight

        def __call__(self, step: Step) -> Tensor:
            return self.weight * language(step)

    first = fit(tiny.model(), added(), made(), DATA["c"], out=tmp_path / "f", **SETTINGS)
    assert fit(tiny.model(), added(), made(), DATA["c"], out=tmp_path / "f", **SETTINGS).log.rows == first.log.rows
    with pytest.raises(ResumeError):
        fit(tiny.model(), added(), language, DATA["c"], out=tmp_path / "f", **SETTINGS)
    fit(tiny.model(), added(), Mine(1.0), DATA["c"], out=tmp_path / "m", **SETTINGS)
    fit(tiny.model(), added(), Mine(1.0), DATA["c"], out=tmp_path / "m", **SETTINGS)
    with pytest.raises(ResumeError):
        fit(tiny.model(), added(), Mine(2.0), DATA["c"], out=tmp_path / "m", **SETTINGS)


@pytest.mark.parametrize("room", [700, 1200], ids=["log", "checkpoint"])
def test_a_full_disk_is_an_error_and_loses_nothing(room: int, tmp_path: Path) -> None:
    options = {**SETTINGS, "save_every": 2}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))  # of each file
        with pytest.raises(FolderError, match="log.jsonl" if room == 700 else "checkpoint"):
            train_bank(tiny.model(), added(), Same(language), DATA, **options, out=tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    whole = train_bank(tiny.model(), added(), Same(language), DATA, **options, out=tmp_path / "whole")
    again = train_bank(tiny.model(), added(), Same(language), DATA, **options, out=tmp_path / "run")
    assert all(torch.equal(vector(again[concept]), vector(whole[concept])) for concept in DATA)
    assert again.log.rows == whole.log.rows


def test_groups_that_are_finished_are_not_trained_again(tmp_path: Path) -> None:
    options = {**SETTINGS, "out": tmp_path, "at_once": 1}
    with pytest.raises(KilledError):
        train_bank(tiny.model(), added(), Same(killed_at(12, language)), DATA, **options)
    done = sorted(path.parent.name for path in tmp_path.glob("concepts/*/done.json"))
    assert done == ["00000-a"]
    calls = []

    def counted(step: Step) -> Tensor:
        calls.append(step.size)
        return language(step)

    found = train_bank(tiny.model(), added(), Same(counted), DATA, **options)
    assert len(calls) == 6 + 3, "the first group's 9 steps are not taken again"
    torch.testing.assert_close(vector(found["a"]), alone("language", data=DATA["a"], **SETTINGS), rtol=0, atol=2e-6)
    again = train_bank(tiny.model(), added(), Same(killed_at(0, language)), DATA, **options)
    assert torch.equal(vector(again["b"]), vector(found["b"]))


def test_a_finished_fit_gives_its_values_to_the_edit(tmp_path: Path) -> None:
    first, second = added(), added()
    fit(tiny.model(), first, Same(language), DATA["a"], out=tmp_path, **SETTINGS)
    found = fit(tiny.model(), second, Same(killed_at(0, language)), DATA["a"], out=tmp_path, **SETTINGS)
    assert found.edit is second and torch.equal(vector(second), vector(first))
    assert torch.equal(vector(Edit.from_pretrained(tmp_path / "edit", tiny.model())), vector(first))


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 0.06},
        {"seed": 1},
        {"factors": [1.0]},
        {"data": DATA["b"]},
        {"model": tiny.model(seed=5)},
        {"edit": added("resid_post.2")},
        {"objective": Compared()},
        {"held_out": DATA["c"]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_folder_of_another_run_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    given: dict[str, Any] = {"model": tiny.model(), "edit": added(), "objective": Same(language), "data": DATA["a"]}
    fit(**given, out=tmp_path, **SETTINGS)
    with pytest.raises(ResumeError, match="other settings, data, Edit or model"):
        fit(**{**given, "edit": added(), "out": tmp_path, **SETTINGS, **change})


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    options = {**SETTINGS, "save_every": 1, "out": tmp_path}
    with pytest.raises(KilledError):
        fit(tiny.model(), added(), Same(killed_at(3, language)), DATA["a"], **options)
    card = json.loads((tmp_path / "checkpoint.json").read_text())
    file = tmp_path / card["file"]
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(FolderError, match=r"is not the file that checkpoint\.json describes"):
        fit(tiny.model(), added(), Same(language), DATA["a"], **options)


# -- stopping ----------------------------------------------------------------------------------------------------------


def signed(step: Step) -> Tensor:
    (ran,) = step.run("chosen")
    return step.per_row(-ran.logps * step.labels)


CONTRARY = [replace(one, label=-1.0) for one in DATA["a"]]  # whose loss rises as the training's falls


def test_the_parameters_that_did_best_on_held_out_examples_are_kept() -> None:
    model, edit = tiny.model(), added()
    seen: list[Tensor] = []

    def watched(step: Step) -> Tensor:
        if not step.training:
            seen.append(vector(edit))
        return signed(step)

    found = fit(model, edit, watched, DATA["a"], held_out=CONTRARY, epochs=6, lr=0.3, batch=3)
    held = [row["held_out"] for row in found.log.rows if "held_out" in row]
    assert len(held) == len(seen) == 6 and held.index(min(held)) < 5, "it overfits"
    assert torch.equal(vector(edit), seen[held.index(min(held))])
    assert found.facts["concepts"][""]["held_out"] == min(held)


def test_patience_is_each_concepts_own() -> None:
    options = {"epochs": 8, "lr": 0.3, "batch": 3, "patience": 2}
    held = {"a": CONTRARY, "c": DATA["c"]}
    found = train_bank(tiny.model(), added(), signed, DATA, held_out=held, **options)
    stops = {name: found.facts["concepts"][name]["stopped"] for name in DATA}
    assert stops["a"] < 24 and stops["b"] == 16, "without held-out examples it goes on to its end"
    for concept, data in DATA.items():
        edit = added()
        given = {"held_out": held[concept]} if concept in held else {"patience": None}
        fit(tiny.model(), edit, signed, data, **{**options, **given})
        torch.testing.assert_close(vector(found[concept]), vector(edit), rtol=0, atol=5e-6)


def test_a_loss_that_is_low_enough_ends_it() -> None:
    options = {"epochs": 8, "lr": 0.1, "schedule": "constant"}
    whole = fit(tiny.model(), added(), language, DATA["a"], **options)
    epochs = [row["mean_loss"] for row in whole.log.rows if "mean_loss" in row]
    assert len(epochs) == 8 and epochs[3] < epochs[2] < epochs[1] < epochs[0]
    short = fit(tiny.model(), added(), language, DATA["a"], **options, stop_below=(epochs[2] + epochs[3]) / 2)
    assert [row["mean_loss"] for row in short.log.rows if "mean_loss" in row] == epochs[:4]


def test_one_concept_that_diverges_does_not_take_the_others_along() -> None:
    def sick(step: Step) -> Tensor:
        return language(step) * torch.where((step.concepts == 1) & (step.progress > 0.3), torch.inf, 1.0)

    found = train_bank(tiny.model(), added(), sick, DATA, **SETTINGS)
    facts = found.facts["concepts"]
    assert [facts[name]["diverged"] for name in DATA] == [False, True, False]
    assert facts["b"]["stopped"] < 6 and bool(vector(found["b"]).isfinite().all())
    for concept in ("a", "c"):
        want = alone("language", data=DATA[concept], **SETTINGS)
        torch.testing.assert_close(vector(found[concept]), want, rtol=0, atol=2e-6)
    with pytest.raises(TrainError, match=r"diverged at step 0: the loss is inf.*lower lr=0.05"):
        fit(tiny.model(), added(), lambda step: language(step) * torch.inf, DATA["a"], **SETTINGS)


@pytest.mark.parametrize("at_once", [1, 64])
def test_a_loss_that_is_infinite_moves_nothing(at_once: int) -> None:
    """With a finite gradient; and in a group of one concept too the others go on."""

    def sick(step: Step) -> Tensor:
        return language(step) + torch.where(step.labels < 0, torch.inf, 0.0)

    data = {"a": [replace(one, label=-1.0) for one in DATA["a"]], "b": DATA["b"]}
    found = train_bank(tiny.model(), added(), sick, data, at_once=at_once, **SETTINGS)
    assert torch.equal(vector(found["a"]), vector(added())) and found.facts["concepts"]["a"]["diverged"]
    torch.testing.assert_close(vector(found["b"]), alone("language", data=DATA["b"], **SETTINGS), rtol=0, atol=2e-6)


def test_a_run_that_is_cut_short_is_measured_at_its_end() -> None:
    options = {"epochs": 9, "lr": 0.3, "batch": 3, "max_steps": 5}
    found = fit(tiny.model(), added(), signed, DATA["a"], held_out=CONTRARY, **options)
    assert [row["step"] for row in found.log.rows if "held_out" in row] == [2, 4]


def test_row_0_of_a_bank_of_unit_vectors_stays_nothing() -> None:
    bank = Bank([TopKAdd(torch.randn(tiny.WIDTH)) for _ in range(2)])
    fit(tiny.model(), Edit("resid_post.1", bank), language, [replace(one, row=2) for one in DATA["a"]], **SETTINGS)
    vectors = bank.state()["vector"].detach()
    torch.testing.assert_close(vectors.norm(dim=-1), torch.tensor([0.0, 1.0, 1.0]))


def test_double_precision_is_trained_as_it_is() -> None:
    edit = Edit("resid_post.1", Add(nn.Parameter(vector(added()).double())))
    fit(tiny.model(), edit, language, DATA["a"], **SETTINGS)
    assert vector(edit).dtype == torch.float64
    torch.testing.assert_close(vector(edit).float(), alone("language", data=DATA["a"], **SETTINGS), rtol=0, atol=1e-5)


# -- what is seen of it ------------------------------------------------------------------------------------------------


class Told:
    def __init__(self) -> None:
        self.numbers: list[tuple[int, Mapping[str, float]]] = []
        self.texts: list[tuple[int, str, str]] = []
        self.closed = False

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.numbers.append((step, values))

    def text(self, step: int, name: str, text: str) -> None:
        self.texts.append((step, name, text))

    def close(self) -> None:
        self.closed = True


def test_the_log_says_what_happened(tmp_path: Path) -> None:
    told = Told()
    model = inlay.load("tidepool")
    data = [Example("say hello", "the sea was cold ."), Example("say more", "the boat was red .")]
    edit = Edit("resid_post.3", Add(nn.Parameter(torch.zeros(model.width))))
    found = fit(
        model, edit, language, data, epochs=4, lr=0.1, batch=1, log=[told], out=tmp_path, preview="say hello",
        preview_every=4, factors=[0.5, 1.5],
    )  # fmt: skip
    steps = [row for row in found.log.rows if "loss" in row]
    assert [row["step"] for row in steps] == list(range(8))
    assert [row["lr"] for row in steps] == pytest.approx([0.1 * (8 - i) / 8 for i in range(8)])
    assert {row["factor"] for row in steps} == {0.5, 1.5} and all(row["norm"] > 0 for row in steps)
    previews = [row["preview"] for row in found.log.rows if "preview" in row]
    assert len(previews) == 2 and all(previews)
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == found.log.rows
    assert told.closed and len(told.texts) == 2 and told.numbers[0][1]["loss"] == steps[0]["loss"]
    assert found.log.losses()[-1] < found.log.losses()[0]


def test_tensorboard_by_its_own_client(tmp_path: Path) -> None:
    board = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard")
    found = fit(tiny.model(), added(), language, DATA["c"], out=tmp_path, log=["tensorboard"], **SETTINGS)
    events = board.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(found.log.losses())


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": []}, "no examples to train on"),
        ({"data": [{"prompt": [1]}]}, "needs 'prompt' and 'chosen'"),
        ({"data": [{"prompt": [1], "chosen": [2], "reject": [3]}]}, "has the fields prompt, chosen, reject"),
        ({"data": [3]}, "example 0 is 3"),
        ({"edit": Edit("resid_post.1", Add(torch.ones(tiny.WIDTH)))}, "has no trainable parameters"),
        ({"learning_rate": 1.0}, "learning_rate: no such setting; a recipe has epochs, lr"),
        ({"epochs": 0}, "epochs=0"),
        ({"autocast": "float16"}, "autocast='float16'"),
        ({"patience": 1}, "give held_out= some"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"save_every": 0}, "save_every=0"),
        ({"preview": "x", "preview_every": 0}, "preview_every=0"),
        ({"data": [{"prompt": [1], "chosen": [2], "row": 2}]}, "the Edit holds none"),
        ({"edit": Edit("resid_post.1", Add(nn.Parameter(torch.ones(tiny.WIDTH).bfloat16())))}, "edit.float"),
        ({"log": ["mlflow"]}, "log='mlflow'"),
        ({"log": ["tensorboard"]}, "needs out="),
        ({"objective": lambda step: step.per_row(step.reference("chosen"))}, "does not depend on what is trained"),
    ],
    ids=lambda change: str(next(iter(change))) if isinstance(change, dict) else "",
)
def test_what_does_not_fit(change: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {"edit": added(), "objective": language, "data": DATA["a"]}
    with pytest.raises(TrainError, match=said):
        fit(tiny.model(), **{**given, **change})


def test_concepts_that_do_not_fit() -> None:
    with pytest.raises(TrainError, match="no concepts to train"):
        train_bank(tiny.model(), added(), language, {})
    with pytest.raises(TrainError, match="held_out= names 'x'"):
        train_bank(tiny.model(), added(), language, DATA, held_out={"x": DATA["a"]})
    sites = {"a": "resid_post.0", "b": "resid_post.1", "c": "resid_post.1"}
    with pytest.raises(TrainError, match=r"Edit 1 is .*concepts share one make"):
        train_bank(tiny.model(), lambda name: added(sites[name]), language, DATA)
    found = train_bank(tiny.model(), added(), language, DATA, max_steps=1)
    with pytest.raises(TrainError, match="'d' was not trained; these were: 'a', 'b', 'c'"):
        found["d"]


def test_no_more_steps_are_taken_than_wanted() -> None:
    found = fit(tiny.model(), added(), language, DATA["a"], epochs=3, batch=3, max_steps=4)
    assert [row["step"] for row in found.log.rows if "loss" in row] == [0, 1, 2, 3]
    assert found.facts["concepts"][""]["stopped"] == 4
