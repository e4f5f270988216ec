"""A whole run on tidepool: its tables, its report, its order of things, and when it refuses to go on."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.bench import small

import inlay
from inlay import world
from inlay.bench.journal import alone
from inlay.bench.result import SCHEMAS, BenchResult
from inlay.bench.run import run
from inlay.errors import BenchError, DirectionError, ResumeError
from inlay.judges import LexiconJudge, WorldJudge

METHODS = ("diff_mean", "lda")
SHORT: dict[str, Any] = {"factors": (0.3, 0.8, 1.5), "max_new_tokens": 8}
BRIEF: dict[str, Any] = SHORT | {"detect": False, "side_effects": False}
PARTS = ("directions", "detection", "choosing", "reporting", "side effects")


@pytest.fixture(autouse=True)
def _no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the whole run, made before this is in force, writes a report, which takes longer than all the rest."""
    monkeypatch.setattr(BenchResult, "save_report", lambda self, path: Path(path))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[BenchResult, Path]:
    folder = tmp_path_factory.mktemp("bench") / "run"
    return run(small.model(), METHODS, small.concepts(), out=folder, **SHORT), folder


def rows(table: Any, *columns: str) -> list[tuple[Any, ...]]:
    return list(table.select(columns).iter_rows())


def same(first: BenchResult, second: BenchResult) -> bool:
    return all(getattr(first, name).equals(getattr(second, name)) for name in SCHEMAS)


# -- a whole run -----------------------------------------------------------------------------------------------------


def test_every_detector_is_measured_on_every_concept(whole: tuple[BenchResult, Path]) -> None:
    result, _ = whole
    detectors = {"diff_mean", "lda", "random", "bow", "length_chars", "length_tokens", "style"}
    assert {*rows(result.detection, "method", "concept_id")} == {(m, c) for m in detectors for c in (0, 2, 3)}
    assert result.detection["auroc"].null_count() == result.detection["auroc_hard"].null_count() == 0
    assert {*result.detection_summary["method"]} == detectors and {*result.detection_summary["n"]} == {3}
    assert rows(result.concepts, "concept_id", "n_positive", "n_negative", "n_hard") == [
        (c, 3, 3, 10) for c in (0, 2, 3)
    ]


def test_every_method_steers_every_concept(whole: tuple[BenchResult, Path]) -> None:
    result, _ = whole
    every = {"diff_mean", "lda", "random", "unsteered", "prompt"}
    assert {*rows(result.steering, "method", "concept_id")} == {(m, c) for m in every for c in (0, 2, 3)}
    assert {*result.steering_summary["method"]} == every
    kinds = dict(rows(result.steering, "method", "kind"))
    assert kinds["random"] == "control" and kinds["prompt"] == kinds["unsteered"] == "baseline" != kinds["lda"]
    assert {*rows(result.dose, "method", "factor")} == {
        (m, f) for m in every - {"unsteered", "prompt"} for f in SHORT["factors"]
    }
    assert {*rows(result.side_effects, "method", "concept_id")} == {
        (m, c) for m in every - {"unsteered", "prompt"} for c in (0, 2, 3)
    }
    assert result.side_effects["kl"].min() >= -1e-6


def test_the_halves_of_the_prompts(whole: tuple[BenchResult, Path]) -> None:
    made = whole[0].generations
    assert {*rows(made, "half", "prompt_id")} == {("choose", 0), ("choose", 1), ("report", 2), ("report", 3)}
    assert made["row"].to_list() == list(range(len(made)))
    chosen = {(m, c): (s, f) for m, c, s, f in rows(whole[0].steering, "method", "concept_id", "site", "factor")}
    shared = {m: (s, f) for m, s, f in rows(whole[0].steering_summary, "method", "site_global", "factor_global")}
    for method, concept, half, site, factor in rows(made, "method", "concept_id", "half", "site", "factor"):
        if half == "report":
            none = (None, 0.0)
            assert (site, factor) in (chosen[method, concept], shared[method] if shared[method][0] else none)


def test_the_scores_are_the_worlds(whole: tuple[BenchResult, Path]) -> None:
    truth = WorldJudge(world.tidepool())
    names = dict(rows(whole[0].concepts, "concept_id", "name"))
    for row in whole[0].generations.filter(whole[0].generations["row"] % 9 == 0).iter_rows(named=True):
        found = truth.score([inlay.judges.Reply(row["prompt"], row["text"], names[row["concept_id"]])])
        assert [row[axis] for axis in small.AXES] == [found[axis].values[0] for axis in small.AXES]


