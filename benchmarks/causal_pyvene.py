"""The same causal work by pyvene, in the ways that its tutorials show. Runs without inlay.

pyvene freezes the model that it wraps and removes every hook from it, so it gets a copy of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from random_llama import ALL, LAYERS, inputs, llama
from torch import Tensor
from torch.nn.functional import cross_entropy

PLACES = {"resid_post": "block_output", "mlp_out": "mlp_output", "attn_out": "attention_output"}


def missing() -> str | None:
    """Why there is nothing to measure."""
    return None if find_spec("pyvene") else "pyvene is not installed: make peers"


class Pyvene:
    """pyvene and its copy of a model."""

    def __init__(self, size: str) -> None:
        import pyvene

        self.pyvene, self.hf = pyvene, llama(size)

    def interchange(self, base: Tensor, source: Tensor, grouped: bool) -> Callable[[], Tensor]:
        """The last token's state of a source at all 12 layers; grouped, the source runs once, else once a layer."""
        pv = self.pyvene
        part = {"component": "block_output", "intervention_type": pv.VanillaIntervention}
        wrapped = pv.IntervenableModel(
            [{"layer": layer, **part, **({"group_key": 0} if grouped else {})} for layer in ALL], model=self.hf
        )
        here, there, last = inputs(base), inputs(source), base.shape[1] - 1
        sources = [there] if grouped else [there] * LAYERS

        @torch.no_grad()
        def run() -> Tensor:
            return wrapped(base=here, sources=list(sources), unit_locations={"sources->base": last})[1].logits

        return run

    def cell(self, prompt: Tensor, noise: Tensor, kind: str, layers: Sequence[int], token: int, grouped: bool) -> float:
        """One cell of a causal trace: a wrapper and a call, as in the tutorial on it.

        Args:
            prompt: ids [1, tokens].
            noise: what is added to the first tokens' embeddings, [1, 4, width].
            kind: where clean states are set back.
            layers: at which layers.
            token: at which token.
            grouped: the clean run is made once for all layers; in the tutorial, once for each.

        Returns:
            The probability of token 1 behind the prompt.
        """
        pv, count = self.pyvene, len(layers)
        corrupt = pv.NoiseIntervention(embed_dim=noise.shape[-1])
        corrupt.noise, corrupt.noise_level = noise, torch.tensor(1.0)
        group = [{"group_key": int(index > 0)} if grouped else {} for index in range(1 + count)]
        back = [pv.VanillaIntervention(embed_dim=noise.shape[-1]) for _ in layers]
        parts = [{"layer": 0, "component": "block_input", "intervention": corrupt}]
        parts += [
            {"layer": layer, "component": PLACES[kind], "intervention": made}
            for layer, made in zip(layers, back, strict=True)
        ]
        wrapped = pv.IntervenableModel([{**p, **g} for p, g in zip(parts, group, strict=True)], model=self.hf)
        base, at = inputs(prompt), [[[token]]] * count
        sources = [None, base] if grouped else [None, *[base] * count]
        where = {"sources->base": ([None, *at], [[[0, 1, 2, 3]], *at])}
        with torch.no_grad():
            logits = wrapped(base, sources, where)[1].logits
        return float(logits[0, -1].softmax(-1)[1])

    def das(self, layer: int, rank: int, start: Tensor, lr: float) -> Callable[[dict[str, Any]], Tensor]:
        """A step of the documented training loop: forward, loss at the last token, backward, Adam.

        Args:
            layer: whose output.
            rank: of the subspace.
            start: its basis at the start, [width, rank].
            lr: of Adam.

        Returns:
            A step on a batch (base and source ids, labels, position), which gives the loss.
        """
        pv = self.pyvene
        part = {"layer": layer, "component": "block_output", "low_rank_dimension": rank}
        wrapped = pv.IntervenableModel(
            [{**part, "intervention_type": pv.LowRankRotatedSpaceIntervention}], model=self.hf
        )
        (rotation,) = wrapped.interventions.values()
        rotation.rotate_layer.weight = start
        optimizer = torch.optim.Adam(wrapped.get_trainable_parameters(), lr=lr)

        def step(batch: dict[str, Any]) -> Tensor:
            there, here = inputs(batch["source"]), inputs(batch["base"])
            _, found = wrapped(here, [there], {"sources->base": batch["position"]})
            loss = cross_entropy(found.logits[:, -1], batch["labels"])
            loss.backward()
            optimizer.step()
            wrapped.set_zero_grad()
            return loss.detach()

        return step
