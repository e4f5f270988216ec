"""TRL's SFTTrainer and DPOTrainer train an EditedModel, and their losses are those of the formulas."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.tiny import TEMPLATE, WIDTH, Record, ids_of, tiny, words
from tests.train import attached_by_hand as by_hand
from torch import nn

import inlay
from inlay import Add, Bank, Edit
from inlay.train.attached import EditedModel

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

ASKED = ["the old boat on the hill", "a red dog sees it"]
SAID = ["likes the sea", "and finds a new boat now"]
OTHER = ["was here", "or then the sea was old"]
OPTIONS: dict[str, Any] = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "learning_rate": 0.1,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "optim": "sgd",
    "save_strategy": "no",
    "logging_steps": 1,
    "report_to": [],
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
}
PROMPTS = [ids_of(text) for text in ASKED]
CHOSEN, REJECTED = ([[*ids_of(text), 3] for text in texts] for texts in (SAID, OTHER))  # TRL ends each with </s>
ENDS = [by_hand.ends(len(prompt), 2, 2) for prompt in PROMPTS]


def vector() -> nn.Parameter:
    return nn.Parameter(torch.randn(WIDTH, generator=torch.Generator().manual_seed(0)))


def completions() -> Any:
    pairs = zip(ASKED, SAID, strict=True)
    return datasets.Dataset.from_list([{"prompt": asked, "completion": f" {said}"} for asked, said in pairs])


def logged(trainer: Any, name: str = "loss") -> list[float]:
    return [row[name] for row in trainer.state.log_history if name in row]


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("tokens", ["first2+last2", "response"])
def test_sft_on_prompts_and_completions(tokens: str, checkpointing: bool, tmp_path: Path) -> None:
    hf = tiny()
    pairs = list(zip(PROMPTS, CHOSEN, strict=True))
    where = ENDS if tokens != "response" else [list(range(len(p), len(p) + len(r))) for p, r in pairs]
    hand, want = vector(), []
    for _ in range(2):
        loss = by_hand.loss(hf, pairs, 1, hand, where)
        want.append(loss.item())
        hand = nn.Parameter((hand - 0.1 * torch.autograd.grad(loss, hand)[0]).detach())
    record, v = Record(hf), vector()
    with EditedModel(inlay.load(hf), Edit("resid_post.1", Add(v), tokens=tokens)) as edited:
        args = trl.SFTConfig(str(tmp_path), activation_checkpointing=checkpointing, **OPTIONS)
        trainer = trl.SFTTrainer(model=edited, args=args, train_dataset=completions(), processing_class=words(None))
        trainer.train()
        trainer.save_model(str(tmp_path / "saved"))
    record.check()
    assert logged(trainer) == pytest.approx(want, abs=1e-4)
    torch.testing.assert_close(v.detach(), hand.detach(), rtol=1e-4, atol=1e-5)
    assert torch.equal(Edit.from_pretrained(tmp_path / "saved").interventions[0].vector, v)


def test_sft_on_chats(tmp_path: Path) -> None:
    pairs = zip(ASKED, SAID, strict=True)
    rows = [
        {"prompt": [{"role": "user", "content": a}], "completion": [{"role": "assistant", "content": s}]}
        for a, s in pairs
    ]
    tokenizer = words(TEMPLATE)
    hf, v = tiny(), vector()
    prompts = [ids_of(f"<user> {asked} <end> <assistant>") for asked in ASKED]
    answers = [ids_of(f"{said} <end>") for said in SAID]
    ends = [by_hand.ends(len(prompt), 2, 2) for prompt in prompts]
    want = by_hand.loss(hf, list(zip(prompts, answers, strict=True)), 1, v, ends).item()
    edited = EditedModel(inlay.load(hf, tokenizer=tokenizer), Edit("resid_post.1", Add(v), tokens="first2+last2"))
    args = trl.SFTConfig(str(tmp_path), **{**OPTIONS, "max_steps": 1})
    trainer = trl.SFTTrainer(
        model=edited, args=args, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer
    )
    trainer.train()
    assert logged(trainer) == pytest.approx([want], abs=1e-4)


def test_an_edit_of_the_logits_is_not_skipped_in_silence(tmp_path: Path) -> None:
    vocabulary = nn.Parameter(torch.zeros(tiny().config.vocab_size))
    edited = EditedModel(inlay.load(tiny()), Edit("logits", Add(vocabulary)))
    args = trl.SFTConfig(str(tmp_path), **OPTIONS)
    trainer = trl.SFTTrainer(model=edited, args=args, train_dataset=completions(), processing_class=words(None))
    with pytest.raises(inlay.errors.EditError, match="its module did not run"):
        trainer.train()


def test_sft_with_a_column_of_bank_rows(tmp_path: Path) -> None:
    """SFTTrainer keeps only the columns that it knows; a collator of one's own keeps `rows`."""
    bank = Bank([Add(nn.Parameter(torch.zeros(WIDTH))) for _ in range(3)])
    edited = EditedModel(inlay.load(tiny()), Edit("resid_post.1", bank, tokens="last2"))
    ready = [
        {"input_ids": p + r, "labels": [-100] * len(p) + r, "rows": row}
        for p, r, row in zip(PROMPTS, CHOSEN, [3, 1], strict=True)
    ]

    def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
        plain = trl.trainer.sft_trainer.DataCollatorForLanguageModeling(pad_token_id=0)
        return {**plain([dict(item) for item in items]), "rows": torch.tensor([item["rows"] for item in items])}

    args = trl.SFTConfig(
        str(tmp_path), remove_unused_columns=False, dataset_kwargs={"skip_prepare_dataset": True}, **OPTIONS
    )
    trl.SFTTrainer(
        model=edited, args=args, train_dataset=datasets.Dataset.from_list(ready), data_collator=collate,
        processing_class=words(None),
    ).train()  # fmt: skip
    moved = bank.state()["vector"].detach().abs().sum(1)
    assert (moved > 0).tolist() == [False, True, False, True]


