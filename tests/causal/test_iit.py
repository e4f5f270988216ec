"""IIT: its loss and gradients against hooks and plain autograd, and a model that it teaches where a variable lies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.interventions import tiny
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import inlay
from inlay import Edit, Swap
from inlay.causal import CausalModel, Counterfactual, counterfactuals, iit_loss, iit_training, interchange_accuracy
from inlay.errors import CausalError, InputError, TargetError, TokensError

BASES, ONE, OTHER = tiny.RAGGED, tiny.OTHER, tiny.EVEN
ROWS = [
    Counterfactual(base, (one, other)[: 1 + i % 2], ("x", "y")[: 1 + i % 2], 10 + i, 20 + i)
    for i, (base, one, other) in enumerate(zip(BASES, ONE, OTHER, strict=True))
]
DIMS = {"x": slice(0, 8), "y": [9, 20]}


def by_hand(hf: Any, layer: int, weight: float, dims: dict[str, Any]) -> Tensor:
    """One row at a time, with torch hooks."""
    block, total = tiny.block(hf, layer), torch.zeros((), dtype=torch.float64)
    for row in ROWS:
        kept: list[Tensor] = []
        for source in row.sources:
            with tiny.hook(block, lambda h, kept=kept: kept.append(h[0, -1]) or h):
                hf(**tiny.padded([source]), use_cache=False)

        def change(h: Tensor, kept: list[Tensor] = kept, row: Counterfactual = row) -> Tensor:
            new = h.clone()
            for name, state in zip(row.variables, kept, strict=True):
                new[0, -1, dims[name]] = state[dims[name]]
            return new

        plain = hf(**tiny.padded([row.base]), use_cache=False).logits[0, -1]
        with tiny.hook(block, change):
            swapped = hf(**tiny.padded([row.base]), use_cache=False).logits[0, -1]
        total = total + cross_entropy(plain, torch.tensor(row.base_label))
        total = total + weight * cross_entropy(swapped, torch.tensor(row.label))
    return total / len(ROWS)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_loss_and_gradients_are_those_of_plain_autograd(family: str, weight: float) -> None:
    hf = tiny.FAMILIES[family](dtype=torch.float64)
    want = by_hand(hf, 1, weight, DIMS)
    wanted = torch.autograd.grad(want, list(hf.parameters()))
    found = iit_loss(inlay.load(hf), ROWS, "resid_post.1", dims=DIMS, weight=weight)
    torch.testing.assert_close(found, want, rtol=0, atol=1e-9)
    for gradient, one in zip(torch.autograd.grad(found, list(hf.parameters())), wanted, strict=True):
        torch.testing.assert_close(gradient, one, rtol=0, atol=1e-8)


def test_the_gradient_of_the_source_run_counts() -> None:
    hf = tiny.llama(dtype=torch.float64)
    found = iit_loss(inlay.load(hf), ROWS[:1], "resid_post.1")
    (embedding,) = torch.autograd.grad(found, [hf.model.embed_tokens.weight])
    assert embedding[ONE[0][-1]].abs().max() > 1e-6, "a token of the source alone"


def test_positions_of_each_row_and_other_source_tokens() -> None:
    hf = tiny.llama(dtype=torch.float64)
    model = inlay.load(hf)
    rows = [row for row in ROWS if row.variables == ("x",)]
    where, there = torch.tensor([[1], [3]]), torch.tensor([[0], [2]])
    found = iit_loss(model, rows, "resid_post.1", where, source_tokens=there)
    total = torch.zeros((), dtype=torch.float64)
    for row, at, source_at in zip(rows, (1, 3), (0, 2), strict=True):
        source = inlay.Source([row.sources[0]], tokens=source_at)
        plain = model.forward([row.base]).logits[0, -1]
        swapped = model.forward([row.base], edit=Edit("resid_post.1", Swap(source), at)).logits[0, -1]
        total = total + cross_entropy(plain, torch.tensor(row.base_label))
        total = total + cross_entropy(swapped, torch.tensor(row.label))
    torch.testing.assert_close(found, total / 2, rtol=0, atol=1e-9)


@pytest.mark.parametrize("fails", [False, True])
def test_the_base_is_unfrozen_for_it(fails: bool) -> None:
    hf = tiny.llama().requires_grad_(False)
    hf.lm_head.weight.requires_grad_(True)
    model = inlay.load(hf)

    def work() -> None:
        with iit_training(model):
            assert all(p.requires_grad for p in hf.parameters())
            iit_loss(model, ROWS, "resid_post.1", dims=DIMS).backward()
            assert all(p.grad is not None for p in hf.parameters())
            if fails:
                raise RuntimeError("inside")

    if fails:
        with pytest.raises(RuntimeError, match="inside"):
            work()
    else:
        work()
    assert [name for name, p in hf.named_parameters() if p.requires_grad] == ["lm_head.weight"]
    assert all(p.grad is None for p in hf.parameters())


def test_what_does_not_fit() -> None:
    model = tiny.model()
    with pytest.raises(CausalError, match="no rows"):
        iit_loss(model, [], "resid_post.1")
    with pytest.raises(CausalError, match="row 1 sets 'y'"):
        iit_loss(model, ROWS, "resid_post.1", dims={"x": [0]})
    with pytest.raises(TargetError, match="99 is no token"):
        iit_loss(model, [Counterfactual([1], ([2],), ("x",), 99, 0)], "resid_post.1")
    with pytest.raises(InputError):
        iit_loss(model, [Counterfactual([], ([2],), ("x",), 9, 0)], "resid_post.1")
    with pytest.raises(TokensError):
        iit_loss(model, ROWS, "resid_post.1", 6)


class Network(nn.Module):
    """Three tokens side by side through two layers; the same state stands at every position."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 8)
        self.blocks = nn.ModuleList(
            [nn.Sequential(nn.Linear(24, 32), nn.ReLU()), nn.Sequential(nn.Linear(32, 32), nn.ReLU())]
        )
        self.head = nn.Linear(32, 2)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids).flatten(1)[:, None].expand(-1, ids.shape[1], -1)
        for block in self.blocks:
            h = block(h)
        return self.head(h)


