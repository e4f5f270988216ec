"""The product rule inside feed-forward parts, dense and mixtures: which factor stands where.

f is the rule's factor, 1/2 in every preset that has one. A gated MLP: f. Fused experts: f^2 on the hidden states, f on
the router's weights (AttnLRP's MoE rule). A shared expert: f, and f again where a gate multiplies it; that gate: f.
The router's softmax and top-k keep their ordinary derivative.
"""

from __future__ import annotations

from inlay.model.feed_forward import FeedForward


def factors_of(part: FeedForward, gated: bool, factor: float) -> tuple[float, ...]:
    """What the gradients of the part's inputs are multiplied by.

    Args:
        part: the part.
        gated: whether it multiplies two branches of its own.
        factor: f.
    """
    if part.role == "experts":
        return (factor**2 if gated else factor, factor)
    if part.role == "shared_gate":
        return (factor,)
    own = factor if gated else 1.0
    return (own * factor if part.gated else own,)
