"""World: the same bytes from the same seed, splits apart, a world of one's own, and what is broken in one."""

from __future__ import annotations

import copy
import hashlib
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from tests.world import hand

from inlay import world
from inlay.errors import WorldError

W = world.tidepool(seed=0)


def digest(lines: Any) -> str:
    return hashlib.sha256("\n".join(line.json() for line in lines).encode()).hexdigest()


# -- bytes -------------------------------------------------------------------------------------------------------------

_SCRIPT = """
import hashlib, sys
from inlay import world
w = world.tidepool(seed=3)
text = "\\n".join(line.json() for s in w.sections for line in w.lines(s, 30))
assert "torch" not in sys.modules and "transformers" not in sys.modules
print(w.hash, hashlib.sha256(text.encode()).hexdigest())
"""


def test_the_same_seed_gives_the_same_bytes_in_another_process_and_needs_no_torch() -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=True)
    mine = world.tidepool(seed=3)
    assert done.stdout.split() == [mine.hash, digest(line for s in mine.sections for line in mine.lines(s, 30))]


@pytest.mark.parametrize("section", W.sections)
def test_a_line_alone_is_the_line_in_its_stream(section: str) -> None:
    stream = list(W.lines(section, 20))
    assert [W.line(section, number).json() for number in reversed(range(20))] == [x.json() for x in reversed(stream)]
    assert digest(W.lines(section, 5, start=15)) == digest(stream[15:])
    endless = W.lines(section)
    assert [next(endless).json() for _ in range(5)] == [x.json() for x in stream[:5]]


def test_other_seeds_and_splits_are_other_lines() -> None:
    for section in W.sections:
        one, two = list(W.lines(section, 50)), list(world.tidepool(seed=1).lines(section, 50))
        assert digest(one) != digest(two) and [x.id for x in one] != [x.id for x in two]
        assert {x.split for x in W.lines(section, 5, "test")} == {"test"}


@pytest.mark.parametrize("section", [name for name in W.sections if name != "facts"])
def test_no_prompt_of_one_split_is_in_the_other(section: str) -> None:
    def asked(split: str) -> set[str]:
        lines = chain(W.lines(section, 1500, split), world.tidepool(seed=1).lines(section, 500, split))
        return {str(line.prompt) for line in lines}

    assert not asked("train") & asked("test")


def test_words_that_no_line_has() -> None:
    words = {word for name in W.spec.unseen for word in W.grammar.classes[name]}
    assert len(words) == 72 and words <= set(W.vocabulary)
    for section in W.sections:
        for line in W.lines(section, 300):
            assert not words & set(line.tokens)


def test_every_token_is_in_the_vocabulary() -> None:
    known = set(W.vocabulary)
    assert 900 <= len(known) <= 1100
    for section in W.sections:
        for kind in W.kinds(section):
            for line in W.lines(section, 30, kind=kind):
                assert set(line.tokens) <= known


def test_ids_say_where_a_line_comes_from() -> None:
    assert W.line("safety", 17, "test").id == "safety/test/0/17"
    assert W.line("safety", 17, "test", "suffix").id == "safety.suffix/test/0/17"


# -- what is not there -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("weather",), "tidepool-1 has no section 'weather'; it has: concepts, safety, facts, instructions, circuits"),
        (("facts", -1), "n is -1; it counts lines"),
        (("facts", 1, "dev"), "split 'dev' is neither 'train' nor 'test'"),
    ],
)
def test_lines_that_cannot_be(arguments: Any, message: str) -> None:
    with pytest.raises(WorldError, match=message):
        list(W.lines(*arguments))


def test_a_kind_that_is_not_there() -> None:
    with pytest.raises(WorldError, match="there is no kind 'poem' here; these are: document, talk, unasked"):
        W.line("concepts", 0, kind="poem")


# -- a world of one's own ----------------------------------------------------------------------------------------------


def test_forty_words_are_a_world(tmp_path: Path) -> None:
    mine = world.load(hand.write(tmp_path / "w"), seed=1)
    assert list(mine.sections) == ["concepts"] and len(mine.vocabulary) < 100
    lines = list(mine.lines("concepts", 200))
    talk = [line for line in lines if line.messages and len(line.messages) == 2 and line.kind == "talk"]
    scores = mine.judge().score(talk)
    assert set(scores["instruction"].values) == {2}
    assert all(mine.fluency(line.reply) >= 1 for line in talk)
    positive, negative = mine.pairs(0, 1)[0]
    assert {"oar", "sail"} & set(positive.reply.split()) and not {"oar", "sail"} & set(negative.reply.split())
    assert len(mine.tokenizer()) == len(mine.vocabulary)


