"""BasisSwap: the formula, the principal components beside another way to find them, and the error that is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.interventions import tiny
from tests.interventions.tiny import EVEN, OTHER, WIDTH
from torch import Tensor

from inlay import Bank, BasisSwap, Edit, LowRank, Source, Swap
from inlay.errors import EditError, SiteError
from inlay.model.call import Call

SITE = "resid_post.1"


def _columns(rank: int = 6) -> Tensor:
    return torch.linalg.qr(torch.randn(WIDTH, rank, dtype=torch.float64)).Q


def _on(made: Any, h: Tensor, source: Tensor) -> Tensor:
    return made(h, Call(source=source))


def test_the_formula_with_components_and_a_scale() -> None:
    basis, scale = _columns(), torch.rand(WIDTH, dtype=torch.float64) + 0.5
    h, source = torch.randn(2, 3, 4, WIDTH, dtype=torch.float64)
    got = _on(BasisSwap(None, basis, [0, 4], scale), h, source)
    some = basis[:, [0, 4]]
    want = h + scale * ((((source - h) / scale) @ some) @ some.T)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    inside = (got / scale) @ basis
    torch.testing.assert_close(inside[..., [0, 4]], ((source / scale) @ basis)[..., [0, 4]], rtol=0, atol=1e-12)
    torch.testing.assert_close(inside[..., [1, 2, 3, 5]], ((h / scale) @ basis)[..., [1, 2, 3, 5]], rtol=0, atol=1e-12)


def test_a_swap_with_itself_changes_no_bit_though_the_basis_is_truncated() -> None:
    model = tiny.model()
    made = BasisSwap.fit(model.read(OTHER, SITE)[SITE], rank=3, standardise=True)
    with torch.no_grad():
        got = model.forward(EVEN, edit=Edit(SITE, made.with_source(EVEN))).logits
    assert torch.equal(got, tiny.plain(model.hf, EVEN))


def test_the_whole_basis_is_a_swap_and_without_a_scale_a_low_rank_interchange() -> None:
    h, source = torch.randn(2, 3, 4, WIDTH, dtype=torch.float64)
    scale = torch.rand(WIDTH, dtype=torch.float64) + 0.5
    torch.testing.assert_close(_on(BasisSwap(None, _columns(WIDTH), scale=scale), h, source), source)
    basis = _columns()
    with torch.no_grad():
        want = _on(LowRank.of(basis), h, source)
    torch.testing.assert_close(_on(BasisSwap(None, basis), h, source), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("standardise", [False, True])
def test_the_components_are_the_eigenvectors_of_the_covariance(standardise: bool) -> None:
    acts = torch.randn(50, 4, 8) @ torch.randn(8, 8) + 3.0
    acts[..., 5] = 2.0  # a dimension that never varies
    made = BasisSwap.fit(acts, rank=3, standardise=standardise)
    states = acts.flatten(0, 1).double()
    deviation = states.std(0, correction=0)
    scale = torch.where(deviation > 1e-6, deviation, 1.0) if standardise else torch.ones(8, dtype=torch.float64)
    vectors = torch.linalg.eigh(torch.cov(states.T / scale[:, None])).eigenvectors.flip(1)[:, :3]
    vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    torch.testing.assert_close(made.state()["basis"].double(), vectors, rtol=0, atol=1e-5)
    torch.testing.assert_close(made.state()["scale"].double(), scale, rtol=1e-5, atol=1e-6)


def test_it_is_the_projection_of_the_difference_whatever_the_mean() -> None:
    """PCA takes the mean off both, so that it cancels."""
    acts, (h, source) = torch.randn(60, WIDTH) + 5.0, torch.randn(2, 1, 3, WIDTH)
    made = BasisSwap.fit(acts, rank=4)
    basis, mean = made.state()["basis"], acts.mean(0)
    centred = (h - mean) - (h - mean) @ basis @ basis.T + (source - mean) @ basis @ basis.T + mean
    torch.testing.assert_close(_on(made, h, source), centred, rtol=0, atol=1e-5)


def test_every_row_of_a_bank_has_its_own_components() -> None:
    model, source, basis = tiny.model(), Source(OTHER), _columns(8).float()
    items = [BasisSwap(source, basis, components) for components in ([0], [1, 2, 3], slice(4, 8))]
    with torch.no_grad():
        got = model.forward(EVEN, edit=Edit(SITE, Bank(items)), rows=[3, 1, 0, 2]).logits
        for index, row in enumerate([3, 1, 0, 2]):
            alone = model.forward(EVEN, edit=Edit(SITE, items[row - 1])).logits if row else tiny.plain(model.hf, EVEN)
            torch.testing.assert_close(got[index], alone[index], rtol=1e-5, atol=1e-5)


def test_stored_and_shown(tmp_path: Path) -> None:
    made = BasisSwap(OTHER, _columns(), [1, 3], torch.rand(WIDTH) + 0.5)
    edit = Edit(SITE, made)
    again = Edit.from_pretrained(edit.save(tmp_path / "edit"))
    with torch.no_grad():
        assert torch.equal(tiny.model().forward(EVEN, edit=again).logits, tiny.model().forward(EVEN, edit=edit).logits)
    assert repr(BasisSwap(None, _columns(), [1, 3])) == f"BasisSwap(width={WIDTH}, components=[1, 3], source=None)"


def test_bad_bases_components_and_scales() -> None:
    basis = _columns()
    with pytest.raises(EditError, match="the columns are not orthonormal"):
        BasisSwap(None, 2 * basis)
    with pytest.raises(EditError, match="the columns are not independent"):
        BasisSwap(None, torch.ones(8, 2))
    with pytest.raises(EditError, match=r"BasisSwap\(basis\) is a matrix"):
        BasisSwap(None, "pca")
    with pytest.raises(EditError, match=r"6 is out of range; the basis has 0 to 5"):
        BasisSwap(None, basis, [6])
    for scale in (torch.zeros(WIDTH), torch.ones(3), torch.full((WIDTH,), float("nan"))):
        with pytest.raises(EditError, match=rf"BasisSwap\(scale\) is \[{WIDTH}\]"):
            BasisSwap(None, basis, scale=scale)
    with pytest.raises(SiteError, match=r"BasisSwap has width 32, and mlp_act\.0 has width 48"):
        tiny.model().forward(EVEN, edit=Edit("mlp_act.0", BasisSwap(OTHER, basis)))


@pytest.mark.parametrize(("count", "rank"), [(3, 3), (50, 9), (50, 0)])
def test_states_that_have_no_such_components(count: int, rank: int) -> None:
    with pytest.raises(EditError, match=rf"{count} states of width 8 have no {rank} components"):
        BasisSwap.fit(torch.randn(count, 8), rank)
    with pytest.raises(EditError, match="NaN or infinite"):
        BasisSwap.fit(torch.full((9, 8), float("nan")), 2)


def test_a_swap_of_everything_is_what_a_swap_is() -> None:
    model, whole = tiny.model(dtype=torch.float64), _columns(WIDTH)
    with torch.no_grad():
        got = model.forward(EVEN, edit=Edit(SITE, BasisSwap(OTHER, whole))).logits
        want = model.forward(EVEN, edit=Edit(SITE, Swap(OTHER))).logits
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
