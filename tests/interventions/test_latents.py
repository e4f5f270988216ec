"""LatentSwap and LatentSet: dec(z') - dec(z) added to the state, with the reconstruction error kept."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.interventions import tiny
from tests.interventions.test_sae import KINDS
from tests.interventions.tiny import EVEN, OTHER, WIDTH
from torch import Tensor, nn

from inlay import SAE, Bank, Edit, KeepNorm, LatentSet, LatentSwap, Source
from inlay.errors import EditError, SiteError
from inlay.model.call import Call

SITE, M = "resid_post.1", 80
each = pytest.mark.parametrize("kind", KINDS)


def sae(kind: str = "jumprelu", dtype: torch.dtype = torch.float32) -> SAE:
    """Random: it reconstructs nothing, so that an edit that dropped the error would show."""
    generator = torch.Generator().manual_seed(3)
    shapes = {"W_enc": (WIDTH, M), "b_enc": (M,), "W_dec": (M, WIDTH), "b_dec": (WIDTH,)}
    own = {name: 0.3 * torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    if kind == "jumprelu":
        own["threshold"] = 0.5 * torch.rand(M, generator=generator)
    return SAE(**{name: t.to(dtype) for name, t in own.items()}, **KINDS[kind])


def _pair(dtype: torch.dtype = torch.float64) -> Any:
    return torch.randn(2, 3, 4, WIDTH, dtype=dtype)


def _on(made: Any, h: Tensor, source: Tensor | None = None, **more: Any) -> Tensor:
    with torch.no_grad():
        return made(h, Call(source=source, **more))


# -- the formula -------------------------------------------------------------------------------------------------------


@each
@pytest.mark.parametrize("latents", [None, [7], [3, 50, 12], slice(0, 40)])
def test_a_swap_is_the_difference_of_two_decodings(kind: str, latents: Any) -> None:
    own, (h, source) = sae(kind, torch.float64), _pair()
    z, theirs = own.encode(h), own.encode(source)
    new = theirs if latents is None else z.clone()
    if latents is not None:
        new[..., latents] = theirs[..., latents]
    want = h + own.decode(new) - own.decode(z)
    got = _on(LatentSwap(None, own, latents), h, source)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    assert latents == [7] or float((got - h).abs().max()) > 0.1
    half = _on(LatentSwap(None, own, latents), h, source, strength=torch.tensor(0.5))
    torch.testing.assert_close(half, (h + want) / 2, rtol=0, atol=1e-12)


@each
@pytest.mark.parametrize("value", [0.0, 2.5, torch.tensor([1.0, -1.0, 4.0])])
def test_setting_latents_is_the_difference_of_two_decodings(kind: str, value: Any) -> None:
    own, (h, _) = sae(kind, torch.float64), _pair()
    z = own.encode(h)
    new = z.clone()
    new[..., [3, 50, 12]] = value if isinstance(value, float) else value.double()
    want = h + own.decode(new) - own.decode(z)
    torch.testing.assert_close(_on(LatentSet(own, [3, 50, 12], value), h), want, rtol=0, atol=1e-12)


@each
def test_a_swap_with_itself_changes_no_bit_though_nothing_is_reconstructed(kind: str) -> None:
    model, own = tiny.model(), sae(kind)
    states = tiny.states(model.hf, EVEN, 1)
    assert float((own(states) - states).abs().max()) > 0.5, "the error is large"
    for latents in (None, [3, 4]):
        with torch.no_grad():
            got = model.forward(EVEN, edit=Edit(SITE, LatentSwap(EVEN, own, latents))).logits
        assert torch.equal(got, tiny.plain(model.hf, EVEN))


def test_a_latent_that_is_set_to_what_it_is_changes_nothing() -> None:
    own, h = sae(dtype=torch.float64), torch.randn(1, 1, WIDTH, dtype=torch.float64)
    z = own.encode(h)[0, 0]
    torch.testing.assert_close(_on(LatentSet(own, list(range(M)), z), h), h, rtol=0, atol=1e-12)


def test_a_latent_named_twice_counts_once() -> None:
    own, (h, source) = sae(dtype=torch.float64), _pair()
    want = _on(LatentSwap(None, own, [3, 9]), h, source)
    torch.testing.assert_close(_on(LatentSwap(None, own, [3, 9, 3, 3]), h, source), want, rtol=0, atol=1e-12)


def test_half_precision_keeps_the_state_and_adds_the_difference() -> None:
    own, (h, source) = sae(), _pair(torch.bfloat16)
    z, theirs = own.encode(h), own.encode(source)
    want = h + ((theirs - z)[..., [3, 9]] @ own.W_dec[[3, 9]]).bfloat16()
    assert torch.equal(_on(LatentSwap(None, own, [3, 9]), h, source), want)


def test_only_the_columns_that_are_used_are_taken() -> None:
    made = LatentSet(sae(), [3, 9], 1.0)
    prepared = made.prepare(made.state())
    assert {name: tuple(t.shape) for name, t in prepared.items()} == {
        "latents": (2,),
        "value": (2,),
        "encode": (WIDTH, 2),
        "bias": (2,),
        "decode": (2, WIDTH),
        "threshold": (2,),
    }
    assert made.prepare(made.state())["encode"] is prepared["encode"], "kept"


def test_values_train() -> None:
    model, value = tiny.model(), nn.Parameter(torch.ones(2))
    model.hf.requires_grad_(False)
    edit = Edit(SITE, LatentSet(sae(), [3, 9], value))
    assert [p for p in edit.parameters() if p.requires_grad] == [value]
    model.forward(EVEN, edit=edit).logits[:, -1, 7].sum().backward()
    assert bool((value.grad.abs() > 1e-4).all())


# -- shared, banked, stored --------------------------------------------------------------------------------------------


@each
def test_every_row_of_a_bank_has_its_own_latents_of_one_autoencoder(kind: str) -> None:
    model, own, source, rows = tiny.model(), sae(kind), Source(OTHER), [2, 3, 0, 1]
    swaps = [LatentSwap(source, own, latents) for latents in ([3], [9, 50, 12], [7, 8])]
    sets = [
        LatentSet(own, [3], 2.0),
        LatentSet(own, [9, 50, 12], torch.tensor([1.0, 2.0, 3.0])),
        LatentSet(own, [7], 0),
    ]
    for items in (swaps, sets):
        bank = Bank(items)
        assert all(bank.state()[f"sae.{name}"] is tensor for name, tensor in own.named_parameters())
        with torch.no_grad():
            got = model.forward(EVEN, edit=Edit(SITE, bank), rows=rows).logits
            assert torch.equal(got[2], tiny.plain(model.hf, EVEN)[2])
            for index, row in enumerate(rows):
                if row:
                    for one in (items[row - 1], bank.item(row)):
                        alone = model.forward(EVEN, edit=Edit(SITE, one)).logits[index]
                        torch.testing.assert_close(got[index], alone, rtol=1e-5, atol=1e-5)


def test_one_autoencoder_is_stored_once(tmp_path: Path) -> None:
    model, own, source = tiny.model(), sae(), Source(OTHER)
    edit = Edit(SITE, LatentSwap(source, own, [3, 4]), tokens=1) + Edit("resid_post.0", LatentSet(own, [7], 3.0))
    edit = edit + Edit(
        "resid_post.2", Bank([KeepNorm(LatentSet(own, [9], 1.0)), KeepNorm(LatentSet(own, [1, 2], 1.0))])
    )
    folder = edit.save(tmp_path / "edit")
    stored = load_file(folder / "edit.safetensors")
    assert sum(t.numel() for t in stored.values() if t.ndim == 2 and M in t.shape) == 2 * M * WIDTH
    again = Edit.from_pretrained(folder)
    one, two = again.parts[0].intervention, again.parts[1].intervention
    assert one.sae.W_enc is two.sae.W_enc and not one.sae.W_enc.requires_grad
    assert again.parts[2].intervention.state()["sae.W_enc"] is one.sae.W_enc
    with torch.no_grad():
        want = model.forward(EVEN, edit=edit, rows=[1, 2, 0, 1]).logits
        for other in (again, copy.deepcopy(edit)):
            assert torch.equal(model.forward(EVEN, edit=other, rows=[1, 2, 0, 1]).logits, want)


@pytest.mark.parametrize("kind", ["top 3", "relu, not centred"])
def test_how_it_encodes_is_stored(kind: str, tmp_path: Path) -> None:
    edit = Edit(SITE, LatentSwap(OTHER, sae(kind), [3, 4]))
    again = Edit.from_pretrained(edit.save(tmp_path / "edit")).parts[0].intervention.sae
    assert (again.k, again.centre) == (KINDS[kind].get("k"), KINDS[kind]["centre"])


def test_another_autoencoder_is_another_bank() -> None:
    with pytest.raises(EditError, match=r"item 1 has a 'sae.W_enc' of its own"):
        Bank([LatentSet(sae(), [1], 0.0), LatentSet(sae(), [1], 0.0)])


def test_repr() -> None:
    assert repr(LatentSet(sae(), [1, 2], 0.0)).splitlines()[0] == "LatentSet("
    assert "latents=[1, 2]" in repr(LatentSet(sae(), [1, 2], 0.0)) and "latents=all" in repr(LatentSwap(None, sae()))


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_latents_and_values_that_do_not_fit() -> None:
    with pytest.raises(EditError, match="LatentSwap: latent 80 is out of range; the SAE has 80"):
        LatentSwap(None, sae(), [80])
    with pytest.raises(EditError, match=r"LatentSet\(value\) is one finite number, or 2 of them"):
        LatentSet(sae(), [1, 2], torch.ones(3))
    with pytest.raises(EditError, match=r"LatentSet\(value\) is one finite number"):
        LatentSet(sae(), [1, 2], float("nan"))
    with pytest.raises(EditError, match=r"LatentSet\(latents\) names the latents"):
        LatentSet(sae(), None, 1.0)
    with pytest.raises(SiteError, match=r"LatentSwap has width 32, and mlp_act\.0 has width 48"):
        tiny.model().forward(EVEN, edit=Edit("mlp_act.0", LatentSwap(OTHER, sae())))
    with pytest.raises(EditError, match="LatentSwap has no source yet"):
        tiny.model().forward(EVEN, edit=Edit(SITE, LatentSwap(None, sae())))


def test_trained_values_of_unequal_lengths_are_no_bank() -> None:
    own = sae()
    items = [LatentSet(own, latents, nn.Parameter(torch.ones(len(latents)))) for latents in ([1], [1, 2])]
    with pytest.raises(EditError, match="item 1 has tensors"):
        Bank(items)
