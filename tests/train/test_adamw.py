"""RowAdamW beside torch's AdamW: each row as if it were alone, absent rows untouched, vectors of length 1."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from inlay.errors import TrainError
from inlay.train.adamw import RowAdamW, Table

COUNT, WIDTH = 3, 5
SETTINGS = {"betas": (0.8, 0.95), "eps": 1e-6}


def grads(step: int, concept: int) -> tuple[Tensor, Tensor]:
    """A concept's gradients, of a matrix and of a number; some longer than the clip and some shorter."""
    draws = torch.Generator().manual_seed(100 * step + concept)
    scale = 0.05 if (step + concept) % 2 else 4.0
    return scale * torch.randn(WIDTH, 2, generator=draws), scale * torch.randn((), generator=draws)


def made() -> tuple[nn.Parameter, nn.Parameter]:
    draws = torch.Generator().manual_seed(1)
    return (
        nn.Parameter(torch.randn(COUNT + 1, WIDTH, 2, generator=draws)),
        nn.Parameter(torch.randn(COUNT + 1, generator=draws)),
    )


def present(step: int) -> list[int]:
    """Which concepts take part in a step: the second one leaves out every other, the third stops early."""
    return [0, *([1] if step % 2 else []), *([2] if step < 3 else [])]


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_every_row_is_what_torch_makes_of_it_alone(decay: float, clip: float | None) -> None:
    matrix, number = made()
    start = matrix.detach().clone(), number.detach().clone()
    rows = RowAdamW(
        {"matrix": Table(matrix, True), "number": Table(number, True)}, COUNT, weight_decay=decay, clip=clip, **SETTINGS
    )
    alone = [(nn.Parameter(start[0][k + 1].clone()), nn.Parameter(start[1][k + 1].clone())) for k in range(COUNT)]
    optimisers = [torch.optim.AdamW(list(one), weight_decay=decay, **SETTINGS) for one in alone]
    for step in range(8):
        here = present(step)
        rates = [0.1 / (step + 1) * (k + 1) for k in here]
        matrix.grad, number.grad = torch.zeros_like(matrix), torch.zeros_like(number)
        norms = []
        for concept, rate in zip(here, rates, strict=True):
            found = grads(step, concept)
            matrix.grad[concept + 1], number.grad[concept + 1] = found
            for parameter, grad in zip(alone[concept], found, strict=True):
                parameter.grad = grad.clone()
            optimisers[concept].param_groups[0]["lr"] = rate
            norms.append(float(nn.utils.clip_grad_norm_(alone[concept], float("inf") if clip is None else clip)))
            optimisers[concept].step()
        assert torch.allclose(rows.step(here, rates), torch.tensor(norms), rtol=1e-6)
    for k in range(COUNT):
        torch.testing.assert_close(matrix[k + 1], alone[k][0], rtol=0, atol=2e-6)
        torch.testing.assert_close(number[k + 1], alone[k][1], rtol=0, atol=2e-6)
    assert torch.equal(matrix[0], start[0][0]) and torch.equal(number[0], start[1][0]), "row 0 is no edit"


def test_a_row_that_is_absent_keeps_values_moments_and_count() -> None:
    matrix, _ = made()
    rows = RowAdamW({"matrix": Table(matrix, True)}, COUNT, weight_decay=0.5)
    matrix.grad = torch.ones_like(matrix)
    rows.step([0, 1, 2], [0.1] * 3)
    before, state = matrix.detach().clone(), {name: t.clone() for name, t in rows.state_dict().items()}
    matrix.grad = torch.zeros_like(matrix)
    rows.step([0], [0.1])
    assert torch.equal(matrix[2:], before[2:]) and not torch.equal(matrix[1], before[1])
    for name, tensor in rows.state_dict().items():
        assert torch.equal(tensor[1:], state[name][1:])
    assert rows.steps.tolist() == [2, 1, 1]


def test_one_concept_owns_a_whole_tensor() -> None:
    whole, reference = nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(4, 3))
    rows = RowAdamW({"whole": Table(whole, False)}, 1, clip=None)
    torch_s = torch.optim.AdamW([reference], lr=0.01, weight_decay=0.0)
    for step in range(3):
        whole.grad = torch.arange(12.0).reshape(4, 3) - step
        reference.grad = whole.grad.clone()
        rows.step([0], [0.01])
        torch_s.step()
    torch.testing.assert_close(whole, reference, rtol=0, atol=1e-7)


def test_a_vector_of_length_1_moves_along_the_sphere() -> None:
    vector = nn.Parameter(nn.functional.normalize(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), dim=-1))
    rows = RowAdamW({"vector": Table(vector, True, unit=True)}, 1, clip=None)
    grad = torch.tensor([2.0, 1.0])
    tangent = grad - (grad @ vector[1]) * vector[1]
    vector.grad = torch.stack([torch.zeros(2), grad])
    before = vector[1].detach().clone()
    rows.step([0], [0.05])
    torch.testing.assert_close(rows.state["vector.mean"][0], 0.1 * tangent.detach())
    moved = before - 0.05 * tangent.detach().sign()  # Adam's first step, whatever the gradient's length
    torch.testing.assert_close(vector[1].detach(), moved / moved.norm(), rtol=0, atol=1e-5)


def test_decay_leaves_out_what_it_must_not_touch() -> None:
    free, kept = nn.Parameter(torch.ones(1, 2)), nn.Parameter(torch.ones(1, 2))
    rows = RowAdamW({"free": Table(free, False), "kept": Table(kept, False, decay=False)}, 1, weight_decay=0.5)
    free.grad, kept.grad = torch.zeros(1, 2), torch.zeros(1, 2)
    rows.step([0], [0.1])
    assert torch.equal(kept, torch.ones(1, 2)) and torch.allclose(free, torch.full((1, 2), 0.95))


def test_a_gradient_that_is_not_finite_reaches_nothing() -> None:
    matrix, _ = made()
    rows = RowAdamW({"matrix": Table(matrix, True)}, COUNT)
    before = matrix.detach().clone()
    matrix.grad = torch.ones_like(matrix)
    matrix.grad[2, 0, 0] = float("nan")
    norms = rows.step([0, 1, 2], [0.1] * 3)
    assert norms.isfinite().tolist() == [True, False, True]
    assert torch.equal(matrix[2], before[2]) and not torch.equal(matrix[1], before[1])
    assert rows.steps.tolist() == [1, 0, 1] and all(t.isfinite().all() for t in rows.state_dict().values())


def test_a_loss_that_reaches_nothing_is_an_error() -> None:
    matrix, _ = made()
    with pytest.raises(TrainError, match="does not depend on what is trained"):
        RowAdamW({"matrix": Table(matrix, True)}, COUNT).step([0], [0.1])


@pytest.mark.parametrize("make", [made])
def test_state_comes_back(make: Callable[[], tuple[nn.Parameter, nn.Parameter]]) -> None:
    first, second = make()[0], make()[0]
    one, other = (RowAdamW({"matrix": Table(m, True)}, COUNT) for m in (first, second))
    first.grad = torch.randn_like(first)
    one.step([0, 2], [0.1, 0.2])
    other.load_state_dict({name: t.clone() for name, t in one.state_dict().items()})
    second.data.copy_(first)
    for matrix, rows in ((first, one), (second, other)):
        matrix.grad = torch.full_like(matrix, 0.3)
        rows.step([0, 1], [0.1, 0.1])
    assert torch.equal(first, second)
