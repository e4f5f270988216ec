"""What is trained: Edits with trainable parameters, by the names that papers give them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from inlay.errors import TrainError
from inlay.interventions.affine import RED
from inlay.interventions.base import Intervention
from inlay.interventions.edit import Edit
from inlay.interventions.lora import LoRA, widths
from inlay.interventions.reft import ConsReFT, DiReFT, LobiReFT, LoReFT, NoReFT, OrthoDiReFT
from inlay.interventions.steering import Steer, TopKAdd
from inlay.model.sites import Site
from inlay.model.tokens import Ends, Tokens

if TYPE_CHECKING:
    from inlay.model.model import Model

KINDS: dict[str, type[Intervention]] = {
    "loreft": LoReFT,
    "direft": DiReFT,
    "noreft": NoReFT,
    "ortho_direft": OrthoDiReFT,
    "consreft": ConsReFT,
    "lobireft": LobiReFT,
    "red": RED,
}
SHARES = ("layer", "ends", "position")


def reft(
    model: Model,
    kind: str = "loreft",
    rank: int = 8,
    layers: str | int | Sequence[int] = "all",
    tokens: Any = "ends(7, 7)",
    share: str = "layer",
    *,
    site: str = "resid_post",
    seed: int = 0,
    **options: Any,
) -> Edit:
    """Representation finetuning (2404.03592): an intervention at some layers and prompt tokens.

    Args:
        model: the Model.
        kind: `"loreft"`, `"direft"` (the paper's, which pyreft calls Nodireft), `"noreft"`, `"ortho_direft"` (pyreft's
            Direft), `"consreft"`, `"lobireft"` or `"red"`.
        rank: r; `"red"` has none.
        layers: `"all"`, one, or some; negative ones count from the last.
        tokens: which tokens; `"first7+last7"` is read as the paper's positions, `"ends(7, 7)"`.
        share: one intervention a layer, one for each of the two `"ends"`, or one for each `"position"`.
        site: the Site of each layer.
        seed: of the random starts; every intervention gets the next one.
        **options: of the intervention: `activation`, `dropout`, `init`, `groups`.

    Raises:
        TrainError: an unknown kind or way to share, or Tokens without ends to tell apart.
        SiteError: the model has no such Site or layer.
    """
    if kind not in KINDS:
        raise TrainError(f"kind={kind!r}: one of {', '.join(KINDS)}")
    if kind != "red":
        options["rank"] = rank
    found: list[Edit] = []
    for where in _sites(model, site, layers):
        for some in _groups(tokens, share):
            made = KINDS[kind](model.sites().width(where), seed=seed + len(found), **options)
            found.append(Edit(where, made, some))
    return _sum(model, found)


def steering(
    model: Model,
    site: str | Site,
    tokens: Any = None,
    *,
    start: float | None = None,
    bias: bool = True,
    dropout: float = 0.0,
    seed: int = 0,
) -> Edit:
    """A steering vector with a learned offset of its strength, h + (s + b) v, for RePS, Lang, BiPO and SSV.

    Args:
        model: the Model.
        site: one Site, or several layers of it (`"resid_post.*"`), each with a vector of its own.
        tokens: which tokens; by default prompt and response without what every prompt begins with.
        start: every entry of v at the start; by default drawn from U(-1/sqrt(width), 1/sqrt(width)).
        bias: whether b is trained; it is 0 otherwise.
        dropout: of v's entries.
        seed: of the start.
    """
    found: list[Edit] = []
    for where in model.sites().expand(site):
        width = model.sites().width(where)
        made = Steer(nn.Parameter(_start(width, start, seed + len(found))), dropout=dropout)
        if not bias:
            made.state()["bias"].requires_grad_(False)
        found.append(Edit(where, made, _spoken(model) if tokens is None else tokens))
    return _sum(model, found)


def reft_r1(model: Model, site: str | Site, tokens: Any = None, *, k: int = 8, start: float = 0.01) -> Edit:
    """ReFT-r1 (AxBench, 2501.17148 section 4): one unit vector that detects and steers; for the objective `"reft_r1"`.

    Args:
        model: the Model.
        site: one Site.
        tokens: which tokens; by default prompt and response without what every prompt begins with.
        k: how many of the greatest detections make the strength.
        start: every entry of the vector before it is scaled to length 1.
    """
    (where,) = model.sites().expand(site)
    vector = torch.full((model.sites().width(where),), float(start))
    return _sum(model, [Edit(where, TopKAdd(nn.Parameter(vector), k), _spoken(model) if tokens is None else tokens)])


def lora(
    model: Model,
    modules: str | Iterable[str] = "o_proj",
    layers: str | int | Sequence[int] = "all",
    rank: int = 4,
    tokens: Any = "all",
    *,
    seed: int = 0,
    **options: Any,
) -> Edit:
    """Low-rank adapters of linear modules (2106.09685) as interventions: for each row, at any strength.

    Args:
        model: the Model.
        modules: the ends of the modules' paths, such as `"o_proj"` or `["q_proj", "v_proj"]`.
        layers: `"all"`, one, or some.
        rank: r.
        tokens: which tokens.
        seed: of the random starts; every adapter gets the next one.
        **options: of `LoRA`: `alpha`, `rslora`, `dropout`.

    Raises:
        TrainError: no module of the layers has such a path.
    """
    ends = [modules] if isinstance(modules, str) else list(modules)
    wanted = set(_layers(model, layers))
    found: list[Edit] = []
    for path, module in model.base.named_modules():
        inside = [i for i, block in enumerate(model.sites().blocks) if path.startswith(f"{block}.")]
        if not inside or inside[0] not in wanted or not any(f".{path}".endswith(f".{end}") for end in ends):
            continue
        made = LoRA(*widths(module), rank, seed=seed + len(found), **options)
        found.append(Edit(f"module:{path}:out", made, tokens))
    if not found:
        raise TrainError(f"modules={modules!r}: no module of layers {layers!r} has a path that ends so")
    return _sum(model, found)


def _sum(model: Model, edits: Sequence[Edit]) -> Edit:
    parts = tuple(part for edit in edits for part in edit.parts)
    return Edit.of(parts, model.identity())


def _layers(model: Model, layers: str | int | Sequence[int]) -> list[int]:
    if layers == "all":
        return list(range(model.layers))
    if isinstance(layers, str):
        raise TrainError(f"layers={layers!r}: 'all', a number or a list of numbers")
    wanted = [layers] if isinstance(layers, int) else list(layers)
    for layer in wanted:
        if not -model.layers <= layer < model.layers:
            raise TrainError(f"layer {layer} is out of range: the model has layers 0 to {model.layers - 1}")
    return [layer % model.layers for layer in wanted]


def _sites(model: Model, site: str, layers: str | int | Sequence[int]) -> list[Site]:
    return [model.sites().expand(f"{site}.{layer}")[0] for layer in _layers(model, layers)]


def _groups(tokens: Any, share: str) -> list[Tokens]:
    """The Tokens of every intervention of one layer."""
    if share not in SHARES:
        raise TrainError(f"share={share!r}: one of {', '.join(map(repr, SHARES))}")
    text = (
        re.sub(r"^\s*f(?:irst)?(\d+)\s*\+\s*l(?:ast)?(\d+)\s*$", r"ends(\1, \2)", tokens)
        if isinstance(tokens, str)
        else tokens
    )
    whole = Tokens.parse(text)
    if share == "layer":
        return [whole]
    ends = whole.clauses[0]
    if len(whole.clauses) != 1 or not isinstance(ends, Ends) or ends.start or ends.stop is not None:
        raise TrainError(
            f"share={share!r} tells the two ends of a prompt apart: give tokens='ends(7, 7)', not {tokens!r}"
        )
    cuts = [0, ends.first, ends.first + ends.last] if share == "ends" else list(range(ends.first + ends.last + 1))
    return [Tokens.parse(f"{whole}[{a}:{b}]") for a, b in pairwise(cuts) if a < b]


def _spoken(model: Model) -> str:
    skip = model.encoder.prefix()
    return f"prompt[{skip}:]+response" if skip else "all"


def _start(width: int, value: float | None, seed: int) -> Tensor:
    if value is not None:
        return torch.full((width,), float(value))
    bound = 1 / math.sqrt(width)
    return torch.empty(width).uniform_(-bound, bound, generator=torch.Generator().manual_seed(seed))
