"""An Edit merged into a copy of a model's weights, where the algebra allows it."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from inlay.errors import EditError
from inlay.interventions.affine import RED, Affine
from inlay.interventions.base import Intervention
from inlay.interventions.closed_form import Ablate, Add, Project, Replace, Scale, Zero
from inlay.interventions.conceptor import Conceptor
from inlay.interventions.edit import Edit, Part
from inlay.interventions.from_source import Mean
from inlay.interventions.lora import LoRA
from inlay.interventions.reft import ConsReFT, DiReFT, LobiReFT, LoReFT, NoReFT, OrthoDiReFT
from inlay.interventions.steering import SetAlong, Steer
from inlay.model.call import Call
from inlay.model.inputs import Batch, Row, pad
from inlay.model.places import Place, pick
from inlay.model.running import expanded, make_run
from inlay.model.sites import Site

if TYPE_CHECKING:
    from inlay.model.model import Model

CONSTANT: tuple[type[Intervention], ...] = (Add, Steer, LobiReFT)
REFT: tuple[type[Intervention], ...] = (LoReFT, DiReFT, NoReFT, OrthoDiReFT, ConsReFT)
AFFINE = (*CONSTANT, *REFT, Affine, RED, Scale, Zero, Replace, Mean, Ablate, Project, Conceptor, SetAlong, LoRA)
ADDS = {"resid_post": ("mlp_out", 0), "resid_pre": ("mlp_out", -1), "resid_mid": ("attn_out", 0)}


def merge_into(model: Model, edit: Edit) -> nn.Module:
    """A copy of the model, plain and without hooks, whose weights contain the Edit.

    A change that is affine in a linear module's output y = i W^T + b (and of its input i, for `LoRA`) is another such
    module: f maps each row of W^T and the bias. What is added to the residual stream is added to the bias of the module
    that writes there last. The copy is run beside the edited model on a few tokens, and refused where they differ.

    Where a family's module has no bias and the Edit needs one, the copy has one that transformers' `save_pretrained`
    writes and its `from_pretrained` for that family does not read; a warning says so.

    Args:
        model: the Model; nothing of it is changed.
        edit: at all tokens and unconditional, of affine interventions (`AFFINE`), each at the output Site of one linear
            module, or of constants (`CONSTANT`) also at `resid_pre`, `resid_mid` and `resid_post`. Strengths count,
            and dropout is off.

    Returns:
        The copy of `model.base`, in its dtype, on its device and in its modes.

    Raises:
        EditError: a part cannot be merged, and why; or the copy does not do what the edited model does.
    """
    quiet = copy.deepcopy(edit).eval()
    merged = copy.deepcopy(model.base)
    parts = expanded(model, quiet)
    if model.sites().encoder:
        raise EditError("merge_into takes decoder-only models, and this one has an encoder")
    for part in parts:
        _check(part)
    batch = _probe(model)
    with _evaluated(merged), _evaluated(model.base), torch.no_grad():
        for part in sorted(parts, key=lambda part: _turn(model, part)):
            path, place = _where(model, merged, part, batch)
            _merge(merged.get_submodule(path), place, part)
        _compare(model, merged, quiet, batch)
    return merged


def _check(part: Part) -> None:
    """Raise where no weights could do what a part does, wherever it acts."""
    made = part.intervention
    if made.banked:
        why = "each row of a batch has its own; merge one, bank.item(row)"
    elif made.source is not None:
        why = "it takes the states of another run"
    elif not part.tokens.everything:
        why = f"it acts at tokens={str(part.tokens)!r}, and weights act at every token"
    elif part.when is not None or part.joint:
        why = "it acts under a condition" if part.when is not None else "it acts on several tokens as one state"
    elif type(made) not in AFFINE:
        why = "its change is not affine in the state"
    elif getattr(made, "activation", "identity") != "identity":
        why = f"its activation={made.activation!r} is not affine"
    else:
        return
    raise EditError(f"{part} cannot be merged into weights: {why}")


def _where(model: Model, merged: nn.Module, part: Part, batch: Batch) -> tuple[str, Place]:
    """The linear module that a part is merged into, and where in its output the Site lies."""
    site, place = part.site, _place(model, part)
    if place.side != "out" or place.headed:
        raise EditError(f"{part} cannot be merged into weights: {site} is not the output of a module")
    outer = merged.get_submodule(place.path)
    path = place.path if _linear(outer) else _last(model, merged, place, batch)
    if path is None:
        raise EditError(
            f"{part} cannot be merged into weights: no linear module of {place.path} gives its output as it is"
        )
    if path != place.path and "input" in part.intervention.needs:
        raise EditError(
            f"{part} cannot be merged into weights: the input of {place.path} is not that of its last linear module, "
            f"{path}; write it at 'module:{path}:out'"
        )
    weight = merged.get_submodule(path).weight
    owners = [name for name, module in merged.named_modules() if getattr(module, "weight", None) is weight]
    if len(owners) > 1:
        raise EditError(f"{part} cannot be merged into weights: those of {path} are tied to {', '.join(owners)}")
    return path, replace(place, flat=False)


def _turn(model: Model, part: Part) -> tuple[bool, int]:
    """When a part acts among those that one module is to contain: an inner module's output first, a sum last."""
    return part.site.name in ADDS, -_place(model, part).path.count(".")


