from __future__ import annotations

from itertools import pairwise

import polars as pl
import pytest
from tests.bench.report.synthetic import result

from inlay.bench.report.examples import PROMPTS, examples, mark


@pytest.mark.parametrize(
    ("text", "words", "wanted"),
    [
        ("a pan, a pane, Pan.", ["pan"], "a <mark>pan</mark>, a pane, <mark>Pan</mark>."),
        ("japan pans pan_ 7pan", ["pan"], "japan pans pan_ 7pan"),
        ("red gold and gold", ["gold", "red gold"], "<mark>red gold</mark> and <mark>gold</mark>"),
        ("c++ is not c", ["c++"], "<mark>c++</mark> is not c"),
        ("élan ÉLAN élans", ["élan"], "<mark>élan</mark> <mark>ÉLAN</mark> élans"),
        ("<b>pan</b> & a.b axb", ["pan", "a.b"], "&lt;b&gt;<mark>pan</mark>&lt;/b&gt; &amp; <mark>a.b</mark> axb"),
        ("amp &", ["amp"], "<mark>amp</mark> &amp;"),
        ("as it is", [], "as it is"),
        ("as it is", ["", " "], "as it is"),
    ],
)
def test_mark_marks_whole_words_and_nothing_else(text: str, words: list[str], wanted: str) -> None:
    assert mark(text, words) == wanted


def test_examples_are_ranked_by_the_best_method() -> None:
    given = result(concepts=5, methods=3)
    shown = examples(given)
    means = given.steering.filter(pl.col("kind") == "method").group_by("method").agg(pl.col("overall").mean())
    best = means.sort("overall")["method"][-1]
    order = given.steering.filter(pl.col("method") == best).sort("overall", descending=True)["concept_id"].to_list()
    assert [example.concept_id for example in shown] == order
    assert [example.role for example in shown] == ["best", "", "median", "", "worst"]
    assert [example.rank for example in shown] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("concepts", "roles"), [(1, ["best"]), (2, ["best", "worst"])])
def test_few_concepts_have_fewer_roles(concepts: int, roles: list[str]) -> None:
    assert [example.role for example in examples(result(concepts=concepts, methods=1))] == roles


def test_replies_are_those_of_the_reporting_half_at_the_chosen_factor() -> None:
    given = result(concepts=4, methods=3)
    factors = {(m, c): f for m, c, f in given.steering.select("method", "concept_id", "factor").iter_rows()}
    known = {
        (row["method"], row["concept_id"], row["prompt"], row["factor"]): row
        for row in given.generations.filter(pl.col("half") == "report", pl.col("text") != "elsewhere").iter_rows(
            named=True
        )
    }
    for example in examples(given):
        assert len(example.prompts) == PROMPTS
        for prompt, replies in example.prompts:
            assert [reply.entry.method for reply in replies[:2]] == ["unsteered", "prompt"]
            assert {reply.entry.method for reply in replies[2:]} == {"diff_mean", "pca", "lat"}
            for reply in replies:
                method = reply.entry.method
                assert reply.html != "elsewhere"
                assert reply.factor == factors[method, example.concept_id]
                row = known[method, example.concept_id, prompt, reply.factor]
                assert reply.html == mark(row["text"], example.lexicon)
                assert reply.scores == {axis: row[axis] for axis in reply.scores}


def test_a_small_budget_leaves_the_three_and_spreads_the_rest() -> None:
    given = result(concepts=33, methods=1)
    roles = [example.role for example in examples(given, budget=0)]
    assert roles == ["best", "median", "worst"]
    one = sum(len(reply.html) for _, replies in examples(given, budget=0)[0].prompts for reply in replies)
    ranks = [example.rank for example in examples(given, budget=7 * one)]
    assert 5 <= len(ranks) < 33
    assert max(late - early for early, late in pairwise(ranks)) <= 16


def test_a_run_without_steering_has_no_examples() -> None:
    assert examples(result(steering=False)) == []
