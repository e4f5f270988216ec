"""What the commands share: the options that load a model and an Edit, and how an error of ours is shown."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inlay.errors import InlayError, InputError

if TYPE_CHECKING:
    from inlay.model.model import Model


class Dtype(StrEnum):
    """The number formats a model can be loaded in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


Name = Annotated[str, typer.Argument(metavar="NAME", help="A hub id, or a folder that holds a model.")]
DtypeOption = Annotated[
    Dtype, typer.Option("--dtype", help="The number format to load the model in; auto is the checkpoint's own.")
]
Device = Annotated[
    str | None,
    typer.Option("--device", help="Where to put the model: cpu, cuda, cuda:1, or auto to spread it over all devices."),
]
Revision = Annotated[
    str | None, typer.Option("--revision", help="A branch, tag or commit of the hub repository.", show_default=False)
]
Edits = Annotated[
    list[str] | None,
    typer.Option(
        "--edit",
        metavar="FOLDER",
        help="An Edit's folder or hub id. Repeat it to add Edits up; they act in the order given.",
        show_default=False,
    ),
]
Strength = Annotated[
    float | None, typer.Option("--strength", help="A factor on the change that every Edit makes.", show_default=False)
]
Rows = Annotated[
    str | None,
    typer.Option(
        "--rows",
        metavar="N,N,...",
        help="For an Edit that is a Bank: the row that each prompt uses. 0 is no edit.",
        show_default=False,
    ),
]
Chat = Annotated[
    bool | None,
    typer.Option(
        "--chat/--no-chat",
        help="Take each prompt as a user's turn, or as plain text. By default a turn where the model has a chat "
        "template.",
        show_default=False,
    ),
]
PromptsFile = Annotated[
    Path | None,
    typer.Option("--prompts", metavar="FILE", help="A .txt or .jsonl file with one prompt a line.", show_default=False),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@contextmanager
def reported(debug: bool) -> Iterator[None]:
    """Show an error of ours as one red line on stderr and exit with 2; with `debug` let it through."""
    try:
        yield
    except InlayError as error:
        if debug:
            raise
        from rich.console import Console
        from rich.text import Text

        line = Text(f"error: {' '.join(str(error).split())}", style="red")
        Console(stderr=True).print(line, soft_wrap=True)
        raise typer.Exit(2) from None


def load(name: str, dtype: Dtype, device: str | None, revision: str | None) -> Model:
    """The model, loaded without a progress bar where nobody sees one."""
    from transformers.utils import logging

    from inlay.model import load as load_model

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    more: dict[str, Any] = {} if revision is None else {"revision": revision}
    return load_model(name, dtype=dtype.value, device_map=device, **more)


def edit_of(folders: Sequence[str] | None, model: Model) -> Any:
    """The sum of the Edits in some folders, made for this model; `None` without any."""
    from inlay.interventions import Edit

    edits = [Edit.from_pretrained(folder, model) for folder in folders or ()]
    return Edit.of(tuple(part for edit in edits for part in edit.parts), edits[0].base) if edits else None


def rows_of(text: str | None) -> list[int] | None:
    """Row numbers from `1,0,2`.

    Raises:
        InputError: it is no list of numbers.
    """
    if text is None:
        return None
    try:
        return [int(row) for row in text.split(",")]
    except ValueError:
        raise InputError(f"--rows {text!r} is not a list of row numbers such as 1,0,2: one for each prompt") from None
