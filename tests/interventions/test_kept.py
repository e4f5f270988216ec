"""Kept: one computation for as long as the tensors stay what they are, a new one after every way to change them."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from inlay.interventions.kept import Kept


class Counted:
    """Doubles a tensor, and counts how often it had to."""

    def __init__(self) -> None:
        self.kept, self.calls = Kept(), 0

    def __call__(self, *tensors: Tensor) -> Tensor:
        def make() -> Tensor:
            self.calls += 1
            return sum(2 * tensor for tensor in tensors)

        return self.kept.get(tensors, make)


def test_it_is_made_once_while_nobody_trains() -> None:
    double, x = Counted(), nn.Parameter(torch.ones(3))
    with torch.no_grad():
        first = double(x)
        assert double(x) is first and double.calls == 1
    frozen = torch.ones(3)
    assert double(frozen) is double(frozen) and double.calls == 2


CHANGES: dict[str, Callable[[nn.Parameter], object]] = {
    "in place": lambda x: x.mul_(3),
    "one value": lambda x: x.__setitem__(0, 7.0),
    "an optimiser": lambda x: torch.optim.SGD([x], lr=1.0).step(),
    "data": lambda x: setattr(x, "data", torch.full((3,), 5.0)),
    "load_state_dict": lambda x: nn.ParameterList([x]).load_state_dict({"0": torch.full((3,), 4.0)}),
    "double": lambda x: nn.ParameterList([x]).double(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_it_is_made_anew_when_a_tensor_changed(change: Callable[[nn.Parameter], object]) -> None:
    double, x = Counted(), nn.Parameter(torch.ones(3))
    x.grad = torch.ones(3)
    with torch.no_grad():
        double(x)
        change(x)
        assert torch.equal(double(x), 2 * x) and double.calls == 2


def test_every_tensor_counts_and_not_only_the_first() -> None:
    double, x, y = Counted(), torch.ones(3), torch.ones(3)
    double(x, y)
    y.add_(1)
    assert torch.equal(double(x, y), torch.full((3,), 6.0))
    assert torch.equal(double(x, torch.zeros(3)), torch.full((3,), 2.0))
    assert torch.equal(double(x), torch.full((3,), 2.0))


def test_memory_that_was_given_back_is_not_mistaken_for_the_old() -> None:
    double, x = Counted(), torch.zeros(1000)
    for k in range(20):  # the allocator likes to hand out the same address again
        x.data = torch.full((1000,), float(k))
        assert float(double(x)[0]) == 2 * k


def test_while_gradients_are_recorded_each_result_has_its_own_graph() -> None:
    double, x = Counted(), nn.Parameter(torch.ones(3))
    for _ in range(2):
        double(x).sum().backward()
    assert torch.equal(x.grad, torch.full((3,), 4.0)) and double.calls == 2


def test_training_past_the_version_counter_is_seen() -> None:
    double, x = Counted(), nn.Parameter(torch.ones(3))
    with torch.no_grad():
        double(x)
    double(x).sum().backward()
    x.data.add_(1)  # as some optimisers do
    with torch.no_grad():
        assert torch.equal(double(x), torch.full((3,), 4.0))


def test_what_inference_mode_made_serves_a_later_gradient() -> None:
    double, x, h = Counted(), torch.ones(3), nn.Parameter(torch.ones(3))
    with torch.inference_mode():
        double(x)
    (double(x) * h).sum().backward()
    assert torch.equal(h.grad, torch.full((3,), 2.0)) and double.calls == 1
    with torch.inference_mode():
        inner = torch.ones(3)
        double(inner)
        inner.add_(1)  # without a version
        assert torch.equal(double(inner), torch.full((3,), 4.0))


def test_it_lives_as_long_as_its_tensor_and_a_copy_has_its_own() -> None:
    double, x = Counted(), torch.ones(3)
    double(x)
    again = copy.deepcopy(x)
    again.add_(1)
    assert torch.equal(double(again), torch.full((3,), 4.0)) and torch.equal(double(x), torch.full((3,), 2.0))
    assert len(double.kept._known) == 2
    del x, again
    gc.collect()
    assert len(double.kept._known) == 0
