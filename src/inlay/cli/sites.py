"""`inlay sites NAME`: the Sites of a model, and what it lacks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inlay.cli.options import Debug, Device, Dtype, DtypeOption, Name, Revision, load, reported

if TYPE_CHECKING:
    from inlay.model.model import Model
    from inlay.model.places import Place


def sites(
    name: Name,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    dtype: DtypeOption = Dtype.auto,
    device: Device = None,
    revision: Revision = None,
    debug: Debug = False,
) -> None:
    """Show where a model can be read and edited: every Site with its layers, width, heads and module.

    The model is loaded and run on two tokens, so that the table holds what was seen and not what was expected.
    """
    with reported(debug):
        model = load(name, dtype, device, revision)
    print_json(model) if as_json else print_table(model)


@dataclass(frozen=True)
class Row:
    """One Site in those layers where it looks the same. Layers are empty for a Site that is not in a layer."""

    site: str
    layers: tuple[int, ...]
    width: int | None
    heads: int | None
    module: str
    side: str


def rows(model: Model) -> Iterator[Row]:
    """One row a Site, or several where layers differ, in the order of the forward pass."""
    for site, places in model.sites().places.items():
        alike: dict[tuple[Any, ...], list[int]] = {}
        for layer, place in places.items():
            module = place.path if layer is None else re.sub(rf"\b{layer}\b", "{layer}", place.path, count=1)
            width = place.width if place.width > 0 else None
            facts = (width, place.heads or None, module, _side(place))
            alike.setdefault(facts, []).extend([] if layer is None else [layer])
        for (width, heads, module, side), layers in alike.items():
            yield Row(site, tuple(layers), width, heads, module, side)


def _side(place: Place) -> str:
    """Which tensor of the module it is."""
    name = {"linear": "first product"}.get(place.side, place.side)
    return f"{name}, some columns" if place.columns else name


def print_json(model: Model) -> None:
    """The map as one JSON object."""
    found = [
        {
            "site": row.site,
            "layers": list(row.layers) or None,
            "width": row.width,
            "heads": row.heads,
            "module": row.module,
            "side": row.side,
        }
        for row in rows(model)
    ]
    about = {"name": model.name, "family": model.sites().family, "layers": model.layers, "width": model.width}
    typer.echo(json.dumps({**about, "sites": found, "lacks": model.sites().lacks}, indent=2))


def print_table(model: Model) -> None:
    """The map as a table, and under it what the model lacks and why."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    console = Console()
    console.print(Text(f"{model.name}: {model.sites().family}, {model.layers} layers, width {model.width}"))
    table = Table(
        "Site",
        "layers",
        "width",
        "heads",
        Column("module", overflow="fold"),
        "side",
        box=SIMPLE,
        padding=(0, 1),
        pad_edge=False,
    )
    for row in rows(model):
        width = "keys" if row.width is None else str(row.width)
        module = row.module.replace("{layer}", "*")
        cells = (row.site, _ranges(row.layers), width, str(row.heads or ""), module, row.side)
        table.add_row(*map(Text, cells))
    console.print(table)
    lacks = model.sites().lacks
    if not lacks:
        console.print("It lacks no Site.")
    for why in dict.fromkeys(lacks.values()):
        names = ", ".join(site for site in lacks if lacks[site] == why)
        console.print(Text(f"It lacks {names}: {why}."))


def _ranges(layers: tuple[int, ...]) -> str:
    """`0-4, 6` from 0, 1, 2, 3, 4, 6."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
