"""`inlay bench run | report | concepts | methods`: find directions of concepts and judge them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inlay.cli.options import Debug, Device, Dtype, DtypeOption, Revision, load, reported
from inlay.errors import BenchError

if TYPE_CHECKING:
    from inlay.bench import BenchResult, ConceptSet
    from inlay.judges import Judge
    from inlay.model.model import Model

app = typer.Typer(no_args_is_help=True, help="Find directions of concepts by several methods, and judge them.")

Concepts = Annotated[
    str,
    typer.Option(
        "--concepts",
        metavar="SOURCE",
        help="tidepool, a world's folder, a folder of AxBench's, or a .jsonl or .parquet file of rows.",
    ),
]
Prompts = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        metavar="FILE",
        help="Steering instructions, one a line; by default the set's own.",
        show_default=False,
    ),
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N concepts.", show_default=False)]


class Pick(StrEnum):
    """Who chooses a factor."""

    concept = "concept"
    shared = "global"


@app.command()
def run(
    model: Annotated[
        str, typer.Option("--model", metavar="NAME", help="A hub id, a folder, or tidepool.")
    ] = "tidepool",
    concepts: Concepts = "tidepool",
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods", metavar="A,B,...", help="See `inlay bench methods`.", show_default="all but controls"
        ),
    ] = None,
    site: Annotated[
        list[str] | None,
        typer.Option(
            "--site",
            help="Where; repeatable, and `resid_post.*` is every layer. Of several, training rows choose for detection "
            "and the choosing prompts for steering.",
            show_default="the middle block's output",
        ),
    ] = None,
    factors: Annotated[
        str | None,
        typer.Option("--factors", metavar="F,F,...", help="Strengths, in mean lengths of a state.", show_default=False),
    ] = None,
    judge: Annotated[
        str,
        typer.Option(
            "--judge",
            help="auto (a world's truth; else words of the concept and the model's own log-probabilities), lexicon, "
            "logprob, or chat:MODEL at an OpenAI-compatible endpoint.",
        ),
    ] = "auto",
    base_url: Annotated[
        str | None, typer.Option("--base-url", help="The endpoint of chat:MODEL.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Rows, tables and report go here.")] = Path(
        "bench-run"
    ),
    prompts: Prompts = None,
    limit: Limit = None,
    n_prompts: Annotated[int, typer.Option("--n-prompts", min=2, help="Steering instructions a concept.")] = 10,
    rpm: Annotated[
        float | None, typer.Option("--rpm", help="The most requests a minute of chat:MODEL.", show_default=False)
    ] = None,
    prices: Annotated[
        str | None,
        typer.Option(
            "--prices",
            metavar="IN,OUT",
            help="US dollars for a million input and output tokens of chat:MODEL.",
            show_default=False,
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Of a reply.")] = 64,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0 takes the likeliest token.")] = 0.0,
    pick: Annotated[
        Pick, typer.Option("--pick", help="Whether each concept has its own factor, or all share one.")
    ] = Pick.concept,
    batch_rows: Annotated[int, typer.Option("--batch-rows", min=1, help="Replies generated together.")] = 128,
    seed: Annotated[int, typer.Option("--seed", help="Of what is drawn.")] = 0,
    detect: Annotated[bool, typer.Option("--detect/--no-detect", help="Measure detection.")] = True,
    steer: Annotated[bool, typer.Option("--steer/--no-steer", help="Measure steering.")] = True,
    side_effects: Annotated[
        bool, typer.Option("--side-effects/--no-side-effects", help="Measure side effects of steering.")
    ] = True,
    dtype: DtypeOption = Dtype.auto,
    device: Device = None,
    revision: Revision = None,
    debug: Debug = False,
) -> None:
    """Find directions, measure what they detect and steer, and write a report.

    Every finished reply is kept in FOLDER: the same command goes on where a killed one was, and refuses the folder when
    something has changed.
    """
    with reported(debug):
        from inlay.bench import ConceptSet
        from inlay.bench import run as bench

        made = ConceptSet.load(concepts, prompts=prompts, n_prompts=n_prompts)
        made = made if limit is None else made.first(limit)
        loaded = load(model, dtype, device, revision)
        settings: dict[str, Any] = {"site": tuple(site) if site else None, "pick": pick.value}
        if methods is not None:
            settings["methods"] = tuple(name.strip() for name in methods.split(","))
        if factors is not None:
            settings["factors"] = _numbers("--factors", factors)
        spent = {"requests_per_minute": rpm, "prices": None if prices is None else _numbers("--prices", prices)}
        result = bench(
            loaded,
            concepts=made,
            judge=_judge(judge, loaded, made, out, base_url=base_url, **spent),
            out=out,
            progress=True,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            batch_rows=batch_rows,
            seed=seed,
            detect=detect,
            steer=steer,
            side_effects=side_effects,
            **settings,
        )
        _show(result)
    typer.echo(f"report: {out / 'report.html'}")


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of a finished run.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Where the page goes.", show_default="in FOLDER")
    ] = None,
    debug: Debug = False,
) -> None:
    """Print the tables of a finished run and write its report again."""
    with reported(debug):
        from inlay.bench import BenchResult

        result = BenchResult.load(folder / "tables")
        _show(result)
        written = result.save_report(out or folder / "report.html")
    typer.echo(f"report: {written}")


@app.command()
def concepts(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="See `inlay bench run --concepts`.")],
    prompts: Prompts = None,
    limit: Limit = None,
    debug: Debug = False,
) -> None:
    """Show what a concept set holds, and what is doubtful about it: gaps of length and style."""
    with reported(debug):
        from rich.box import SIMPLE
        from rich.console import Console
        from rich.table import Table

        from inlay.bench.concept_set import CATEGORIES, PARTS, ConceptSet

        made = ConceptSet.load(source, prompts=prompts)
        made = made if limit is None else made.first(limit)
        table = Table(title=f"{made.name}: rows are positive / negative / hard negative", box=SIMPLE, padding=0)
        for name in ("id", "genre", "train", "eval", "prompts"):
            table.add_column(name, no_wrap=True)
        table.add_column("concept", ratio=3)
        table.add_column("its words", ratio=2)
        for c in made.concepts:
            train, held = ([str(len(made.of(c, part, category))) for category in CATEGORIES] for part in PARTS)
            words = ", ".join(c.lexicon[:6]) + (" ..." if len(c.lexicon) > 6 else "")
            asked = str(len(made.prompts.get(c.id, [])))
            table.add_row(str(c.id), c.genre, " / ".join(train[:2]), " / ".join(held), asked, c.name, words)
        Console().print(table)
        for warning in made.check():
            typer.echo(f"note: {warning}", err=True)


@app.command()
def methods() -> None:
    """List the methods that find a direction, with their settings."""
    from rich.console import Console
    from rich.table import Table

    from inlay.directions import METHODS

    table = Table()
    for name in ("method", "kind", "what it is", "settings"):
        table.add_column(name)
    for method in METHODS.values():
        what = (method.fit.__doc__ or "").split("\n")[0]
        table.add_row(method.name, method.kind, what, ", ".join(f"{k}={v}" for k, v in method.defaults.items()))
    Console().print(table)


def _show(result: BenchResult) -> None:
    from rich.console import Console

    from inlay.bench.report import tables

    console = Console()
    for table in tables(result):
        console.print(table)
    for warning in result.info["warnings"]:
        typer.echo(f"note: {warning}", err=True)
    if cost := result.info["judge"]["cost"]:
        typer.echo(f"judge: {cost}", err=True)


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise BenchError(f"{option} {text!r} is not a list of numbers such as 0.3,0.6,1") from None


def _judge(name: str, model: Model, concepts: ConceptSet, out: Path, **endpoint: Any) -> Judge:
    """The judge of a name; a chat judge keeps its answers beside the run's folder.

    Raises:
        BenchError: there is no such judge.
    """
    from inlay.bench import judge_by_words, judges_for
    from inlay.judges import ChatJudge, LogprobJudge

    kind, _, chat = name.partition(":")
    if kind == "chat" and chat:
        if endpoint["prices"] is not None and len(endpoint["prices"]) != 2:
            raise BenchError("--prices are two numbers: for a million input tokens, and for a million output tokens")
        return ChatJudge(chat, cache=Path(f"{out.resolve()}.judge.jsonl"), **endpoint)
    if name == "auto":
        return judges_for(model, concepts)
    if name == "logprob":
        return LogprobJudge(model)
    if name == "lexicon":
        return judge_by_words(model, concepts)
    raise BenchError(f"there is no judge {name!r}; give auto, lexicon, logprob or chat:MODEL")
