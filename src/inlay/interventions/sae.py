"""Sparse autoencoders, and edits of their latents that keep the reconstruction error.

Dims of a name: d width, m latents.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from inlay._files import write_files
from inlay.errors import EditError, FolderError
from inlay.interventions import families

TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
_ELEUTHER = {"encoder.weight": "W_enc", "encoder.bias": "b_enc"}
FILES = ("sae_weights.safetensors", "sae.safetensors", "params.safetensors")


class SAE(nn.Module):
    """A sparse autoencoder of one Site's states: z = enc(x) [..., m], x about dec(z) = z W_dec + b_dec.

    With p = (x - b_dec) W_enc + b_enc, or p = x W_enc + b_enc without `centre`: z = relu(p); given thresholds, relu(p)
    where p is above them (JumpReLU, 2407.14435); given k, the k greatest of relu(p) (TopK, 2406.04093).

    Args:
        W_enc: float [d, m].
        b_enc: float [m].
        W_dec: float [m, d].
        b_dec: float [d].
        threshold: float [m], for JumpReLU.
        k: for TopK.
        centre: whether b_dec is taken off the input.

    Raises:
        EditError: the shapes do not fit each other, a value is not finite, or both `threshold` and `k` are given.
    """

    def __init__(
        self,
        W_enc: Tensor,
        b_enc: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        *,
        threshold: Tensor | None = None,
        k: int | None = None,
        centre: bool = True,
    ) -> None:
        super().__init__()
        given = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec, "threshold": threshold}
        tensors = {name: tensor for name, tensor in given.items() if tensor is not None}
        d, m = W_enc.shape if W_enc.ndim == 2 else (0, 0)
        shapes = {"W_enc": (d, m), "b_enc": (m,), "W_dec": (m, d), "b_dec": (d,), "threshold": (m,)}
        for name, tensor in tensors.items():
            if tuple(tensor.shape) != shapes[name] or not tensor.numel():
                raise EditError(
                    f"SAE({name}) is {list(tensor.shape)}; the shapes are W_enc [width, latents], b_enc [latents], "
                    "W_dec [latents, width], b_dec [width], threshold [latents]"
                )
            if not bool(torch.isfinite(tensor).all()):
                raise EditError(f"SAE({name}) holds values that are NaN or infinite")
            fixed = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)
            self.register_parameter(name, fixed)
        if k is not None and (threshold is not None or not 1 <= k <= m):
            raise EditError(f"SAE(k={k}): k is 1 to {m}, the latents, and goes without thresholds")
        self.k, self.centre = k, centre

    @property
    def width(self) -> int:
        """d."""
        return int(self.get_parameter("W_enc").shape[0])

    @property
    def latents(self) -> int:
        """m."""
        return int(self.get_parameter("W_enc").shape[1])

    def encode(self, x: Tensor) -> Tensor:
        """The latents z [..., m] of states [..., d]; see `families.latents`."""
        own = dict(self.named_parameters())
        centre = own["b_dec"] if self.centre else None
        return families.latents(x, own["W_enc"], own["b_enc"], centre, own.get("threshold"), self.k)

    def decode(self, z: Tensor) -> Tensor:
        """The states [..., d] that latents [..., m] stand for."""
        decode, bias = self.get_parameter("W_dec").to(z), self.get_parameter("b_dec").to(z)
        states: Tensor = z @ decode + bias
        return states

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction of states [..., d]."""
        return self.decode(self.encode(x))

    def save(self, folder: str | Path) -> Path:
        """Write `cfg.json` and `sae_weights.safetensors`, in the layout of SAELens.

        Raises:
            FolderError: the disk refuses.
        """
        folder = Path(folder).expanduser()
        own = dict(self.named_parameters())
        card = {
            "architecture": "jumprelu" if "threshold" in own else "standard" if self.k is None else "topk",
            "d_in": self.width,
            "d_sae": self.latents,
            "apply_b_dec_to_input": self.centre,
            "normalize_activations": "none",
            **({} if self.k is None else {"k": self.k}),
        }
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in own.items()}
        files = {FILES[0]: save(tensors), "cfg.json": (json.dumps(card, indent=2) + "\n").encode()}
        write_files(folder, files)
        return folder

    @classmethod
    def load(cls, path: str | Path) -> SAE:
        """Read an autoencoder from safetensors, in one of the layouts that are in use.

        - SAELens: `sae_weights.safetensors` with W_enc, b_enc, W_dec, b_dec and for JumpReLU threshold, and `cfg.json`;
        - Gemma Scope: the same names as `params.safetensors`, without a `cfg.json`: JumpReLU that is not centred;
        - EleutherAI: `sae.safetensors` with encoder.weight, encoder.bias, W_dec, b_dec, and `cfg.json` with k.

        Args:
            path: the folder, or the file with `cfg.json` beside it.

        Raises:
            FolderError: it is none of these, is damaged, or says that it does something else.
        """
        path = Path(path).expanduser()
        file = path if path.suffix == ".safetensors" else _found(path)
        card = _card(file.parent / "cfg.json")
        try:
            tensors = load_file(file)
        except (OSError, SafetensorError) as error:
            raise FolderError(f"{file} cannot be read: {error}") from error
        theirs = "encoder.weight" in tensors
        if theirs:
            tensors = {_ELEUTHER.get(name, name): tensor for name, tensor in tensors.items()}
            tensors["W_enc"] = tensors["W_enc"].T.contiguous()
        if set(tensors) - {"threshold"} != set(TENSORS[:4]):
            raise FolderError(f"{file} holds {', '.join(tensors)}; an SAE is {', '.join(TENSORS[:4])}, and threshold")
        options = _eleuther(file, card) if theirs else _saelens(file, card, "threshold" in tensors)
        made: dict[str, Any] = {**tensors, **options}
        try:
            return cls(**made)
        except EditError as error:
            raise FolderError(f"{file}: {error}") from error

    def extra_repr(self) -> str:
        """The sizes and the kind."""
        kind = (
            "jumprelu"
            if "threshold" in dict(self.named_parameters())
            else "relu"
            if self.k is None
            else f"top {self.k}"
        )
        return f"width={self.width}, latents={self.latents}, {kind}"


