"""What a LoReFT step costs: the module alone, and a training step of a 12-layer Llama, beside the floor and peers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import train_peers
from interleaved import Case, Plan, Section
from random_llama import llama, title
from train_loop import sequences, steps

import inlay
from inlay.interventions.reft import LoReFT
from inlay.train import lora, reft

AIM = 1.05  # of the floor
SHAPES = ((1024, 4), (1024, 8), (4096, 4), (4096, 8))  # width, rank
POSITIONS = (8, 14)  # rows, and ends(7, 7) of each
ROWS, PROMPT, RESPONSE, RANK, ENDS = 4, 48, 16, 4, 7
MINE, HAND, PYREFT = "inlay, LoReFT", "by hand, thin QR", "pyreft, LoreftIntervention"


def plans() -> Iterator[Plan]:
    """Every section, in order."""
    for width, rank in SHAPES:
        name = f"LoReFT alone, width {width}, rank {rank}: {POSITIONS[0]} x {POSITIONS[1]} positions, with AdamW"
        yield name, functools.partial(_module, width, rank)
        if not train_peers.missing("pyreft"):
            yield f"{name}, beside pyreft", functools.partial(_beside_pyreft, width, rank)
    for size in ("d768", "d64"):
        name = f"LoReFT training step, rank {RANK}, all 12 layers, ends({ENDS}, {ENDS})"
        yield title(name, size, (ROWS, PROMPT + RESPONSE)), functools.partial(_whole, size)


def close(found: float | torch.Tensor, wanted: float | torch.Tensor, what: str) -> None:
    """A case that computes something else has no time worth reporting."""
    worst = float((torch.as_tensor(found) - torch.as_tensor(wanted)).abs().max())
    if not worst < 1e-4:
        raise AssertionError(f"{what}: differs by up to {worst:.3g}")


def made(kind: str, width: int, rank: int) -> Any:
    """A module by its name, all LoReFTs with the same start."""
    if kind == "peft":
        return train_peers.lora_linear(width, rank)
    ours = LoReFT(width, rank)
    start = (ours.basis(), ours.down, ours.bias)
    if kind == "inlay":
        return ours
    return train_peers.ByHand(*start) if kind == "hand" else train_peers.loreft(*start)


def positions(width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """States and the gradient from above, each [rows, positions, width]."""
    draws = torch.Generator().manual_seed(6)
    h, back = torch.randn(2, *POSITIONS, width, generator=draws)
    return h, back / 100


def _module(width: int, rank: int, title: str) -> Section:
    h, back = positions(width)
    run = {kind: train_peers.module_step(made(kind, width, rank), h, back) for kind in ("hand", "inlay")}
    wanted = [run["hand"]() for _ in range(3)]
    for index in range(3):  # the second and the third come after steps, and are equal if the gradients are
        close(run["inlay"](), wanted[index], f"{title}: inlay, step {index}")
    cases = [Case(HAND, run["hand"]), Case(f"{HAND}, again", run["hand"]), Case(MINE, run["inlay"], limit=AIM)]
    if not train_peers.missing("peft"):
        step = train_peers.module_step(made("peft", width, rank), h, back)
        cases.append(Case(f"peft, LoRA with its frozen {width} x {width} projection", step, beside=MINE))
    return Section(title, cases, 51)


def _beside_pyreft(width: int, rank: int, title: str) -> Section:
    h, back = positions(width)
    mine, theirs = (train_peers.module_step(made(kind, width, rank), h, back) for kind in ("inlay", "pyreft"))
    close(theirs(), mine(), title)  # it parametrises the directions in another way, so that its steps lead elsewhere
    return Section(title, [Case(MINE, mine), Case(f"{MINE}, again", mine), Case(PYREFT, theirs, beside=MINE)], 5)


def kinds() -> list[str]:
    """The ways that can be measured here."""
    peers = [name for name in ("pyreft", "peft") if not train_peers.missing(name)]
    return ["hand", "inlay", "inlay resumed", "inlay lora", *peers]


def whole_step(kind: str, size: str) -> Callable[[], float]:
    """A training step by one way on a model of its own."""
    hf = llama(size)
    ids = sequences(size, ROWS, PROMPT, RESPONSE)
    where = torch.cat([torch.arange(ENDS), torch.arange(PROMPT - ENDS, PROMPT)])
    model = inlay.Model(hf)
    edit = reft(model, "loreft", RANK, tokens=f"ends({ENDS}, {ENDS})")
    if kind == "inlay lora":
        return steps(model, lora(model, "o_proj", rank=RANK), ids, PROMPT, resume=False)
    if kind.startswith("inlay"):
        return steps(model, edit, ids, PROMPT, resume=kind == "inlay resumed")
    loras = [part.intervention.down for part in lora(model, "o_proj", rank=RANK).parts]  # type: ignore[attr-defined]
    if kind == "peft":
        return train_peers.by_peft(hf, RANK, loras, ids, PROMPT)
    own: list[Any] = [part.intervention for part in edit.parts]
    starts = [(one.basis(), one.down, one.bias) for one in own]
    if kind == "pyreft":
        return train_peers.by_pyreft(hf, [train_peers.loreft(*start) for start in starts], ids, PROMPT, where)
    return train_peers.by_hand(hf, [train_peers.ByHand(*start) for start in starts], ids, PROMPT, where)


def _whole(size: str, title: str) -> Section:
    run = {kind: whole_step(kind, size) for kind in kinds()}
    losses = {kind: torch.tensor([step() for _ in range(3)]) for kind, step in run.items()}
    same = [("inlay", "hand"), ("inlay resumed", "hand"), ("peft", "inlay lora")]
    for kind, wanted in same:  # the second and the third come after steps, and are equal if the gradients are
        if kind in run:
            close(losses[kind], losses[wanted], f"{title}: {kind} beside {wanted}")
    if "pyreft" in run:
        close(losses["pyreft"][0], losses["hand"][0], f"{title}: pyreft beside hand")
    mine = f"{MINE}, every block run"
    cases = [
        Case(HAND, run["hand"]),
        Case(f"{HAND}, again", run["hand"]),
        Case(mine, run["inlay"], limit=AIM),
        Case(f"{MINE}, resumed above block 0 (the default)", run["inlay resumed"], limit=AIM),
        Case("inlay, LoRA of o_proj", run["inlay lora"]),
    ]
    if "pyreft" in run:
        cases.append(Case("pyreft, ReftModel", run["pyreft"], beside=mine))
    if "peft" in run:
        cases.append(Case("peft, LoRA of o_proj", run["peft"], beside="inlay, LoRA of o_proj"))
    return Section(title, cases, 5 if size == "d768" else 21)
