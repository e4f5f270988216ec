"""AxBench's probe: its steps by hand, and a vector that has length 1 wherever a loss is taken."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.directions.planted import WIDTH, axis, cosine, texts
from torch import Tensor
from torch.nn.functional import normalize

from inlay.directions.token_probe import token_probe
from inlay.errors import DirectionError

SETTINGS: dict[str, Any] = {"epochs": 3, "batch": 4, "lr": 0.05, "weight_decay": 0.1, "l1": 0.0}


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sides(count: int = 5, c: float = 1.0) -> tuple[list[Tensor], list[Tensor]]:
    return texts(count, axis(), c, 1), texts(count, axis(), -c, 2)


def by_hand(positives: list[Tensor], negatives: list[Tensor], made: torch.Generator, **s: Any) -> Tensor:
    """Gradient of the cross-entropy in closed form, projected, through Adam's formula with decoupled decay."""
    every = [(h.double(), 1.0) for h in positives] + [(h.double(), 0.0) for h in negatives]
    w = normalize(torch.randn(WIDTH, generator=made), dim=0).double()
    first, second, step = torch.zeros(WIDTH).double(), torch.zeros(WIDTH).double(), 0
    steps = s["epochs"] * -(-len(every) // s["batch"])
    for _ in range(s["epochs"]):
        order = torch.randperm(len(every), generator=made).tolist()
        for start in range(0, len(order), s["batch"]):
            tokens = [(row, label) for i in order[start : start + s["batch"]] for h, label in [every[i]] for row in h]
            gradient = torch.zeros(WIDTH).double()
            for h, label in tokens:
                p = torch.sigmoid(h @ w)
                gradient += ((p - label) + s["l1"] * p * (1 - p)) * h / len(tokens)
            gradient -= (gradient @ w) * w
            lr = s["lr"] * (1 - step / steps)
            step += 1
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            w = w * (1 - lr * s["weight_decay"])
            w = w - lr * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
            w = w / w.norm()
    return w.float()


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 1, "batch": 100},
        {},
        {"weight_decay": 0.0},
        {"l1": 0.5},
        {"batch": 1, "epochs": 2},
    ],
    ids=["one step", "uneven batches", "no decay", "l1", "text by text"],
)
def test_the_steps_by_hand(changes: dict[str, Any]) -> None:
    settings = SETTINGS | changes
    found = token_probe(*sides(), draws(), **settings)
    torch.testing.assert_close(found, by_hand(*sides(), draws(), **settings), atol=2e-5, rtol=1e-4)


def test_every_step_begins_and_ends_with_length_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the loss sees before a step, and what the caller gets, are unit vectors; what AdamW makes of them is not."""
    before: list[Tensor] = []
    after: list[Tensor] = []
    real = torch.optim.AdamW.step

    def spy(optimiser: torch.optim.AdamW) -> None:
        (w,) = optimiser.param_groups[0]["params"]
        before.append(w.clone())
        real(optimiser)
        after.append(w.clone())

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    found = token_probe(*sides(), draws(), **SETTINGS | {"lr": 0.3})
    assert len(before) == 9
    for w in [*before, found]:
        assert float(w.norm()) == pytest.approx(1, abs=1e-6)
    assert float(after[0].norm()) > 1.2
    for left, begun in zip(after, [*before[1:], found], strict=True):
        torch.testing.assert_close(begun, normalize(left, dim=0))


def test_projecting_before_the_step_would_give_another_vector() -> None:
    """The fault of the reference: a step of length up to lr sqrt(width) leaves the sphere."""
    settings = SETTINGS | {"epochs": 1, "batch": 100, "lr": 0.3}
    made = draws()
    start = normalize(torch.randn(WIDTH, generator=made), dim=0)
    w = torch.nn.Parameter(start.clone())
    yes, no = sides()
    h, y = torch.cat(yes + no), torch.tensor([1.0] * len(torch.cat(yes)) + [0.0] * len(torch.cat(no)))
    torch.nn.functional.binary_cross_entropy_with_logits(h @ w, y).backward()
    assert w.grad is not None
    w.grad -= (w.grad @ start) * start
    torch.optim.AdamW([w], lr=0.3, weight_decay=0.1).step()
    theirs, ours = w.detach(), token_probe(yes, no, draws(), **settings)
    assert float(theirs.norm()) > 1.2 and float(ours.norm()) == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(ours, normalize(theirs, dim=0))


def test_it_learns_what_was_planted() -> None:
    yes, no = sides(30, c=2.0)
    found = token_probe(yes, no, draws(), epochs=24, batch=12, lr=0.05, weight_decay=1e-3, l1=0.0)
    assert cosine(found, axis()) > 0.95


def test_the_same_draws_give_the_same_bits() -> None:
    first = token_probe(*sides(), draws(3), **SETTINGS)
    torch.manual_seed(9)
    assert torch.equal(token_probe(*sides(), draws(3), **SETTINGS), first)
    assert not torch.equal(token_probe(*sides(), draws(4), **SETTINGS), first)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_in_any_gradient_mode(mode: Any) -> None:
    with mode():
        found = token_probe(*sides(), draws(), **SETTINGS)
    assert torch.equal(found, token_probe(*sides(), draws(), **SETTINGS)) and not found.requires_grad


@pytest.mark.parametrize("changes", [{"epochs": 0}, {"batch": 0}, {"lr": 0.0}, {"lr": float("nan")}])
def test_settings_that_cannot_be(changes: dict[str, Any]) -> None:
    with pytest.raises(DirectionError, match=r"epochs=.*, batch=.* and lr=.* must be positive"):
        token_probe(*sides(), draws(), **(SETTINGS | changes))
