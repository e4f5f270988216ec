"""The `inlay` command. A command parses its arguments, calls inlay and prints; torch is imported once one runs."""

from __future__ import annotations

from typing import Annotated

import typer

from inlay._version import __version__
from inlay.cli.attribute import attribute
from inlay.cli.bench import app as bench
from inlay.cli.generate import generate
from inlay.cli.read import read
from inlay.cli.sites import sites
from inlay.cli.train import train
from inlay.cli.world import app as world

app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_show_locals=False)
app.command()(sites)
app.command()(read)
app.command()(generate)
app.command()(train)
app.command()(attribute)
app.add_typer(bench, name="bench")
app.add_typer(world, name="world")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"inlay {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _inlay(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Read and edit the activations of a language model, find directions in them, and judge what they do.

    NAME is a model of the Hugging Face hub, such as `google/gemma-2-2b-it`, or a folder that holds one.
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Run the command line."""
    app()


__all__ = ["app", "main"]