@pytest.mark.parametrize("precomputed", [False, True])
@pytest.mark.parametrize("start", ["zero", "random"])
def test_dpo_against_the_base_without_the_edit(start: str, precomputed: bool, tmp_path: Path) -> None:
    hf = tiny()
    zero = torch.zeros(WIDTH)

    def logps(v: torch.Tensor) -> list[list[torch.Tensor]]:
        sides = [list(zip(PROMPTS, answers, strict=True)) for answers in (CHOSEN, REJECTED)]
        return [[by_hand.logp(hf, pair, 1, v, where) for pair, where in zip(s, ENDS, strict=True)] for s in sides]

    with torch.no_grad():
        reference = logps(zero)
    hand, want = (nn.Parameter(zero.clone()) if start == "zero" else vector()), []
    v = nn.Parameter(hand.detach().clone())
    for _ in range(2):
        policy = logps(hand)
        rows = [by_hand.dpo([p[k] for p in policy], [r[k] for r in reference], 0.3) for k in range(2)]
        loss = torch.stack(rows).mean()
        want.append(loss.item())
        hand = nn.Parameter((hand - 0.1 * torch.autograd.grad(loss, hand)[0]).detach())
    if start == "zero":
        assert want[0] == pytest.approx(math.log(2))
    record = Record(hf)
    triples = zip(ASKED, SAID, OTHER, strict=True)
    data = datasets.Dataset.from_list([{"prompt": a, "chosen": f" {c}", "rejected": f" {r}"} for a, c, r in triples])
    with EditedModel(inlay.load(hf), Edit("resid_post.1", Add(v), tokens="first2+last2")) as edited:
        args = trl.DPOConfig(str(tmp_path), beta=0.3, precompute_ref_log_probs=precomputed, **OPTIONS)
        trainer = trl.DPOTrainer(
            model=edited, ref_model=edited.reference(), args=args, train_dataset=data, processing_class=words(None)
        )
        trainer.train()
    record.check()
    assert logged(trainer) == pytest.approx(want, abs=1e-4)
    torch.testing.assert_close(v.detach(), hand.detach(), rtol=1e-4, atol=1e-5)
