"""What scores of tokens cost: GIM beside a plain forward and backward, gradient x input, and integrated gradients."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
from attribute_inseq import has_inseq
from attribute_inseq import integrated as by_inseq
from interleaved import AGAIN, Case, Plan, Section
from random_llama import ids, llama, title
from torch import Tensor

import inlay
from inlay.attribute import backward_rules, tokens

POINTS = 20
SHAPES = {"d768": (128, 512), "d64": (128, 512, 2048)}
SHARE = {("d768", 512): 0.1, ("d64", 2048): 0.1, ("d768", 128): 0.25}  # of the 20 points, where all take too long
TARGET, BASELINE = 7, 3
FLOOR, RULES = "plain HF, forward and backward", "the same inside backward_rules(gim)"
GIM, GRAD = "inlay, gim", "inlay, gradient x input"
IG, CAPTUM = f"inlay, ig, {POINTS} points", f"captum, IntegratedGradients, {POINTS} points"
INSEQ = f"inseq, integrated_gradients, {POINTS} points"
TWICE, FASTER = 2.0, 8.0


def plans() -> Iterator[Plan]:
    """Every section, in order."""
    for size, lengths in SHAPES.items():
        for length in lengths:
            yield title("scores of tokens", size, (1, length)), functools.partial(_section, size, length)


def peers() -> list[str]:
    """The peers that are here."""
    captum = importlib.util.find_spec("captum") is not None
    return [*([CAPTUM] if captum else []), *([INSEQ] if has_inseq() else [])]


def case(kind: str, size: str, length: int, share: float = 1.0) -> Callable[[], Tensor]:
    """One way of scoring the tokens of one prompt, [T]; `share` of the points of a path."""
    hf, batch = llama(size, positions=2049), 4 + ids(size, 1, length) % 1000  # of no special meaning to inseq
    points = max(1, round(POINTS * share))

    def number(embeds: Tensor) -> Tensor:
        logits: Tensor = hf(inputs_embeds=embeds, use_cache=False, logits_to_keep=1).logits
        return logits[:, -1, TARGET]

    def plain() -> Tensor:
        embeds = hf.get_input_embeddings()(batch)
        base = hf.get_input_embeddings()(torch.full_like(batch, BASELINE))
        (slope,) = torch.autograd.grad(number(embeds.requires_grad_()).sum(), embeds)
        return ((embeds - base) * slope).sum(-1)[0].detach()

    def captum() -> Tensor:
        from captum.attr import IntegratedGradients

        embeds, base = hf.get_input_embeddings()(batch), hf.get_input_embeddings()(torch.full_like(batch, BASELINE))
        found = IntegratedGradients(number).attribute(embeds, base, n_steps=points, internal_batch_size=1)
        return found.sum(-1)[0].detach()

    if kind in (FLOOR, CAPTUM):
        return plain if kind == FLOOR else captum
    if kind == INSEQ:
        return by_inseq(hf, batch, TARGET, BASELINE, points)
    model = inlay.load(hf)

    def ruled() -> Tensor:
        with backward_rules(model, "gim"):
            return plain()

    if kind == RULES:
        return ruled
    options: dict[str, Any] = (
        {"method": "ig", "n": points} if kind == IG else {"method": "gim" if kind == GIM else "grad"}
    )
    # one copy of the prompt in a forward, as Captum's is told to take
    more = {"target": TARGET, "baseline": BASELINE, "quantity": "logit", "batch_tokens": length}
    return lambda: tokens(model, batch, **more, **options).scores[0]


def _section(size: str, length: int, name: str) -> Section:
    share = SHARE.get((size, length), 1.0)
    kinds = [FLOOR, RULES, GIM, GRAD, IG, *peers()]
    calls = {kind: case(kind, size, length, share) for kind in kinds}
    _close(calls[GRAD](), calls[FLOOR](), "gradient x input")
    _close(calls[GIM](), calls[RULES](), "gim")
    for peer in peers():
        _close(calls[IG](), calls[peer](), f"integrated gradients, {peer}")
    cases = [
        Case(FLOOR, calls[FLOOR]),
        Case(AGAIN, calls[FLOOR]),
        Case(RULES, calls[RULES], limit=TWICE),
        Case(GIM, calls[GIM], limit=TWICE),
        Case(GRAD, calls[GRAD]),
        # inlay also runs the row and its baseline, two forwards, whatever the points are: about one point more
        Case(IG, calls[IG], beside=GIM, part=(POINTS * share + 1) / (POINTS + 1)),
    ]
    cases += [Case(peer, calls[peer], beside=IG, part=share) for peer in peers()]
    return Section(name, cases, 5 if length * (12 if size == "d768" else 1) > 2000 else 11)


def _close(found: Tensor, wanted: Tensor, what: str) -> None:
    """A case that computes something else has no time worth reporting."""
    worst = float((found - wanted).abs().max() / wanted.abs().max())
    if not worst < 1e-4:
        raise AssertionError(f"{what}: differs by up to {worst:.3g} of the largest score")
