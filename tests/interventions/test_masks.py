"""Boundless, RotateMask and Mask: the masks' numbers, their annealing, their penalty, and what they become."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.interventions import tiny
from tests.interventions.tiny import EVEN, OTHER, WIDTH
from torch import Tensor

from inlay import Add, Bank, Boundless, Edit, LowRank, Mask, RotateMask, Source, Swap, set_temperature
from inlay.errors import EditError
from inlay.model.call import Call

SITE = "resid_post.1"
KINDS: dict[str, Callable[..., Any]] = {
    "boundless": lambda source=None, seed=0: Boundless(source, WIDTH, seed=seed),
    "rotate_mask": lambda source=None, seed=0: RotateMask(source, WIDTH, seed=seed),
    "mask": lambda source=None, seed=0: Mask(source, WIDTH),
}
each = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


def _pair() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, WIDTH, dtype=torch.float64), torch.randn(2, 3, WIDTH, dtype=torch.float64)


def _weights(made: Any) -> Tensor:
    return made.weights(made.state()).detach()


def _scattered(made: Any) -> Any:
    """Set its parameters to something of its own, so that the mask is neither at its start nor constant."""
    with torch.no_grad():
        if isinstance(made, Boundless):
            made.boundary.fill_(0.3)
        else:
            made.theta.copy_(torch.linspace(-2, 2, WIDTH))
    set_temperature(made, 1.5)
    return made


# -- the numbers -------------------------------------------------------------------------------------------------------


def test_the_boundary_is_a_sigmoid_around_its_rank() -> None:
    made = Boundless(None, 8, temperature=0.7)
    with torch.no_grad():
        made.boundary.fill_(0.4)
    want = [1 / (1 + math.exp(-(0.4 * 8 - i - 0.5) / 0.7)) for i in range(8)]
    torch.testing.assert_close(_weights(made), torch.tensor(want))
    assert made.kept().tolist() == [i < 3 for i in range(8)]
    assert made.rank() == pytest.approx(3.2)
    set_temperature(made, 1e-7)
    assert _weights(made).tolist() == [1.0] * 3 + [0.0] * 5, "hard in the end, the first column too"


def test_the_starts_are_those_of_the_papers() -> None:
    boundless, rotated, mask = Boundless(None, WIDTH), RotateMask(None, WIDTH), Mask(None, WIDTH)
    assert boundless.boundary.item() == 0.5 and float(boundless.temperature) == 50
    torch.testing.assert_close(_weights(rotated), torch.full((WIDTH,), 1 / (1 + math.exp(-2))))
    torch.testing.assert_close(_weights(mask), torch.full((WIDTH,), 0.5))
    assert float(mask.temperature) == pytest.approx(0.01)
    assert tuple(Boundless(None, WIDTH, max_rank=5).raw.shape) == (WIDTH, 5)


@pytest.mark.parametrize(("at", "inside"), [(-0.3, 1e-3), (1.7, 1.0)])
def test_a_boundary_outside_is_brought_in_and_can_come_back(at: float, inside: float) -> None:
    made = Boundless(None, 8, temperature=2.0)
    with torch.no_grad():
        made.boundary.fill_(at)
    assert made.rank() == pytest.approx(8 * inside, rel=1e-4)  # float32
    weights = made.weights(made.state())
    torch.testing.assert_close(weights, torch.sigmoid((8 * inside - torch.arange(8) - 0.5) / 2))
    weights.sum().backward()
    slope = (weights * (1 - weights) * 8 / 2).sum()
    torch.testing.assert_close(made.boundary.grad, slope.detach())


# -- the interchange ---------------------------------------------------------------------------------------------------


@each
def test_the_interchange_is_the_formula(make: Callable[..., Any]) -> None:
    made, (h, source) = _scattered(make()).double(), _pair()
    m = _weights(made)
    if isinstance(made, Mask):
        want = (1 - m) * h + m * source
    else:
        basis = made.basis()
        want = h + (((source - h) @ basis) * m) @ basis.T
    with torch.no_grad():
        torch.testing.assert_close(made(h, Call(source=source)), want, rtol=0, atol=1e-12)
        torch.testing.assert_close(made(h, Call(source=h)), h, rtol=0, atol=0)
        half = made(h, Call(source=source, strength=torch.tensor(0.5)))
    torch.testing.assert_close(half, (h + want) / 2, rtol=0, atol=1e-12)


@each
def test_half_precision_masks_in_float32(make: Callable[..., Any]) -> None:
    made, (h, source) = _scattered(make()).bfloat16(), _pair()
    assert {t.dtype for t in made.state().values()} == {torch.float32}
    h, source = h.bfloat16(), source.bfloat16()
    with torch.no_grad():
        got = made(h, Call(source=source))
        wide = made(h.float(), Call(source=source.float()))
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, h + (wide - h.float()).bfloat16(), rtol=0, atol=2**-6)


@each
def test_hardened_it_is_what_a_cold_mask_is(make: Callable[..., Any]) -> None:
    made = _scattered(make(OTHER))
    hard = made.hardened()
    assert type(hard) is (Swap if isinstance(made, Mask) else LowRank) and hard.source is made.source
    set_temperature(made, 1e-6)
    model = tiny.model()
    with torch.no_grad():
        cold = model.forward(EVEN, edit=Edit(SITE, made)).logits
        torch.testing.assert_close(model.forward(EVEN, edit=Edit(SITE, hard)).logits, cold, rtol=1e-5, atol=1e-5)
    assert float((cold - tiny.plain(model.hf, EVEN)).abs().max()) > 0.1


def test_what_keeps_nothing_is_not_hardened() -> None:
    made = Boundless(None, 8)
    with torch.no_grad():
        made.boundary.fill_(0.0)
    assert not bool(made.kept().any())
    with pytest.raises(EditError, match="Boundless keeps no dimension"):
        made.hardened()


# -- training and annealing --------------------------------------------------------------------------------------------


@each
def test_the_penalty_closes_the_mask(make: Callable[..., Any]) -> None:
    """Not so a penalty on |theta|, which leaves m at 1/2."""
    made = make()
    assert made.share().item() >= 0.5
    optimiser = torch.optim.Adam([p for n, p in made.named_parameters() if n != "raw"], lr=0.02 * made.temperature)
    for _ in range(400):
        optimiser.zero_grad()
        made.share().backward()
        optimiser.step()
    assert made.share().item() < 0.1 and not bool(made.kept().any())


def test_the_share_of_a_boundary_is_the_boundary() -> None:
    made = Boundless(None, WIDTH)
    made.share().backward()
    assert made.share().item() == 0.5 and float(made.boundary.grad) == 1.0 and made.raw.grad is None


@each
def test_a_planted_dimension_is_found(make: Callable[..., Any]) -> None:
    """Two of the Site's dimensions carry the label: after annealing the mask keeps them, and little else."""
    made = make()
    parameters = [{"params": [p], "lr": 0.02 if n == "raw" else 0.05} for n, p in made.named_parameters()]
    if isinstance(made, RotateMask):
        with torch.no_grad():
            made.theta.fill_(1.0)
    optimiser, hot, cold = torch.optim.Adam(parameters), 1.0, 0.05
    generator = torch.Generator().manual_seed(0)
    truth = torch.zeros(WIDTH, 2)
    truth[3, 0] = truth[17, 1] = 1.0
    for step in range(400):
        h, source = torch.randn(2, 64, WIDTH, generator=generator)
        set_temperature(made, hot + (cold - hot) * step / 400)
        new = made(h, Call(source=source))
        inside = (new - source) @ truth
        outside = (new - h) - (new - h) @ truth @ truth.T
        loss = inside.square().mean() + outside.square().sum(-1).mean() / WIDTH + 0.01 * made.share()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    hard = made.hardened()
    if isinstance(made, Mask):
        assert made.kept().nonzero().flatten().tolist() == [3, 17]
    else:
        cosines = torch.linalg.svdvals(hard.basis().T @ truth)
        assert hard.basis().shape[1] == 2 and float(cosines.min()) > 0.97


