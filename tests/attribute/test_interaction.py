"""The self-repair measure against setting scores to the mean one by one."""

from __future__ import annotations

import pytest
import torch
from tests.model.tiny import HEADS, LAYERS, frozen, rows
from torch import Tensor

from inlay.attribute.interaction import Interactions, interactions, softmax_interaction

PROMPTS = rows(7, 4, 6)


def direct(scores: Tensor, worth: Tensor) -> tuple[float, float, float]:
    """e1, e2 and joint of the two keys whose P_i d_i are largest, from one row's unmasked scores."""

    def value(*ablated: int) -> Tensor:
        changed = scores.clone()
        changed[list(ablated)] = scores.mean()
        return (changed.softmax(0) * worth).sum()

    i, j = (scores.softmax(0) * worth).topk(2).indices.tolist()
    return tuple(float(value() - value(*keys)) for keys in ((i,), (j,), (i, j)))  # type: ignore[return-value]


def test_ablated_scores_are_set_to_the_mean_of_the_unmasked() -> None:
    made = torch.Generator().manual_seed(0)
    scores = 2 * torch.randn(2, 3, 5, 6, generator=made, dtype=torch.float64)
    worth = torch.rand(2, 3, 5, 6, generator=made, dtype=torch.float64)
    masked = scores.clone()
    masked[..., 4:] = -torch.inf
    where, single, joint = interactions(masked.softmax(-1).float(), worth.float(), threshold=0.0)
    assert len(joint) == 2 * 3 * 5
    for (row, head, query, *_), (e1, e2), both in zip(where.tolist(), single.tolist(), joint.tolist(), strict=True):
        want = direct(scores[row, head, query, :4], worth[row, head, query, :4])
        assert (e1, e2, both) == pytest.approx(want, abs=1e-5)


def test_a_sinks_share_stays_what_it_is() -> None:
    """A row that sums to less than 1: the sink's exponential is part of the denominator and no key."""
    scores = torch.tensor([2.0, 1.5, 0.0, -1.0], dtype=torch.float64)
    worth, sink = torch.tensor([1.0, 1.0, 0.2, 0.1], dtype=torch.float64), 0.7

    def value(*ablated: int) -> float:
        changed = scores.clone()
        changed[list(ablated)] = scores.mean()
        return float((torch.cat([changed, torch.tensor([sink])]).softmax(0)[:4] * worth).sum())

    pattern = torch.cat([scores, torch.tensor([sink])]).softmax(0)[:4]
    _, single, joint = interactions(pattern.float()[None, None, None], worth.float()[None, None, None], 0.0)
    assert single[0].tolist() == pytest.approx([value() - value(0), value() - value(1)], abs=1e-6)
    assert joint.item() == pytest.approx(value() - value(0, 1), abs=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_a_model_is_measured_at_every_head_and_position(family: str) -> None:
    model = frozen(family)
    found = softmax_interaction(model, PROMPTS, threshold=-1e9, batch_tokens=8)
    acts = model.read(PROMPTS, ["pattern.*", "v.*", "z.*"])
    assert acts.mask is not None
    seen = {tuple(line[:4]) for line in found.where.tolist()}
    assert len(seen) == len(found) and {line[1] for line in seen} == set(range(LAYERS))
    for line, (e1, e2), both in zip(found.where.tolist(), found.single.tolist(), found.joint.tolist(), strict=True):
        row, layer, head, query = line[:4]
        shares = acts[f"pattern.{layer}"][row, query, head]
        real = shares > 0
        v = acts[f"v.{layer}"]
        worth = v[row, : len(shares), head // (HEADS // v.shape[2])] @ acts[f"z.{layer}"][row, query, head]
        assert query < len(PROMPTS[row])
        if real.sum() < 2:
            continue
        want = direct(shares[real].double().log(), worth[real].double())
        assert (e1, e2, both) == pytest.approx(want, rel=1e-3, abs=1e-5)
    assert len(found) == sum((len(p) - 1) * HEADS * LAYERS for p in PROMPTS)


def test_an_effect_is_a_gradient_of_the_pattern() -> None:
    model = frozen("llama")

    def effect(output: object) -> Tensor:
        return output.logits[:, -1, 9].sum()  # type: ignore[attr-defined]

    found = softmax_interaction(model, rows(6, 6), layers=1, effect=effect, threshold=0.01)
    acts = model.read(rows(6, 6), "pattern.1", grads=effect)
    assert acts.gradients is not None and len(found)
    where, single, joint = interactions(
        acts["pattern.1"].transpose(1, 2), acts.gradients["pattern.1"].transpose(1, 2), 0.01
    )
    assert torch.equal(found.joint, joint) and torch.equal(found.single, single)
    assert torch.equal(found.where[:, [0, 2, 3, 4, 5]], where) and (found.where[:, 1] == 1).all()


def test_the_table() -> None:
    found = Interactions(torch.tensor([[0, 1, 2, 3, 4, 5]]), torch.tensor([[0.1, 0.1]]), torch.tensor([0.4]))
    assert found.interaction.tolist() == pytest.approx([0.5])
    frame = found.frame()
    assert frame.columns == ["row", "layer", "head", "query", "first", "second", "e1", "e2", "joint", "interaction"]
    assert frame.row(0)[:6] == (0, 1, 2, 3, 4, 5)
