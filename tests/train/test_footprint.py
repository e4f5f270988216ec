"""What a plan says a training keeps in memory, beside what a training then keeps."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import inlay
from inlay import Edit, Model
from inlay.train.examples import Example
from inlay.train.frozen import Frozen
from inlay.train.job import Job, Setup
from inlay.train.objectives import Imitate, Lang, RePS, objective
from inlay.train.parameterise import reft, steering
from inlay.train.plan import planned
from inlay.train.recipe import Recipe

WORDS = ("sea", "boat", "owl", "cat", "moon", "red", "cold", "deep")


@pytest.fixture(scope="module")
def model() -> Model:
    return inlay.load("tidepool")


def example(word: str, length: int = 1) -> Example:
    asked = f"say {word}"
    return Example(asked, " ".join([f"the {word} was cold ."] * length), f"the {word} was red .", f"talk of {word}")


def really(job: Job, edit: Edit, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Bytes that a run keeps of the frozen model, and the most that one forward and its loss keep for a backward."""
    stores: list[Frozen] = []
    graphs: list[int] = []
    before, goal = Job.frozen, job.objective

    class Spied:
        sides, references = job.sides, job.references

        def __init__(self) -> None:
            if hasattr(goal, "prepare"):
                self.prepare = goal.prepare

        def __call__(self, step: Any) -> Tensor:
            seen: dict[int, Tensor] = {}

            def pack(tensor: Tensor) -> Tensor:
                seen[tensor.untyped_storage().data_ptr()] = tensor.detach()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                found: Tensor = goal(step)
            for tensor in (*job.model.hf.parameters(), *step.edit.parameters(), *stores[-1].kept()):
                seen.pop(tensor.untyped_storage().data_ptr(), None)
            if torch.is_grad_enabled():
                graphs.append(sum(tensor.untyped_storage().nbytes() for tensor in seen.values()))
            return found

    with monkeypatch.context() as patched:
        patched.setattr(Job, "frozen", lambda self, edit: stores.append(before(self, edit)) or stores[-1])
        patched.setattr(job, "objective", Spied())
        job.run(lambda name: copy.deepcopy(edit), None, 100, False)
    return max(sum(tensor.nbytes for tensor in store.kept()) for store in stores), max(graphs)


@pytest.mark.parametrize("goal", [Lang(), RePS(), Imitate(), objective("dpo")], ids=lambda goal: type(goal).__name__)
@pytest.mark.parametrize("resume", [True, False])
def test_a_plan_is_what_a_run_keeps(goal: Any, resume: bool, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def edit() -> Edit:
        return steering(model, "resid_post.3")

    setup = Setup(goal, Recipe(epochs=1, batch=4), resume=resume)
    data = {"": [example(word) for word in WORDS]}
    plan = planned(Job(model, setup, data, {"": []}), edit())
    store, graph = really(Job(model, setup, data, {"": []}), edit(), monkeypatch)
    assert plan.store_bytes == store
    assert plan.graph_bytes == pytest.approx(graph, rel=0.05)


@pytest.mark.parametrize("tokens", [8192, 64])
def test_a_plan_of_many_concepts(tokens: int, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup(Lang(), Recipe(epochs=1, batch=2, accumulate=2, batch_tokens=tokens), at_once=4)
    data = {word: [example(word)] * 4 for word in WORDS}
    held = {word: [example(word, 2)] for word in WORDS}
    edit = reft(model, layers=[2, 4], rank=2)
    plan = planned(Job(model, setup, data, held), edit)
    store, graph = really(Job(model, setup, data, held), edit, monkeypatch)
    assert plan.at_once == 4 and plan.store_bytes == store
    assert plan.graph_bytes == pytest.approx(graph, rel=0.1)


def test_the_longest_example_is_measured(model: Model) -> None:
    setup = Setup(Lang(), Recipe(epochs=1, batch=1, batch_tokens=1))
    short = planned(Job(model, setup, {"": [example("sea")]}, {"": []}), steering(model, "resid_post.3"))
    both = {"": [example("sea"), example("owl", 8), example("cat")]}
    long = planned(Job(model, setup, both, {"": []}), steering(model, "resid_post.3"))
    assert long.graph_bytes > 3 * short.graph_bytes


def test_nothing_is_left_behind(model: Model) -> None:
    edit = steering(model, "resid_post.3")
    before = {name: value.clone() for name, value in edit.state_dict().items()}
    grads = [p.requires_grad for p in model.hf.parameters()]
    planned(Job(model, Setup(Imitate(), Recipe()), {"": [example("sea")]}, {"": []}), edit)
    assert all(torch.equal(value, before[name]) for name, value in edit.state_dict().items())
    assert [p.requires_grad for p in model.hf.parameters()] == grads
    assert all(p.grad is None for p in (*edit.parameters(), *model.hf.parameters()))
