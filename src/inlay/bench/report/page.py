"""The report of a bench run: one HTML page that needs nothing but itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inlay._files import write_files
from inlay.bench.report.charts import charts
from inlay.bench.report.palette import palette
from inlay.bench.report.points import pairs
from inlay.bench.report.tables import heat, number, numbers, settings, tiles
from inlay.bench.result import BenchResult
from inlay.errors import ExtraError


def write(result: BenchResult, path: str | Path) -> Path:
    """Write the report of a run, whole or not at all.

    The page holds its charts' code and data and asks no other file or host for anything: a policy in it forbids that.
    Sections whose tables are empty are left out. It is about 1 MB, of which 0.9 MB is the code that draws; replies
    are shown for as many concepts as `examples.BUDGET` allows, and the page says how many.

    Args:
        result: a finished run.
        path: the file to write; its folder is made where it is missing.

    Returns:
        The file written.

    Raises:
        ExtraError: altair, jinja2 or vl-convert-python is not installed.
        FolderError: the file cannot be written.
    """
    target = Path(path).expanduser()
    write_files(target.parent, {target.name: render(result).encode()})
    return target


def render(result: BenchResult) -> str:
    """The page as text; see `write`.

    Raises:
        ExtraError: as in `write`.
    """
    try:
        import jinja2
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise ExtraError(
            "writing a report needs altair, jinja2 and vl-convert-python: pip install 'inlay[bench]'"
        ) from error
    from inlay.bench.report.examples import PROMPTS, examples

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.undefined = jinja2.StrictUndefined
    environment.filters |= {"three": number, "short": lambda value: number(value, ".2g")}
    drawn = charts(result)
    bundle = _bundle() if drawn else ""
    return environment.get_template("template.html.j2").render(
        info=result.info,
        summary=summary(result),
        tiles=tiles(result),
        charts=drawn,
        choices={name: list(pairs(result, name)) for name in ("scatter", "hard")},
        numbers=numbers(result),
        heat=heat(result),
        examples=examples(result),
        prompts_shown=PROMPTS,
        dosed=_dosed(result),
        concepts=result.concepts.to_dicts(),
        settings=settings(result.info),
        entries=palette(result),
        bundle=bundle,
    )


def _dosed(result: BenchResult) -> set[str]:
    """The methods in the dose charts: those with a curve, and the baselines."""
    if result.dose.is_empty():
        return set()
    steered = result.steering_summary
    return {*result.dose["method"], *steered.filter(steered["kind"] == "baseline")["method"]}


def _bundle() -> str:
    """The code that draws, all of it; it stands in a <script>, and must not end it."""
    from vl_convert import javascript_bundle

    return javascript_bundle().replace("</script", "<\\/script")  # type: ignore[call-arg]  # the stub is wrong


def summary(result: BenchResult) -> str:
    """What was run, in a sentence."""
    parts = []
    if not result.detection_summary.is_empty():
        texts = result.concepts.select("n_positive", "n_negative", "n_hard").sum_horizontal().sum()
        parts.append(f"{_counted(result.detection_summary)} detect in {texts:,} texts")
    if not result.steering_summary.is_empty():
        parts.append(f"{_counted(result.steering_summary)} steer {result.generations.height:,} replies")
    count = result.concepts.height
    return f"{count} concept{'' if count == 1 else 's'}: {'; '.join(parts) or 'nothing was run'}."


def _counted(summary: Any) -> str:
    """`4 methods, 2 baselines and 1 control` from a summary table."""
    kinds = list(summary["kind"])
    met = [(kind, kinds.count(kind)) for kind in ("method", "baseline", "control") if kind in kinds]
    named = [f"{count} {kind}{'' if count == 1 else 's'}" for kind, count in met]
    return " and ".join(filter(None, [", ".join(named[:-1]), named[-1]]))
