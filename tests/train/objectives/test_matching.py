"""Distribution matching: the divergence by hand and from logits, its memory, and CDAS in both directions."""

from __future__ import annotations

import math

import pytest
import torch
from tests.train.objectives.toy import SITES, ToyStep, agree, forward, set_along, trained
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from inlay.errors import TrainError
from inlay.train.objectives import JSDMatch, jsd


def naive(p: Tensor, q: Tensor) -> Tensor:
    p, q = p.softmax(-1), q.softmax(-1)
    m = (p + q) / 2
    return ((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2


def test_by_hand() -> None:
    p, q = (torch.tensor(values, dtype=torch.float64).log()[None, None] for values in ([0.5, 0.5], [0.9, 0.1]))
    one = torch.ones(1, 1, dtype=torch.bool)
    assert jsd(p, q, one).item() == pytest.approx(0.101749, abs=5e-7)
    assert jsd(q, p, one).item() == pytest.approx(0.101749, abs=5e-7)
    assert jsd(p, p, one).item() == pytest.approx(0.0, abs=1e-15)


def test_disjoint_distributions_are_log_two_apart() -> None:
    p, q = torch.tensor([[[200.0, -200.0]]], requires_grad=True), torch.tensor([[[-200.0, 200.0]]])
    found = jsd(p, q, torch.ones(1, 1, dtype=torch.bool))
    assert found.item() == pytest.approx(math.log(2), abs=1e-6)
    (gradient,) = torch.autograd.grad(found.sum(), p)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_sums_and_gradients_in_chunks(chunk: int) -> None:
    draws = torch.Generator().manual_seed(0)
    p, q = (torch.randn(3, 5, 11, generator=draws, dtype=torch.float64) for _ in range(2))
    p.requires_grad_()
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3, [True] + [False] * 4])
    got = jsd(p, q, mask, chunk)
    expected = torch.stack(
        [sum((naive(p[i, t], q[i, t]) for t in range(n)), p.sum() * 0) for i, n in enumerate((5, 2, 1))]
    )
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    (a,), (b,) = (torch.autograd.grad(v.sum(), p) for v in (got, expected))
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert a[~mask].eq(0).all()


class _Largest(TorchDispatchMode):
    """The most elements of any float tensor wider than half precision that is made."""

    most = 0

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:  # type: ignore[type-arg]
        out = func(*args, **(kwargs or {}))  # type: ignore[operator]
        for one in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(one, Tensor) and one.is_floating_point() and one.dtype != torch.bfloat16:
                self.most = max(self.most, one.numel())
        return out


def test_no_wide_copy_of_all_logits_is_made() -> None:
    p, q = (torch.randn(4, 16, 50).bfloat16() for _ in range(2))
    p.requires_grad_()
    mask = torch.ones(4, 16, dtype=torch.bool)
    saved: list[Tensor] = []
    with (
        _Largest() as made,
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t),
    ):
        found = jsd(p, q, mask, chunk=8)
        held = sum(one.numel() for one in saved if one.dtype == torch.float32)
        found.sum().backward()
    assert made.most == 8 * 50, "no float32 tensor is larger than a chunk"
    assert held == 0, "and none waits for the backward pass"
    assert p.grad is not None and torch.isfinite(p.grad).all()
    wide = torch.stack([naive(a, b) for a, b in zip(p.flatten(0, 1).float(), q.flatten(0, 1).float(), strict=True)])
    torch.testing.assert_close(found, wide.view(4, 16).sum(1), rtol=1e-4, atol=1e-4)


def test_against_the_formula() -> None:
    step = ToyStep(trained(), edit=set_along)
    chosen, rejected, expected = [5, 5, 1], [6, 6, 3], []
    for i, row in enumerate(step.given):
        asked, plain = (forward(prompt)[SITES[0]][-1] @ step.vector for prompt in (row.teacher, row.prompt))
        total = torch.zeros((), dtype=torch.float64)
        for side, q, target, count in (
            ("chosen", asked, "teacher", chosen[i]),
            ("teacher_rejected", plain, "rejected", rejected[i]),
        ):
            mine, theirs = step.out(i, side, q)["logits"], forward(row.ids(target)[0])["logits"]
            n = len(row.chosen if side == "chosen" else row.rejected)
            total = total + sum(naive(mine[-1 - t], theirs[-1 - t]) for t in range(1, n + 1)) / count
        expected.append(total)
    agree(step, JSDMatch()(step), expected)  # type: ignore[arg-type]


def test_edits_that_it_cannot_train() -> None:
    step = ToyStep(trained())
    step.sites = step.sites * 2
    with pytest.raises(TrainError, match=r"acts at resid_post.0, resid_post.0 and holds vector"):
        JSDMatch()(step)  # type: ignore[arg-type]
    step = ToyStep(trained())
    step.state = lambda part=0: {}  # type: ignore[method-assign]
    with pytest.raises(TrainError, match=r"holds nothing: give it one SetAlong"):
        JSDMatch()(step)  # type: ignore[arg-type]


def test_chunk_is_at_least_one() -> None:
    with pytest.raises(TrainError, match="chunk=0: give a number of at least 1"):
        JSDMatch(chunk=0)
