"""What is measured of causal analysis: interchange and causal tracing, each beside plain HF and pyvene by turns.

pyvene runs in this same process, on a copy of the model of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import causal_training
import torch
from causal_pyvene import Pyvene, missing
from interleaved import AGAIN, PLAIN, Case, Plan, Section
from random_llama import LAYERS, ids, inputs, llama, title
from torch import Tensor

import inlay
from inlay.causal.tracing import causal_trace
from inlay.interventions import families

SIZES = ("d768", "d64")
TOKENS, KINDS = 16, ("resid_post", "mlp_out", "attn_out")
CELLS = LAYERS * TOKENS * len(KINDS)


def plans() -> Iterator[Plan]:
    """Every section, in order."""
    for size in SIZES:
        on = functools.cache(functools.partial(_loaded, size))
        shape = (4, 64)
        yield title("interchange at 12 sites, one source", size, shape), _plan(_interchange, on, shape)
        name = f"causal trace, {LAYERS} layers x {TOKENS} tokens x {len(KINDS)} kinds = {CELLS} cells"
        yield title(name, size, (1, TOKENS)), _plan(_trace, on)
        for rank in (1, 8):
            name = f"DAS training step, rank {rank} at resid_post.{causal_training.LAYER}"
            shape = (causal_training.BATCH, causal_training.TOKENS)
            yield title(name, size, shape), _plan(causal_training.das_step, on, rank)


@dataclass(frozen=True)
class Loaded:
    """A model in all its forms."""

    size: str
    hf: Any
    model: inlay.Model
    pyvene: Pyvene | None


def _loaded(size: str) -> Loaded:
    hf = llama(size)
    return Loaded(size, hf, inlay.load(hf), None if missing() else Pyvene(size))


def _plan(build: Callable[..., Section], loaded: Callable[[], Loaded], *arguments: Any) -> Callable[[str], Section]:
    return lambda title: build(title, loaded(), *arguments)


def _close(found: Tensor, wanted: Tensor, what: str) -> None:
    """A case that computes something else has no time worth reporting."""
    worst = float((found - wanted).abs().max())
    if worst > 1e-5:
        raise AssertionError(f"{what}: differs by up to {worst:.3g}")


def _interchange(title: str, on: Loaded, shape: tuple[int, int]) -> Section:
    base, source = ids(on.size, 2 * shape[0], shape[1]).chunk(2)
    here, there, rows, others = inputs(base), inputs(source), base.tolist(), source.tolist()

    @torch.no_grad()
    def plain() -> None:
        on.hf(**there)
        on.hf(**here)

    @torch.no_grad()
    def ours(worlds: bool = False) -> Tensor:
        edit = inlay.Edit("resid_post.*", inlay.Swap(inlay.Source(others)), tokens="last")
        return on.model.forward(rows, edit=edit, worlds=worlds).logits

    mine = "inlay, Swap"
    cases = [
        Case(f"{PLAIN}, two forwards", plain),
        Case(f"{AGAIN}, two forwards", plain),
        Case(mine, ours),
        Case("inlay, Swap, base and source in one batch", functools.partial(ours, worlds=True)),
    ]
    if on.pyvene:
        for name, grouped in (("a source for each site", False), ("sources grouped", True)):
            run = on.pyvene.interchange(base, source, grouped)
            _close(run(), ours(), f"{title}: pyvene, {name}")
            cases.append(Case(f"pyvene, {name}", run, beside=mine))
    return Section(title, cases, 5 if on.size == "d768" else 21)


# -- causal tracing ----------------------------------------------------------------------------------------------------

SAMPLE = tuple((kind, layer) for kind in KINDS for layer in (0, 4, 8))  # restore 8 layers on average; all cells, 7.9
NU, SEED = 0.5, 3


def _window(kind: str, layer: int) -> list[int]:
    """The layers that a cell restores: one of the residual stream, else l - 4 to l + 5."""
    return [layer] if kind == "resid_post" else list(range(max(0, layer - 4), min(LAYERS, layer + 6)))


def _trace(title: str, on: Loaded) -> Section:
    prompt, width = ids(on.size, 1, TOKENS), on.hf.config.hidden_size
    noise = NU * families.normal(torch.tensor(SEED), torch.arange(4)[None], width, torch.device("cpu"))

    def ours() -> Any:
        subject = [0, 1, 2, 3]
        return causal_trace(on.model, prompt.tolist(), subject, 1, kinds=KINDS, noise=NU, draws=1, window=10, seed=SEED)

    rows = 64 if on.size == "d768" else CELLS
    batches = [inputs(part) for part in ids(on.size, rows, TOKENS).split(64)]  # in larger ones, plain HF is slower here

    @torch.no_grad()
    def plain() -> None:
        for batch in batches:
            on.hf(**batch, logits_to_keep=1)

    mine = "inlay, causal_trace"
    part = rows / CELLS
    cases = [
        Case(f"{PLAIN}, {CELLS} rows", plain, part=part),
        Case(f"{AGAIN}, {CELLS} rows", plain, part=part),
        Case(mine, ours, limit=1.05),
    ]
    if on.pyvene:
        grid = ours()
        for name, grouped in (("a call for each cell", False), ("a call for each cell, sources grouped", True)):
            run = functools.partial(_cells, on.pyvene, prompt, noise, grouped)
            wanted = [
                float(grid.sel(component=kind, layer=layer, token=_token(kind, layer))) + float(grid["corrupted"])
                for kind, layer in SAMPLE
            ]
            _close(torch.tensor(run()), torch.tensor(wanted), f"{title}: pyvene, {name}")
            cases.append(Case(f"pyvene, {name}", run, beside=mine, part=len(SAMPLE) / CELLS))
    return Section(title, cases, 3 if on.size == "d768" else 7)


def _token(kind: str, layer: int) -> int:
    """A token for each cell of the sample: what a cell costs does not depend on it."""
    return (5 * layer + KINDS.index(kind)) % TOKENS


def _cells(peer: Pyvene, prompt: Tensor, noise: Tensor, grouped: bool) -> list[float]:
    return [
        peer.cell(prompt, noise, kind, _window(kind, layer), _token(kind, layer), grouped) for kind, layer in SAMPLE
    ]