def test_a_model_learns_where_a_variable_lies() -> None:
    """The answer is (a = b) xor c; IIT puts a = b into the first half of the first layer."""
    causal = CausalModel(
        ["a", "b", "c", "same", "answer"],
        values={"a": range(4), "b": range(4), "c": [4, 5]},
        parents={"same": ["a", "b"], "answer": ["same", "c"]},
        functions={"same": lambda a, b: a == b, "answer": lambda same, c: int(same != (c == 5))},
    )
    data = counterfactuals(causal, 2000, ["same"], lambda v: [v["a"], v["b"], v["c"]])
    test = counterfactuals(causal, 400, ["same"], lambda v: [v["a"], v["b"], v["c"]], seed=1)
    half, found = slice(0, 16), {}
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        hf = Network()
        sites = {"resid_post": "blocks.{layer}:out", "logits": "head:out"}
        model = inlay.load(hf, sites=sites, example=torch.tensor([[0, 1, 4]]))
        optimiser = torch.optim.Adam(hf.parameters(), lr=1e-2)
        with iit_training(model):
            for start in range(0, len(data), 20):
                loss = iit_loss(model, data[start : start + 20], "resid_post.0", dims=half, weight=weight)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        every = torch.tensor([row.base for row in test])
        right = hf(every)[:, -1].argmax(-1) == torch.tensor([row.base_label for row in test])
        assert bool(right.all()), "the task itself is learnt either way"
        found[weight] = interchange_accuracy(model, test, Edit("resid_post.0", Swap(None, half), "last")).iia
    assert found[1.0] > 0.97 and found[0.0] < 0.9, found
