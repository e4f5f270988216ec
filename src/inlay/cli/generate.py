"""`inlay generate NAME --prompt TEXT --edit FOLDER`: text, with and without Edits."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from inlay.cli.options import (
    Chat,
    Debug,
    Device,
    Dtype,
    DtypeOption,
    Edits,
    Name,
    PromptsFile,
    Revision,
    Rows,
    Strength,
    edit_of,
    load,
    reported,
    rows_of,
)
from inlay.cli.prompts import gather


def generate(
    name: Name,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", metavar="TEXT", help="A prompt. Repeatable.", show_default=False)
    ] = None,
    prompts: PromptsFile = None,
    edit: Edits = None,
    strength: Strength = None,
    rows: Rows = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="The most tokens to generate.")] = 64,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, help="0 takes the likeliest token; above 0 samples.")
    ] = 0.0,
    seed: Annotated[int | None, typer.Option("--seed", help="Makes sampling repeatable.", show_default=False)] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print the text as it is generated; one prompt.")] = False,
    chat: Chat = None,
    dtype: DtypeOption = Dtype.auto,
    device: Device = None,
    revision: Revision = None,
    debug: Debug = False,
) -> None:
    """Generate text, under an Edit where one is given. Only the new text is printed."""
    with reported(debug):
        given = gather(prompt, prompts).prompts
        model = load(name, dtype, device, revision)
        if seed is not None:
            from transformers import set_seed

            set_seed(seed)
        sampling: dict[str, Any] = {"do_sample": True, "temperature": temperature} if temperature else {}
        found = model.generate(
            given if len(given) > 1 else given[0],
            edit=edit_of(edit, model),
            strength=strength,
            rows=rows_of(rows),
            stream=stream,
            chat=chat,
            max_new_tokens=max_new_tokens,
            **(sampling or {"do_sample": False}),
        )
        for text in [found] if isinstance(found, str) else found:
            typer.echo(text, nl=not stream)
    if stream:
        typer.echo()
