"""Examples from files and datasets: JSONL, parquet, Hugging Face `datasets`, any rows with columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from string import Formatter
from typing import Any

from inlay.errors import ExtraError, TrainError
from inlay.train.examples import Example

ALIASES: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "instruction", "question", "input"),
    "chosen": ("chosen", "response", "completion", "output", "answer"),
    "rejected": ("rejected",),
    "teacher": ("teacher",),
    "label": ("label",),
    "row": ("row",),
}
"""Where a field is looked for, in this order, when no column is named."""


def load_examples(
    source: Any, columns: Mapping[str, str] | None = None, *, concept: str | None = None
) -> list[Example] | dict[str, list[Example]]:
    r"""Examples of a file or a dataset.

    A row has a `prompt` and a `chosen` response, or `messages` that end with the assistant's. Prompts may be text or
    chats; a response that is a chat (as TRL's are) is its text.

    Args:
        source: a path to `.jsonl` or `.parquet`, a Hugging Face dataset, a table, or rows as mappings.
        columns: for a field of `Example` the column that holds it, or a template of columns such as
            `"{instruction}\n{input}"`; by default the first that is there of `ALIASES`, and Alpaca's `instruction` and
            `input` together.
        concept: the column that names a row's concept; the examples then come by concept, for `train_bank`.

    Raises:
        TrainError: the file cannot be read, a line is no JSON object, or a row lacks a column or holds no text.
        ExtraError: parquet, and polars is not installed.
    """
    unknown = set(columns or ()) - set(ALIASES)
    if unknown:
        raise TrainError(f"columns= names {', '.join(sorted(unknown))}; the fields are {', '.join(ALIASES)}")
    found: list[Example] = []
    by_concept: dict[str, list[Example]] = {}
    for where, row in _rows(source):
        example = _example(row, columns or {}, where)
        found.append(example)
        if concept is not None:
            if row.get(concept) is None:
                raise TrainError(f"{where} has no {concept!r}, which should name its concept")
            by_concept.setdefault(str(row[concept]), []).append(example)
    if not found:
        raise TrainError(f"{source!r:.80} has no rows")
    return found if concept is None else by_concept


def _rows(source: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows, and where each stands, for messages."""
    if isinstance(source, (str, Path)):
        path = Path(source).expanduser()
        kind = path.suffix.lower()
        if kind in (".jsonl", ".json", ".ndjson"):
            yield from _lines(path)
        elif kind == ".parquet":
            yield from _numbered(path.name, _parquet(path))
        else:
            raise TrainError(f"{path}: examples are read from .jsonl and .parquet")
    elif hasattr(source, "iter_rows"):  # polars
        yield from _numbered("the table", source.iter_rows(named=True))
    elif isinstance(source, Iterable) and not isinstance(source, Mapping):
        yield from _numbered("the data", source)
    else:
        raise TrainError(f"{type(source).__name__} is no source of examples: give a path, a dataset or a list of rows")


def _numbered(name: str, rows: Iterable[Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise TrainError(f"row {index} of {name} is {row!r:.60}, and no mapping of columns")
        yield f"row {index} of {name}", row


def _lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                where = f"{path.name}, line {number}"
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise TrainError(f"{where} is no JSON ({error}): {line.strip()[:60]!r}") from None
                if not isinstance(row, dict):
                    raise TrainError(f"{where} is no JSON object: {line.strip()[:60]!r}")
                yield where, row
    except (OSError, UnicodeDecodeError) as error:
        raise TrainError(f"{path} cannot be read: {error}") from error


def _parquet(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        import polars
    except ImportError as error:
        raise ExtraError("reading parquet needs polars: pip install 'inlay[data]'") from error
    try:
        yield from polars.read_parquet(path).iter_rows(named=True)
    except (OSError, polars.exceptions.PolarsError) as error:
        raise TrainError(f"{path} cannot be read as parquet: {error}") from error


def _example(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> Example:
    messages = row.get("messages")
    if messages is not None and not {"prompt", "chosen"} & set(columns):
        if not isinstance(messages, Sequence) or not messages or messages[-1].get("role") != "assistant":
            raise TrainError(f"{where}: its messages do not end with the assistant's")
        values: dict[str, Any] = {"prompt": list(messages[:-1]), "chosen": messages[-1]["content"]}
    else:
        values = {name: _value(row, name, columns, where) for name in ("prompt", "chosen")}
    for name in ("rejected", "teacher", "label", "row"):
        if name in columns or row.get(name) is not None:
            values[name] = _value(row, name, columns, where)
    for name in ("chosen", "rejected"):
        if name in values:
            values[name] = _said(values[name], name, where)
    return Example(**values)


def _value(row: Mapping[str, Any], name: str, columns: Mapping[str, str], where: str) -> Any:
    if name in columns:
        wanted = columns[name]
        fields = [field for _, field, _, _ in Formatter().parse(wanted) if field is not None]
        for column in fields or [wanted]:
            if row.get(column) is None:
                raise TrainError(f"{where} has no {column!r}; it has {', '.join(map(str, row))}")
        return wanted.format(**row) if fields else row[wanted]
    if name == "prompt" and row.get("prompt") is None and row.get("instruction") and row.get("input"):
        return f"{row['instruction']}\n{row['input']}"  # Alpaca's two columns
    for column in ALIASES[name]:
        if row.get(column) is not None:
            return row[column]
    raise TrainError(
        f"{where} has no {name!r} (looked for {', '.join(ALIASES[name])}); it has {', '.join(map(str, row))}: name "
        f"the column, columns={{{name!r}: ...}}"
    )


def _said(value: Any, name: str, where: str) -> Any:
    """The text of a response: a string, ids, or a chat of one message."""
    if isinstance(value, str) or (isinstance(value, Sequence) and value and all(type(i) is int for i in value)):
        return value
    if isinstance(value, Sequence) and len(value) == 1 and isinstance(value[0], Mapping) and "content" in value[0]:
        return value[0]["content"]
    raise TrainError(f"{where}: {name!r} is {value!r:.60}, and should be text")
