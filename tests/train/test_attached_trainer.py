"""transformers' own Trainer trains an EditedModel: the loss, checkpoints, resuming, the best model, mixed precision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
import transformers
from tests.model.tiny import VOCAB, WIDTH, Record, frozen, rows, tiny
from tests.train import attached_by_hand as by_hand
from tests.train.attached_by_hand import Adapter
from torch import Tensor, nn
from torch.utils.data import Dataset

import inlay
from inlay import Add, Bank, Edit
from inlay.errors import TrainError
from inlay.train.attached import EditedModel

PAIRS = list(zip(rows(6, 4, 5, 7, seed=1), rows(3, 5, 2, 4, seed=2), strict=True))
ENDS = [by_hand.ends(len(prompt), 2, 2) for prompt, _ in PAIRS]


class Pairs(Dataset[dict[str, Any]]):
    """The pairs over and over, as unpadded rows."""

    def __init__(self, times: int = 1, **columns: list[Any]) -> None:
        self.rows = [
            {"input_ids": p + r, "labels": [-100] * len(p) + r, **{name: values[k] for name, values in columns.items()}}
            for k, (p, r) in enumerate(PAIRS)
        ] * times

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def collate(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    pairs = []
    for item in items:
        first = sum(label == -100 for label in item["labels"])
        pairs.append((item["input_ids"][:first], item["input_ids"][first:]))
    more = {name: torch.tensor([item[name] for item in items]) for name in items[0].keys() - {"input_ids", "labels"}}
    return by_hand.batch(pairs) | more


def trainer(edited: EditedModel, folder: Path, data: Any = None, **options: Any) -> Any:
    made: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "optim": "sgd",
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        **options,
    }
    more = {name: made.pop(name) for name in ("eval_dataset", "optimizers", "callbacks") if name in made}
    args = transformers.TrainingArguments(str(folder), **made)
    return transformers.Trainer(
        model=edited, args=args, train_dataset=Pairs() if data is None else data, data_collator=collate, **more
    )


def losses(made: Any) -> list[float]:
    return [row["loss"] for row in made.state.log_history if "loss" in row]


def adding() -> tuple[nn.Parameter, Edit]:
    v = nn.Parameter(torch.randn(WIDTH, generator=torch.Generator().manual_seed(0)))
    return v, Edit("resid_post.1", Add(v), tokens="first2+last2")


@pytest.mark.parametrize("checkpointing", [None, False, True], ids=["plain", "saved", "reentrant"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_steps_are_those_of_the_formula(accumulate: int, checkpointing: bool | None, tmp_path: Path) -> None:
    hf = tiny()
    v, edit = adding()
    hand, want = v.detach().clone().requires_grad_(True), []
    for _ in range(2):
        loss = by_hand.loss(hf, PAIRS, 1, hand, ENDS)
        (gradient,) = torch.autograd.grad(loss, hand)
        want.append(loss.item())
        hand = (hand - 0.1 * gradient).detach().requires_grad_(True)
    record = Record(hf)
    options: dict[str, Any] = {}
    if checkpointing is not None:
        options = {
            "activation_checkpointing": True,
            "activation_checkpointing_kwargs": {"use_reentrant": checkpointing},
        }
    with EditedModel(inlay.load(hf), edit) as edited:
        made = trainer(
            edited,
            tmp_path,
            per_device_train_batch_size=4 // accumulate,
            gradient_accumulation_steps=accumulate,
            **options,
        )
        made.train()
    record.check()
    assert losses(made) == pytest.approx(want, abs=1e-4)
    torch.testing.assert_close(v.detach(), hand.detach(), rtol=1e-4, atol=1e-5)


def test_label_smoothing_shifts_the_labels_of_a_causal_model(tmp_path: Path) -> None:
    v, _ = adding()
    edited = EditedModel(frozen(), Edit("resid_post.1", Add(v)))
    sums, count = torch.zeros(()), 0
    for prompt, response in PAIRS:
        found = by_hand.logits(edited.hf, prompt + response, 1, v.detach(), range(len(prompt + response))).log_softmax(
            -1
        )
        found = found[len(prompt) - 1 : -1]
        nll = -found.gather(1, torch.tensor(response)[:, None])[:, 0]
        sums, count = sums + (0.9 * nll - 0.1 * found.mean(-1)).sum(), count + len(response)
    made = trainer(edited, tmp_path, max_steps=1, label_smoothing_factor=0.1)
    made.train()
    assert losses(made) == pytest.approx([float(sums / count)], abs=1e-4)
    with pytest.raises(TrainError, match="label smoothing"):
        trainer(EditedModel(frozen(), adding()[1]), tmp_path, label_smoothing_factor=0.1).train()


def test_a_column_of_rows_trains_the_bank_rows_that_it_names(tmp_path: Path) -> None:
    bank = Bank([Add(nn.Parameter(torch.zeros(WIDTH))) for _ in range(3)])
    edited = EditedModel(frozen(), Edit("resid_post.1", bank, tokens="last2"))
    data = Pairs(rows=[1, 3, 1, 3])
    trainer(edited, tmp_path, data, remove_unused_columns=True).train()
    moved = bank.state()["vector"].detach().abs().sum(1)
    assert (moved > 0).tolist() == [False, True, False, True]


def test_a_checkpoint_is_the_edit_and_training_resumes_from_it(tmp_path: Path) -> None:
    def make() -> EditedModel:
        return EditedModel(frozen(), Edit("resid_post.*", Adapter(WIDTH, 2, p=0.2), tokens="first2+last2"))

    options = {"optim": "adamw_torch", "learning_rate": 0.02, "per_device_train_batch_size": 2, "save_steps": 3}
    whole = make()
    trainer(whole, tmp_path / "whole", Pairs(4), max_steps=6, save_strategy="steps", **options).train()
    saved = tmp_path / "whole" / "checkpoint-3"
    assert sum((saved / name).stat().st_size for name in ("edit.json", "edit.safetensors", "model.safetensors")) < 5_000
    assert json.loads((saved / "edit.json").read_text())["parts"][0]["kind"] == "tests.attached.adapter"
    resumed = make()
    trainer(resumed, tmp_path / "resumed", Pairs(4), max_steps=6, **options).train(resume_from_checkpoint=str(saved))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
    middle = EditedModel.from_pretrained(saved, frozen())
    assert not torch.equal(
        middle.state_dict()["edit.interventions.0.up"], whole.state_dict()["edit.interventions.0.up"]
    )


def test_the_best_model_is_loaded_at_the_end(tmp_path: Path) -> None:
    v, edit = adding()
    edited = EditedModel(frozen(), edit)
    seen: list[Tensor] = [v.detach().clone()]

    class Uphill(transformers.TrainerCallback):
        """Two steps down, then far up again."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 3:
                with torch.no_grad():
                    v.copy_(seen[0] - 100 * (seen[1] - seen[0]))
            seen.append(v.detach().clone())

    made = trainer(
        edited, tmp_path, max_steps=3, eval_dataset=Pairs(), eval_strategy="steps", eval_steps=1, save_strategy="steps",
        save_steps=1, load_best_model_at_end=True, metric_for_best_model="eval_loss", callbacks=[Uphill()],
    )  # fmt: skip
    made.train()
    found = [row["eval_loss"] for row in made.state.log_history if "eval_loss" in row]
    want = [float(by_hand.loss(edited.hf, PAIRS, 1, at, ENDS)) for at in seen[1:]]
    assert found == pytest.approx(want, abs=1e-4) and want[1] < want[0] < want[2]
    assert torch.equal(v.detach(), seen[2])


