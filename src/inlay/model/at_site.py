"""What happens at one Site in one forward: a part of the Edit is applied, or the wanted tokens are kept."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inlay.errors import EditError, TokensError
from inlay.model.call import Call, LeafLike, State
from inlay.model.frame import Frame, Selection
from inlay.model.pairing import need_width, paired
from inlay.model.passes import Pass, Stop, Taken

if TYPE_CHECKING:
    from inlay.model.engine import Run


def write(
    run: Run,
    index: int,
    h: Tensor,
    given: Tensor | None = None,
    selection: Selection | None = None,
    frame: Frame | None = None,
) -> Tensor:
    """Part `index` applied to a Site's tensor h [R, T, W]; `given` is the module's input.

    `selection` and `frame` replace the pass's own where h does not cover the call's positions (cached keys).
    """
    now = run.current
    frame = frame or now.frame
    chosen = selection if selection is not None else now.chosen[run.spec_of[index]]
    if chosen.empty:
        return h
    part = run.parts[index]
    needs = part.intervention.needs
    source = mask = None
    if index in run.constants:
        source = run.constants[index]
        need_width(run, index, source, h)
    elif index in run.sources:
        source, mask = paired(run, index, h, frame)
    call = Call(
        strength=_scaled(now.strength, run.factors[index], h),
        source=source,
        input=given if "input" in needs else None,
        site=run.site_names[index],
        positions=frame.positions().expand(h.shape[0], -1) if "positions" in needs else None,
        chosen=_real(chosen, frame, h) if "chosen" in needs else None,
        keys=None if now.keys is None else now.keys.to(h.device).reshape(-1, 1, 1),
    )
    if torch.compiler.is_compiling():
        run.compiled = True  # `reached` would be a guard; a store is none
    else:
        run.reached[index] = True
    if chosen.mask is not None:
        mask = chosen.mask if mask is None else mask & chosen.mask
    new = _jointly(run, index, h, call, mask) if part.joint else _transformed(run, index, h, call)
    if part.when is not None:
        held = _held(run, index, h, frame)
        mask = held if mask is None else held & mask.to(h.device)
    return new if mask is None else torch.where(mask.to(h.device)[..., None], new, h)


def _real(chosen: Selection, frame: Frame, h: Tensor) -> Tensor | None:
    """The selected positions that hold a token, bool [R, T]; `None` for all."""
    here: Tensor | None = None
    for mask in (chosen.mask, frame.attended()):
        if mask is not None:
            here = mask if here is None else here & mask
    return None if here is None else here.to(h.device).expand(h.shape[:2])


def _transformed(run: Run, index: int, h: Tensor, call: Call) -> Tensor:
    """What the intervention makes of h [R, T, W], in h's dtype."""
    new = run.parts[index].intervention.transform(h, _state(run, run.transform_of[index], h.device), call)
    if not isinstance(new, Tensor) or new.shape != h.shape:
        what = list(new.shape) if isinstance(new, Tensor) else type(new).__name__
        raise EditError(f"{run.site_names[index]}: the intervention returned {what} for {list(h.shape)}")
    return new.to(h.dtype)


