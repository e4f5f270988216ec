"""Attribution beside Captum's (0.9): the same scores where both define them. `make peers` installs it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.attribute.asking import BASE, FOIL, TARGETS, asked, table
from tests.interventions import tiny
from torch import Tensor

import inlay
from inlay.attribute import gradients as methods
from inlay.attribute.score_sites import site

captum: Any = pytest.importorskip("captum.attr", reason="make peers installs it")
ROWS = range(len(tiny.RAGGED))


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> inlay.Model:
    made: Any = tiny.llama if request.param == "llama" else tiny.gpt2
    return inlay.load(made(dtype=torch.float64, attn_implementation="sdpa").requires_grad_(False))


def forward(model: inlay.Model, row: int) -> Any:
    def number(embeds: Tensor) -> Tensor:
        logits = model.hf(inputs_embeds=embeds).logits[:, -1]
        return logits[:, TARGETS[row]] - logits[:, FOIL]

    return number


def ends(model: inlay.Model, row: int) -> tuple[Tensor, Tensor]:
    ids = torch.tensor([tiny.RAGGED[row]])
    with torch.no_grad():
        return table(model)(ids), table(model)(torch.full_like(ids, BASE))


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found[: wanted.shape[-1]].double(), wanted[0].double(), rtol=1e-5, atol=1e-5)


def test_gradient_times_input(model: inlay.Model) -> None:
    found = methods.times_change(asked(model, baseline="zero"))
    for row in ROWS:
        x, _ = ends(model, row)
        close(found[row], captum.InputXGradient(forward(model, row)).attribute(x.requires_grad_()).sum(-1).detach())


def test_saliency(model: inlay.Model) -> None:
    found = methods.saliency(asked(model))
    for row in ROWS:
        x, _ = ends(model, row)
        slope = captum.Saliency(forward(model, row)).attribute(x.requires_grad_(), abs=False)
        close(found[row], slope.norm(dim=-1).detach())


@pytest.mark.parametrize(("rule", "theirs"), [("gauss", "gausslegendre"), ("midpoint", "riemann_middle")])
def test_integrated_gradients(model: inlay.Model, rule: Any, theirs: str) -> None:
    found = methods.integrated(asked(model), n=20, rule=rule)
    for row in ROWS:
        x, b = ends(model, row)
        peer = captum.IntegratedGradients(forward(model, row)).attribute(x, b, n_steps=20, method=theirs)
        close(found[row], peer.sum(-1))


@pytest.mark.slow
def test_conductance(model: inlay.Model) -> None:
    """Captum takes each step's gradient at one end, and inlay the mean of both: they meet as steps get small."""
    row, layer = 0, model.hf.model.layers[1] if hasattr(model.hf, "model") else model.hf.transformer.h[1]
    x, b = ends(model, row)
    ids, gaps = [tiny.RAGGED[row]], []
    for n in (50, 400):
        found = site(model, ids, "resid_post.1", TARGETS[row], FOIL, "conductance", baseline=BASE, level="unit", n=n)
        peer = captum.LayerConductance(forward(model, row), layer).attribute(x, b, n_steps=n)
        peer = (peer[0] if isinstance(peer, tuple) else peer).detach()
        gaps.append(float((found["resid_post.1"][0].double() - peer[0].double()).abs().max() / peer.abs().max()))
    assert gaps[1] < 0.02 and gaps[1] < gaps[0] / 4  # Captum's error falls with 1 / n: here by 8