def _place(model: Model, part: Part) -> Place:
    site = part.site
    if site.name == "module":
        return Place(site.path, site.side, "first")
    if site.name not in ADDS:
        return model.sites().place(site)
    name, below = ADDS[site.name]
    assert site.layer is not None
    if type(part.intervention) not in CONSTANT:
        raise EditError(
            f"{part} cannot be merged into weights: {site} is a sum, and no one module gives it; what is merged there "
            "is added to it (Add, Steer, LobiReFT)"
        )
    if site.layer + below < 0 or name in model.sites().lacks:
        raise EditError(f"{part} cannot be merged into weights: no {name} of a block is added last to {site}")
    return model.sites().place(Site(name, site.layer + below))


def _linear(module: Any) -> bool:
    """Whether it is a linear map with weights of floating point."""
    return type(module).__name__ in ("Linear", "Conv1D", "NonDynamicallyQuantizableLinear") and bool(
        module.weight.is_floating_point()
    )


def _last(model: Model, merged: nn.Module, place: Place, batch: Batch) -> str | None:
    """The linear module inside of that of a place whose output is the place's tensor, found by a run; `None`: none."""
    outer = merged.get_submodule(place.path)
    inside = {f"{place.path}.{name}": module for name, module in outer.named_modules() if name and _linear(module)}
    gave: dict[str, Any] = {}

    def note(path: str) -> Callable[..., None]:
        return lambda _, __, output: gave.update({path: output})

    handles = [module.register_forward_hook(note(path)) for path, module in {place.path: outer, **inside}.items()]
    try:
        _logits(model, merged, batch)
    finally:
        for handle in handles:
            handle.remove()
    whole = gave.get(place.path)
    if place.key == "first" and not isinstance(whole, Tensor):
        whole = next((each for each in whole or () if isinstance(each, Tensor) and each.is_floating_point()), None)
    elif whole is not None and place.key != "first":
        whole = pick(whole, place.key)
    for path in reversed(inside):
        if isinstance(whole, Tensor) and path in gave and torch.equal(gave[path].reshape(-1), whole.reshape(-1)):
            return path
    return None


def _merge(module: Any, place: Place, part: Part) -> None:
    """Make a linear module give what a part makes of its output, in float64."""
    made, state = part.intervention, part.intervention.prepare(part.intervention.state())
    strength = None if part.strength is None else torch.tensor(float(part.strength))
    weight = module.weight if type(module).__name__ == "Conv1D" else module.weight.T
    reads = "input" in made.needs

    def after(rows: Tensor, inputs: Tensor | None) -> Tensor:
        """What is made of outputs [n, out] of inputs [n, in]; what is added to a sum, in the unit of its summand."""
        whole = rows[None]
        h, given = place.get(whole, 1), None if inputs is None else inputs[None]
        new = made.transform(h, state, Call(strength, input=given, site=str(part.site)))
        if part.site.name in ADDS:
            new = h + (new - h) / place.scale
        return place.put(whole, new, 1)[0]

    wide: dict[str, Any] = {"dtype": torch.float64, "device": weight.device}
    none = torch.zeros(1, weight.shape[0], **wide) if reads else None
    constant = after(torch.zeros(1, weight.shape[1], **wide), none)
    bias = torch.zeros(1, weight.shape[1], **wide) if module.bias is None else module.bias.double()[None]
    bias = after(bias, none)
    for rows in torch.arange(len(weight), device=weight.device).split(_ROWS):
        inputs = torch.zeros(len(rows), len(weight), **wide).scatter(1, rows[:, None], 1.0) if reads else None
        weight[rows] = (after(weight[rows].double(), inputs) - constant).to(weight.dtype)
    if module.bias is not None:
        module.bias.copy_(bias[0])
    elif bool(bias.any()):
        module.bias = nn.Parameter(bias[0].to(weight.dtype))
        warnings.warn(
            f"{part}: the merged copy has a bias that the model's family has none of there; save_pretrained writes it, "
            "and from_pretrained of the family does not read it",
            stacklevel=4,
        )


_ROWS = 1024  # of W^T at a time


def _probe(model: Model) -> Batch:
    vocabulary = model.encoder.vocabulary or 2
    draws = torch.Generator().manual_seed(0)
    rows = [torch.randint(vocabulary, (length,), generator=draws).tolist() for length in (8, 5)]
    return pad([Row(tuple(row), len(row)) for row in rows], model.pad_id, model.device)


def _logits(model: Model, merged: nn.Module, batch: Batch) -> Tensor:
    args, kwargs = model.arguments(batch)
    found = merged(*args, **kwargs)
    logits: Tensor = found if isinstance(found, Tensor) else found[0] if isinstance(found, tuple) else found.logits
    return logits[batch.mask.bool()].double()


def _compare(model: Model, merged: nn.Module, edit: Edit, batch: Batch) -> None:
    """Raise where the copy's logits are not those of the edited model."""
    run = make_run(model, edit, prompt_mask=batch.prompt, attended=batch.mask)
    found = model.run_batch(run, batch).logits
    exact = torch.promote_types(found.dtype, torch.float32) == found.dtype  # many models compute parts in float32
    least = math.sqrt(torch.finfo(torch.float32 if exact else found.dtype).eps) / 2
    want, got = found[batch.mask.bool()].double(), _logits(model, merged, batch)
    apart, most = float((got - want).abs().max()), float(want.abs().max())
    if not apart <= least * max(most, 1.0):
        raise EditError(
            f"{edit!r:.200}: the merged weights give logits that are up to {apart:.3g} from those under the Edit, "
            f"which go up to {most:.3g}; something behind the merged module changes its output before the Site"
        )


@contextmanager
def _evaluated(module: nn.Module) -> Iterator[None]:
    """A module in evaluation mode, and each of its modules put back after."""
    modes = [(each, each.training) for each in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for each, mode in modes:
            each.training = mode
