"""What resuming above the Edit saves: a training step with a steering vector at several layers, on and off."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import torch
from interleaved import Case, Plan, Row, Section
from random_llama import LAYERS, inputs, llama, title
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from train_loop import ADAM, sequences, steps
from train_step import close

import inlay
from inlay.train import steering

SITES = (1, 4, 8, 11)
ROWS, PROMPT, RESPONSE = 4, 48, 16
TOLERANCE = 1.2  # of what the blocks above and the head cost by hand
ON, OFF, HAND = "inlay, resumed", "inlay, every block run", "the blocks above by hand, forward and backward"


def plans() -> Iterator[Plan]:
    """Every section, in order."""
    for size in ("d768", "d64"):
        for layer in SITES:
            name = f"training step of a vector at resid_post.{layer}, {LAYERS - 1 - layer} blocks above"
            yield title(name, size, (ROWS, PROMPT + RESPONSE)), functools.partial(_resumed, size, layer)


def _resumed(size: str, layer: int, title: str) -> Section:
    hf = llama(size)
    model, ids = inlay.Model(hf), sequences(size, ROWS, PROMPT, RESPONSE)

    def run(resume: bool) -> Callable[[], float]:
        return steps(model, steering(model, f"resid_post.{layer}", "all", bias=False), ids, PROMPT, resume)

    start = steering(model, f"resid_post.{layer}", "all").parts[0].intervention.state()["vector"]  # type: ignore[attr-defined]
    on, off, hand = run(True), run(False), upper_blocks(model, layer, start, ids, PROMPT)
    wanted = torch.tensor([hand() for _ in range(3)])
    for name, step in (("on", on), ("off", off)):
        close(torch.tensor([step() for _ in range(3)]), wanted, f"{title}: resume {name}")
    cases = [
        Case(OFF, off),
        Case(f"{OFF}, again", off),
        Case(HAND, hand),
        Case(ON, on, beside=HAND, beside_limit=TOLERANCE),
    ]
    return Section(title, cases, 3 if size == "d768" else 21)


def upper_blocks(model: inlay.Model, layer: int, start: Tensor, ids: Tensor, prompt: int) -> Callable[[], float]:
    """The least that a step of a vector can be: stored states, the blocks above, the head at the responses, AdamW."""
    hf, answers, arguments = model.hf, ids[:, prompt:], inputs(ids)
    hidden = model.states(ids.tolist(), f"resid_post.{layer}").hidden
    vector = torch.nn.Parameter(start.detach().clone())
    optimizer = torch.optim.AdamW([vector], **ADAM)

    def step() -> float:
        optimizer.zero_grad()
        h = hidden + vector
        rotary = hf.model.rotary_emb(h, position_ids=arguments["position_ids"])
        for block in hf.model.layers[layer + 1 :]:
            h = block(h, attention_mask=None, position_embeddings=rotary, position_ids=arguments["position_ids"])
        logits = hf.lm_head(hf.model.norm(h[:, prompt - 1 : -1]))
        loss = cross_entropy(logits.flatten(0, 1), answers.flatten())
        loss.backward()
        clip_grad_norm_([vector], 1.0)
        optimizer.step()
        return float(loss.detach())

    return step


def notes(rows: Sequence[Row]) -> list[str]:
    """A resumed step beside the whole one and beside the blocks above alone, by the number of these blocks."""
    lines = []
    for size in ("d768", "d64"):
        mine = [row for row in rows if row.section.startswith(f"{size},") and row.case == ON]
        if len(mine) == len(SITES):
            whole = ", ".join(f"{row.to_plain.cpu:.2f}" for row in mine if row.to_plain)
            floor = ", ".join(f"{row.to_beside.cpu:.2f}" for row in mine if row.to_beside)
            lines.append(
                f"{size}: with {', '.join(str(LAYERS - 1 - layer) for layer in SITES)} blocks above the Site a resumed "
                f"step takes {whole} of the CPU time of a whole one, and {floor} of that of these blocks by hand; aim: "
                "proportional to the blocks above"
            )
    return lines