@each
def test_the_temperature_is_set_in_place_and_is_not_trained(make: Callable[..., Any]) -> None:
    made = make(OTHER)
    twin = made.with_source(EVEN)
    assert "temperature" not in dict(made.named_parameters())
    set_temperature(made, 0.25)
    assert float(twin.state()["temperature"]) == 0.25
    bank = Bank([make(), make()])
    set_temperature(bank, 3.0)
    assert bank.state()["temperature"].tolist() == [3.0] * 3


# -- banks, folders, repr ----------------------------------------------------------------------------------------------


@each
def test_a_row_of_a_bank_equals_its_own_alone(make: Callable[..., Any]) -> None:
    model, rows, source = tiny.model(), [2, 0, 1, 2], Source(OTHER)
    items = [make(source, seed=k) for k in range(2)]
    _scattered(items[1])
    set_temperature(items[0], 2.5)
    with torch.no_grad():
        got = model.forward(EVEN, edit=Edit(SITE, Bank(items)), rows=rows).logits
        assert torch.equal(got[1], tiny.plain(model.hf, EVEN)[1])
        for index, row in enumerate(rows):
            if row:
                one = items[row - 1].with_source([OTHER[index]])
                alone = model.forward([EVEN[index]], edit=Edit(SITE, one)).logits[0]
                torch.testing.assert_close(got[index], alone, rtol=1e-5, atol=1e-5)


@each
def test_saved_and_copied_it_is_the_same(make: Callable[..., Any], tmp_path: Path) -> None:
    model, edit = tiny.model(), Edit(SITE, _scattered(make(OTHER)))
    again = Edit.from_pretrained(edit.save(tmp_path / "edit"))
    with torch.no_grad():
        want = model.forward(EVEN, edit=edit).logits
        assert torch.equal(model.forward(EVEN, edit=again).logits, want)
        assert torch.equal(model.forward(EVEN, edit=copy.deepcopy(edit)).logits, want)
    loaded = again.parts[0].intervention
    assert float(loaded.temperature) == 1.5 and all(p.requires_grad for p in loaded.parameters())
    set_temperature(loaded, 1.0)


def test_repr() -> None:
    assert repr(Boundless(None, 8)) == "Boundless(width=8, kept=4 of 8, temperature=50, source=None)"
    assert repr(Mask("a", 4)) == "Mask(width=4, kept=0 of 4, temperature=0.01, source=Source('a'))"


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heat", [0.0, -1.0, float("nan"), float("inf")])
@each
def test_no_temperature(make: Callable[..., Any], heat: float) -> None:
    with pytest.raises(EditError, match=f"temperature={heat}: give a finite number above 0"):
        set_temperature(make(), heat)
    with pytest.raises(EditError, match=f"temperature={heat}"):
        type(make())(None, WIDTH, temperature=heat)


def test_what_has_no_temperature() -> None:
    with pytest.raises(EditError, match="Add has no temperature; Boundless, RotateMask and Mask have one"):
        set_temperature(Add(torch.ones(3)), 1.0)


@pytest.mark.parametrize("kind", [Boundless, RotateMask])
def test_more_columns_than_the_width(kind: Any) -> None:
    with pytest.raises(EditError, match=rf"{kind.__name__}\(width=8\): 9 orthonormal columns"):
        kind(None, 8, max_rank=9)


def test_no_width() -> None:
    with pytest.raises(EditError, match=r"Mask\(width=0\)"):
        Mask(None, 0)