def test_bf16_autocast_keeps_parameters_in_fp32_and_learns(tmp_path: Path) -> None:
    hf = tiny()
    record = Record(hf)
    with EditedModel(inlay.load(hf), Edit("resid_post.0", Adapter(WIDTH, 4), tokens="all")) as edited:
        made = trainer(edited, tmp_path, max_steps=30, bf16=True, optim="adamw_torch", learning_rate=0.02)
        made.train()
        assert {p.dtype for p in edited.parameters()} == {torch.float32}
        assert edited.eval()(**collate(Pairs().rows)).logits.shape[-1] == VOCAB
    record.check()
    assert losses(made)[-1] < 0.5 * losses(made)[0]


def test_an_optimiser_of_its_groups(tmp_path: Path) -> None:
    adapter = Adapter(WIDTH, 2)
    scale = Add(nn.Parameter(torch.ones(WIDTH)))
    edited = EditedModel(
        frozen(), Edit("resid_post.0", adapter, tokens="all") + Edit("resid_post.1", scale, tokens="all")
    )
    with torch.no_grad():
        before = adapter.down.clone(), scale.vector.clone()
    optimiser = torch.optim.SGD(edited.parameter_groups(0.5), lr=0.1)
    for parameter in edited.edit.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()  # with no gradient, only decay moves a parameter
    torch.testing.assert_close(adapter.down.detach(), before[0] * (1 - 0.1 * 0.5))
    assert torch.equal(scale.vector.detach(), before[1])
    made = trainer(edited, tmp_path, optimizers=(optimiser, None))
    made.train()
    assert made.optimizer.optimizer is optimiser and len(losses(made)) == 2


def test_accelerate_alone() -> None:
    accelerate.state.AcceleratorState._reset_state(
        reset_partial_state=True
    )  # which another Trainer may have set to bf16
    v, edit = adding()
    edited = EditedModel(frozen(), edit).train()
    optimiser = torch.optim.SGD([p for p in edited.parameters() if p.requires_grad], lr=0.1)
    accelerator = accelerate.Accelerator(cpu=True)
    prepared, optimiser = accelerator.prepare(edited, optimiser)
    want = by_hand.loss(edited.hf, PAIRS, 1, v.detach().clone(), ENDS)
    loss = prepared(**collate(Pairs().rows)).loss
    accelerator.backward(loss)
    optimiser.step()
    torch.testing.assert_close(loss, want, rtol=1e-5, atol=1e-5)
    assert set(accelerator.get_state_dict(prepared)) == {"edit.interventions.0.vector"}


def test_distributed_data_parallel() -> None:
    v, edit = adding()
    edited = EditedModel(frozen(), edit).train()
    want = by_hand.loss(edited.hf, PAIRS, 1, v, ENDS)
    (gradient,) = torch.autograd.grad(want, v)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        found = nn.parallel.DistributedDataParallel(edited)(**collate(Pairs().rows)).loss
        found.backward()
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(v.grad, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("compiled", ["the edited model", "its base"])
def test_compiled(compiled: str) -> None:
    v, edit = adding()
    whole = compiled == "the edited model"
    edited = EditedModel(frozen() if whole else inlay.load(torch.compile(tiny(), backend="eager")), edit).train()
    called = torch.compile(edited, backend="eager") if whole else edited
    want = by_hand.loss(edited.model.base, PAIRS, 1, v, ENDS)
    (gradient,) = torch.autograd.grad(want, v)
    found = called(**collate(Pairs().rows)).loss
    found.backward()
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(v.grad, gradient, rtol=1e-4, atol=1e-6)
