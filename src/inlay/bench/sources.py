"""Where concept sets come from: a world, AxBench's folders, or a JSONL file of your own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from inlay.bench.concept_set import CATEGORIES, SHARED, SIMPLE_ASK, Concept, ConceptSet, Row
from inlay.bench.words import distinctive
from inlay.errors import BenchError, ExtraError
from inlay.world.world import World

EVAL_SHARE = 1 / 3  # of a concept's instructions, for rows that do not say their split
LEXICON = 20  # words of a derived lexicon


def load(
    source: str | Path,
    *,
    prompts: str | Path | None = None,
    n_prompts: int = 10,
    rows: int = 72,
    heldout: bool = False,
    seed: int = 0,
) -> ConceptSet:
    """A concept set.

    Args:
        source: `"tidepool"`, a world's folder, a folder of AxBench's (`generate/train_data.parquet`,
            `inference/latent_eval_data.parquet`, `generate/metadata.jsonl`; or `train.jsonl`, `latent_eval.jsonl`,
            `metadata.jsonl`), or a `.jsonl` or `.parquet` file of rows.
        prompts: a file with one steering instruction a line, of which each concept gets its own (AxBench's draw); by
            default those of the concept's evaluation rows, or the world's.
        n_prompts: steering prompts a concept.
        rows: training rows a concept and side, at most.
        heldout: of a world, also the concepts kept out of steering data.
        seed: of a world's lines.

    Returns:
        A file's rows have `concept` (or `output_concept`), `category` (`positive`, `negative`, `hard negative`) and
        `output`, and may have `input`, `concept_id`, `genre` (or `concept_genre`), `split` (`train` or `eval`; by
        default a third of the rows, by their hash, is kept for evaluation) and `lexicon`.

    Raises:
        BenchError: nothing is there, or a row is broken; the message has its file, number and field.
        WorldError: a world's folder is broken.
        ExtraError: Parquet is to be read, and polars is not installed.
    """
    path = Path(source).expanduser()
    if str(source) == "tidepool" or (path / "world.yaml").exists():
        if prompts is not None:
            raise BenchError(f"{source} is a world, whose judge knows its own instructions only; leave out {prompts}")
        from inlay import world as worlds

        made = worlds.tidepool(seed) if str(source) == "tidepool" else worlds.load(path, seed)
        return of_world(made, rows=rows, n_prompts=n_prompts, heldout=heldout)
    if path.is_dir():
        found = _of_folder(path)
    elif path.suffix in (".jsonl", ".parquet") and path.exists():
        found = _of_file(path)
    else:
        raise BenchError(f"{source}: there is no such concept set; give 'tidepool', a folder, or a .jsonl file of rows")
    lines = None if prompts is None else _lines(Path(prompts).expanduser())
    return _finished(found, rows, lines, n_prompts)


def of_world(world: World, *, rows: int = 72, n_prompts: int = 10, heldout: bool = False) -> ConceptSet:
    """A world's own concepts: pairs of the same instruction, templates and length, and look-alikes as hard negatives.

    Args:
        world: its section `concepts` is used.
        rows: training pairs a concept; half as many for evaluation.
        n_prompts: steering prompts.
        heldout: also the concepts kept out of steering data.
    """
    concepts = world.concepts() if heldout else world.concepts(heldout=False)
    every = world.concepts()
    train: list[Row] = []
    held: list[Row] = []
    for c in concepts:
        for part, split, n in ((train, "train", rows), (held, "test", max(1, rows // 2))):
            for positive, negative in world.pairs(c, n, split):
                part.append(Row(c.id, "positive", str(positive.prompt), positive.reply, c.genre))
                part.append(Row(c.id, "negative", str(negative.prompt), negative.reply, c.genre))
        if any(c.twin_of(other) for other in every):
            lines = world.hard_negatives(c, 10)
            held += [Row(c.id, "hard negative", str(line.prompt), line.reply, c.genre) for line in lines]
    asked = world.prompts(n_prompts)
    spec = world.spec.concepts
    ask = spec.ask.replace("{description}", "{concept}") if spec else SIMPLE_ASK
    made = tuple(Concept(c.id, c.description, c.genre, (*c.words, *c.marks)) for c in concepts)
    name = f"{world.spec.version}, seed {world.seed}"
    return ConceptSet(name, made, tuple(train), tuple(held), {c.id: asked for c in concepts}, ask, world)


# -- files -----------------------------------------------------------------------------------------------------------


def _of_folder(folder: Path) -> ConceptSet:
    layouts = (
        ("generate/train_data.parquet", "inference/latent_eval_data.parquet", "generate/metadata.jsonl"),
        ("train.jsonl", "latent_eval.jsonl", "metadata.jsonl"),
    )
    for train, held, about in layouts:
        if (folder / train).exists():
            files = [folder / name for name in (train, held, about)]
            if missing := [str(path) for path in files if not path.exists()]:
                raise BenchError(f"{folder} lacks {', '.join(missing)}")
            rows = [[_row(record, where) for record, where in _records(path)] for path in files[:2]]
            concepts = [_concept(record, where) for record, where in _records(files[2])]
            return ConceptSet(folder.name, tuple(concepts), tuple(rows[0]), tuple(rows[1]))
    raise BenchError(f"{folder} is no concept set: it has neither {layouts[0][0]} nor {layouts[1][0]}")


def _of_file(path: Path) -> ConceptSet:
    ids: dict[str, int] = {}
    names: dict[int, str] = {}
    first: dict[int, str] = {}
    concepts: dict[int, Concept] = {}
    rows: list[tuple[Row, str | None]] = []
    for record, where in _records(path):
        number = record.get("concept_id")
        if number is None:
            number = ids.setdefault(_name(record, where), len(ids))
        row = _row({**record, "concept_id": number}, where)
        rows.append((row, _split(record, where)))
        if row.concept_id == SHARED:
            continue
        first.setdefault(row.concept_id, where)
        if row.category == "hard negative":
            continue  # AxBench names its contrast there
        name = _name(record, where)
        if names.setdefault(row.concept_id, name) != name:
            raise BenchError(f"{where}: concept {row.concept_id} is {name!r}, and before it was {names[number]!r}")
        if row.category == "positive":
            concepts.setdefault(row.concept_id, Concept(row.concept_id, name, row.genre, _words(record, where)))
    for number, where in first.items():
        if number not in concepts:
            raise BenchError(f"{where}: concept {number} has no row of category 'positive' in the file")
    parts: dict[str, list[Row]] = {"train": [], "eval": []}
    held = _held_out([row for row, split in rows if split is None])
    for row, split in rows:
        parts[split or ("eval" if _place(row) in held else "train")].append(row)
    ordered = tuple(concepts[number] for number in sorted(concepts))
    return ConceptSet(path.stem, ordered, tuple(parts["train"]), tuple(parts["eval"]))


def _name(record: Mapping[str, Any], where: str) -> str:
    return _text(record, where, "concept", "output_concept")


def _split(record: Mapping[str, Any], where: str) -> str | None:
    split = record.get("split")
    if split not in (None, "train", "eval"):
        raise BenchError(f"{where}: split is {split!r}; give 'train' or 'eval'")
    return split


def _place(row: Row) -> tuple[int, str]:
    """What must not be in both parts: a concept's instruction, with all texts to it; free text by itself."""
    return row.concept_id, row.input or row.output


def _held_out(rows: Sequence[Row]) -> set[tuple[int, str]]:
    """A third of each concept's instructions, by their hash."""
    places: dict[int, set[str]] = {}
    for row in rows:
        places.setdefault(row.concept_id, set()).add(row.input or row.output)
    found = set()
    for concept, texts in places.items():
        ordered = sorted(texts, key=lambda text: blake2b(json.dumps([concept, text]).encode(), digest_size=8).digest())
        found |= {(concept, text) for text in ordered[: round(len(ordered) * EVAL_SHARE)]}
    return found


def _finished(given: ConceptSet, rows: int, lines: list[str] | None, n_prompts: int) -> ConceptSet:
    """The set with at most `rows` training rows a side, a lexicon for each concept, and steering prompts."""
    kept: dict[tuple[int, str, str], int] = {}
    train = []
    for row in given.train:
        key = (row.concept_id, row.category, row.genre)
        kept[key] = kept.get(key, 0) + 1
        if kept[key] <= rows:
            train.append(row)
    made = ConceptSet(given.name, given.concepts, tuple(train), given.eval)
    concepts, prompts = [], {}
    for c in made.concepts:
        concepts.append(c if c.lexicon else replace(c, lexicon=_lexicon(made, c), derived=True))
        trained = {row.input for row in made.train}
        asked = list(dict.fromkeys(row.input for row in made.of(c, "eval", "negative") if row.input not in trained))
        pool = [text for text in asked if text] if lines is None else lines
        prompts[c.id] = [pool[i] for i in _choice(c.id, len(pool), n_prompts)]
    return ConceptSet(made.name, tuple(concepts), made.train, made.eval, prompts)


def _lexicon(concepts: ConceptSet, concept: Concept) -> tuple[str, ...]:
    """Words that mark the positives off from the negatives, and also from other concepts' positives.

    The latter are mostly of the same writer: a word of style beats the negatives, which another wrote, and not them.
    """
    own = [row.output for row in concepts.of(concept, "train", "positive")]
    against = [row.output for row in concepts.of(concept, "train", "negative")]
    others = [row.output for row in concepts.train if row.concept_id != concept.id and row.category == "positive"]
    found = distinctive(own, against, 100)
    if others:
        theirs = set(found)
        found = tuple(word for word in distinctive(own, others, 100) if word in theirs)
    return found[:LEXICON]


def _choice(concept: int, among: int, n: int) -> list[int]:
    """AxBench's own draw of prompts: `RandomState(concept_id).choice(among, n, replace=False)`."""
    return [int(i) for i in np.random.RandomState(concept % 2**32).choice(among, min(n, among), replace=False)]


def _records(path: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    """The rows of a file, each with where it stands."""
    if path.suffix == ".parquet":
        yield from _parquet(path)
        return
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise BenchError(f"{where} is not JSON ({error}): {line[:60]!r}") from None
        if not isinstance(record, dict):
            raise BenchError(f"{where} is no object: {line[:60]!r}")
        yield record, where


def _parquet(path: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    try:
        import polars
    except ImportError as error:
        raise ExtraError("reading Parquet needs polars: pip install 'inlay[bench]'") from error
    try:
        frame = polars.read_parquet(path)
    except (OSError, polars.exceptions.PolarsError) as error:
        raise BenchError(f"{path} is no Parquet file: {error}") from error
    for number, record in enumerate(frame.iter_rows(named=True)):
        yield record, f"{path}, row {number}"


def _row(record: Mapping[str, Any], where: str) -> Row:
    category = record.get("category")
    if category not in CATEGORIES:
        raise BenchError(f"{where}: category is {category!r}; give one of {', '.join(CATEGORIES)}")
    number = record.get("concept_id")
    if isinstance(number, bool) or not isinstance(number, int) or number < SHARED:
        raise BenchError(f"{where}: concept_id is {number!r}; give a whole number, -1 for a shared negative")
    if number == SHARED and category != "negative":
        raise BenchError(f"{where}: concept_id is -1, for a shared negative, and category is {category!r}")
    asked = _text(record, where, "input", default="", empty=True)
    genre = _text(record, where, "genre", "concept_genre", default="text")
    return Row(number, category, asked, _text(record, where, "output"), genre)


def _concept(record: Mapping[str, Any], where: str) -> Concept:
    name = _text(record, where, "concept")
    number = record.get("concept_id")
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise BenchError(f"{where}: concept_id is {number!r}; give a whole number from 0")
    genres = record.get("concept_genres_map") or {}
    if not isinstance(genres, Mapping) or not isinstance(genres.get(name, []), list):
        raise BenchError(f"{where}: concept_genres_map is {genres!r:.60}; give {{concept: [genre, ...]}}")
    genre = str((genres.get(name) or ["text"])[0])
    ask = _text(record, where, "steering_prompt", default="", empty=True)
    return Concept(number, name, genre, _words(record, where), ask)


def _words(record: Mapping[str, Any], where: str) -> tuple[str, ...]:
    words = record.get("lexicon") or []
    if not isinstance(words, list) or not all(isinstance(word, str) and word.strip() for word in words):
        raise BenchError(f"{where}: lexicon is {words!r:.60}; give a list of words")
    return tuple(words)


def _text(record: Mapping[str, Any], where: str, *names: str, default: str | None = None, empty: bool = False) -> str:
    for name in names:
        if (value := record.get(name)) is None:
            continue
        if not isinstance(value, str) or not (value.strip() or empty):
            raise BenchError(f"{where}: {name} is {value!r:.60}; give a text")
        return value
    if default is None:
        raise BenchError(f"{where}: {names[0]} is missing; it has: {', '.join(record)}")
    return default


def _lines(path: Path) -> list[str]:
    try:
        found: Sequence[str] = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"{path} cannot be read: {error}") from error
    kept = list(dict.fromkeys(line for line in found if line))
    if len(kept) < 2:
        raise BenchError(
            f"{path} has {len(kept)} different prompt(s); steering needs two, one to choose, one to report"
        )
    return kept
