"""Base and sources as worlds of one batch: one forward runs the base's rows and those of every Source side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inlay.errors import InputError
from inlay.model.engine import Run
from inlay.model.inputs import Batch, Row, pad
from inlay.model.passes import Want
from inlay.model.running import expanded, make_run
from inlay.model.windows import Window

if TYPE_CHECKING:
    from inlay.model.model import Model


@dataclass
class World:
    """One run of the batch: its rows, the Edit that it is under, and what is read of it."""

    rows: Sequence[Row]
    edit: Any
    wants: list[Want]
    options: Mapping[str, Any] = field(default_factory=dict)
    source: int = 0


def run(
    model: Model,
    base: Sequence[Row],
    edit: Any,
    wants: list[Want],
    options: Mapping[str, Any],
    arguments: dict[str, Any],
    loss: bool,
) -> tuple[Any, Run, Tensor]:
    """One forward of the base's rows under an Edit, with those of its Sources beside them.

    Args:
        model: the Model.
        base: the base's rows.
        edit: an Edit.
        wants: what to read of the base.
        options: `rows`, `strength` and `keys` of the Edit.
        arguments: passed on to the model.
        loss: whether the model computes its loss on the base's response, or on all of it where none is marked.

    Returns:
        The model's output cut to the base's rows, the base's Run, and its mask [rows, tokens].

    Raises:
        InputError: a cache is asked for, which would hold the sources' rows too.
        EditError: a source is read at a Site above the one that takes it.
    """
    if arguments.get("use_cache"):
        raise InputError("worlds=True with use_cache=True: the cache would hold the sources' rows too; leave one out")
    worlds = _ordered(model, World(base, edit, wants, options))
    batch = pad([row for world in reversed(worlds) for row in world.rows], model.pad_id, model.device)
    if loss:
        arguments["labels"] = _labels(batch, len(base))
    runs = _runs(model, worlds, batch)
    args, kwargs = model.arguments(batch, **arguments)
    with ExitStack() as stack:
        for one in runs:
            stack.enter_context(one)
        found = model.hf(*args, **kwargs)
    return _cut(found, len(batch.ids), len(base)), runs[-1], batch.mask[: len(base)]


def _ordered(model: Model, base: World) -> list[World]:
    """A world for every distinct Source that is taken from token by token, each before those that take from it."""
    known: dict[int, World] = {}
    order: list[World] = []

    def visit(world: World) -> None:
        for part in expanded(model, world.edit):
            for source in part.intervention.sources():
                if source.stored or part.intervention.pooled:
                    continue
                want = Want(*part.intervention.asks(model, part.site, part.tokens))
                if id(source) not in known:
                    known[id(source)] = World(model.encoder.rows(source.prompts), source.edit, [], source=id(source))
                    visit(known[id(source)])
                if want not in known[id(source)].wants:
                    known[id(source)].wants.append(want)
        order.append(world)

    visit(base)
    return order


def _runs(model: Model, worlds: Sequence[World], batch: Batch) -> list[Run]:
    """A run of every world, in their order; the last world's rows, the base's, are the first of the batch."""
    beside: dict[int, Run] = {}
    total = stop = len(batch.ids)
    made = []
    for world in worlds:
        here = Window(stop - len(world.rows), stop, total)
        made.append(
            make_run(
                model,
                world.edit,
                world.wants,
                beside=beside,
                prompt_mask=None if batch.prompt is None else here.get(batch.prompt),
                attended=here.get(batch.mask),
                window=here,
                **world.options,
            )
        )
        beside[world.source], stop = made[-1], here.start
    return made


def _labels(batch: Batch, rows: int) -> Tensor:
    real = batch.mask.bool() if batch.prompt is None else batch.mask.bool() & ~batch.prompt
    real = real & (torch.arange(len(real), device=real.device) < rows)[:, None]
    return batch.ids.masked_fill(~real, -100)


def _cut(found: Any, total: int, rows: int) -> Any:
    """A model's output, or a part of it, with the first rows of every tensor that has the batch's."""
    if isinstance(found, Tensor):
        return found[:rows] if found.ndim and found.shape[0] == total else found
    if isinstance(found, Mapping):
        cut = {key: _cut(value, total, rows) for key, value in found.items()}
        return type(found)(**cut)
    return type(found)(_cut(value, total, rows) for value in found) if isinstance(found, (tuple, list)) else found
