"""Direct logit attribution: what each component of a forward adds to a logit, or to the difference of two.

Legend: n prompts, N positions of all of them, m ids of which the logit is made, W width of the residual stream,
H heads, D head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inlay.causal.frozen_norm import FrozenNorm
from inlay.causal.frozen_tail import FrozenTail
from inlay.causal.selected import Selected
from inlay.causal.tail import check_edit, last_site
from inlay.errors import CausalError, SiteError
from inlay.model.answers import answer_table
from inlay.model.sites import Site

if TYPE_CHECKING:
    from inlay.causal.labelled import Grid
    from inlay.model.activations import Activations
    from inlay.model.model import Model

BIASES = ("norm_bias", "head_bias")
Columns = dict[tuple[str, int], Tensor]  # by component and layer: contributions [N]


def logit_attribution(
    model: Model,
    prompts: Any,
    answers: Any,
    foils: Any = None,
    tokens: Any = "last",
    by: str = "component",
    **reading: Any,
) -> Grid:
    """What each component of the residual stream adds to the logit of an answer, or to answer minus foil.

    The last state is a sum: the first block's input, and what every attention and MLP added. With the final norm's
    denominator held at what it is there, the logit is linear in that sum, and so the contributions **add up to the
    logit** (difference), with biases as components of their own. The logit is the head's own output, the `logits`
    Site; the soft-cap of Gemma 2 and the logit scale of Cohere and Granite come behind it.

    "Direct" means along the residual stream alone: what a component does through later ones is counted as theirs.
    Patching (`patch_grid`, `path_patch`) sees both.

    Source: Elhage et al. 2021, transformer-circuits.pub/2021/framework (direct path, linearised norm); for logit
    differences Wang et al. 2022, 2211.00593, section 3.1.

    Args:
        model: the Model.
        prompts: see `Encoder.rows`.
        answers, foils: as in `logit_difference`: a text that is one token, or an id; for all prompts, or a list with
            one for each. Without foils the contributions are to the answer's logit, of which much may be the same for
            every token.
        tokens: at which positions.
        by: `"component"`: every attention and MLP. `"head"`: every head, through the out projection; where a norm lies
            between that and the residual stream (Gemma 2, OLMo 2), its denominator is held too. `"layer"`: every block.
        **reading: what else `Model.read` is to know of the run: `responses`, `edit`, `rows`, `strength`, `chat`,
            `batch_tokens`.

    Returns:
        Grid float32 [prompt, token, layer, component], without `token` where `tokens` is one position a row. Cells that
        do not exist are NaN. The components are `embed` (layer 0: the first block's input); `attn_out` and `mlp_out`,
        or `h0`, `h1` ... `attn_bias` and `mlp_out`, or `block`; `norm_bias` and `head_bias` (last layer). Its
        `.sum(["layer", "component"])` is the logit (difference).

    Raises:
        CausalError: another `by`, answers that are no tokens, or an edit of what lies behind the residual stream.
        SiteError: the model lacks a Site that this needs, or its parts do not add up; the message says where.
    """
    if by not in _SPLITS:
        raise CausalError(f"by={by!r}: give one of {', '.join(map(repr, _SPLITS))}")
    end = last_site(model)
    check_edit(model, reading.get("edit"))
    sites = ["resid_pre.0", "attn_out.*", "mlp_out.*", *(["z.*"] if by == "head" else []), str(end)]
    acts = model.read(prompts, sites, tokens, **reading)
    where = Selected.of(model, prompts, tokens, acts, reading)
    ids_nm, weights_nm = _weights(model, answers, foils, len(where.texts))
    states_NW = where.flat(acts[end])
    tail = FrozenTail.at(model, states_NW, ids_nm[where.prompt], weights_nm[where.prompt])
    stream = _Stream(model, acts, where, tail)
    stream.check(states_NW)
    columns = stream.columns(_SPLITS[by])
    names = list(dict.fromkeys(name for name, _ in columns))
    values = torch.full((len(states_NW), model.layers, len(names)), torch.nan)
    for (name, layer), column_N in columns.items():
        values[:, layer, names.index(name)] = column_N.float()
    what = "logit" if foils is None else "logit difference"
    return where.grid(values, {"layer": range(model.layers), "component": names}, f"contribution to the {what}", "")


def _weights(model: Model, answers: Any, foils: Any, prompts: int) -> tuple[Tensor, Tensor]:
    """The ids of answers and foils side by side, and their weights in the logit (difference): means over each."""
    ids_nm, real_nm = answer_table(model, answers, prompts)
    weights_nm = real_nm / real_nm.sum(1, keepdim=True).double()
    if foils is None:
        return ids_nm, weights_nm
    other_ids, other_weights = _weights(model, foils, None, prompts)
    return torch.cat([ids_nm, other_ids], 1), torch.cat([weights_nm, -other_weights], 1)


def accumulated(attribution: Grid) -> Grid:
    """The logit (difference) that the residual stream has after each layer, from what `logit_attribution` gave.

    It is the running sum over layers, biases counted from the start: with the final norm held at the last state, unlike
    in `logit_lens`, which norms every state by itself.

    Args:
        attribution: [prompt, ..., layer, component], by anything.

    Returns:
        Grid [prompt, ..., layer]; the last layer has the logit itself.
    """
    of_stream = [name for name in attribution["component"].values.tolist() if name not in BIASES]
    added = attribution.sel(component=of_stream).sum("component", min_count=1).cumsum("layer", skipna=False)
    total: Grid = added + attribution.sel(component=list(BIASES)).sum(["component", "layer"])
    total.attrs = {**attribution.attrs, "long_name": f"running {attribution.attrs['long_name']}"}
    return total


@dataclass(frozen=True)
class _Stream:
    """The parts of the last states, and what they are worth."""

    model: Model
    acts: Activations
    where: Selected
    tail: FrozenTail

    def part(self, name: str, layer: int) -> Tensor:
        """What a Site adds to the residual stream, float64 [N, W]."""
        site = Site(name, layer)
        return self.where.flat(self.acts[site]).double() * self.model.sites().place(site).scale

    def worth(self, name: str, layer: int) -> Tensor:
        """What that adds to the logit, float64 [N]."""
        return (self.part(name, layer) * self.tail.direction).sum(1)

    def layers(self, name: str) -> list[int]:
        """The layers that have a Site."""
        return [layer for layer in range(self.model.layers) if str(Site(name, layer)) in self.acts]

    def check(self, states_NW: Tensor) -> None:
        """Raise where the parts are not the state."""
        parts = [("resid_pre", 0), *((n, i) for n in ("attn_out", "mlp_out") for i in self.layers(n))]
        total_NW, size_NW = torch.zeros(2, *states_NW.shape, dtype=torch.float64)
        for name, layer in parts:
            total_NW += self.part(name, layer)
            size_NW += self.part(name, layer).abs()
        error_NW = (total_NW - states_NW.double()).abs()
        rounding = 2 * len(parts) * torch.finfo(states_NW.dtype).eps
        if bool((error_NW > rounding * size_NW.amax(1, keepdim=True)).any()):
            raise SiteError(
                f"the first block's input and every attn_out and mlp_out miss {last_site(self.model)} by up to "
                f"{float(error_NW.max()):.1e}: something else writes to the residual stream, such as an edit of it"
            )

    def columns(self, of_blocks: Callable[[_Stream], Columns]) -> Columns:
        """Every contribution, by component and layer."""
        last = self.model.layers - 1
        return {
            ("embed", 0): self.worth("resid_pre", 0),
            **of_blocks(self),
            ("norm_bias", last): self.tail.norm_bias,
            ("head_bias", last): self.tail.head_bias,
        }


def _by_component(stream: _Stream) -> Columns:
    return {(name, i): stream.worth(name, i) for name in ("attn_out", "mlp_out") for i in stream.layers(name)}


def _by_layer(stream: _Stream) -> Columns:
    whole: Columns = {}
    for (_, layer), column_N in _by_component(stream).items():
        whole["block", layer] = whole.get(("block", layer), 0) + column_N
    return whole


def _by_head(stream: _Stream) -> Columns:
    found: Columns = {}
    biases: Columns = {}
    for layer in stream.layers("attn_out"):
        heads_NH, biases["attn_bias", layer] = _heads(stream, layer)
        found |= {(f"h{head}", layer): column_N for head, column_N in enumerate(heads_NH.unbind(1))}
    return found | biases | {("mlp_out", i): stream.worth("mlp_out", i) for i in stream.layers("mlp_out")}


def _heads(stream: _Stream, layer: int) -> tuple[Tensor, Tensor]:
    """What each head of a layer adds to the logit, [N, H], and what the biases behind z add, [N]; float64.

    z goes through the out projection and, in some families, a norm whose output is the contribution.

    Raises:
        SiteError: z's heads are not known, or what they add is not attention's contribution.
    """
    sites, base = stream.model.sites(), stream.model.base
    inner, outer = sites.place(Site("z", layer)), sites.place(Site("attn_out", layer))
    if not inner.heads:
        raise SiteError(f"z.{layer}: how many heads this Site has is not known for this model; use by='component'")
    project = base.get_submodule(inner.path)
    device = next((p.device for p in project.parameters()), stream.model.device)
    z_NHD = stream.where.flat(stream.acts[Site("z", layer)]).to(device).detach().requires_grad_()
    with torch.enable_grad():
        out_NW = project(z_NHD.flatten(1)[:, None])[:, 0]
    with torch.no_grad():
        bias_W = project(torch.zeros_like(z_NHD[:1]).flatten(1)[:, None])[0, 0].cpu().double()
    direction_NW = stream.tail.direction * outer.scale
    bias_N = torch.zeros(len(z_NHD), dtype=torch.float64)
    if not f"{inner.path}.".startswith(f"{outer.path}."):  # the contribution is what a norm behind attention gives
        norm = FrozenNorm.at(base.get_submodule(outer.path), out_NW.detach(), outer.path)
        bias_N = (direction_NW * norm.bias).sum(1)
        direction_NW = norm.pullback(direction_NW)
    (slope_NHD,) = torch.autograd.grad(out_NW, z_NHD, direction_NW.to(out_NW))
    heads_NH = (slope_NHD.cpu().double() * z_NHD.detach().cpu().double()).sum(-1)
    bias_N = bias_N + (direction_NW * bias_W).sum(1)
    whole_N = stream.worth("attn_out", layer)
    error_N = (heads_NH.sum(1) + bias_N - whole_N).abs()
    size_N = heads_NH.abs().sum(1) + bias_N.abs() + whole_N.abs()
    if bool((error_N > 64 * torch.finfo(z_NHD.dtype).eps * size_N).any()):
        raise SiteError(
            f"z.{layer}: through module {inner.path!r} the heads do not add up to attn_out.{layer} (they miss it by up "
            f"to {float(error_N.max()):.1e}; a norm or a gate lies between z and the out projection): use "
            "by='component'"
        )
    return heads_NH, bias_N


_SPLITS: dict[str, Callable[[_Stream], Columns]] = {
    "component": _by_component,
    "head": _by_head,
    "layer": _by_layer,
}
