"""What training many concepts at once saves: `train_bank` beside a `fit` for each."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from interleaved import Case, Plan, Row, Section
from random_llama import SIZES, llama
from train_resume import upper_blocks
from train_step import close

import inlay
from inlay.train import Example, fit, steering, train_bank

CONCEPTS, AIM = 64, 8.0  # times faster
EXAMPLES, EPOCHS, PROMPT, RESPONSE = 8, 2, 12, 8
TOGETHER = f"train_bank, {CONCEPTS} concepts together"
FLOOR = "by hand, one vector on the same rows: states, the blocks above, backward"
APART = f"fit, {CONCEPTS} concepts one at a time"


def plans() -> Iterator[Plan]:
    """Every section, in order."""
    for name, objective, batch in (
        ("tidepool", "lm", 4),
        ("tidepool", "lm", 1),
        ("tidepool", "reps", 4),
        ("d64", "lm", 4),
    ):
        steps = EPOCHS * EXAMPLES // batch
        told = f"{objective} on a steering vector at the middle layer, {CONCEPTS} concepts"
        told += f", batch {batch} of {PROMPT} + {RESPONSE} tokens, {steps} steps"
        yield f"{name}: {told}", functools.partial(_many, name, objective, batch)


def _many(name: str, objective: str, batch: int, title: str) -> Section:
    model = inlay.load("tidepool") if name == "tidepool" else inlay.Model(llama(name))
    vocabulary = 958 if name == "tidepool" else SIZES[name]["vocab_size"]
    data = _data(vocabulary)
    site = f"resid_post.{model.layers // 2}"
    options: dict[str, Any] = {"epochs": EPOCHS, "batch": batch, "lr": 1e-2, "factors": [2.0, 4.0, 8.0]}

    def start() -> inlay.Edit:
        return steering(model, site, "all")

    def together() -> list[inlay.Edit]:
        found = train_bank(model, start(), objective, data, at_once=CONCEPTS, **options)
        return [found[concept] for concept in data]

    def apart() -> list[inlay.Edit]:
        return [fit(model, start(), objective, mine, **options).edit for mine in data.values()]

    for one, other in zip(together(), apart(), strict=True):
        close(_vector(one), _vector(other), title)
    cases = [Case(TOGETHER, together), Case(f"{TOGETHER}, again", together), Case(APART, apart)]
    if objective == "lm":
        layer, vector = model.layers // 2, _vector(start())
        ids = torch.tensor([[*one.prompt, *one.chosen] for mine in data.values() for one in mine])

        def floor() -> None:
            for rows in ids.split(CONCEPTS * batch):
                step = upper_blocks(model, layer, vector, rows, PROMPT)
                for _ in range(EPOCHS):
                    step()

        cases.append(Case(FLOOR, floor))
    return Section(title, cases, 3)


def _vector(edit: inlay.Edit) -> Any:
    return edit.parts[0].intervention.state()["vector"].detach()  # type: ignore[attr-defined]


def _data(vocabulary: int) -> dict[str, list[Example]]:
    """For each concept its own examples of random ids."""
    draws = torch.Generator().manual_seed(7)
    shape = (CONCEPTS, EXAMPLES, PROMPT + 2 * RESPONSE)
    ids = torch.randint(3, vocabulary, shape, generator=draws).tolist()
    split = PROMPT + RESPONSE
    return {
        f"c{k}": [Example(row[:PROMPT], row[PROMPT:split], row[split:]) for row in rows] for k, rows in enumerate(ids)
    }


def notes(rows: Sequence[Row]) -> list[str]:
    """How many times faster all at once are, against the aim, and how far that is from the floor."""
    lines = []
    for row in rows:
        if row.case != APART or not row.to_plain:
            continue
        line = (
            f"{row.section}: together is {row.to_plain.median:.1f} times faster than one at a time "
            f"(CPU time {row.to_plain.cpu:.1f}); aim >= {AIM:g}: {'met' if row.to_plain.cpu >= AIM else 'MISSED'}"
        )
        floors = [one.to_plain for one in rows if one.section == row.section and one.case == FLOOR and one.to_plain]
        if floors:
            line += f"; the floor by hand would be {row.to_plain.cpu / floors[0].cpu:.1f} times"
        lines.append(line)
    return lines
