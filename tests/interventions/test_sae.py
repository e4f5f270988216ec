"""SAE: its arithmetic beside loops over latents, and the layouts that people have on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from inlay import SAE
from inlay.errors import EditError, FolderError

D, M = 6, 10


def tensors(seed: int = 0, jumps: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = {"W_enc": (D, M), "b_enc": (M,), "W_dec": (M, D), "b_dec": (D,)}
    found = {name: torch.randn(*shape, generator=generator) for name, shape in made.items()}
    return found | ({"threshold": torch.rand(M, generator=generator)} if jumps else {})


def by_hand(x: Tensor, made: dict[str, Tensor], k: int | None, centre: bool) -> Tensor:
    """The latents of one state x [d], one number at a time."""
    x = x - made["b_dec"] if centre else x
    pre = [float(x @ made["W_enc"][:, j] + made["b_enc"][j]) for j in range(M)]
    if "threshold" in made:
        return torch.tensor([p if p > max(0.0, float(made["threshold"][j])) else 0.0 for j, p in enumerate(pre)])
    least = sorted(pre, reverse=True)[k - 1] if k else -float("inf")
    return torch.tensor([max(p, 0.0) if p >= least else 0.0 for p in pre])


KINDS: dict[str, dict[str, Any]] = {
    "relu": {"centre": True},
    "relu, not centred": {"centre": False},
    "top 3": {"k": 3, "centre": True},
    "jumprelu": {"centre": False},
}
each = pytest.mark.parametrize("kind", KINDS)


def sae(kind: str, seed: int = 0) -> SAE:
    return SAE(**tensors(seed, kind == "jumprelu"), **KINDS[kind])


@each
def test_latents_and_reconstruction_equal_those_by_hand(kind: str) -> None:
    made, own = sae(kind), tensors(0, kind == "jumprelu")
    x = torch.randn(4, 3, D)
    z = made.encode(x)
    options = {"k": None, **KINDS[kind]}
    want = torch.stack([by_hand(row, own, **options) for row in x.flatten(0, 1)]).unflatten(0, (4, 3))
    torch.testing.assert_close(z, want, rtol=0, atol=1e-5)
    assert 0 < float((z > 0).float().mean()) < 1
    decoded = sum(z[..., j, None] * own["W_dec"][j] for j in range(M)) + own["b_dec"]
    torch.testing.assert_close(made(x), decoded, rtol=0, atol=1e-5)


@each
def test_half_precision_states_are_encoded_in_float32(kind: str) -> None:
    made, x = sae(kind).bfloat16(), torch.randn(5, D).bfloat16()
    z = made.encode(x)
    assert z.dtype == torch.float32
    torch.testing.assert_close(z, made.float().encode(x.float()))


def test_an_autoencoder_is_fixed_unless_its_tensors_train() -> None:
    assert not any(p.requires_grad for p in sae("relu").parameters())
    own = {name: torch.nn.Parameter(t) for name, t in tensors().items()}
    made = SAE(**own)
    assert made.W_enc is own["W_enc"] and all(p.requires_grad for p in made.parameters())
    assert (made.width, made.latents) == (D, M)


def test_repr() -> None:
    assert repr(sae("top 3")) == "SAE(width=6, latents=10, top 3)"
    assert repr(sae("jumprelu")) == "SAE(width=6, latents=10, jumprelu)"


# -- on disk -----------------------------------------------------------------------------------------------------------


@each
def test_saved_and_loaded_it_is_the_same(kind: str, tmp_path: Path) -> None:
    made = sae(kind)
    folder = made.save(tmp_path / "sae")
    for path in (folder, folder / "sae_weights.safetensors"):
        again = SAE.load(path)
        assert (again.k, again.centre) == (made.k, made.centre)
        for name, tensor in made.named_parameters():
            assert torch.equal(again.get_parameter(name), tensor), name


def saelens(**card: Any) -> tuple[str, dict[str, Tensor], dict[str, Any] | None]:
    jumps = card.get("architecture") == "jumprelu"
    return "sae_weights.safetensors", tensors(1, jumps), {"d_in": D, "d_sae": M, **card}


def eleuther() -> dict[str, Tensor]:
    own = tensors(1)
    return {
        "encoder.weight": own["W_enc"].T.contiguous(),
        "encoder.bias": own["b_enc"],
        "W_dec": own["W_dec"],
        "b_dec": own["b_dec"],
    }


LAYOUTS: dict[str, tuple[tuple[str, dict[str, Tensor], Any], dict[str, Any]]] = {
    "saelens": (
        saelens(architecture="standard", activation_fn_str="relu", apply_b_dec_to_input=True),
        {"centre": True},
    ),
    "saelens, not centred": (
        saelens(architecture="standard", apply_b_dec_to_input=False, normalize_activations="none"),
        {"centre": False},
    ),
    "saelens jumprelu": (saelens(architecture="jumprelu", apply_b_dec_to_input=False), {"centre": False}),
    "saelens topk": (saelens(architecture="topk", k=3, apply_b_dec_to_input=True), {"k": 3, "centre": True}),
    "older saelens topk": (
        saelens(architecture="standard", activation_fn_str="topk", activation_fn_kwargs={"k": 3}),
        {"k": 3, "centre": True},
    ),
    "gemma scope": (("params.safetensors", tensors(1, True), None), {"centre": False}),
    "eleuther": (("sae.safetensors", eleuther(), {"k": 3, "num_latents": M, "d_in": D}), {"k": 3, "centre": True}),
}


def write(folder: Path, file: str, stored: dict[str, Tensor], card: Any) -> Path:
    folder.mkdir()
    save_file(stored, folder / file)
    if card is not None:
        (folder / "cfg.json").write_text(json.dumps(card))
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, tmp_path: Path) -> None:
    (file, stored, card), options = LAYOUTS[layout]
    folder = write(tmp_path / "sae", file, stored, card)
    want = SAE(**tensors(1, "threshold" in stored), **options)
    x = torch.randn(7, D)
    for path in (folder, str(folder), folder / file):
        made = SAE.load(path)
        assert torch.equal(made.encode(x), want.encode(x)) and torch.equal(made(x), want(x))


BAD: dict[str, tuple[Callable[[], tuple[str, dict[str, Tensor], Any]], str]] = {
    "gated": (lambda: saelens(architecture="gated"), "the architecture 'gated'"),
    "jumprelu without thresholds": (
        lambda: ("sae_weights.safetensors", tensors(), {"architecture": "jumprelu"}),
        "the architecture 'jumprelu'",
    ),
    "another function": (lambda: saelens(activation_fn="tanh-relu"), "the activation function 'tanh-relu'"),
    "scaled": (lambda: saelens(normalize_activations="layer_norm"), "normalize_activations='layer_norm'.*fold"),
    "rescaled": (lambda: saelens(architecture="topk", k=2, rescale_acts_by_decoder_norm=True), "rescale_acts"),
    "topk without k": (lambda: saelens(architecture="topk"), "does not say k"),
    "eleuther without k": (lambda: ("sae.safetensors", eleuther(), None), "does not say k"),
    "transcoder": (lambda: ("sae.safetensors", eleuther(), {"k": 2, "transcode": True}), "transcode=True"),
    "more tensors": (
        lambda: ("params.safetensors", tensors() | {"scaling_factor": torch.ones(M)}, None),
        "holds .*scaling_factor.*; an SAE is W_enc",
    ),
    "shapes": (
        lambda: ("params.safetensors", tensors() | {"W_dec": torch.ones(M, D + 1)}, None),
        r"SAE\(W_dec\) is \[10, 7\]",
    ),
    "not finite": (
        lambda: ("params.safetensors", tensors() | {"b_dec": torch.full((D,), float("nan"))}, None),
        r"SAE\(b_dec\) holds values that are NaN",
    ),
    "no description": (lambda: ("params.safetensors", tensors(), ["k"]), "is no description of an SAE"),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_is_not_read_says_why(bad: str, tmp_path: Path) -> None:
    make, says = BAD[bad]
    with pytest.raises(FolderError, match=says):
        SAE.load(write(tmp_path / "sae", *make()))


def test_what_is_not_there_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match=r"has no sae_weights\.safetensors, sae\.safetensors, params\.safetensors"):
        SAE.load(tmp_path)
    (tmp_path / "params.npz").write_bytes(b"")
    with pytest.raises(FolderError, match=r"of params\.npz make one"):
        SAE.load(tmp_path)
    (tmp_path / "params.safetensors").write_bytes(b"nothing")
    with pytest.raises(FolderError, match=r"params\.safetensors cannot be read"):
        SAE.load(tmp_path)
    (tmp_path / "cfg.json").write_text("{")
    with pytest.raises(FolderError, match=r"cfg\.json cannot be read"):
        SAE.load(tmp_path)
    with pytest.raises(FolderError, match="cannot be read"):
        SAE.load(tmp_path / "elsewhere.safetensors")


def test_what_is_no_autoencoder() -> None:
    own = tensors()
    with pytest.raises(EditError, match=r"SAE\(b_enc\) is \[6\]; the shapes are W_enc \[width, latents\]"):
        SAE(**{**own, "b_enc": torch.ones(D)})
    with pytest.raises(EditError, match="k is 1 to 10"):
        SAE(**own, k=11)
    with pytest.raises(EditError, match="goes without thresholds"):
        SAE(**own, threshold=torch.ones(M), k=2)
    with pytest.raises(EditError, match="NaN or infinite"):
        SAE(**{**own, "W_enc": torch.full((D, M), float("inf"))})
