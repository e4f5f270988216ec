"""Edits of some latents of a sparse autoencoder; what it does not reconstruct stays as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from inlay.errors import EditError
from inlay.interventions import families
from inlay.interventions.base import Dims, Intervention, as_source, dimensions, keep
from inlay.interventions.kept import Kept
from inlay.interventions.sae import SAE, TENSORS
from inlay.model.call import Call, State

_columns = Kept()


class Latents(Intervention):
    """An edit of some latents I: h + dec(z') - dec(z) = h + (z' - z)_I W_dec_I, the reconstruction error kept.

    Without a TopK only the columns of I are computed, so that the edit of one latent costs two vectors and not two
    matrices. Interventions that are given one `SAE` share its tensors, in an Edit's folder and in a Bank too.
    """

    indices: tuple[str, ...] = ("latents",)

    def __init__(self, sae: SAE, latents: Dims) -> None:
        super().__init__()
        index = dimensions(latents)
        if index is not None and int(index.max()) >= sae.latents:
            raise EditError(
                f"{type(self).__name__}: latent {int(index.max())} is out of range; the SAE has {sae.latents}"
            )
        self.sae = sae
        self.shares = tuple(f"sae.{name}" for name, _ in sae.named_parameters())
        self.register_buffer("latents", index)

    def width(self) -> int:
        """The SAE's."""
        return self.sae.width

    def config(self) -> dict[str, Any]:
        """How the SAE encodes, beside its tensors."""
        return {"k": self.sae.k, "centre": self.sae.centre}

    def prepare(self, state: State) -> State:
        """The columns of the encoder and the rows of the decoder that are used, in float32 or float64."""
        sae = {name: state[f"sae.{name}"] for name in TENSORS if f"sae.{name}" in state}
        rest = {name: tensor for name, tensor in state.items() if not name.startswith("sae.")}
        latents = state.get("latents")

        def make() -> dict[str, Tensor]:
            return _read(sae, self.sae.centre, latents, whole=self.sae.k is not None)

        return {**rest, **_columns.get([*sae.values()] if latents is None else [latents, *sae.values()], make)}

    def encoded(self, x: Tensor, state: State) -> Tensor:
        """The latents I of states x [rows, tokens, width], [rows, tokens, n]."""
        z = families.latents(x, state["encode"], state["bias"], state.get("centre"), state.get("threshold"), self.sae.k)
        if self.sae.k is None or "latents" not in state:
            return z
        index = state["latents"].to(z.device)
        return z.gather(-1, index.expand(*z.shape[:-1], index.shape[-1]))

    def extra_repr(self) -> str:
        """Which latents."""
        index = self.state().get("latents")
        return f"latents={'all' if index is None else index.tolist()}"


def _read(
    sae: Mapping[str, Tensor], centre: bool, latents: Tensor | None = None, whole: bool = False
) -> dict[str, Tensor]:
    """The encoder's columns and the decoder's rows of latents [n], or of each row's own [R, 1, n].

    A latent that is named twice counts once: each time with its share of the decoder's row.
    """
    encode, decode, bias, threshold = sae["W_enc"], sae["W_dec"], sae["b_enc"], sae.get("threshold")
    if latents is not None:
        index = latents if latents.ndim == 1 else latents[:, 0]
        times = (index[..., None] == index[..., None, :]).sum(-1, keepdim=True)
        decode = decode[index] / times
        if not whole:
            encode, bias = encode.T[index].transpose(-1, -2), bias[latents]
            threshold = None if threshold is None else threshold[latents]
    found = {"encode": encode, "bias": bias, "decode": decode, "threshold": threshold}
    found["centre"] = sae["b_dec"] if centre else None
    return {name: t.to(torch.promote_types(t.dtype, torch.float32)) for name, t in found.items() if t is not None}


def _sae(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> SAE:
    """The SAE of a stored state."""
    tensors = {name: state[f"sae.{name}"] for name in TENSORS if f"sae.{name}" in state}
    return SAE(**tensors, k=config["k"], centre=config["centre"])


class LatentSwap(Latents):
    """Interchange of latents: h + dec(z') - dec(z) with z = enc(h) and z'_I = enc(x)_I for the source's state x.

    A swap with itself changes nothing. (pyvene's AutoencoderIntervention gives dec(z') alone, which changes h by the
    reconstruction error.)

    Args:
        source: a `Source`, prompts to make one of, or `None` until `with_source` gives one.
        sae: the autoencoder.
        latents: I, as a list, a closed slice or a bool mask [latents]; all of them by default.

    Raises:
        EditError: a latent is out of range.
    """

    kind = "latent_swap"
    needs = frozenset({"source"})

    def __init__(self, source: Any, sae: SAE, latents: Dims = None) -> None:
        super().__init__(sae, latents)
        self.source = as_source(source)

    def config(self) -> dict[str, Any]:
        """The source, and how the SAE encodes."""
        return {"source": self.source, **super().config()}

    @classmethod
    def rebuild(cls, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Intervention:
        """With an SAE of the stored tensors."""
        return cls(config["source"], _sae(state, config), state.get("latents"))

    def transform(self, h: Tensor, state: State, call: Call) -> Tensor:
        """See `families.decoded`."""
        change = self.encoded(self.paired(call).to(h), state) - self.encoded(h, state)
        return families.decoded(h, change, state["decode"], call.strength)


class LatentSet(Latents):
    """Set latents to a value: h + dec(z') - dec(z) with z = enc(h) and z'_I = value. At 0 they are ablated.

    Args:
        sae: the autoencoder.
        latents: I, as a list, a closed slice or a bool mask [latents].
        value: one number, or one for each of them, float [n]; an `nn.Parameter` stays trainable.

    Raises:
        EditError: a latent is out of range, or the values are not as many as the latents, or not finite.
    """

    kind = "latent_set"
    indices = ("latents", "value")

    def __init__(self, sae: SAE, latents: Dims, value: float | Tensor) -> None:
        super().__init__(sae, latents)
        index = self.state().get("latents")
        if index is None:
            raise EditError("LatentSet(latents) names the latents that are set, such as [12, 340]")
        values = value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float32)
        if values.ndim == 0 and not isinstance(values, nn.Parameter):
            values = values.expand(len(index))
        if values.shape != index.shape or not bool(torch.isfinite(values.detach()).all()):
            raise EditError(f"LatentSet(value) is one finite number, or {len(index)} of them, not {value!r:.60}")
        keep(self, "value", values)

    @classmethod
    def rebuild(cls, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Intervention:
        """With an SAE of the stored tensors."""
        return cls(_sae(state, config), state["latents"], state["value"])

    def transform(self, h: Tensor, state: State, call: Call) -> Tensor:
        """See `families.decoded`."""
        z = self.encoded(h, state)
        return families.decoded(h, state["value"].to(z) - z, state["decode"], call.strength)
