"""Two processes train one Edit on a base that `fully_shard` divides between them, as one process does on it whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.tiny import tiny
from tests.train import attached_by_hand as by_hand
from tests.train import sharded
from tests.train.sharded import HALVES, PAIRS, adding, moved
from torch import Tensor

import inlay
from inlay import Edit
from inlay.train.attached import EditedModel
from inlay.train.fit import fit

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both processes left what they found."""
    where = tmp_path_factory.mktemp("sharded")
    torch.multiprocessing.spawn(sharded.work, (str(where),), nprocs=sharded.PROCESSES)
    return where


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{rank}.pt") for rank in range(sharded.PROCESSES)]


def ends(pairs: list[by_hand.Pair]) -> list[list[int]]:
    return [by_hand.ends(len(prompt), 2, 2) for prompt, _ in pairs]


def mean_loss(v: Tensor, smoothing: float = 0.0) -> Tensor:
    """The mean of the two halves' losses, on whole weights, row by row with a bare hook."""
    hf, halves = tiny(), []
    for half in HALVES:
        plain, count = by_hand.loss(hf, half, 1, v, ends(half)), sum(len(response) for _, response in half)
        even = v.new_zeros(())
        for (prompt, response), where in zip(half, ends(half), strict=True):
            logp = by_hand.logits(hf, prompt + response, 1, v, where).log_softmax(-1)[len(prompt) - 1 : -1]
            even = even - logp.mean(-1).sum()
        halves.append((1 - smoothing) * plain + smoothing * even / count)
    return torch.stack(halves).mean()


def stepped(smoothing: float = 0.0) -> Tensor:
    """The vector after the steps of plain gradient descent."""
    v = adding()[0].detach()
    for _ in range(sharded.STEPS):
        v.requires_grad_()
        (gradient,) = torch.autograd.grad(mean_loss(v, smoothing), v)
        v = (v - sharded.RATE * gradient).detach()
    return v


def test_every_weight_is_divided(found: list[dict[str, Any]]) -> None:
    assert set(found[0]["weights"]) == {"DTensor"}


def test_loss_and_gradient_of_a_loop_of_ones_own(found: list[dict[str, Any]]) -> None:
    v, _ = adding()
    loss = mean_loss(v)
    (gradient,) = torch.autograd.grad(loss, v)
    for rank in found:
        torch.testing.assert_close(rank["by itself"], (loss.detach(), gradient), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["wrapped", "recomputed"])
def test_gradients_in_distributed_data_parallel(found: list[dict[str, Any]], name: str) -> None:
    v, _ = adding()
    (gradient,) = torch.autograd.grad(mean_loss(v), v)
    for rank in found:
        torch.testing.assert_close(rank[name], [gradient], rtol=1e-4, atol=1e-6)


def test_gradients_of_loreft_at_every_block(found: list[dict[str, Any]]) -> None:
    model = inlay.load(tiny())
    edit = moved(model)
    with EditedModel(model, edit) as edited:
        (sum(edited(**by_hand.batch(half)).loss for half in HALVES) / 2).backward()
    for rank in found:
        torch.testing.assert_close(rank["reft"], [p.grad for p in edit.parameters()], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "smoothing"), [("trainer", 0.0), ("smoothed", 0.1)])
def test_trainer(found: list[dict[str, Any]], folder: Path, name: str, smoothing: float) -> None:
    want = stepped(smoothing)
    for rank in found:
        torch.testing.assert_close(rank[name], want, rtol=1e-4, atol=1e-6)
    saved = Edit.from_pretrained(folder / name / f"checkpoint-{sharded.STEPS}", inlay.load(tiny()))
    assert torch.equal(saved.parts[0].intervention.vector, found[0][name])


def test_generation(found: list[dict[str, Any]]) -> None:
    with EditedModel(inlay.load(tiny()), adding()[1]) as edited:
        want = edited.generate(torch.tensor([PAIRS[0][0]]), max_new_tokens=5, do_sample=False)
    for rank in found:
        assert torch.equal(rank["generated"], want)


def test_fit_in_every_process(found: list[dict[str, Any]]) -> None:
    v, edit = adding()
    fit(inlay.load(tiny()), edit, "lm", sharded.EXAMPLES, **sharded.FIT)
    for rank in found:
        torch.testing.assert_close(rank["fitted"], v.detach(), rtol=1e-4, atol=1e-5)
    assert torch.equal(found[0]["fitted"], found[1]["fitted"])


def test_what_may_not_be_sharded(found: list[dict[str, Any]]) -> None:
    said = found[0]["errors"]
    assert "inlay.load(hf) first, then fully_shard" in said.pop("loaded")
    assert "'head.lm_head.weight' is sharded" in said["head"] and "'head.lm_head.weight' is sharded" in said["late"]
    assert "'interventions.0.vector' is sharded" in said["whole"]