def _jointly(run: Run, index: int, h: Tensor, call: Call, mask: Tensor | None) -> Tensor:
    """What the intervention makes of the P selected positions of h [R, T, W] as one state [R, 1, P W], put back."""
    mask = run.current.frame.attended() if mask is None else mask
    if mask is None:
        mask = torch.ones(1, h.shape[1], dtype=torch.bool, device=h.device)
    where, real = _positions(mask.to(h.device).expand(h.shape[0], -1))
    if not torch.compiler.is_compiling() and not bool(real.all()):
        row = int((~real.all(1)).nonzero()[0])
        raise TokensError(
            f"{run.site_names[index]}: joint=True needs as many positions in every row, and row "
            f"{run.current.frame.prompt.number(row)} selects {int(real[row].sum())} of {real.shape[1]}"
        )
    at = where[..., None].expand(-1, -1, h.shape[-1])

    def together(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.expand(h.shape).gather(1, at).flatten(1)[:, None]

    state = h.gather(1, at).flatten(1)[:, None]
    run.parts[index].intervention.check(state.shape[-1], f"{where.shape[1]} joint positions of {run.site_names[index]}")
    packed = replace(call, source=together(call.source), input=together(call.input), positions=None, chosen=None)
    new = _transformed(run, index, state, packed)
    return h.scatter(1, at, new.unflatten(-1, (where.shape[1], -1))[:, 0])


def watch(run: Run, leaf: LeafLike, h: Tensor) -> None:
    """Note where a condition holds, bool [R, T], or for the rows that decided so far [R, 1], given its Site's h."""
    now = run.current
    if leaf in now.verdicts:  # a recomputation
        return
    if leaf.tokens is None:
        now.verdicts[leaf] = leaf.passes(h)
        return
    spec = run.spec_of[len(run.parts) + len(run.wants) + run.leaves.index(leaf)]
    chosen, held = now.chosen[spec], now.frame.prompt.held
    if not chosen.empty:
        mask = now.frame.attended() if chosen.mask is None else chosen.mask
        mask = torch.ones(1, 1, dtype=torch.bool, device=h.device) if mask is None else mask.to(h.device)
        mask = mask.expand(h.shape[:2])
        if leaf.pool == "any":
            found = (leaf.passes(h) & mask).any(1, keepdim=True)
            held[leaf] = found | held[leaf] if leaf in held else found
        else:
            total, count = held.get(leaf, (0.0, 0))
            held[leaf] = (total + (h * mask[..., None]).sum(1, keepdim=True), count + mask.sum(1, keepdim=True))
    if leaf.pool == "any":
        now.verdicts[leaf] = held.get(leaf, torch.zeros(h.shape[0], 1, dtype=torch.bool, device=h.device))
    elif leaf in held:
        total, count = held[leaf]
        mean = total / count.clamp(min=1)[..., None]
        now.verdicts[leaf] = leaf.passes(mean.to(h.dtype)) & (count > 0)
    else:
        now.verdicts[leaf] = torch.zeros(h.shape[0], 1, dtype=torch.bool, device=h.device)


def _held(run: Run, index: int, h: Tensor, frame: Frame) -> Tensor:
    """Where the condition of part `index` holds, bool [R, 1] or [R, T]."""
    when, verdicts = run.parts[index].when, run.current.verdicts
    for leaf in when.leaves():
        if leaf not in verdicts:
            raise EditError(
                f"the condition at {leaf.site} was not reached before {run.site_names[index]}: a forward decides where "
                "to act by what lies before it"
            )
    held: Tensor = when.holds({leaf: verdict.to(h.device) for leaf, verdict in verdicts.items()})
    if held.shape[1] not in (1, h.shape[1]) or (run.parts[index].joint and held.shape[1] > 1):
        raise EditError(
            f"{run.site_names[index]}: the condition decides for every position by itself, and this Edit acts on "
            "others (cached keys, or positions taken together): give it tokens="
        )
    if not torch.compiler.is_compiling() and not run.replaying:
        chosen = run.current.chosen[run.spec_of[index]].mask
        here = held.expand(h.shape[:2])
        for mask in (chosen, frame.attended()):
            here = here if mask is None else here & mask.to(h.device)
        run.acted[index] = run.acted[index] + here.sum()
    return held


def _state(run: Run, index: int, device: torch.device) -> State:
    """The state of transform `index` on the Site's device."""
    state = run.current.states[index]
    if all(tensor.device == device for tensor in state.values()):
        return state
    return {name: run.near(index, name, tensor, device) for name, tensor in state.items()}


def read(run: Run, index: int, h: Tensor, whole: Tensor, fragile: bool = False) -> None:
    """Keep what want `index` asks for of a Site's tensor h [R, T, W].

    A recomputation computes the same and keeps nothing, since a checkpoint counts the tensors that are saved.
    """
    where = _gather(run, index, h, run.current)
    values = gathered(run, index, h, run.current)
    if fragile and values is h:
        values = h.clone()
    real = None if where is None else where[1]
    if run.replaying:
        return
    run.taken[index].append(Taken(values, real, whole if run.whole else None))
    if run.stop and all(run.taken):
        raise Stop


def gathered(run: Run, index: int, h: Tensor, now: Pass) -> Tensor:
    """The positions of h [R, T, W] that want `index` asks for, side by side, [R, k, W]."""
    where = _gather(run, index, h, now)
    if where is None:
        return h
    return h.gather(1, where[0].to(h.device)[..., None].expand(-1, -1, h.shape[-1]))


def _gather(run: Run, index: int, h: Tensor, now: Pass) -> tuple[Tensor, Tensor] | None:
    """Positions [R, k] of the wanted tokens, in order, and which are real; `None` where that is every position."""
    spec = run.spec_of[len(run.parts) + index]
    if spec not in now.gathers:
        chosen = now.chosen[spec]
        mask = now.frame.attended() if run.specs[spec].everything else chosen.mask
        if chosen.empty:
            mask = torch.zeros(h.shape[0], h.shape[1], dtype=torch.bool, device=h.device)
        now.gathers[spec] = None if mask is None else _positions(mask.expand(h.shape[0], -1))
    return now.gathers[spec]


def _positions(mask: Tensor) -> tuple[Tensor, Tensor]:
    most = int(mask.sum(1).max())
    where = (~mask).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
    return where, mask.gather(1, where)


def _scaled(call: Tensor | None, part: Tensor | None, h: Tensor) -> Tensor | None:
    """The call's strength times the part's own, in h's dtype: `None`, 0-d or [R, 1, 1]."""
    if call is None and part is None:
        return None
    total = part if call is None else call if part is None else call * part.to(call.device)
    assert total is not None
    total = total.to(h.device)
    return total.reshape(-1, 1, 1) if total.ndim else total
