"""BenchResult: the tables of a finished run, on disk as Parquet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.errors import ExtraError, FolderError

if TYPE_CHECKING:
    import polars as pl

_TEXT, _WHOLE, _REAL = "String", "Int64", "Float64"
_WHO = {"method": _TEXT, "kind": _TEXT, "site": _TEXT, "concept_id": _WHOLE}
_INTERVAL = ("", "_lo", "_hi")
_SCORES = {"overall": _REAL, "concept": _REAL, "instruction": _REAL, "fluency": _REAL}

SCHEMAS: dict[str, dict[str, str]] = {
    "concepts": {
        "concept_id": _WHOLE,
        "name": _TEXT,
        "genre": _TEXT,
        "lexicon": "Words",
        "n_positive": _WHOLE,
        "n_negative": _WHOLE,
        "n_hard": _WHOLE,
    },
    "detection": _WHO
    | dict.fromkeys(("auroc", "auroc_hard", "auroc_all", "accuracy", "precision", "recall", "f1"), _REAL)
    | dict.fromkeys(("n_positive", "n_negative", "n_hard"), _WHOLE),
    "detection_summary": {"method": _TEXT, "kind": _TEXT, "site": _TEXT, "n": _WHOLE}
    | {f"{name}{end}": _REAL for name in ("auroc", "auroc_hard", "auroc_all") for end in _INTERVAL}
    | {"n_hard": _WHOLE, "accuracy": _REAL, "f1": _REAL},
    "generations": {"row": _WHOLE}
    | _WHO
    | {"prompt_id": _WHOLE, "half": _TEXT, "factor": _REAL, "prompt": _TEXT, "text": _TEXT}
    | _SCORES
    | {"failed": _TEXT},
    "steering": _WHO | {"factor": _REAL} | _SCORES | {"overall_global": _REAL, "win_rate": _REAL, "failed": _WHOLE},
    "steering_summary": {"method": _TEXT, "kind": _TEXT, "n": _WHOLE}
    | {f"{name}{end}": _REAL for name in ("overall", "overall_global") for end in _INTERVAL}
    | {"concept": _REAL, "instruction": _REAL, "fluency": _REAL, "factor_global": _REAL, "site_global": _TEXT}
    | {f"gain_{name}{end}": _REAL for name in ("unsteered", "random") for end in _INTERVAL}
    | {"win_rate": _REAL, "failed": _WHOLE},
    "dose": {"method": _TEXT, "kind": _TEXT, "site": _TEXT, "factor": _REAL}
    | _SCORES
    | {"overall_lo": _REAL, "overall_hi": _REAL},
    "side_effects": {"method": _TEXT, "concept_id": _WHOLE, "site": _TEXT, "factor": _REAL}
    | {"kl": _REAL, "logprob_drop": _REAL},
}


@dataclass(frozen=True)
class BenchResult:
    """What a bench run found. A part that was not run has an empty table. Scores are 0 to 2, intervals 95 %.

    Attributes:
        concepts: one row a concept: its name, genre, lexicon and evaluation texts.
        detection: one row a detector and concept.
        detection_summary: one row a detector: means over concepts, with bootstrap intervals.
        generations: one row a judged reply.
        steering: one row a method and concept, on the reporting prompts, at the factor that the choosing ones chose.
        steering_summary: one row a method: means over concepts, with bootstrap intervals.
        dose: one row a method, Site and factor, on the choosing prompts.
        side_effects: one row a method and concept: KL divergence to the unedited model, in nats a token.
        info: what was run, on what, and by whom it was judged.
    """

    concepts: pl.DataFrame
    detection: pl.DataFrame
    detection_summary: pl.DataFrame
    generations: pl.DataFrame
    steering: pl.DataFrame
    steering_summary: pl.DataFrame
    dose: pl.DataFrame
    side_effects: pl.DataFrame
    info: dict[str, Any]

    @classmethod
    def of(cls, info: dict[str, Any], **tables: Sequence[Mapping[str, Any]]) -> BenchResult:
        """From rows; a table that is left out is empty.

        Raises:
            ExtraError: polars is not installed.
        """
        polars = _polars()
        types = {"Words": polars.List(polars.String)}
        made = {}
        for name, schema in SCHEMAS.items():
            typed = {column: types.get(kind) or getattr(polars, kind) for column, kind in schema.items()}
            made[name] = polars.DataFrame(list(tables.get(name, ())), schema=typed, orient="row")
        return cls(**made, info=info)

    def save(self, folder: str | Path) -> Path:
        """Write a Parquet file a table, and `info.json` last.

        Raises:
            FolderError: the disk refuses.
        """
        folder = Path(folder).expanduser()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name in SCHEMAS:
                part = folder / f"{name}.parquet.part"
                getattr(self, name).write_parquet(part)
                part.replace(folder / f"{name}.parquet")
            part = folder / "info.json.part"
            part.write_text(json.dumps(self.info, indent=2) + "\n")
            part.replace(folder / "info.json")
        except OSError as error:
            raise FolderError(f"the result could not be written to {folder}: {error}") from error
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> BenchResult:
        """A result that `save` wrote.

        Raises:
            FolderError: a file is missing or broken.
            ExtraError: polars is not installed.
        """
        polars, folder = _polars(), Path(folder).expanduser()
        try:
            info = json.loads((folder / "info.json").read_text())
            tables = {name: polars.read_parquet(folder / f"{name}.parquet") for name in SCHEMAS}
        except (OSError, ValueError, polars.exceptions.PolarsError) as error:
            raise FolderError(f"{folder} holds no finished result: {error}") from error
        assert {f.name for f in fields(cls)} == {*tables, "info"}
        return cls(**tables, info=info)

    def save_report(self, path: str | Path) -> Path:
        """Write the report, one HTML page that needs nothing else; see `report.write`."""
        from inlay.bench.report.page import write

        return write(self, path)


def _polars() -> Any:
    try:
        import polars
    except ImportError as error:
        raise ExtraError("a bench's tables need polars: pip install 'inlay[bench]'") from error
    return polars
