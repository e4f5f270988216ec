"""The questions as they are put, and the ratings that are read out of answers."""

from __future__ import annotations

import pytest

from inlay.errors import JudgeError
from inlay.judges import Reply
from inlay.judges.questions import AXBENCH, applies, axis, check_questions, hash_of, rating, render

REPLY = Reply("Describe a {boat}.", 'It is "{concept}", {text} and {0} % \\1', "the sea")


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("Rating: [[0]]", 0.0),
        ("It is there.\nRating: [[2]]", 2.0),
        ("Rating: [[1.0]]", 1.0),
        ("Rating: [[ 1 ]].", 1.0),
        ("**Rating:** [[1]]", 1.0),
        ("rating:[[2]]", 2.0),
        ("I first thought Rating: [[0]], but no. Rating: [[2]]", 2.0),
        ("Rating: [[2]] and then Rating: [[x]]", None),
        ("Rating: [[3]]", None),
        ("Rating: [[-1]]", None),
        ("Rating: [[0.5]]", None),
        ("Rating: [[nan]]", None),
        ("Rating: [[]]", None),
        ("Rating: 2", None),
        ("Rating: [2]", None),
        ("[[2]]", None),
        ("", None),
    ],
)
def test_ratings(answer: str, value: float | None) -> None:
    assert rating(answer) == value


def test_a_question_shows_the_reply_as_it_is() -> None:
    assert render("{concept}|{prompt}|{text}|{text}", REPLY) == "|".join(
        [REPLY.concept or "", REPLY.prompt, REPLY.text, REPLY.text]
    )
    assert render('Answer as {"rating": 1}: {text}', Reply("", "x")) == 'Answer as {"rating": 1}: x'


def test_the_three_questions() -> None:
    check_questions(AXBENCH)
    assert list(AXBENCH) == ["concept", "instruction", "fluency"]
    shown = {"concept": ("the sea",), "instruction": (REPLY.prompt,), "fluency": ()}
    for name, template in AXBENCH.items():
        said = render(template, REPLY)
        for part in ("the sea", REPLY.prompt):
            assert (part in said) == (part in shown[name]), "a question shows what it is about and nothing else"
        assert REPLY.text in said and said.endswith("where x is 0, 1 or 2.") and "Rating: [[x]]" in said
        assert rating(said) is None, "the question itself is no answer"
        assert (axis(name).lo, axis(name).hi) == (0, 2)


def test_a_question_about_a_concept_needs_one() -> None:
    bare = Reply("Describe a boat.", "It is old.")
    assert [name for name in AXBENCH if not applies(AXBENCH[name], bare)] == ["concept"]
    assert all(applies(template, REPLY) for template in AXBENCH.values())


def test_hashes_tell_questions_apart() -> None:
    assert len({hash_of(template) for template in AXBENCH.values()}) == 3
    assert hash_of("a") == hash_of("a") != hash_of("a ")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("Is {concpet} in {text}?", r"the question of 'mine' has \{concpet\}; a reply has concept, prompt, text"),
        ("Is it good?", r"the question of 'mine' has no \{text\}"),
    ],
)
def test_questions_that_cannot_be(template: str, message: str) -> None:
    with pytest.raises(JudgeError, match=message):
        check_questions({"mine": template})
