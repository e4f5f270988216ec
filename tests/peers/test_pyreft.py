"""pyreft's six interventions beside ours with the same R, W and b: states, logits and gradients of each.

The names are crossed on purpose: pyreft's Nodireft is the paper's DiReFT, and its Direft the ablation `OrthoDiReFT`.
pyreft 0.1.0 pins a transformers of 2024 and works with this one: `pip install --no-deps pyreft==0.1.0`.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from tests.interventions.tiny import EVEN, WIDTH
from tests.peers.beside import HERE, TWO_HERE, Pair, at, only
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrize

from inlay.interventions import (
    ConsReFT,
    DiReFT,
    Edit,
    LobiReFT,
    LoReFT,
    NoReFT,
    OrthoDiReFT,
    families,
)
from inlay.interventions.reft_base import ReFT

RANK = 4
SITE = "resid_post.1"
NAMES: dict[str, type[ReFT]] = {
    "LoreftIntervention": LoReFT,
    "NodireftIntervention": DiReFT,
    "NoreftIntervention": NoReFT,
    "DireftIntervention": OrthoDiReFT,
    "ConsreftIntervention": ConsReFT,
    "LobireftIntervention": LobiReFT,
}
each = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="session")
def pyreft(pyvene: ModuleType) -> ModuleType:
    return pytest.importorskip(
        "pyreft", reason="agreement with pyreft is tested where it is installed, without its pins"
    )


def _both(pyreft: ModuleType, name: str, activation: str = "identity") -> tuple[ReFT, Any]:
    """One of ours, away from its start, and pyreft's with the same tensors."""
    kind = NAMES[name]
    more = {"activation": activation} if "down" in kind.holds else {}
    ours = kind(WIDTH, RANK, seed=3, **more)
    theirs = getattr(pyreft, name)(
        embed_dim=WIDTH,
        low_rank_dimension=RANK,
        dtype=torch.float32,
        add_bias=False,
        act_fn=None if activation == "identity" else activation,
    )
    draws = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for key, tensor in ours.state().items():
            if key != "raw":
                tensor.add_(0.3 * torch.randn(tensor.shape, generator=draws))
        if "raw" in ours.state():
            theirs.rotate_layer.weight = ours.basis()
        if "up" in ours.state():
            theirs.proj_layer.weight.copy_(ours.up)
        if "down" in ours.state():
            theirs.learned_source.weight.copy_(ours.down.T)
            theirs.learned_source.bias.copy_(ours.bias)
        else:
            theirs.learned_source.copy_(ours.bias)
    return ours, theirs.eval()


@pytest.mark.parametrize(
    ("name", "activation"),
    [
        (name, activation)
        for name, kind in NAMES.items()
        for activation in ("identity", "relu", "gelu", "tanh")
        if activation == "identity" or "down" in kind.holds
    ],
)
def test_states_and_gradients_are_pyrefts(pyreft: ModuleType, name: str, activation: str) -> None:
    ours, theirs = _both(pyreft, name, activation)
    mine, base = (
        torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2)
    )
    weights = torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(2))
    with parametrize.cached():
        rotation = theirs.rotate_layer.weight if "raw" in ours.holds else None
        if rotation is not None:
            rotation.retain_grad()
        got, want = ours(mine), theirs(base)
        for one in (got, want):
            (one * weights).sum().backward()
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    assert float((want - base).detach().abs().max()) > 0.1
    pairs: list[tuple[Tensor | None, Tensor | None]] = [(mine.grad, base.grad)]
    if rotation is not None:
        (wanted,) = torch.autograd.grad(families.orthonormal(ours.raw), ours.raw, rotation.grad)
        pairs.append((ours.raw.grad, wanted))
    if "up" in ours.holds:
        pairs.append((ours.up.grad, theirs.proj_layer.weight.grad))
    if "down" in ours.holds:
        pairs.append((ours.down.grad.T, theirs.learned_source.weight.grad))
        pairs.append((ours.bias.grad, theirs.learned_source.bias.grad))
    else:
        pairs.append((ours.bias.grad, theirs.learned_source.grad))
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-5)
        assert float(b.abs().max()) > 0.01


@pytest.mark.parametrize("here", [HERE, TWO_HERE], ids=["one position", "two positions"])
@each
def test_logits_are_pyrefts(pyreft: ModuleType, pair: Pair, name: str, here: Any) -> None:
    ours, theirs = _both(pyreft, name)
    part = {"layer": 1, "component": "block_output", "intervention": theirs, "low_rank_dimension": RANK}
    part |= {"max_number_of_units": len(here[0])}
    pair.agree(Edit(SITE, ours, at(here)), pair.theirs([part], only(here))[1].logits)


@each
def test_the_loss_of_a_training_step_has_pyrefts_gradients(pyreft: ModuleType, pair: Pair, name: str) -> None:
    ours, theirs = _both(pyreft, name)
    labels = torch.tensor([7, 21, 40, 2])
    part = {"layer": 1, "component": "block_output", "intervention": theirs, "low_rank_dimension": RANK}
    logits = pair.model.forward(EVEN, edit=Edit(SITE, ours, at())).logits
    cross_entropy(logits[:, -1], labels).backward()
    cross_entropy(pair.theirs([part], only())[1].logits[:, -1], labels).backward()
    if "down" in ours.holds:
        mine, wanted = ours.down.grad.T, theirs.learned_source.weight.grad
    else:
        mine, wanted = ours.bias.grad, theirs.learned_source.grad
    torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-5)
    assert float(wanted.abs().max()) > 1e-3
