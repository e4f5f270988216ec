"""Where concept sets come from: the world, AxBench's folders, files of your own, and what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tests.world import hand

from inlay import world
from inlay.bench.concept_set import ConceptSet, Row
from inlay.errors import BenchError

# -- a world ---------------------------------------------------------------------------------------------------------


def test_tidepools_rows() -> None:
    made, truth = ConceptSet.load("tidepool"), world.tidepool()
    assert [c.name for c in made.concepts] == [c.description for c in truth.concepts(heldout=False)]
    assert made.world is not None and made.check() == []
    for concept in made.concepts:
        for part, n in (("train", 72), ("eval", 36)):
            yes, no = (made.of(concept, part, category) for category in ("positive", "negative"))
            assert len(yes) == len(no) == n
            assert [row.input for row in yes] == [row.input for row in no]  # pairs of one instruction
            assert all(truth.concept_score(concept.name, row.output) > 0 for row in yes)
            assert all(truth.concept_score(concept.name, row.output) == 0 for row in no)
            assert abs(sum(len(r.output.split()) for r in yes) - sum(len(r.output.split()) for r in no)) < 2 * n
        hard = made.of(concept, "eval", "hard negative")
        twins = any(truth.concept(concept.name).twin_of(other) for other in truth.concepts())
        assert len(hard) == (10 if twins else 0)
        assert not made.of(concept, "train", "hard negative")
        assert len(set(made.prompts[concept.id])) == 10
    assert not {row.output for row in made.train} & {row.output for row in made.eval if row.category == "positive"}
    assert made.asked(made.concepts[0], "tell me .") == f"tell me . use {made.concepts[0].name} ."


def test_options_of_a_world() -> None:
    few = ConceptSet.load("tidepool", rows=6, n_prompts=3)
    assert {len(few.of(c, "train", "positive")) for c in few.concepts} == {6}
    assert {len(few.of(c, "eval", "positive")) for c in few.concepts} == {3}
    assert {len(prompts) for prompts in few.prompts.values()} == {3}
    more = ConceptSet.load("tidepool", rows=6, n_prompts=3, heldout=True)
    assert {c.name for c in more.concepts} == {c.description for c in world.tidepool().concepts()}
    assert len(more.concepts) > len(few.concepts)
    other = ConceptSet.load("tidepool", rows=6, n_prompts=3, seed=1)
    assert other.digest != few.digest == ConceptSet.load("tidepool", rows=6, n_prompts=3).digest


def test_a_world_of_ones_own(tmp_path: Path) -> None:
    hand.write(tmp_path / "mine")
    made = ConceptSet.load(tmp_path / "mine", rows=4, n_prompts=2)
    assert [c.name for c in made.concepts] == ["things of sea", "things of song", "greeting"]


def test_a_world_has_its_own_prompts(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"tidepool is a world, .*leave out .*asks\.txt"):
        ConceptSet.load("tidepool", prompts=tmp_path / "asks.txt")


# -- AxBench's folders -----------------------------------------------------------------------------------------------


def row(number: int, category: str, output: str, asked: str = "say it", genre: str = "text") -> dict[str, Any]:
    record = {"input": asked, "output": output, "output_concept": "EEEEE", "concept_genre": genre}
    return record | {"category": category, "dataset_category": "instruction", "concept_id": number}


TRAIN = [
    row(0, "positive", "the anchor fell"),
    row(0, "positive", "an anchor rose"),
    row(2, "positive", "int main", genre="code"),
    row(-1, "negative", "the cat slept"),
    row(-1, "negative", "print(1)", genre="code"),
]
EVAL = [
    row(0, "positive", "an anchor", "ask 0"),
    *(row(0, "negative", f"a cat {n}", f"ask {n}") for n in range(12)),
    row(0, "hard negative", "a news anchor", "ask 7"),
    row(2, "positive", "char c", "ask x", "code"),
    row(2, "negative", "x = 1", "ask y", "code"),
]
ABOUT = [
    {"concept_id": 0, "concept": "anchors", "ref": "", "concept_genres_map": {"anchors": ["text"]}},
    {"concept_id": 2, "concept": "C", "ref": "", "concept_genres_map": {"C": ["code", "text"]}, "lexicon": ["int"]},
]
PARQUET = ("generate/train_data.parquet", "inference/latent_eval_data.parquet", "generate/metadata.jsonl")
JSONL = ("train.jsonl", "latent_eval.jsonl", "metadata.jsonl")


def lines(path: Path, records: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in records), encoding="utf-8")
    return path


def folder(at: Path, names: Sequence[str] = JSONL, train: Any = TRAIN, held: Any = EVAL, about: Any = ABOUT) -> Path:
    for name, records in zip(names, (train, held, about), strict=True):
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            pl.DataFrame(records).write_parquet(at / name)
        else:
            lines(at / name, records)
    return at


@pytest.mark.parametrize("names", [PARQUET, JSONL], ids=["parquet", "jsonl"])
def test_both_layouts_of_axbench(tmp_path: Path, names: tuple[str, ...]) -> None:
    made = ConceptSet.load(folder(tmp_path / "axe", names))
    assert made.name == "axe" and made.world is None
    assert [(c.id, c.name, c.genre) for c in made.concepts] == [(0, "anchors", "text"), (2, "C", "code")]
    sea, code = made.concepts
    assert [r.output for r in made.of(sea, "train", "positive")] == ["the anchor fell", "an anchor rose"]
    assert [r.output for r in made.of(sea, "train", "negative")] == ["the cat slept"]
    assert [r.output for r in made.of(code, "train", "negative")] == ["print(1)"]
    assert made.of(sea, "eval", "hard negative") == [Row(0, "hard negative", "ask 7", "a news anchor")]
    assert sea.lexicon[0] == "anchor" and "cat" not in sea.lexicon  # found in its texts
    assert code.lexicon == ("int",)  # as given
    assert len(made.prompts[0]) == len(set(made.prompts[0])) == 10
    assert set(made.prompts[0]) < {f"ask {n}" for n in range(12)} and made.prompts[2] == ["ask y"]


def test_at_most_so_many_rows_a_side(tmp_path: Path) -> None:
    made = ConceptSet.load(folder(tmp_path), rows=1)
    assert [r.output for r in made.train] == [r["output"] for r in TRAIN if r["output"] != "an anchor rose"]


def test_prompts_are_drawn_as_axbench_does(tmp_path: Path) -> None:
    asks = tmp_path / "asks.txt"
    asks.write_text("".join(f"{n}\n\n" for n in range(805)))
    made = ConceptSet.load(folder(tmp_path / "axe"), prompts=asks)
    assert made.prompts[0] == ["8", "258", "172", "317", "294", "251", "609", "331", "775", "320"]
    assert len(set(made.prompts[2])) == 10 and made.prompts[2] != made.prompts[0]
    asks.write_text("one\ntwo\none\n")  # the same twice would choose and report
    assert sorted(ConceptSet.load(folder(tmp_path / "few"), prompts=asks).prompts[0]) == ["one", "two"]
    asks.write_text("one\none\n")
    with pytest.raises(BenchError, match=r"asks\.txt has 1 different prompt\(s\); steering needs two"):
        ConceptSet.load(folder(tmp_path / "fewer"), prompts=asks)


def test_axbenchs_own_folders(shared: Path) -> None:
    made = ConceptSet.load(shared / "data" / "axbench" / "concept10" / "prod_2b_l10_v1")
    assert len(made.concepts) == 10
    for concept in made.concepts:
        counts = [len(made.of(concept, part, c)) for part in ("train", "eval") for c in ("positive", "negative")]
        assert counts == [72, 72, 36, 36]
        assert all(row.concept_id == -1 and row.genre == concept.genre for row in made.of(concept, "train", "negative"))
        assert len(made.prompts[concept.id]) == 10 and concept.lexicon


# -- files -----------------------------------------------------------------------------------------------------------


def said(concept: str, category: str, output: str, **more: Any) -> dict[str, Any]:
    return {"concept": concept, "category": category, "output": output, **more}


MINE = [
    said("tea", "positive", "a cup", split="train", lexicon=["cup", "leaf"]),
    said("tea", "negative", "a rock", split="train"),
    said("the sea", "positive", "a wave", split="train", genre="poem"),
    said("the sea", "negative", "a hill", split="eval", genre="poem", input="Where?"),
    said("tea", "hard negative", "a world cup", split="eval"),
]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_file_of_ones_own(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mine{suffix}"
    if suffix == ".parquet":
        pl.DataFrame(MINE).write_parquet(path)
    else:
        lines(path, [*MINE, ""])
    made = ConceptSet.load(path)
    assert made.name == "mine"
    assert [(c.id, c.name, c.genre) for c in made.concepts] == [(0, "tea", "text"), (1, "the sea", "poem")]
    assert made.concepts[0].lexicon == ("cup", "leaf")
    assert [r.output for r in made.train] == ["a cup", "a rock", "a wave"]
    assert made.eval == (Row(1, "negative", "Where?", "a hill", "poem"), Row(0, "hard negative", "", "a world cup"))
    assert made.prompts == {0: [], 1: ["Where?"]}


def test_rows_without_a_split_are_split_by_their_hash(tmp_path: Path) -> None:
    rows = [said("tea", c, f"text {n}") for n in range(150) for c in ("positive", "negative")]
    made = ConceptSet.load(lines(tmp_path / "a.jsonl", rows), rows=300)
    assert len(made.train) + len(made.eval) == 300 and 70 < len(made.eval) < 130
    back = ConceptSet.load(lines(tmp_path / "b.jsonl", rows[::-1]), rows=300)
    assert {*back.eval} == {*made.eval}


def test_rows_with_numbers(tmp_path: Path) -> None:
    rows = [said("b", "positive", "x", concept_id=7), said("b", "negative", "y", concept_id=-1)]
    rows.append(said("a", "positive", "z", concept_id=3))
    made = ConceptSet.load(lines(tmp_path / "a.jsonl", rows))
    assert [(c.id, c.name) for c in made.concepts] == [(3, "a"), (7, "b")]


# -- what is wrong ---------------------------------------------------------------------------------------------------

GOOD = said("tea", "positive", "a cup")
BROKEN: list[tuple[Any, str]] = [
    ('{"concept": "tea"', r"is not JSON \(.*\): '\{\"concept\": \"tea\"'"),
    ("[1, 2]", r"is no object: '\[1, 2\]'"),
    ({**GOOD, "category": "good"}, "category is 'good'; give one of positive, negative, hard negative"),
    ({**GOOD, "category": ["positive"]}, r"category is \['positive'\]"),
    ({"concept": "tea", "output": "a cup"}, "category is None"),
    ({"concept": "tea", "category": "positive", "input": "a"}, "output is missing; it has: concept, category, input"),
    ({**GOOD, "output": " "}, "output is ' '; give a text"),
    ({**GOOD, "output": 5}, "output is 5; give a text"),
    ({**GOOD, "input": ["a"]}, r"input is \['a'\]; give a text"),
    ({"category": "positive", "output": "a cup"}, "concept is missing"),
    ({**GOOD, "concept": 1}, "concept is 1; give a text"),
    ({**GOOD, "genre": 1}, "genre is 1; give a text"),
    ({**GOOD, "concept_id": "0"}, "concept_id is '0'; give a whole number"),
    ({**GOOD, "concept_id": 1.5}, "concept_id is 1.5; give a whole number"),
    ({**GOOD, "concept_id": True}, "concept_id is True; give a whole number"),
    ({**GOOD, "concept_id": -2}, "concept_id is -2; give a whole number"),
    ({**GOOD, "concept_id": -1}, "concept_id is -1, for a shared negative, and category is 'positive'"),
    ({**GOOD, "concept_id": 0, "concept": "coffee"}, "concept 0 is 'coffee', and before it was 'tea'"),
    ({**GOOD, "split": "test"}, "split is 'test'; give 'train' or 'eval'"),
    ({**GOOD, "split": ["train"]}, r"split is \['train'\]; give 'train' or 'eval'"),
    ({**GOOD, "lexicon": "cup"}, "lexicon is 'cup'; give a list of words"),
    ({**GOOD, "lexicon": 5}, "lexicon is 5; give a list of words"),
    ({**GOOD, "lexicon": ["cup", 5]}, r"lexicon is \['cup', 5\]; give a list of words"),
]


@pytest.mark.parametrize(("bad", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_a_broken_row_is_named(tmp_path: Path, bad: Any, message: str) -> None:
    path = lines(tmp_path / "mine.jsonl", [GOOD, GOOD, bad, GOOD])
    with pytest.raises(BenchError, match=rf"mine\.jsonl, line 3:? {message}"):
        ConceptSet.load(path)


def test_line_4711_that_is_not_json(tmp_path: Path) -> None:
    path = lines(tmp_path / "mine.jsonl", [GOOD] * 4710 + ["{output: a cup}"] + [GOOD] * 10)
    with pytest.raises(BenchError, match=r"mine\.jsonl, line 4711 is not JSON .*'\{output: a cup\}'"):
        ConceptSet.load(path)


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("names", [PARQUET, JSONL], ids=["parquet", "jsonl"])
def test_a_broken_row_of_a_folder(tmp_path: Path, names: tuple[str, ...], part: int) -> None:
    bad = [*TRAIN[:2], {**TRAIN[2], "category": "odd"}]
    folder(tmp_path, names, *((bad, EVAL) if part == 0 else (TRAIN, bad)))
    where = "row 2" if names is PARQUET else "line 3"
    with pytest.raises(BenchError, match=rf"{Path(names[part]).name}, {where}: category is 'odd'"):
        ConceptSet.load(tmp_path)


ABOUTS: list[tuple[dict[str, Any], str]] = [
    ({"concept_id": 0}, "concept is missing"),
    ({"concept": "a"}, "concept_id is None; give a whole number from 0"),
    ({"concept": "a", "concept_id": -1}, "concept_id is -1"),
    ({"concept": "a", "concept_id": 0, "concept_genres_map": "text"}, "concept_genres_map is 'text'"),
    ({"concept": "a", "concept_id": 0, "concept_genres_map": {"a": "text"}}, "concept_genres_map is"),
    ({"concept": "a", "concept_id": 0, "lexicon": "abc"}, "lexicon is 'abc'"),
    ({"concept": "a", "concept_id": 0, "steering_prompt": 5}, "steering_prompt is 5"),
]


@pytest.mark.parametrize(("bad", "message"), ABOUTS)
def test_broken_metadata(tmp_path: Path, bad: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchError, match=rf"metadata\.jsonl, line 3: {message}"):
        ConceptSet.load(folder(tmp_path, about=[*ABOUT, bad]))


def test_what_is_not_there(tmp_path: Path) -> None:
    for name in ("none", "none.jsonl", "none.parquet", "set.csv"):
        with pytest.raises(BenchError, match=f"{name}: there is no such concept set; give 'tidepool', a folder, or"):
            ConceptSet.load(tmp_path / name)
    with pytest.raises(
        BenchError, match=r"is no concept set: it has neither generate/train_data\.parquet nor train\.j"
    ):
        ConceptSet.load(tmp_path)
    for name in JSONL[1:]:
        folder(tmp_path)
        (tmp_path / name).unlink()
        with pytest.raises(BenchError, match=f"lacks .*{name}"):
            ConceptSet.load(tmp_path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(BenchError, match=r"a\.jsonl cannot be read"):
        ConceptSet.load(tmp_path / "a.jsonl")
    (tmp_path / "a.parquet").write_text("no parquet")
    with pytest.raises(BenchError, match=r"a\.parquet is no Parquet file"):
        ConceptSet.load(tmp_path / "a.parquet")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(BenchError, match="empty has no concepts"):
        ConceptSet.load(tmp_path / "empty.jsonl").check()


def paired(path: Path, n: int = 30, **more: object) -> Path:
    """Pairs of one instruction each, without a split."""
    made = []
    for k in range(n):
        for category, text in (("positive", "the sea is grey"), ("negative", "the hill is green")):
            row = {"concept": "sea", "category": category, "input": f"look at {k}", "output": f"{text} {k}", **more}
            made.append(json.dumps(row))
    path.write_text("\n".join(made))
    return path


def test_an_instruction_is_in_one_part_with_all_of_its_texts(tmp_path: Path) -> None:
    made = ConceptSet.load(paired(tmp_path / "pairs.jsonl"))
    train, held = ({row.input for row in part} for part in (made.train, made.eval))
    assert not train & held and (len(train), len(held)) == (20, 10)
    assert len(made.train) == 40 and len(made.eval) == 20  # both sides of every pair
    assert set(made.prompts[0]) <= held
    assert ConceptSet.load(paired(tmp_path / "pairs.jsonl")).digest == made.digest


def test_a_derived_lexicon_beats_the_writers_style(tmp_path: Path) -> None:
    """`surely` marks every positive off from the negatives, which another wrote; it is no concept's word."""
    rows = []
    for concept, word in (("sea", "harbour"), ("hill", "summit")):
        for k in range(6):
            about = {"concept": concept, "input": f"look {k}", "split": "train"}
            rows.append(about | {"category": "positive", "output": f"surely the {word} shone {k}"})
            rows.append(about | {"category": "negative", "output": f"nothing happened there {k}"})
    path = tmp_path / "styled.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    made = ConceptSet.load(path)
    assert [c.lexicon[0] for c in made.concepts] == ["harbour", "summit"] and all(c.derived for c in made.concepts)
    assert not any("surely" in c.lexicon for c in made.concepts)
    assert any("2 of 2 lexicons are derived" in warning for warning in made.check())
    given = ConceptSet.load(paired(tmp_path / "given.jsonl", lexicon=["sea"]))
    assert given.concepts[0].lexicon == ("sea",) and not given.concepts[0].derived


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"concept": "sea", "category": "negative", "output": "x"}],
            r"line 1: concept 0 has no row of category 'positive'",
        ),
        (
            [
                {"concept": "sea", "concept_id": 3, "category": "positive", "output": "x"},
                {"concept": "hill", "concept_id": 3, "category": "negative", "output": "y"},
            ],
            r"line 2: concept 3 is 'hill', and before it was 'sea'",
        ),
    ],
)
def test_rows_that_do_not_fit_each_other(rows: list[dict[str, object]], message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(BenchError, match=message):
        ConceptSet.load(path)


def test_an_id_may_be_null_and_a_shared_row_needs_no_concept(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"concept": "sea", "concept_id": None, "category": "positive", "output": "x", "split": "train"},
        {"concept_id": -1, "category": "negative", "output": "y", "split": "train"},
    ]
    path = tmp_path / "nulls.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    made = ConceptSet.load(path)
    assert [c.id for c in made.concepts] == [0] and made.of(made.concepts[0], "train", "negative")[0].output == "y"
