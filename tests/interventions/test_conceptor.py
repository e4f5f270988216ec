"""Conceptor: its numbers, its logic beside inverses, and where these do not exist."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from inlay import Conceptor
from inlay.errors import EditError
from inlay.model.call import Call


def _matrix(made: Conceptor) -> Tensor:
    return made.state()["matrix"].double()


def _close(have: Tensor, want: Tensor, by: float = 1e-6) -> None:
    torch.testing.assert_close(have.double(), want.double(), rtol=0, atol=by)


def _random(seed: int, width: int = 5) -> Conceptor:
    generator = torch.Generator().manual_seed(seed)
    return Conceptor.fit(torch.randn(40, width, generator=generator, dtype=torch.float64), aperture=1.0)


def _diagonal(*values: float) -> Conceptor:
    return Conceptor(torch.diag(torch.tensor(values, dtype=torch.float64)))


def test_published_numbers() -> None:
    """R = diag(1, .01) and aperture 10 give diag(.990, .5)."""
    states = torch.tensor([[1.0, 0.0], [0.0, 0.1]]) * 2**0.5
    _close(_matrix(Conceptor.fit(states)), torch.diag(torch.tensor([1 / 1.01, 0.5])))


@pytest.mark.parametrize("aperture", [0.5, 10.0])
def test_fitted_it_is_the_formula(aperture: float) -> None:
    states = torch.randn(30, 2, 6, dtype=torch.float64)
    flat = states.flatten(0, 1)
    correlations = flat.T @ flat / len(flat)
    want = correlations @ torch.linalg.inv(correlations + aperture**-2 * torch.eye(6))
    _close(_matrix(Conceptor.fit(states, aperture)), want)


def test_it_solves_the_problem_that_defines_it() -> None:
    """C minimises mean |x - x C|^2 + a^-2 |C|^2 (1403.3369)."""
    states = torch.randn(50, 4, dtype=torch.float64)
    matrix = _matrix(Conceptor.fit(states, aperture=2.0)).requires_grad_()
    loss = (states - states @ matrix).square().sum(-1).mean() + 0.25 * matrix.square().sum()
    loss.backward()
    _close(matrix.grad, torch.zeros(4, 4))


def test_more_aperture_keeps_more() -> None:
    states = torch.randn(50, 4)
    quotas = [float(_matrix(Conceptor.fit(states, a)).trace()) for a in (0.1, 1.0, 10.0, 1000.0)]
    assert quotas == sorted(quotas) and quotas[0] < 0.2 and quotas[-1] > 3.99


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, -0.5])
def test_the_edit_is_the_formula(beta: float) -> None:
    matrix, h = _matrix(_random(0)), torch.randn(2, 3, 5, dtype=torch.float64)
    made = Conceptor(matrix, beta)
    _close(made(h), h + beta * (h @ matrix.T - h), 1e-12)
    _close(made(h, Call(strength=torch.tensor(0.5))), h + 0.5 * beta * (h @ matrix - h), 1e-12)
    assert beta or torch.equal(made(h), h)


# -- logic -------------------------------------------------------------------------------------------------------------


def test_half_and_half() -> None:
    half = _diagonal(0.5, 0.5)
    _close(_matrix(half & half), torch.eye(2, dtype=torch.float64) / 3, 1e-12)
    _close(_matrix(half | half), 2 * torch.eye(2, dtype=torch.float64) / 3, 1e-12)
    _close(_matrix(~_diagonal(0.2, 1.0)), torch.diag(torch.tensor([0.8, 0.0])), 1e-7)


def test_and_is_the_formula_where_inverses_exist() -> None:
    a, b = _matrix(_random(0)), _matrix(_random(1))
    inverse = torch.linalg.inv
    identity = torch.eye(5, dtype=torch.float64)
    _close(_matrix(_random(0) & _random(1)), inverse(inverse(a) + inverse(b) - identity))
    union = identity - inverse(inverse(identity - a) + inverse(identity - b) - identity)
    _close(_matrix(_random(0) | _random(1)), union)


def test_laws() -> None:
    a, b, c = _random(0), _random(1), _random(2)
    _close(_matrix(~~a), _matrix(a))
    _close(_matrix(a & b), _matrix(b & a))
    _close(_matrix((a & b) & c), _matrix(a & (b & c)))
    _close(_matrix(~(a | b)), _matrix(~a & ~b))
    whole, nothing = _diagonal(1, 1, 1, 1, 1), _diagonal(0, 0, 0, 0, 0)
    _close(_matrix(a & whole), _matrix(a))
    _close(_matrix(a | nothing), _matrix(a))
    _close(_matrix(a & nothing), torch.zeros(5, 5))


def test_or_of_two_samples_is_the_conceptor_of_both_together() -> None:
    """C(R1) | C(R2) = C(R1 + R2): the union pools the correlations (1403.3369)."""
    one, two = torch.randn(30, 4, dtype=torch.float64), 3 * torch.randn(30, 4, dtype=torch.float64)
    pooled = torch.cat([one, two]) * 2**0.5
    got = _matrix(Conceptor.fit(one, 1.0) | Conceptor.fit(two, 1.0))
    _close(got, _matrix(Conceptor.fit(pooled, 1.0)), 1e-5)


def test_singular_ones_meet_where_both_have_something() -> None:
    got = _matrix(_diagonal(0.5, 0.5, 0.0, 0.0) & _diagonal(0.0, 0.5, 0.5, 0.0))
    _close(got, torch.diag(torch.tensor([0.0, 1 / 3, 0.0, 0.0], dtype=torch.float64)), 1e-12)
    nowhere = _diagonal(1.0, 0.0) & _diagonal(0.0, 1.0)
    _close(_matrix(nowhere), torch.zeros(2, 2), 1e-12)
    _close(_matrix(_diagonal(1.0, 0.0) | _diagonal(0.0, 1.0)), torch.eye(2), 1e-7)
    line, other = (torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.6, 0.8, 0.0]))
    planes = [Conceptor(torch.eye(3) - torch.outer(v, v)) for v in (line, other)]
    _close(_matrix(planes[0] & planes[1]), torch.diag(torch.tensor([0.0, 0.0, 1.0])))


def test_the_left_beta_stays() -> None:
    a, b = Conceptor(torch.eye(2) / 2, beta=0.3), Conceptor(torch.eye(2) / 2, beta=0.9)
    for made in (a & b, a | b, ~a):
        assert float(made.state()["beta"]) == pytest.approx(0.3)
        assert made.state()["matrix"].dtype == torch.float32


def test_repr() -> None:
    assert repr(Conceptor(torch.eye(4) / 2, 0.3)) == "Conceptor(width=4, beta=0.3, quota=0.5)"


def test_bad_input() -> None:
    with pytest.raises(EditError, match=r"Conceptor\(matrix\) is \[width, width\], not \[2, 3\]"):
        Conceptor(torch.ones(2, 3))
    for matrix in (torch.tensor([[0.5, 0.4], [0.0, 0.5]]), -torch.eye(2), 1.1 * torch.eye(2)):
        with pytest.raises(EditError, match="symmetric with eigenvalues from 0 to 1"):
            Conceptor(matrix)
    for matrix, beta in ((torch.full((2, 2), float("nan")), 1.0), (torch.eye(2), float("inf"))):
        with pytest.raises(EditError, match="NaN or infinite"):
            Conceptor(matrix, beta)
    for acts, aperture in ((torch.ones(3, 2), 0.0), (torch.ones(0, 2), 1.0), (torch.full((3, 2), float("nan")), 1.0)):
        with pytest.raises(EditError, match=r"Conceptor\.fit\(aperture="):
            Conceptor.fit(acts, aperture)
    with pytest.raises(EditError, match="widths 2 and 3"):
        Conceptor(torch.eye(2)) & Conceptor(torch.eye(3))