def test_what_is_left_on_disk(whole: tuple[BenchResult, Path]) -> None:
    result, folder = whole
    names = {"config.json", "detection.jsonl", "directions", "replies.jsonl", "ratings.jsonl", "tables", "report.html"}
    assert {path.name for path in folder.iterdir()} == names
    assert "tidepool" in (folder / "report.html").read_text()
    back = BenchResult.load(folder / "tables")
    assert same(back, result) and back.info == result.info
    assert len(inlay.directions.load(folder / "directions")) == 9


def test_what_a_result_says_of_itself(whole: tuple[BenchResult, Path]) -> None:
    info = whole[0].info
    assert info["config"]["factors"] == [0.3, 0.8, 1.5] and info["judge"]["identity"]["kind"] == "world"
    assert {*info["judge"]["axes"]} == {*small.AXES} and {*info["seconds"]} == {*PARTS}
    assert "micro-world" in info["limits"] and info["concept_set"].startswith("tidepool")


def test_a_finished_run_is_not_run_again(whole: tuple[BenchResult, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    result, folder = whole

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a finished run generates nothing")

    monkeypatch.setattr(small.model(), "generate", never)
    again = run(small.model(), METHODS, small.concepts(), out=folder, **SHORT)
    assert same(again, result)


# -- parts of a run --------------------------------------------------------------------------------------------------


def test_detection_alone() -> None:
    result = run(small.model(), METHODS, small.concepts(), steer=False)
    assert len(result.detection) == 21
    assert all(
        getattr(result, t).is_empty() for t in ("generations", "steering", "steering_summary", "dose", "side_effects")
    )
    assert {*result.info["seconds"]} == {"directions", "detection"}


def test_steering_alone() -> None:
    result = run(small.model(), METHODS, small.concepts(), judge=small.Judge(), **BRIEF)
    assert result.detection.is_empty() and result.detection_summary.is_empty() and result.side_effects.is_empty()
    assert len(result.steering) == 15 and {*result.steering["site"]} == {"resid_post.3", None}


def test_several_sites() -> None:
    sites = ("resid_post.2", "resid_post.4")
    result = run(small.model(), ("diff_mean",), small.concepts(), judge=small.Judge(), site=sites, **SHORT)
    assert {*result.dose["site"]} == {*sites}
    mine = result.steering.filter(result.steering["method"] == "diff_mean")
    assert {*mine["site"]} <= {*sites} and len(mine) == 3
    assert len(result.detection.filter(result.detection["method"] == "diff_mean")) == 3


def test_reporting_prompts_never_change_the_choice() -> None:
    concepts = small.concepts()
    other = {
        c: [*prompts[:2], *("look at the dog .", "tell me about the fox .")] for c, prompts in concepts.prompts.items()
    }
    first, second = (
        run(small.model(), METHODS, made, judge=small.Judge(), site=["resid_post.2", "resid_post.4"], **BRIEF)
        for made in (concepts, replace(concepts, prompts=other))
    )
    chosen = ("method", "concept_id", "site", "factor")
    assert rows(first.steering, *chosen) == rows(second.steering, *chosen)
    assert rows(first.steering_summary.sort("method"), "method", "site_global", "factor_global") == rows(
        second.steering_summary.sort("method"), "method", "site_global", "factor_global"
    )
    assert first.dose.equals(second.dose) and not first.steering.equals(second.steering)
    assert len({*rows(first.steering, "site", "factor")}) > 2  # there was something to choose


def test_failed_ratings_are_counted_and_never_zero() -> None:
    last = small.concepts().prompts[0][3]
    judge = small.Judge(lambda reply: "no answer" if reply.prompt == last else None)
    result = run(small.model(), METHODS, small.concepts(), judge=judge, **BRIEF)
    broken = result.generations.filter(result.generations["prompt"] == last)
    assert {*broken["failed"]} == {"no answer"} and broken["overall"].null_count() == len(broken) > 0
    plain = result.steering["method"].is_in(["unsteered", "prompt"])
    assert {*result.steering.filter(plain)["failed"]} == {1}
    assert {*result.steering.filter(~plain)["failed"]} <= {1, 2}  # at the own choice, and at the shared one
    counted = dict(rows(result.steering_summary, "method", "failed"))
    assert counted["unsteered"] == counted["prompt"] == 3
    assert sum(counted.values()) == len(broken)
    at = (result.generations["method"] == "prompt") & (result.generations["concept_id"] == 0)
    kept = result.generations.filter(at & (result.generations["prompt_id"] == 2))["overall"].item()
    assert (
        kept
        == result.steering.filter((result.steering["method"] == "prompt") & (result.steering["concept_id"] == 0))[
            "overall"
        ].item()
    )


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    rows = [
        {
            "concept": "the sea",
            "category": c,
            "output": f"{text} was {how} .",
            "split": s,
            "input": f"look at the {how} .",
        }
        for c, text in (("positive", "the anchor"), ("negative", "the cat"))
        for s, hows in (("train", ("old", "new")), ("eval", ("big", "red")))
        for how in hows
    ]
    rows.append(rows[0] | {"output": "the anchor was old . " * 100})
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run(small.model(), METHODS, tmp_path / "mine.jsonl", judge=small.Judge(), **SHORT)
    assert "1 of 9 texts were cut to the model's context" in result.info["warnings"]
    assert "not comparable" in result.info["limits"] and result.info["concept_set"] == "mine"
    assert result.concepts["lexicon"].to_list()[0][0] == "anchor"
    assert {*result.generations["prompt"]} == {"look at the big .", "look at the red ."}
    assert result.detection.filter(result.detection["method"] == "bow")["auroc"].item() == 1.0
    assert len(result.steering) == 5


# -- resuming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_killed_run_goes_on_to_the_same_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    settings = BRIEF | {"temperature": temperature, "batch_rows": 8}
    real, generated, judge = small.model().generate, [0], small.Judge()

    def start(at: int | None, **where: Any) -> BenchResult:
        calls = [0]

        def generate(prompts: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == at:
                raise small.Killed
            found = real(prompts, **kwargs)
            generated[0] += len(prompts)
            return found

        monkeypatch.setattr(small.model(), "generate", generate)
        return run(small.model(), METHODS, small.concepts(), judge=judge, **where, **settings)

    result = start(None)
    once = (generated[0], len(judge.seen))
    generated[0], judge.seen = 0, []
    for at in (3, 5, 4):  # after 2 batches, 6 and 9, of which 8 choose
        with pytest.raises(small.Killed):
            start(at, out=tmp_path / "run")
    assert '"unsteered//0/2/0.0"' in (tmp_path / "run" / "replies.jsonl").read_text()  # some of the report is there
    again = start(None, out=tmp_path / "run")
    assert same(again, result)
    assert (generated[0], len(judge.seen)) == once


def test_a_rating_that_failed_is_asked_for_again(tmp_path: Path) -> None:
    """And nothing else is, nor made anew."""
    last, out = small.concepts().prompts[0][0], tmp_path / "run"
    run(
        small.model(),
        METHODS,
        small.concepts(),
        judge=small.Judge(lambda r: "x" if r.prompt == last else None),
        out=out,
        **BRIEF,
    )
    replies, judge = (out / "replies.jsonl").read_bytes(), small.Judge()
    result = run(small.model(), METHODS, small.concepts(), judge=judge, out=out, **BRIEF)
    assert result.generations["overall"].null_count() == 0
    assert {reply.prompt for reply in judge.seen if reply.concept == small.concepts().concepts[0].name} >= {last}
    assert (out / "replies.jsonl").read_bytes().startswith(replies)
    assert same(result, run(small.model(), METHODS, small.concepts(), judge=small.Judge(), **BRIEF))


def test_directions_and_detection_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SHORT | {"side_effects": False, "site": ("resid_post.1", "resid_post.3")}

    def killed(*_: Any, **__: Any) -> Any:
        raise small.Killed

    with monkeypatch.context() as patch, pytest.raises(small.Killed):
        patch.setattr(sys.modules["inlay.bench.run"], "Steering", killed)
        run(small.model(), METHODS, small.concepts(), judge=small.Judge(), out=tmp_path / "run", **settings)
    whole = run(small.model(), METHODS, small.concepts(), judge=small.Judge(), **settings)
    for name in ("find", "detect", "best_sites"):
        monkeypatch.setattr(sys.modules["inlay.bench.run"], name, killed)
    again = run(small.model(), METHODS, small.concepts(), judge=small.Judge(), out=tmp_path / "run", **settings)
    assert same(again, whole)


def test_how_much_is_done_at_a_time_may_change(tmp_path: Path) -> None:
    given: dict[str, Any] = {"judge": small.Judge(), "out": tmp_path / "run"}
    run(small.model(), METHODS, small.concepts(), **given, **BRIEF)
    run(small.model(), METHODS, small.concepts(), **given, **BRIEF, batch_rows=3, batch_tokens=64)
    run(small.model(), METHODS, small.concepts(), judge=small.Judge(), out=tmp_path / "warm", temperature=1.0, **BRIEF)
    with pytest.raises(ResumeError, match=r"config\.batch_rows"):  # a batch shares its draws
        run(
            small.model(),
            METHODS,
            small.concepts(),
            judge=small.Judge(),
            out=tmp_path / "warm",
            **BRIEF | {"temperature": 1.0, "batch_rows": 3},
        )


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    with alone(tmp_path / "run"), pytest.raises(ResumeError, match="another process runs in"):
        run(small.model(), METHODS, small.concepts(), judge=small.Judge(), out=tmp_path / "run", **BRIEF)


def test_another_run_is_refused(tmp_path: Path) -> None:
    def start(**changed: Any) -> None:
        given: dict[str, Any] = {"methods": ("diff_mean",), "concepts": small.concepts(), "judge": small.Judge()}
        given |= BRIEF | {"steer": False} | changed
        run(given.pop("model", small.model()), out=tmp_path / "run", **given)

    start()
    start()
    other = inlay.load("tidepool")
    with torch.no_grad():
        next(iter(other.base.parameters())).mul_(1.001)
    prompts = {concept: ["a", "b"] for concept in small.concepts().prompts}
    for named, changed in {
        r"config\.seed": {"seed": 1},
        r"config\.factors": {"factors": (0.3,)},
        r"config\.methods": {"methods": ("pca",)},
        r"judge\.kind": {"judge": small.Judge(name="words")},
        r"model\.weights": {"model": other},
        r"concepts\.digest": {"concepts": replace(small.concepts(), prompts=prompts)},
    }.items():
        with pytest.raises(ResumeError, match=rf"holds a run with other settings \({named}\)"):
            start(**changed)


# -- what is refused before anything is run --------------------------------------------------------------------------


def test_bad_settings(tmp_path: Path) -> None:
    bad: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"methods": ("magic",)}, BenchError, "there is no method 'magic'"),
        ({"layer": 3}, BenchError, "bench setting layer: "),
        ({"concepts": tmp_path / "none.jsonl"}, BenchError, "there is no such concept set"),
        ({"judge": LexiconJudge({"sea": ["oar"]})}, BenchError, "the judge has no axis 'instruction'; combine it"),
        ({"settings": {"probe": {}}}, DirectionError, r"there are settings for \['probe'\]"),
        ({"concepts": replace(small.concepts(), prompts={})}, BenchError, r"has 0 steering prompt\(s\)"),
    ]
    for given, error, message in bad:
        with pytest.raises(error, match=message):
            run(small.model(), **{"methods": METHODS, "concepts": small.concepts(), **BRIEF, **given})


def test_too_few_prompts_leave_no_folder(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"has 0 steering prompt\(s\)"):
        run(small.model(), METHODS, replace(small.concepts(), prompts={}), out=tmp_path / "run", **BRIEF)
    assert not (tmp_path / "run").exists()
    run(small.model(), METHODS, replace(small.concepts(), prompts={}), out=tmp_path / "run", **BRIEF | {"steer": False})


def test_a_prompt_that_leaves_no_room() -> None:
    prompts = {c: ["tell me about the cat ."] * 2 for c in small.concepts().prompts}
    for concept in prompts:
        prompts[concept][1] = "cat " * 240
    with pytest.raises(
        BenchError, match=r"prompt 'cat cat .* of concept 0, asked for it, has \d+ tokens, and with 8 new"
    ):
        run(small.model(), METHODS, replace(small.concepts(), prompts=prompts), **BRIEF)


def test_rows_without_a_factor_may_be_named_as_methods() -> None:
    result = run(small.model(), ("diff_mean", "prompt"), small.concepts(), judge=small.Judge(), **BRIEF)
    assert {*result.steering["method"]} == {"diff_mean", "random", "unsteered", "prompt"}
