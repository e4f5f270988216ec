"""Replies under many directions and strengths: batched as one by one, judged, and taken up again."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.bench import small

from inlay.bench.concept_set import Concept
from inlay.bench.config import BenchConfig
from inlay.bench.journal import Journal
from inlay.bench.plan import choosing, halves
from inlay.bench.steering import Cell, Steering
from inlay.errors import FolderError

SITES = ("resid_post.2", "resid_post.4")
FACTORS = (0.5, 1.5)


def steering(folder: Path | None = None, judge: Any = None, **settings: Any) -> Steering:
    journals = [Journal(None if folder is None else folder / name) for name in ("replies.jsonl", "ratings.jsonl")]
    config = BenchConfig.of(**{"max_new_tokens": 5, "factors": FACTORS, **settings})
    made = small.Judge() if judge is None else judge
    return Steering(small.model(), small.concepts(), small.directions(*SITES), made, config, *journals)


def cells() -> list[Cell]:
    made = small.concepts()
    return choosing(made, small.directions(*SITES), FACTORS, halves(made, 0.5))


class Counted:
    """`model.generate`, counting its rows; it is killed at a call."""

    def __init__(self, patch: pytest.MonkeyPatch, killed_at: int | None = None) -> None:
        self.rows, self.calls, self.killed_at = 0, 0, killed_at
        self.real = small.model().generate
        patch.setattr(small.model(), "generate", self)

    def __call__(self, prompts: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls == self.killed_at:
            raise small.Killed
        found = self.real(prompts, **kwargs)
        self.rows += len(prompts)
        return found


# -- texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_rows", [7, 128])
def test_batched_rows_are_those_of_one_at_a_time(batch_rows: int) -> None:
    made, every, concepts = steering(batch_rows=batch_rows), cells(), small.concepts()
    made.run(every)
    by = {(d.method, str(d.site), d.concept): d for d in small.directions(*SITES)}
    assert len({made.row(cell)["text"] for cell in every}) > 10
    for cell in every[:: 7 if batch_rows == 7 else 11]:
        concept = made.by_id[cell.concept_id]
        prompt = concepts.prompts[cell.concept_id][cell.prompt_id]
        edit = (
            by[cell.method, cell.site, concept.name].add(cell.factor, tokens="prompt[2:]+response")
            if cell.site
            else None
        )
        asked = concepts.asked(concept, prompt) if cell.method == "prompt" else prompt
        alone = small.model().generate(asked, edit=edit, max_new_tokens=5, do_sample=False)
        assert made.row(cell)["text"] == alone
        assert made.row(cell)["prompt"] == prompt


def test_an_edit_acts_where_it_is_told_to() -> None:
    direction, prompt = small.directions(*SITES)[0], small.concepts().prompts[0][0]
    made = steering(steer_tokens="response")
    cell = Cell(direction.method, 0, 0, str(direction.site), 4.0)
    made.run([cell])
    said = {
        tokens: small.model().generate(prompt, edit=direction.add(4.0, tokens), max_new_tokens=5, do_sample=False)
        for tokens in ("response", "all")
    }
    assert made.row(cell)["text"] == said["response"] != said["all"]


def test_what_asks_the_same_is_generated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    count, made = Counted(monkeypatch), steering()
    plain = [Cell("unsteered", c.id, p) for c in small.concepts().concepts for p in range(4)]
    made.run(plain)
    assert count.rows == 4  # the three concepts share their prompts
    assert {made.row(cell)["text"] for cell in plain[:4]} == {made.row(cell)["text"] for cell in plain[4:8]}
    count.rows = 0
    steering().run(cells())
    asked = 2 * 3  # a prompt that asks for a concept is no other's
    assert count.rows == 2 + asked + 2 * 2 * 3 * 2 * 2  # sites, methods, concepts, prompts, factors


def test_factors_that_differ_little_have_their_own_rows() -> None:
    keys = {Cell("pca", 0, 0, "embed", factor).key for factor in (0.1, 0.1000000001, -0.1, 1.0)}
    assert len(keys) == 4


def test_samples_are_those_of_the_seed_and_nothing_else() -> None:
    def texts(**settings: Any) -> list[str]:
        made = steering(temperature=1.0, **settings)
        made.run(cells())
        return [made.row(cell)["text"] for cell in cells()]

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = texts()
    assert torch.equal(torch.get_rng_state(), before)  # the user's generator is left alone
    torch.manual_seed(2)
    assert texts() == first != texts(seed=1)


def test_progress_counts_every_cell() -> None:
    done: list[int] = []
    steering(batch_rows=16).run(cells(), done.append)
    assert sum(done) == len(cells())


# -- ratings ---------------------------------------------------------------------------------------------------------


def test_the_judge_is_given_the_prompt_as_the_user_gave_it() -> None:
    judge = small.Judge()
    made, cell = steering(judge=judge), Cell("prompt", 2, 1)
    made.run([cell])
    (reply,) = judge.seen
    assert reply.prompt == small.concepts().prompts[2][1] and reply.concept == "places of the sea"
    row = made.row(cell)
    assert reply.text == row["text"]
    values = [small.Judge.value(axis, reply) for axis in small.AXES]
    assert [row[axis] for axis in small.AXES] == values and row["failed"] is None
    known = [value or 0.0 for value in values]
    assert row["overall"] == pytest.approx(0.0 if 0.0 in known else 3 / sum(1 / value for value in known))


def test_a_failed_rating_is_none_and_says_why() -> None:
    first = small.concepts().prompts[0][0]
    made = steering(judge=small.Judge(lambda reply: "it said: hm" if reply.prompt == first else None))
    made.run(cells())
    rows = [made.row(cell) for cell in cells()]
    broken = [row for row in rows if row["prompt"] == first]
    assert len(broken) == len(rows) / 2
    assert all(row["overall"] is row["concept"] is row["fluency"] is None for row in broken)
    assert {row["failed"] for row in broken} == {"it said: hm"}
    assert all(row["overall"] is not None and row["failed"] is None for row in rows if row["prompt"] != first)


# -- resuming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("killed_at", [1, 4])
def test_a_killed_generation_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temperature: float, killed_at: int
) -> None:
    settings = {"temperature": temperature, "batch_rows": 9}
    whole, every = steering(**settings), cells()
    with monkeypatch.context() as patch:
        alone = Counted(patch)
        whole.run(every)
    with monkeypatch.context() as patch:
        first = Counted(patch, killed_at)
        with pytest.raises(small.Killed):
            steering(tmp_path, **settings).run(every)
    assert first.rows == {1: 0, 4: 8 + 9 + 9}[killed_at]  # the 8 rows without a Site are a batch of their own
    with monkeypatch.context() as patch:
        second, again = Counted(patch), steering(tmp_path, **settings)
        again.run(every)
    assert first.rows + second.rows == alone.rows
    assert [again.row(cell) for cell in every] == [whole.row(cell) for cell in every]
    with monkeypatch.context() as patch:
        third, judge = Counted(patch), small.Judge()
        steering(tmp_path, judge, **settings).run(every)
    assert third.rows == 0 and judge.seen == []


def test_rows_torn_in_the_middle_of_a_batch_are_drawn_again(tmp_path: Path) -> None:
    settings = {"temperature": 1.0, "batch_rows": 9}
    whole, every = steering(tmp_path, **settings), cells()
    whole.run(every)
    for name, left in (("replies.jsonl", 14), ("ratings.jsonl", 3)):
        lines = (tmp_path / name).read_bytes().splitlines(keepends=True)
        (tmp_path / name).write_bytes(b"".join(lines[:left]) + lines[left][:10])
    again = steering(tmp_path, **settings)
    assert len(again.replies.rows) == 14 and len(again.ratings.rows) == 3
    again.run(every)
    assert [again.row(cell) for cell in every] == [whole.row(cell) for cell in every]


def test_a_killed_judge_is_not_asked_again_for_what_it_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mortal(small.Judge):
        def score(self, replies: Any) -> Any:
            if self.seen:
                raise small.Killed
            return super().score(replies)

    every, mortal = cells(), Mortal()
    with pytest.raises(small.Killed):
        steering(tmp_path, mortal, batch_rows=2).run(every)
    assert len(mortal.seen) == 16 < len(every)
    count, judge = Counted(monkeypatch), small.Judge()
    again = steering(tmp_path, judge, batch_rows=2)
    again.run(every)
    assert count.rows == 0 and len(judge.seen) == len(every) - 16
    whole = steering(batch_rows=2)
    whole.run(every)
    assert [again.row(cell) for cell in every] == [whole.row(cell) for cell in every]


def test_a_full_disk_keeps_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, synced = os.fsync, []

    def fill(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fill)
        with pytest.raises(FolderError, match="No space left"):
            steering(tmp_path, batch_rows=9).run(cells())
    again, whole = steering(tmp_path, batch_rows=9), steering(batch_rows=9)
    assert len(again.replies.rows) >= 18
    again.run(cells())
    whole.run(cells())
    assert [again.row(cell) for cell in cells()] == [whole.row(cell) for cell in cells()]


def test_what_every_prompt_begins_with_is_not_steered() -> None:
    made = steering()
    for edit in made.edits.values():
        assert [str(part.tokens) for part in edit.parts] == ["prompt[2:]+response"]  # bos and user are left as they are


def test_a_concept_of_its_own_words_is_asked_for_simply_too() -> None:
    """Without a world: the fixed sentence beside the concept's own."""
    own = [Concept(c.id, c.name, ask=f"mind {c.name}") if c.id == 0 else c for c in small.concepts().concepts]
    concepts = replace(small.concepts(), concepts=tuple(own), world=None, ask="say {concept}")
    every = choosing(concepts, [], FACTORS, halves(concepts, 0.5))
    assert {(cell.method, cell.concept_id) for cell in every} == {
        *((method, concept.id) for concept in own for method in ("unsteered", "prompt")),
        ("simple_prompt", 0),
    }
    parts = (small.model(), concepts, (), small.Judge(), BenchConfig.of(), Journal(None), Journal(None))
    given = {cell.method: Steering(*parts)._given(cell) for cell in every if cell.concept_id == 0}
    prompt = concepts.prompts[0][1]
    assert given["unsteered"] == prompt
    assert given["prompt"] == f"mind {own[0].name}\n\nQuestion: {prompt}"
    assert given["simple_prompt"] == f"say {own[0].name}\n\nQuestion: {prompt}"
