"""Gradients of a training step, beside pyvene's: of R, of masks, and of a plain matrix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.interventions.tiny import EVEN, OTHER, WIDTH
from tests.peers.beside import HERE, THERE, Pair, at, numbers, pairs, source
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrize

from inlay.interventions import Edit, Function, Intervention, LowRank, Mask, RotateMask, families

LABELS = torch.tensor([7, 21, 40, 2])
SITE = "resid_post.1"


def _loss(logits: Tensor) -> Tensor:
    return cross_entropy(logits[:, -1], LABELS)


def _ours(pair: Pair, intervention: Intervention) -> Tensor:
    loss = _loss(pair.model.forward(EVEN, edit=Edit(SITE, intervention, at())).logits)
    loss.backward()
    return loss.detach()


def _theirs(pair: Pair, made: Any, **more: Any) -> Tensor:
    part = {"layer": 1, "component": "block_output", "intervention": made, **more}
    loss = _loss(pair.theirs([part], pairs(), sources=[OTHER])[1].logits)
    loss.backward()
    return loss.detach()


def _close(mine: Tensor | None, theirs: Tensor | None) -> None:
    assert mine is not None and theirs is not None
    assert theirs.abs().max() > 0.01, "no gradient to speak of"
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 4])
def test_the_gradient_of_a_low_rank_space(pair: Pair, rank: int) -> None:
    """dL/dR is the same; each library maps it onto its own parameter of R, ours by the QR of X.

    Steps of the parameters themselves are not compared: theirs are Householder vectors, ours is X.
    """
    ours = LowRank(source(), WIDTH, rank, seed=3)
    made = pair.pyvene.LowRankRotatedSpaceIntervention(embed_dim=WIDTH, low_rank_dimension=rank)
    made.rotate_layer.weight = ours.basis()
    with parametrize.cached():
        weight = made.rotate_layer.weight
        weight.retain_grad()
        theirs = _theirs(pair, made, low_rank_dimension=rank)
    torch.testing.assert_close(_ours(pair, ours), theirs, rtol=0, atol=1e-5)
    (wanted,) = torch.autograd.grad(families.orthonormal(ours.raw), ours.raw, weight.grad)
    _close(ours.raw.grad, wanted)


def test_the_gradient_of_a_space_that_two_layers_share(pair: Pair) -> None:
    """One intervention at two places, in both libraries the same object: its gradient is the sum of both."""
    ours = LowRank(source(), WIDTH, 4, seed=3)
    made = pair.pyvene.LowRankRotatedSpaceIntervention(embed_dim=WIDTH, low_rank_dimension=4)
    made.rotate_layer.weight = ours.basis()
    parts = [
        {"layer": layer, "component": "block_output", "intervention": made, "low_rank_dimension": 4, "group_key": 0}
        for layer in (0, 1)
    ]
    with parametrize.cached():
        weight = made.rotate_layer.weight
        weight.retain_grad()
        where = {"sources->base": ([THERE, THERE], [HERE, HERE])}
        theirs = _loss(pair.theirs(parts, where, sources=[OTHER])[1].logits)
        theirs.backward()
    edit = Edit("resid_post.0", ours, at()) + Edit(SITE, ours, at())
    mine = _loss(pair.model.forward(EVEN, edit=edit).logits)
    mine.backward()
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
    (wanted,) = torch.autograd.grad(families.orthonormal(ours.raw), ours.raw, weight.grad)
    _close(ours.raw.grad, wanted)
    assert sum(p.numel() for p in edit.parameters()) == ours.raw.numel()


def test_the_gradient_of_a_masked_rotation(pair: Pair) -> None:
    """Of theta, and of R as above; a boundary's is not compared, since their mask is another function of it."""
    ours = RotateMask(source(), WIDTH, temperature=0.5, seed=2)
    made = pair.pyvene.SigmoidMaskRotatedSpaceIntervention(embed_dim=WIDTH)
    made.rotate_layer.weight = ours.basis()
    ours.theta.data = numbers(WIDTH)
    made.masks.data = ours.theta.detach().clone()
    made.set_temperature(torch.tensor(0.5))
    with parametrize.cached():
        weight = made.rotate_layer.weight
        weight.retain_grad()
        theirs = _theirs(pair, made)
    torch.testing.assert_close(_ours(pair, ours), theirs, rtol=0, atol=1e-5)
    _close(ours.theta.grad, made.masks.grad)
    (wanted,) = torch.autograd.grad(families.orthonormal(ours.raw), ours.raw, weight.grad)
    _close(ours.raw.grad, wanted)


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning")  # in pyvene
def test_a_training_step_of_a_mask(pair: Pair) -> None:
    """The same parameter in both: the same gradient, and the same logits after one step of Adam."""
    ours, made = Mask(source(), WIDTH, 0.5), pair.pyvene.SigmoidMaskIntervention(embed_dim=WIDTH)
    made.set_temperature(torch.tensor(0.5))
    ours.theta.data = numbers(WIDTH)
    made.mask.data = ours.theta.detach().clone()
    torch.testing.assert_close(_ours(pair, ours), _theirs(pair, made), rtol=0, atol=1e-5)
    _close(ours.theta.grad, made.mask.grad)
    for parameter in (ours.theta, made.mask):
        torch.optim.SGD([parameter], lr=0.5).step()
    assert (ours.theta - numbers(WIDTH)).abs().max() > 1e-3
    part = {"layer": 1, "component": "block_output", "intervention": made}
    pair.agree(Edit(SITE, ours, at()), pair.theirs([part], pairs(), sources=[OTHER])[1].logits)


class Plain(nn.Module):
    """h + (x - h) W W^T with a free matrix W."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(start.clone())

    def forward(self, h: Tensor, source: Tensor) -> Tensor:
        return h + (source - h) @ self.weight @ self.weight.T


def test_a_training_step_of_a_plain_matrix(pair: Pair) -> None:
    """As a module of ours and as a function of theirs: the same gradient, and the same logits after a step of SGD."""
    start = numbers(WIDTH, 2) / WIDTH**0.5
    ours, theirs = Plain(start), Plain(start)

    def made(base: Tensor, source: Tensor) -> Tensor:
        return theirs(base, source)

    mine = Function(ours, source())
    torch.testing.assert_close(_ours(pair, mine), _theirs(pair, made), rtol=0, atol=1e-5)
    _close(ours.weight.grad, theirs.weight.grad)
    for module in (ours, theirs):
        torch.optim.SGD(module.parameters(), lr=0.1).step()
    assert (ours.weight - start).abs().max() > 1e-3
    part = {"layer": 1, "component": "block_output", "intervention": made}
    pair.agree(Edit(SITE, mine, at()), pair.theirs([part], pairs(), sources=[OTHER])[1].logits)