def test_a_section_that_a_world_lacks(tmp_path: Path) -> None:
    mine = world.load(hand.write(tmp_path / "w"))
    with pytest.raises(WorldError, match="hand-1 has no section 'facts'; it has: concepts"):
        mine.facts  # noqa: B018


def test_the_hash_is_of_every_file(tmp_path: Path) -> None:
    one = world.load(hand.write(tmp_path / "one"))
    two = world.load(hand.write(tmp_path / "two"))
    three = world.load(hand.write(tmp_path / "three", words={**hand.WORDS, "N": "cup hat box tin"}))
    assert one.hash == two.hash != three.hash


def broken(**changes: Any) -> dict[str, Any]:
    spec = copy.deepcopy(hand.SPEC)
    for path, value in changes.items():
        here = spec
        *parents, last = path.split("__")
        for step in parents:
            here = here[step]
        here[last] = value
    return spec


def concept(**changes: Any) -> list[dict[str, Any]]:
    return [{**hand.CONCEPTS[0], **changes}, *hand.CONCEPTS[1:]]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"spec": broken(colour="blue")}, r"world\.yaml.*colour"),
        ({"spec": broken(concepts__rate=1.5)}, r"world\.yaml.*rate"),
        ({"spec": broken(concepts__subjects=4)}, "concepts.subjects is 4, and class SUBJ has 4 words"),
        ({"spec": broken(unseen=["GHOST"])}, r"unseen names \['GHOST'\], which are no word classes"),
        ({"words": {**hand.WORDS, "A": "old cup"}}, "'cup' is in the classes A and N"),
        ({"words": {**hand.WORDS, "N": "cup oar"}}, "'oar' is a plain word of class N and in a concept's lexicon"),
        ({"sentences": "1\tthe {A} {Z} .\n"}, "there is no word class 'Z'"),
        ({"sentences": "many\tthe {A} {N} .\n"}, "the weight 'many' is no number"),
        ({"sentences": "1\tthe {N} .\n2\tthe cup .\n"}, "same classes in the same order"),
        ({"frames": "tell\ttell me .\n"}, r"frames\.txt, line 1: 2 columns between tabs, and 3 are wanted"),
        ({"concepts": concept(color="red")}, r"concepts\.jsonl, line 1 is no concept.*color"),
        ({"concepts": concept(id=1)}, "an id is there twice"),
        ({"concepts": concept(shared=["gong"])}, "'horn' is in the lexicons of|'gong' is in the lexicons of"),
        ({"concepts": concept(lexicon=[])}, "concept 0 needs either a lexicon, or marks with their place"),
        ({"concepts": concept(heldout=True, description="moons of sea")}, "no held-in description has"),
    ],
)
def test_a_broken_world_is_named(parts: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = hand.write(tmp_path / "w", **parts)
    with pytest.raises(WorldError, match=f"(?s){message}"):
        world.load(folder)


def test_a_folder_without_a_world(tmp_path: Path) -> None:
    with pytest.raises(WorldError, match=r"holds no world: it has no world\.yaml"):
        world.load(tmp_path)
    hand.write(tmp_path / "w")
    (tmp_path / "w" / "templates" / "sentence.txt").unlink()
    with pytest.raises(WorldError, match=r"sentence\.txt is missing"):
        world.load(tmp_path / "w")
    (tmp_path / "w" / "concepts.jsonl").unlink()
    with pytest.raises(WorldError, match=r"concepts\.jsonl is missing"):
        world.load(tmp_path / "w")
    folder = hand.write(tmp_path / "v", words={k: v for k, v in hand.WORDS.items() if k != "SUBJ"}, frames="")
    with pytest.raises(WorldError, match="there is no word class 'SUBJ'; there are: A, ADV"):
        world.load(folder)


def test_a_window_that_sees_the_verb_from_the_prompts_end(tmp_path: Path) -> None:
    shutil.copytree(W.folder, tmp_path / "w")
    path = tmp_path / "w" / "world.yaml"
    for window, fits in ((11, True), (12, False)):
        path.write_text((W.folder / "world.yaml").read_text().replace("window: 4 ", f"window: {window} "))
        if fits:
            assert world.load(tmp_path / "w").spec.window == window
        else:
            with pytest.raises(WorldError, match="a window of 12 sees the verb from the prompt's end, 12 tokens"):
                world.load(tmp_path / "w")


def test_yaml_that_is_none(tmp_path: Path) -> None:
    folder = hand.write(tmp_path / "w")
    (folder / "world.yaml").write_text("version: [1\n")
    with pytest.raises(WorldError, match=r"world\.yaml"):
        world.load(folder)
