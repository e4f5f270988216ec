"""`inlay attribute --model NAME --text TEXT --target TOKEN`: which tokens an answer comes from."""

from __future__ import annotations

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
    PromptsFile,
    Revision,
    Strength,
    edit_of,
    load,
    reported,
)
from inlay.cli.prompts import gather


def attribute(
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="A hub id, or a folder that holds a model.")],
    text: Annotated[
        list[str] | None, typer.Option("--text", metavar="TEXT", help="A prompt. Repeatable.", show_default=False)
    ] = None,
    prompts: PromptsFile = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target", metavar="TOKEN", help="The token to explain; by default the likeliest.", show_default=False
        ),
    ] = None,
    foil: Annotated[
        str | None,
        typer.Option("--foil", metavar="TOKEN", help="Explain why the target and not this token.", show_default=False),
    ] = None,
    response: Annotated[
        list[str] | None,
        typer.Option(
            "--response",
            metavar="TEXT",
            help="Explain this continuation instead of one token; one for each prompt.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            metavar="NAME",
            help="gim, attnlrp, relp, grad, ig, occlusion, shapley ...; by default gim. Repeat it to compare.",
            show_default=False,
        ),
    ] = None,
    baseline: Annotated[
        str, typer.Option("--baseline", metavar="WHAT", help="space, zero, mean, or a token that stands for nothing.")
    ] = "space",
    by: Annotated[str, typer.Option("--by", metavar="WHAT", help="Score each token, or each word.")] = "token",
    quantity: Annotated[
        str | None,
        typer.Option(
            "--quantity",
            metavar="NAME",
            help="logit, logit_diff, logprob, prob, prob_diff, kl or entropy.",
            show_default=False,
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with heatmaps.", show_default=False)
    ] = None,
    report: Annotated[bool, typer.Option("--report", help="Print what each backward rule hit.")] = False,
    edit: Edits = None,
    strength: Strength = None,
    chat: Chat = None,
    dtype: DtypeOption = Dtype.auto,
    device: Device = None,
    revision: Revision = None,
    debug: Debug = False,
) -> None:
    """Score the tokens of a prompt by how much each one raises what the model says next.

    Positive: with this token, and not the baseline in its place, the target is likelier.
    """
    with reported(debug):
        from contextlib import nullcontext

        from inlay._files import write_files
        from inlay.attribute import token_html, tokens

        given = gather(text, prompts).prompts
        loaded = load(model, dtype, device, revision)
        chosen = edit_of(edit, loaded)
        with nullcontext() if chosen is None else loaded.edited(chosen, strength=strength):
            found = [
                tokens(
                    loaded,
                    given,
                    None if target is None else [target] * len(given),
                    None if foil is None else [foil] * len(given),
                    name,
                    baseline=baseline,
                    by=by,
                    quantity=quantity,
                    responses=response,
                    chat=chat,
                )
                for name in method or ["gim"]
            ]
        for scores in found:
            scores.print()
            if report and scores.report:
                typer.echo(scores.report)
        if html is not None:
            write_files(html.parent, {html.name: token_html(found).encode()})
            typer.echo(html)