def _found(folder: Path) -> Path:
    """The file of weights in a folder."""
    for name in FILES:
        if (folder / name).is_file():
            return folder / name
    more = ""
    if (folder / "params.npz").is_file():
        more = "; of params.npz make one: safetensors.numpy.save_file(dict(numpy.load(...)), 'params.safetensors')"
    raise FolderError(f"{folder} has no {', '.join(FILES)}{more}")


def _card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text()) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise FolderError(f"{path} cannot be read: {error}") from error
    if not isinstance(card, dict):
        raise FolderError(f"{path} is no description of an SAE: {card!r:.60}")
    return card


def _saelens(file: Path, card: Mapping[str, Any], jumps: bool) -> dict[str, Any]:
    """The options that a SAELens `cfg.json` tells, or none where there is no such file."""
    function = card.get("activation_fn_str", card.get("activation_fn"))
    kind = card.get("architecture", "jumprelu" if jumps else "standard")
    kind = "topk" if kind == "standard" and function == "topk" else kind
    if kind not in ("standard", "jumprelu", "topk") or (kind == "jumprelu") != jumps:
        raise FolderError(
            f"{file} is of the architecture {kind!r}: standard, topk, or jumprelu with threshold are read"
        )
    if kind == "standard" and function not in (None, "relu"):
        raise FolderError(f"{file} has the activation function {function!r}: relu and topk are read")
    _refuse(file, card, "normalize_activations", (None, "none"), "fold the scale into the weights")
    _refuse(file, card, "rescale_acts_by_decoder_norm", (None, False), "fold the decoder's norms into the weights")
    k = card.get("k", (card.get("activation_fn_kwargs") or {}).get("k"))
    if kind == "topk" and not isinstance(k, int):
        raise FolderError(f"{file}: its cfg.json does not say k, how many latents are on")
    return {"k": k if kind == "topk" else None, "centre": bool(card.get("apply_b_dec_to_input", not jumps))}


def _eleuther(file: Path, card: Mapping[str, Any]) -> dict[str, Any]:
    """The options that an EleutherAI `cfg.json` tells."""
    _refuse(file, card, "activation", (None, "topk"), "only topk is read")
    _refuse(file, card, "transcode", (None, False), "a transcoder is no autoencoder")
    _refuse(file, card, "skip_connection", (None, False), "a transcoder is no autoencoder")
    if not isinstance(card.get("k"), int):
        raise FolderError(f"{file}: the cfg.json beside it does not say k, how many latents are on")
    return {"k": card["k"]}


def _refuse(file: Path, card: Mapping[str, Any], key: str, fine: tuple[Any, ...], remedy: str) -> None:
    if card.get(key) not in fine:
        raise FolderError(f"{file} has {key}={card[key]!r} in its cfg.json, which is not read: {remedy}")
