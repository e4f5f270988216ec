"""Several judges as one, and what the room loads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from tests.test_import import loaded_after

from inlay import judges
from inlay.errors import JudgeError
from inlay.judges import Axis, ChatJudge, LexiconJudge, Reply, combined
from inlay.scores import Scores


class Lengths:
    """Scores two axes, and counts its calls."""

    def __init__(self) -> None:
        self.calls = 0
        self.axes = {"fluency": Axis(0.0, 2.0, "its words"), "instruction": Axis(0.0, 2.0, "the prompt's words")}

    def score(self, replies: Sequence[Reply]) -> dict[str, Scores]:
        self.calls += 1
        return {
            "fluency": self.axes["fluency"].scores([float(len(r.text.split())) for r in replies]),
            "instruction": self.axes["instruction"].scores(
                [None for _ in replies], failed=["no idea" for _ in replies]
            ),
        }

    def identity(self) -> dict[str, Any]:
        return {"kind": "lengths"}


REPLIES = [Reply("say one", "an oar", "sea"), Reply("say two", "a")]


def test_each_axis_is_its_judges_and_each_judge_is_asked_once() -> None:
    lengths, words = Lengths(), LexiconJudge({"sea": ["oar"]})
    judge = combined(concept=words, fluency=lengths, instruction=lengths)
    assert list(judge.axes) == ["concept", "fluency", "instruction"] and judge.axes["fluency"].meaning == "its words"
    found = judge.score(REPLIES)
    assert list(found) == list(judge.axes) and lengths.calls == 1
    assert found["concept"] == words.score(REPLIES)["concept"]
    assert found["fluency"].values == [2.0, 1.0]
    assert found["instruction"].values == [None, None] and found["instruction"].failures == 2


def test_an_axis_that_is_not_named_is_left_out() -> None:
    assert list(combined(fluency=Lengths()).score(REPLIES)) == ["fluency"]


def test_combined_judges_combine() -> None:
    inner = combined(fluency=Lengths())
    outer = combined(concept=LexiconJudge({"sea": ["oar"]}), fluency=inner)
    assert outer.score(REPLIES)["fluency"].values == [2.0, 1.0]
    assert json.loads(json.dumps(outer.identity())) == outer.identity()
    assert outer.identity()["axes"]["fluency"] == {"kind": "combined", "axes": {"fluency": {"kind": "lengths"}}}


class Paid(Lengths):
    """Lengths that cost something."""

    def __init__(self, cost: str) -> None:
        super().__init__()
        self.cost = cost


def test_cost_is_that_of_the_judges_that_spend_each_once() -> None:
    one, two, words = Paid("1 request"), Paid("2 requests"), LexiconJudge({"sea": ["oar"]})
    assert combined(concept=words, fluency=one, instruction=two).cost == "1 request; 2 requests"
    assert combined(fluency=one, instruction=one).cost == "1 request"
    assert combined(concept=words, fluency=combined(fluency=two)).cost == "2 requests"
    assert combined(concept=words, fluency=Lengths()).cost == ""
    chat = ChatJudge("m", cache=None)
    assert combined(fluency=chat).cost == str(chat.cost) != ""


def test_a_judge_that_lacks_its_axis() -> None:
    with pytest.raises(JudgeError, match=r"LexiconJudge\(1 concepts\) has no axis 'fluency'; it has: concept"):
        combined(fluency=LexiconJudge({"sea": ["oar"]}))
    with pytest.raises(JudgeError, match="needs a judge for one axis at least"):
        combined()


def test_the_room_is_light_until_a_judge_is_used() -> None:
    loaded = loaded_after(
        "import inlay.judges as j\nj.LexiconJudge({'a': ['b']})\nj.ChatJudge('m', cache=None)\nj.preference_odds(1, 2)"
    )
    assert not loaded & {"torch", "transformers", "openai", "tenacity", "httpx2"}
    exact = "import inlay\nfrom inlay.judges import WorldJudge\nWorldJudge(inlay.world.tidepool())"
    assert "torch" not in loaded_after(exact)


@pytest.mark.parametrize("name", judges.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(judges, name) is vars(judges)[name]


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match=r"module 'inlay\.judges' has no attribute 'Jury'"):
        _ = judges.Jury
