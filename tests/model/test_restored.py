"""A module that is trained or frozen for a while is afterwards what it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from inlay.model.restored import restored


def module() -> nn.Module:
    """Mixed modes, mixed `requires_grad`, one gradient."""
    made = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Dropout()))
    made[1].eval()
    made[1][1].train()
    made[0].bias.requires_grad_(False)
    made[0].weight.grad = torch.ones(2, 2)
    return made


def facts(made: nn.Module) -> tuple[list[bool], list[bool]]:
    return [one.training for one in made.modules()], [p.requires_grad for p in made.parameters()]


@pytest.mark.parametrize("fails", [False, True])
def test_modes_flags_and_gradients(fails: bool) -> None:
    made = module()
    before, gradient = facts(made), made[0].weight.grad

    def work() -> None:
        with restored(made):
            assert made[0].weight.grad is None, "a backward inside does not add to it"
            made.eval().requires_grad_(True)
            made(torch.ones(1, 2)).sum().backward()
            if fails:
                raise RuntimeError("inside")

    if fails:
        with pytest.raises(RuntimeError, match="inside"):
            work()
    else:
        work()
    assert facts(made) == before
    assert made[0].weight.grad is gradient and bool((gradient == 1).all())
    assert all(p.grad is None for name, p in made.named_parameters() if name != "0.weight")
