"""Interchange in a fixed basis and in an autoencoder's latents, and modules left out, beside pyvene's.

Where a basis or an autoencoder does not reconstruct the state, pyvene puts the reconstruction in the state's place, and
ours keeps what is not reconstructed. So ours less just that term is theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tests.interventions.tiny import EVEN, OTHER, WIDTH
from tests.peers.beside import HERE, SITES, TWO_HERE, TWO_THERE, Pair, at, numbers, pairs, source
from torch import Tensor

from inlay.interventions import SAE, BasisSwap, Call, Edit, Function, Intervention, LatentSwap, Skip

LAYER, LATENTS = 1, 50
streams = pytest.mark.parametrize("component", ["block_input", "block_output", "attention_output", "mlp_output"])


def _theirs(pair: Pair, component: str, made: Any, here: Any, there: Any, rows: Any = OTHER, **call: Any) -> Tensor:
    part = {"layer": LAYER, "component": component, "intervention": made}
    logits: Tensor = pair.theirs([part], pairs(here, there), sources=[rows], **call)[1].logits
    return logits


def _agree(pair: Pair, component: str, ours: Intervention, theirs: Tensor, here: Any = TWO_HERE) -> None:
    pair.agree(Edit(f"{SITES[component]}.{LAYER}", ours, at(here)), theirs)


# -- principal components ----------------------------------------------------------------------------------------------


@dataclass
class Pca:
    """What pyvene reads of scikit-learn's PCA: a component in each row."""

    components_: Any


def _pca(pair: Pair, rank: int) -> tuple[Any, Tensor, Tensor, Tensor]:
    """pyvene's, with the components [width, rank], their mean and their scale."""
    basis = torch.linalg.qr(numbers(WIDTH, rank))[0]
    mean, scale = numbers(WIDTH, seed=1), 0.5 + torch.rand(WIDTH)
    options = {"pca": Pca(basis.T.numpy()), "pca_mean": mean.numpy(), "pca_std": scale.numpy()}
    return pair.pyvene.PCARotatedSpaceIntervention(embed_dim=WIDTH, **options), basis, mean, scale


@streams
def test_some_components_of_a_whole_basis(pair: Pair, component: str) -> None:
    made, basis, _, scale = _pca(pair, WIDTH)
    where = {"subspaces": [[[1, 4, 9]] * 4]}
    theirs = _theirs(pair, component, made, HERE, HERE, **where)
    _agree(pair, component, BasisSwap(source(HERE), basis, components=[1, 4, 9], scale=scale), theirs, HERE)


@streams
def test_some_components_of_a_truncated_basis(pair: Pair, component: str) -> None:
    made, basis, mean, scale = _pca(pair, 10)
    where = {"subspaces": [[[1, 4, 9]] * 4]}
    theirs = _theirs(pair, component, made, HERE, HERE, **where)
    ours = BasisSwap(None, basis, components=[1, 4, 9], scale=scale)

    def without_the_rest(h: Tensor, source: Tensor) -> Tensor:
        units = (h - mean) / scale
        return ours(h, Call(source=source)) - scale * (units - units @ basis @ basis.T)

    _agree(pair, component, Function(without_the_rest, source(HERE)), theirs, HERE)


# -- autoencoders ------------------------------------------------------------------------------------------------------


def _weights() -> dict[str, Tensor]:
    return {
        "W_enc": numbers(WIDTH, LATENTS) / WIDTH**0.5,
        "b_enc": 0.1 * numbers(LATENTS, seed=1),
        "W_dec": numbers(LATENTS, WIDTH, seed=2) / LATENTS**0.5,
        "b_dec": 0.1 * numbers(WIDTH, seed=3),
    }


def _relu(pair: Pair) -> tuple[Any, SAE]:
    weights = _weights()
    made = pair.pyvene.AutoencoderIntervention(embed_dim=WIDTH, latent_dim=LATENTS)
    made.autoencoder.encoder[0].weight.data = weights["W_enc"].T
    made.autoencoder.encoder[0].bias.data = weights["b_enc"]
    made.autoencoder.decoder[0].weight.data = weights["W_dec"].T
    made.autoencoder.decoder[0].bias.data = weights["b_dec"]
    return made, SAE(**weights)


def _jumprelu(pair: Pair) -> tuple[Any, SAE]:
    weights = {**_weights(), "threshold": 0.3 * torch.rand(LATENTS)}
    made = pair.pyvene.JumpReLUAutoencoderIntervention(embed_dim=WIDTH, low_rank_dimension=LATENTS)
    for name, tensor in weights.items():
        getattr(made, name).data = tensor
    return made, SAE(**weights, centre=False)


def _without_the_error(sae: SAE, latents: Any, given: Any) -> Function:
    """`LatentSwap` less what the autoencoder does not reconstruct."""
    ours = LatentSwap(None, sae, latents)

    def act(h: Tensor, source: Tensor) -> Tensor:
        return ours(h, Call(source=source)) - (h - sae(h))

    return Function(act, given)


@streams
def test_latents_of_an_autoencoder(pair: Pair, component: str) -> None:
    made, sae = _relu(pair)
    made.set_interchange_dim([0, 7, 30, 49])
    theirs = _theirs(pair, component, made, HERE, HERE)
    _agree(pair, component, _without_the_error(sae, [0, 7, 30, 49], source(HERE)), theirs, HERE)


@streams
def test_latents_of_a_jumprelu_autoencoder(pair: Pair, component: str) -> None:
    made, sae = _jumprelu(pair)
    where = {"subspaces": [[[0, 7, 30, 49]] * 4]}
    theirs = _theirs(pair, component, made, TWO_HERE, TWO_THERE, **where)
    _agree(pair, component, _without_the_error(sae, [0, 7, 30, 49], source(TWO_THERE)), theirs)


@pytest.mark.parametrize("build", [_relu, _jumprelu])
def test_a_swap_with_itself_moves_theirs_and_not_ours(pair: Pair, build: Any) -> None:
    made, sae = build(pair)
    made.set_interchange_dim(list(range(LATENTS)) if build is _relu else LATENTS)
    plain = pair.model.forward(EVEN).logits
    theirs = _theirs(pair, "block_output", made, HERE, HERE, rows=EVEN)
    mine = pair.model.forward(EVEN, edit=Edit("resid_post.1", LatentSwap(source(HERE, EVEN), sae), at())).logits
    assert (theirs - plain).abs().max() > 0.05
    torch.testing.assert_close(mine, plain, rtol=0, atol=1e-5)


# -- modules left out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("component", ["block_output", "mlp_output"])
@pytest.mark.parametrize("own", [True, False], ids=["its own input", "a source's input"])
def test_a_module_left_out(pair: Pair, component: str, own: bool) -> None:
    """At Sites whose module gets its input by position: pyvene takes the first positional argument."""
    made = pair.pyvene.SkipIntervention(embed_dim=WIDTH)
    there, rows = (TWO_HERE, EVEN) if own else (TWO_THERE, OTHER)
    theirs = _theirs(pair, component, made, TWO_HERE, there, rows=rows)
    _agree(pair, component, Skip(None if own else source(TWO_THERE)), theirs)
