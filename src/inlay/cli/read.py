"""`inlay read NAME --site SITE --prompts FILE --out FOLDER`: activations of many prompts, as safetensors on disk."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from inlay.cli.options import (
    Chat,
    Debug,
    Device,
    Dtype,
    DtypeOption,
    Edits,
    Name,
    Revision,
    Rows,
    Strength,
    edit_of,
    load,
    reported,
    rows_of,
)
from inlay.cli.prompts import gather


def read(
    name: Name,
    site: Annotated[
        list[str], typer.Option("--site", help="A Site, such as 'resid_post.12' or 'resid_post.*'. Repeatable.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder to write.", show_default=False)],
    tokens: Annotated[
        str, typer.Option("--tokens", help="Which tokens: all, last, prompt, response, 'first4+last4', inst_end ...")
    ] = "last",
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", metavar="TEXT", help="A prompt. Repeatable.", show_default=False)
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="A file with one prompt a line: text in .txt, JSON in .jsonl. Blank lines are skipped.",
            show_default=False,
        ),
    ] = None,
    edit: Edits = None,
    strength: Strength = None,
    rows: Rows = None,
    batch_tokens: Annotated[int, typer.Option("--batch-tokens", help="The most padded tokens in one forward.")] = 8192,
    chat: Chat = None,
    dtype: DtypeOption = Dtype.auto,
    device: Device = None,
    revision: Revision = None,
    debug: Debug = False,
) -> None:
    """Read activations of prompts and write them to a folder.

    They are written shard by shard. When it is stopped, run the same command again and it goes on where it was;
    with other arguments it refuses the folder.
    """
    from rich.filesize import decimal

    with reported(debug):
        given = gather(prompt, prompts)
        model = load(name, dtype, device, revision)
        acts = model.read(
            given.prompts,
            site,
            tokens,
            responses=given.responses,
            edit=edit_of(edit, model),
            strength=strength,
            rows=rows_of(rows),
            batch_tokens=batch_tokens,
            out=out,
            progress=sys.stdout.isatty(),
            chat=chat,
        )
    for read_site, values in acts.items():
        typer.echo(f"{read_site}  {list(values.shape)}  {str(values.dtype).removeprefix('torch.')}")
    files = [file for file in out.iterdir() if file.suffix == ".safetensors"]
    size = decimal(sum(file.stat().st_size for file in files))
    typer.echo(f"{len(given.prompts)} rows, {len(files)} shard{'s'[: len(files) != 1]}, {size} in {out}")
    typer.echo(f"Load them with inlay.Activations.load({str(out)!r})")
