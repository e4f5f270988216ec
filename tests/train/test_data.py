"""Examples from files and datasets, and what is wrong with a row, by its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars
import pytest

from inlay.errors import TrainError
from inlay.train.data import load_examples
from inlay.train.examples import Example

ROWS = [{"prompt": "say a", "chosen": "a"}, {"prompt": "say b", "chosen": "b", "rejected": "c"}]
WANTED = [Example("say a", "a"), Example("say b", "b", "c")]


def jsonl(folder: Path, rows: list[Any], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def test_the_same_rows_from_everywhere(tmp_path: Path) -> None:
    table = polars.DataFrame(ROWS)
    table.write_parquet(tmp_path / "rows.parquet")
    sources = [jsonl(tmp_path, ROWS), str(jsonl(tmp_path, ROWS)), tmp_path / "rows.parquet", table, ROWS, iter(ROWS)]
    for source in sources:
        assert load_examples(source) == WANTED


def test_a_dataset_of_hugging_face() -> None:
    datasets = pytest.importorskip("datasets", reason="datasets comes with trl: pip install 'inlay[train]'")
    assert load_examples(datasets.Dataset.from_list([{"rejected": None, **row} for row in ROWS])) == WANTED


@pytest.mark.parametrize(
    ("row", "columns", "wanted"),
    [
        ({"instruction": "q", "output": "a"}, {}, Example("q", "a")),
        ({"question": "q", "answer": "a", "label": 0}, {}, Example("q", "a", label=0)),
        ({"x": "q", "y": "a"}, {"prompt": "x", "chosen": "y"}, Example("q", "a")),
        ({"i": "do", "x": "this", "y": "a"}, {"prompt": "{i}\n{x}\n", "chosen": "y"}, Example("do\nthis\n", "a")),
        (
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
            {},
            Example([{"role": "user", "content": "q"}], "a"),
        ),
        (
            {
                "prompt": [{"role": "user", "content": "q"}],
                "completion": [{"role": "assistant", "content": "a"}],
            },
            {},
            Example([{"role": "user", "content": "q"}], "a"),
        ),
        ({"prompt": [1, 2], "chosen": [3], "row": 2}, {}, Example([1, 2], [3], row=2)),
        ({"prompt": "q", "chosen": "a", "teacher": "be brief. q"}, {}, Example("q", "a", teacher="be brief. q")),
    ],
)
def test_columns(row: dict[str, Any], columns: dict[str, str], wanted: Example) -> None:
    assert load_examples([row], columns) == [wanted]


def test_rows_by_concept(tmp_path: Path) -> None:
    rows = [{**row, "concept": name} for row, name in zip(ROWS * 2, "aabb", strict=True)]
    assert load_examples(jsonl(tmp_path, rows), concept="concept") == {"a": WANTED, "b": WANTED}
    with pytest.raises(TrainError, match=r"rows.jsonl, line 3 has no 'concept'"):
        load_examples(jsonl(tmp_path, [*rows[:2], ROWS[0]]), concept="concept")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([ROWS[0], "{"], r"rows.jsonl, line 2 is no JSON .*: '\{'"),
        ([ROWS[0], "", "3"], "line 3 is no JSON object"),
        ([{"prompt": "q"}], r"line 1 has no 'chosen' \(looked for chosen, response.*name the column, columns="),
        ([{"prompt": "q", "chosen": 3}], "'chosen' is 3, and should be text"),
        ([{"messages": [{"role": "user", "content": "q"}]}], "do not end with the assistant's"),
        ([""], "has no rows"),
    ],
)
def test_a_bad_row_is_named(rows: list[Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=said):
        load_examples(jsonl(tmp_path, rows))


def test_other_bad_sources(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="cannot be read"):
        load_examples(tmp_path / "none.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "\xe9"}\n')
    with pytest.raises(TrainError, match="cannot be read"):
        load_examples(tmp_path / "latin.jsonl")
    (tmp_path / "rows.parquet").write_bytes(b"nothing")
    with pytest.raises(TrainError, match="cannot be read as parquet"):
        load_examples(tmp_path / "rows.parquet")
    with pytest.raises(TrainError, match=r"read from \.jsonl and \.parquet"):
        load_examples(tmp_path / "rows.csv")
    with pytest.raises(TrainError, match="row 0 of the data is 'x'"):
        load_examples(["x"])
    with pytest.raises(TrainError, match="names answer; the fields are prompt"):
        load_examples(ROWS, {"answer": "x"})
    with pytest.raises(TrainError, match="row 0 of the data has no 'q'; it has prompt, chosen"):
        load_examples(ROWS, {"prompt": "{q}!"})
