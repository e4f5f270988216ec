"""`inlay world generate | train | check`: lines of a micro-world, its models, and their acceptance."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inlay.cli.options import Debug, reported

if TYPE_CHECKING:
    from inlay.world import World

app = typer.Typer(add_completion=False, help="A micro-world with ground truth: lines, models, acceptance.")

WorldOption = Annotated[
    str,
    typer.Option("--world", metavar="FOLDER", help="A world of your own; tidepool ships with inlay."),
]


class Split(StrEnum):
    """The halves of a world's prompts."""

    train = "train"
    test = "test"


class Format(StrEnum):
    """How lines are written."""

    jsonl = "jsonl"
    parquet = "parquet"


@app.command()
def generate(
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the files go.")],
    section: Annotated[str, typer.Option("--section", help="A section of the world, share, or all.")] = "all",
    split: Annotated[Split, typer.Option("--split", help="Which half of the prompts.")] = Split.train,
    n: Annotated[int, typer.Option("--n", help="How many lines of each section.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", help="The same seed gives the same bytes.")] = 0,
    kind: Annotated[str | None, typer.Option("--kind", help="One kind of line only.", show_default=False)] = None,
    form: Annotated[Format, typer.Option("--format", help="How lines are written.")] = Format.jsonl,
    world: WorldOption = "tidepool",
    debug: Debug = False,
) -> None:
    """Write lines with their ground truth, and a manifest of the files."""
    with reported(debug):
        from inlay.world.export import export

        made = export(_world(world, seed), out, section, n, split.value, kind, form.value)
    for name, facts in made["files"].items():
        typer.echo(f"{out / name}: {facts['lines']} lines")


@app.command()
def train(
    config: Annotated[
        str, typer.Option("--config", metavar="FILE", help="A YAML file, or tidepool, or tidepool-guard.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the model goes.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in FOLDER.")] = False,
    threads: Annotated[int, typer.Option("--threads", min=1, help="CPU threads. One gives the same bytes again.")] = 1,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    debug: Debug = False,
) -> None:
    """Train a model of a world and check it; the folder is ready for `inlay.load`, with its card."""
    with reported(debug):
        import torch

        from inlay.model import load
        from inlay.world import check, read_config
        from inlay.world.card import write_card
        from inlay.world.training import train as run

        torch.set_num_threads(threads)
        spec = read_config(config)
        made = _world(spec.world, spec.seed)
        run(made, spec, out, resume, device, lambda step, loss: typer.echo(f"step {step}: loss {loss:.4f}", err=True))
        report = check(load(out, dtype="float32"), world=made)
        write_card(out, report)
    typer.echo(report.markdown())


@app.command()
def check(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, or tidepool or tidepool-guard.")],
    section: Annotated[str, typer.Option("--section", help="One section only.")] = "all",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    world: WorldOption = "tidepool",
    debug: Debug = False,
) -> None:
    """Measure a model's phenomena anew on held-out lines; exits with 1 where one is missed."""
    with reported(debug):
        from inlay.model import load
        from inlay.world import check as measure

        report = measure(load(name, dtype="float32"), section, _world(world, 0))
    typer.echo(json.dumps(report.records(), indent=2) if as_json else report.markdown())
    if report.missed:
        raise typer.Exit(1)


def _world(name: str, seed: int) -> World:
    from inlay.world import load, tidepool

    return tidepool(seed) if name == "tidepool" else load(name, seed)
