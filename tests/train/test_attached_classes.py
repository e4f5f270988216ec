"""Sequence classification with a frozen trunk: an edit and the head learn what a full fine-tuning learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.tiny import CONFIGS, HEADS, LAYERS, MLP, VOCAB, WIDTH, Record, tiny
from tests.train.attached_by_hand import Adapter
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    Trainer,
    TrainingArguments,
)

import inlay
from inlay import Add, Edit
from inlay.errors import FolderError, TrainError
from inlay.train.attached import EditedModel
from inlay.train.examples import Example
from inlay.train.fit import fit

CLASSES = 3
FAMILIES = {
    "llama": lambda: CONFIGS["llama"](num_labels=CLASSES),
    "gpt2": lambda: CONFIGS["gpt2"](num_labels=CLASSES),
    "bert": lambda: BertConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=MLP,
        max_position_embeddings=64, initializer_range=0.2, num_labels=CLASSES, pad_token_id=0,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    ),
}  # fmt: skip
families = pytest.mark.parametrize("family", FAMILIES)


def classifier(family: str = "llama", seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return AutoModelForSequenceClassification.from_config(FAMILIES[family]()).eval()


class Marked(Dataset[dict[str, Any]]):
    """Rows of 4 to 9 words, one of which is the mark of the row's class and stands anywhere."""

    def __init__(self, count: int, seed: int) -> None:
        made = torch.Generator().manual_seed(seed)

        def below(top: int) -> int:
            return int(torch.randint(top, (), generator=made))

        self.rows = []
        for _ in range(count):
            ids = [11 + below(VOCAB - 11) for _ in range(4 + below(6))]
            label = below(CLASSES)
            ids[below(len(ids))] = 8 + label
            self.rows.append({"input_ids": ids, "labels": label})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def collate(items: list[dict[str, Any]], side: str = "right") -> dict[str, Tensor]:
    longest = max(len(item["input_ids"]) for item in items)
    ids, mask = (torch.zeros(len(items), longest, dtype=torch.long) for _ in range(2))
    for k, item in enumerate(items):
        n = len(item["input_ids"])
        here = slice(longest - n, longest) if side == "left" else slice(n)
        ids[k, here], mask[k, here] = torch.tensor(item["input_ids"]), 1
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([item["labels"] for item in items])}


def adapters() -> Edit:
    """Also below the first block: a random attention does not look for the mark by itself."""
    first, second, third = (Edit(site, Adapter(WIDTH, 8)) for site in ("resid_pre.0", "resid_post.0", "resid_post.1"))
    return first + second + third


def accuracy(module: nn.Module) -> float:
    batch = collate(Marked(300, seed=1).rows)
    with torch.no_grad():
        return float((module.eval()(**batch).logits.argmax(-1) == batch["labels"]).float().mean())


def train(module: Any, folder: Path, rate: float, steps: int = 250) -> list[float]:
    args = TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=32, learning_rate=rate, save_strategy="no",
        logging_steps=20, report_to=[], use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model=module, args=args, train_dataset=Marked(2000, seed=0), data_collator=collate)
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


@pytest.mark.slow
@families
def test_an_edit_and_the_head_learn_what_full_fine_tuning_learns(family: str, tmp_path: Path) -> None:
    full = classifier(family)
    train(full, tmp_path / "full", rate=3e-3)
    hf = classifier(family)
    record = Record(hf)
    with EditedModel(inlay.load(hf), adapters(), train_head=True) as edited:
        share = edited.num_parameters(only_trainable=True) / edited.num_parameters()
        losses = train(edited, tmp_path / "edited", rate=1e-2)
        found = accuracy(edited)
    record.check()
    assert share < 0.07 and losses[-1] < 0.1 * losses[0]
    assert found >= accuracy(full) - 0.01 > 0.95


@families
def test_head_and_edit_are_saved_and_come_back(family: str, tmp_path: Path) -> None:
    batch = collate(Marked(6, seed=2).rows)
    hf = classifier(family)
    record = Record(hf)
    with EditedModel(inlay.load(hf), adapters(), train_head=True) as edited:
        head = "classifier" if family == "bert" else "score"
        assert {name for name in edited.state_dict() if "head" in name} == {
            f"head.{head}.{name}" for name, _ in hf.get_submodule(head).named_parameters()
        }
        train(edited, tmp_path / "made", rate=1e-2, steps=3)
        edited.save_pretrained(tmp_path / "saved")
        want = edited.eval()(**batch).logits
    record.check()  # the head too is what it was
    again = EditedModel.from_pretrained(tmp_path / "saved", inlay.load(classifier(family)))
    assert torch.equal(again(**batch).logits, want)
    assert {n for n, p in again.named_parameters() if p.requires_grad} == {
        n for n, p in edited.named_parameters() if n.startswith("edit.")
    } | {f"hf.{head}.{name}" for name, _ in hf.get_submodule(head).named_parameters()}
    causal = tiny("llama")
    with pytest.raises((TrainError, FolderError)):
        EditedModel.from_pretrained(tmp_path / "saved", inlay.load(causal))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_padding_on_both_sides_is_alike(family: str) -> None:
    """All of a row is prompt, whatever its label; positions count from its first token."""
    edited = EditedModel(
        inlay.load(classifier(family)),
        Edit("resid_post.1", Add(nn.Parameter(torch.ones(WIDTH))), tokens="first1+last2"),
    ).eval()
    rows = Marked(5, seed=3).rows
    alone = torch.cat([edited(**collate([row])).logits for row in rows])
    for side in ("left", "right"):
        batch = collate(rows, side)
        positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        torch.testing.assert_close(edited.train()(**batch, position_ids=positions).logits, alone, rtol=1e-5, atol=1e-5)


def test_a_head_by_its_paths() -> None:
    hf = classifier("bert")
    edited = EditedModel(inlay.load(hf), adapters(), train_head=["classifier", "bert.pooler"])
    assert {name for name, p in hf.named_parameters() if p.requires_grad} == {
        "classifier.weight", "classifier.bias", "bert.pooler.dense.weight", "bert.pooler.dense.bias",
    }  # fmt: skip
    edited.detach()
    with pytest.raises(TrainError, match="no parameters at 'scores'"):
        EditedModel(inlay.load(hf), adapters(), train_head=["scores"])
    with pytest.raises(TrainError, match="has no head with weights of its own"):
        EditedModel(inlay.load(tiny(tie_word_embeddings=True)), adapters(), train_head=True)


@pytest.mark.parametrize("auto", [AutoModelForSequenceClassification, AutoModelForTokenClassification])
@families
def test_a_classifier_is_loaded_from_its_folder(family: str, auto: Any, tmp_path: Path) -> None:
    hf = auto.from_config(FAMILIES[family]()).eval()
    hf.save_pretrained(tmp_path)
    model = inlay.load(tmp_path)
    assert type(model.hf) is type(hf) and "logits" not in model.sites().places
    batch = {name: value for name, value in collate(Marked(3, seed=4).rows).items() if name != "labels"}
    assert torch.equal(model.hf(**batch).logits, hf(**batch).logits)
    assert model.read([[8, 9, 10]], "resid_post.1").stack().shape[-1] == WIDTH


@families
def test_fit_says_who_trains_a_classifier(family: str) -> None:
    model = inlay.load(classifier(family))
    with pytest.raises(TrainError, match=r"scores of 3 classes .* EditedModel with train_head=True"):
        fit(model, adapters(), "lm", [Example([1, 2, 3], [4, 5])], epochs=1)
