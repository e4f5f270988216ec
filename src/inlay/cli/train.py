"""`inlay train CONFIG`: train an Edit, or one for each of many concepts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inlay.cli.options import Debug, Device, Dtype, DtypeOption, Revision, load, reported


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file; see the guide on training.")],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Log, checkpoints and Edits go here.")] = Path(
        "trained"
    ),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, the parameters and the memory it needs; train nothing.")
    ] = False,
    dtype: DtypeOption = Dtype.auto,
    device: Device = None,
    revision: Revision = None,
    debug: Debug = False,
) -> None:
    """Train an Edit on a frozen model: what, on which data and how is in CONFIG.

    The finished Edit is FOLDER/edit, or one for each concept under FOLDER/concepts; `Edit.from_pretrained` loads them.
    The same command goes on where a killed one was, and refuses the folder when something has changed.
    """
    with reported(debug):
        from inlay.train.config import TrainConfig

        made = TrainConfig.read(config)
        loaded = load(made.model, dtype, device, revision)
        if dry_run:
            typer.echo(made.plan(loaded))
            return
        result = made.run(loaded, out, progress=True)
        for name in result.concepts:
            losses = result.log.losses(name)
            if not losses:
                typer.echo(f"{name}: diverged in its first step")
                continue
            typer.echo(f"{name or 'loss'}: {losses[0]:.4f} -> {losses[-1]:.4f} in {len(losses)} steps")
        typer.echo(out / ("concepts" if made.data.concept else "edit"))
