"""ChatJudge against an endpoint that fails in every way: nothing is lost, nothing judged twice, nothing taken for 0."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.judges.stub import TOKENS, Say, serving

from inlay.errors import JudgeError
from inlay.judges import ChatJudge, Reply
from inlay.judges.cache import Cache
from inlay.judges.chat import Cost
from inlay.judges.endpoint import Pace, Waits
from inlay.judges.questions import hash_of

ONE = {"fluency": "How fluent is this: {text}"}
THREE = {**ONE, "concept": "Is {concept} in this: {text}", "instruction": "Does this follow {prompt}: {text}"}
QUICK = Waits(0.001, 0.002)


def judge(url: str, cache: Path | None = None, **more: Any) -> ChatJudge:
    settings: dict[str, Any] = {"questions": ONE, "retries": 2, "waits": QUICK, "api_key": "secret-key", **more}
    return ChatJudge("m", base_url=url, cache=cache, **settings)


def replies(n: int, concept: str | None = None) -> list[Reply]:
    return [Reply(f"prompt {i}", f"text {i}", concept) for i in range(n)]


def numbered(question: str, before: int) -> Say:
    """Text i is worth i mod 3."""
    return Say(f"It is text {question.split()[-1]}. Rating: [[{int(question.split()[-1]) % 3}]]")


# -- what comes back ---------------------------------------------------------------------------------------------------


def test_every_text_gets_its_own_rating_on_every_axis() -> None:
    with serving(numbered) as stub:
        mine = judge(stub.url, questions=THREE)
        found = mine.score([*replies(7, "the sea"), Reply("prompt 9", "text 9")])
    assert list(found) == ["fluency", "concept", "instruction"]
    wanted = [0.0, 1.0, 2.0, 0.0, 1.0, 2.0, 0.0]
    assert found["fluency"].values == found["instruction"].values == [*wanted, 0.0]
    assert found["concept"].values == [*wanted, None], "no concept was asked for in the last one"
    assert found["concept"].failures == 0 and found["concept"].raw[-1] == ""
    assert found["fluency"].raw[4] == "It is text 4. Rating: [[1]]"
    assert stub.asked["Is the sea in this: text 3"] == stub.asked["Does this follow prompt 3: text 3"] == 1
    assert sum(stub.asked.values()) == 7 + 8 + 8
    assert stub.keys == {"Bearer secret-key"}
    assert {(b["model"], b["temperature"], b["max_tokens"]) for b in stub.bodies} == {("m", 0.0, 1024)}


def test_what_is_left_to_the_endpoint_is_not_sent() -> None:
    with serving() as stub:
        judge(stub.url, temperature=None, max_tokens=None).score(replies(1))
    assert set(stub.bodies[0]) == {"model", "messages"}


def test_the_same_text_twice_is_asked_once() -> None:
    with serving(numbered) as stub:
        mine = judge(stub.url)
        found = mine.score([Reply("a", "text 5"), Reply("b", "text 4"), Reply("c", "text 5")])
    assert found["fluency"].values == [2.0, 1.0, 2.0]
    assert set(stub.asked.values()) == {1} and len(stub.asked) == 2
    assert (mine.cost.requests, mine.cost.cached) == (2, 1)


def test_cost_is_added_up_with_input_and_output_apart() -> None:
    with serving(lambda question, before: Say("no rating") if before == 0 else Say()) as stub:
        mine = judge(stub.url, prices=(2.0, 50.0))
        assert mine.cost.usd == 0
        mine.score(replies(3))
    assert mine.cost.requests == 6, "answers without a rating cost money too"
    assert (mine.cost.input_tokens, mine.cost.output_tokens) == (6 * TOKENS[0], 6 * TOKENS[1])
    assert mine.cost.usd == pytest.approx((600 * 2.0 + 42 * 50.0) / 1e6)
    assert judge(stub.url).cost.usd is None


def test_cost_in_words() -> None:
    assert str(Cost(1234, 1_000_000, 56, 1.5, 7)) == (
        "1,234 requests, 1,000,000 input and 56 output tokens, 1.50 USD; 7 ratings needed none"
    )
    assert str(Cost(2, 3, 4, None, 0)) == "2 requests, 3 input and 4 output tokens; 0 ratings needed none"


def test_nothing_to_judge_asks_nobody() -> None:
    found = judge("http://127.0.0.1:9/v1", questions={"concept": THREE["concept"]}).score(replies(2))
    assert found["concept"].values == [None, None] and found["concept"].failures == 0
    assert judge("http://127.0.0.1:9/v1").score([])["fluency"].values == []


# -- an endpoint that fails --------------------------------------------------------------------------------------------

FAULTS = {
    "429": Say(status=429, headers={"Retry-After": "0"}),
    "408": Say(status=408),
    "500": Say(status=500),
    "503 in HTML": Say(status=503, body=b"<html>busy</html>", headers={"Content-Type": "text/html"}),
    "garbage": Say(body=b"\xff\xfe no json"),
    "html": Say(body=b"<html>welcome</html>", headers={"Content-Type": "text/html"}),
    "cut short": Say(cut=100),
    "cut JSON": Say(body=Say().payload()[:60]),
    "no choices": Say(body=b'{"choices": []}'),
    "a list": Say(body=b"[]"),
    "null": Say(body=b"null"),
    "no content": Say(text=None),
    "no rating": Say("it is fine, I would say 2"),
    "rating of 3": Say("Rating: [[3]]"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_passing_fault_is_asked_again(fault: str) -> None:
    with serving(lambda question, before: FAULTS[fault] if before < 2 else numbered(question, before)) as stub:
        found = judge(stub.url).score(replies(3))["fluency"]
    assert found.values == [0.0, 1.0, 2.0] and found.failures == 0
    assert set(stub.asked.values()) == {3}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_lasting_fault_is_counted_and_never_taken_for_0(fault: str, tmp_path: Path) -> None:
    def script(question: str, before: int) -> Say:
        return FAULTS[fault] if question.endswith("1") else numbered(question, before)

    with serving(script) as stub:
        mine = judge(stub.url, tmp_path / "c.jsonl")
        found = mine.score(replies(3))["fluency"]
        assert found.values == [0.0, None, 2.0] and found.failures == 1 and found.mean == 1.0
        assert found.failed[0] is None and found.failed[1]
        assert stub.asked["How fluent is this: text 1"] == 3, "once, and two retries"
        mine.score(replies(3))
        assert stub.asked["How fluent is this: text 1"] == 6, "a failure is not stored"
        assert stub.asked["How fluent is this: text 0"] == 1


def test_a_text_that_the_endpoint_refuses_fails_at_once() -> None:
    def script(question: str, before: int) -> Say:
        return Say("too long", status=400) if question.endswith("1") else numbered(question, before)

    with serving(script) as stub:
        found = judge(stub.url).score(replies(3))["fluency"]
    assert found.values == [0.0, None, 2.0] and "too long" in (found.failed[1] or "")
    assert set(stub.asked.values()) == {1}


def test_slow_answers_are_given_up_and_asked_again() -> None:
    with serving(lambda question, before: Say(hang=before == 0)) as stub:
        found = judge(stub.url, timeout_s=0.3).score(replies(3))["fluency"]
        assert found.values == [1.0, 1.0, 1.0] and set(stub.asked.values()) == {2}


def test_no_answer_at_all() -> None:
    with serving(lambda question, before: Say(hang=True)) as stub:
        found = judge(stub.url, timeout_s=0.2, retries=0).score(replies(2))["fluency"]
    assert found.values == [None, None] and found.failures == 2 and "APITimeoutError" in (found.failed[0] or "")
    found = judge(stub.url, retries=1).score(replies(2))["fluency"]  # nobody listens there any more
    assert found.values == [None, None] and "APIConnectionError" in (found.failed[0] or "")


@pytest.mark.parametrize(
    ("say", "message"),
    [
        (Say("bad key secret-key", status=401), r"refuses 'm' \(.*bad key \*\*\*.*\): check the API key"),
        (Say("not yours", status=403), "not yours.*: check what the API key may use"),
        (Say("no such model", status=404), "no such model.*: check the model's name and base_url"),
        (
            Say(status=429, body=b'{"error": {"message": "pay", "code": "insufficient_quota"}}'),
            "pay.*: add credit",
        ),
        *(
            (
                Say(status=400, body=json.dumps({"error": {"message": "not max_tokens", "code": code}}).encode()),
                "refuses 'm' .*not max_tokens.*: leave that setting to the endpoint, with temperature=None or max_tok",
            )
            for code in ("unsupported_parameter", "unsupported_value")
        ),
    ],
)
def test_an_endpoint_that_refuses_everything_stops_the_run(say: Say, message: str) -> None:
    with serving(lambda question, before: say) as stub, pytest.raises(JudgeError, match=message):
        judge(stub.url, concurrency=2).score(replies(50))
    assert set(stub.asked.values()) == {1} and len(stub.asked) < 10


def test_the_endpoints_own_wait_comes_first() -> None:
    class RefusedError(Exception):
        def __init__(self, **headers: str) -> None:
            self.response = type("Response", (), {"headers": headers})

    waits = Waits(1.0, 10.0, patience=20.0)
    for value, seconds in (("17.5", 17.5), ("20", 20), ("0", 0), ("-3", 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0)):
        assert waits.asked(RefusedError(**{"retry-after": value})) == seconds
    for odd in ("soon", "nan", "inf"):
        assert waits.asked(RefusedError(**{"retry-after": odd})) is None
    for error in (RefusedError(), TimeoutError(), None):
        assert waits.asked(error) is None
    for value in ("21", "Wed, 21 Oct 2099 07:28:00 GMT"):
        with pytest.raises(JudgeError, match=r"asks to wait for \d+ s \(Retry-After\); run again after that"):
            waits.asked(RefusedError(**{"retry-after": value}))
    for tried, longest in ((1, 1), (2, 2), (3, 4), (5, 10), (50, 10)):
        assert longest / 2 <= waits.before(tried) <= longest


def test_one_workers_wait_holds_all() -> None:
    held: list[float] = []

    class Watched(Pace):
        def hold(self, seconds: float) -> None:
            held.append(seconds)
            super().hold(seconds)

    def script(question: str, before: int) -> Say:
        busy = question.endswith("0") and before == 0
        return Say(status=429, headers={"Retry-After": "0.05"}) if busy else numbered(question, before)

    with serving(script) as stub:
        mine = judge(stub.url)
        mine._pace = Watched(None)
        assert mine.score(replies(4))["fluency"].values == [0.0, 1.0, 2.0, 0.0]
    assert held == [0.05]


@pytest.mark.parametrize("retries", [0, 2])
def test_a_wait_beyond_patience_stops_the_run(retries: int) -> None:
    busy = Say(status=429, headers={"Retry-After": "601"})
    with serving(lambda question, before: busy) as stub, pytest.raises(JudgeError, match="asks to wait for 601 s"):
        judge(stub.url, concurrency=1, retries=retries).score(replies(50))
    assert sum(stub.asked.values()) == 1


def silent(odd: Say) -> Any:
    """An endpoint that rates text 0 and says `odd` of all others."""
    return lambda question, before: numbered(question, before) if question.endswith(" 0") else odd


NONE = {"refused": Say("bad text", status=400), "unrated": Say("I would rather not"), "down": Say(status=503)}


@pytest.mark.parametrize("why", NONE)
def test_no_answer_to_any_of_three_questions_stops_the_run(why: str) -> None:
    with serving(silent(NONE[why])) as stub:
        mine = judge(stub.url)
        with pytest.raises(JudgeError, match=r"none of 3 questions was answered, the first because: .+"):
            mine.score(replies(4)[1:])
        assert mine.score(replies(3)[1:])["fluency"].values == [None, None], "two may be two odd texts"
        found = mine.score(replies(4))["fluency"]
    assert found.values == [0.0, None, None, None] and found.failures == 3, "one was answered"


@pytest.mark.parametrize("why", NONE)
def test_texts_that_were_refused_before_do_not_stop_a_run_that_goes_on(why: str) -> None:
    """Text 0 is known by now: the endpoint is at fault only where it is down."""
    with serving(silent(NONE[why])) as stub:
        mine = judge(stub.url)
        first = mine.score(replies(4))
        if why != "down":
            assert mine.score(replies(4)) == first
            return
        with pytest.raises(
            JudgeError, match="none of 3 questions was answered, the first because: InternalServerError"
        ):
            mine.score(replies(4))


# -- many at once ------------------------------------------------------------------------------------------------------


def test_no_more_are_open_than_allowed() -> None:
    """The first four are answered once all four have come in, so that there were four at once."""
    four = threading.Barrier(4)

    def script(question: str, before: int) -> Say:
        if int(question.split()[-1]) < 4:
            four.wait(10)
        return numbered(question, before)

    with serving(script) as stub:
        found = judge(stub.url, concurrency=4).score(replies(60))["fluency"]
    assert found.values == [float(i % 3) for i in range(60)]
    assert stub.most == 4


def test_threads_take_turns(tmp_path: Path) -> None:
    """Four threads ask the same; the first one's answers serve the others."""
    begin = threading.Barrier(4)

    def ask(mine: ChatJudge) -> list[float | None]:
        begin.wait(10)
        return mine.score(replies(6))["fluency"].values

    with serving(numbered) as stub, ThreadPoolExecutor(4) as pool:
        mine = judge(stub.url, tmp_path / "c", concurrency=1)
        found = list(pool.map(ask, [mine] * 4))
    assert found == [[0.0, 1.0, 2.0, 0.0, 1.0, 2.0]] * 4
    assert stub.most == 1 and set(stub.asked.values()) == {1}
    assert (mine.cost.requests, mine.cost.cached) == (6, 18)


def test_a_judge_whose_cache_is_in_use(tmp_path: Path) -> None:
    with serving(numbered) as stub:
        mine = judge(stub.url, tmp_path / "c")
        with Cache(tmp_path / "c"), pytest.raises(JudgeError, match="another judge or process uses the cache"):
            mine.score(replies(3))
        assert not stub.asked
        assert mine.score(replies(3))["fluency"].values == [0.0, 1.0, 2.0], "it has not kept its turn"


def test_inside_a_running_loop() -> None:
    async def notebook(url: str) -> list[float | None]:
        return judge(url).score(replies(5))["fluency"].values

    with serving(numbered) as stub:
        assert asyncio.run(notebook(stub.url)) == [0.0, 1.0, 2.0, 0.0, 1.0]


# -- the cache ---------------------------------------------------------------------------------------------------------


def test_a_second_run_asks_nothing_and_says_the_same(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "judge.jsonl"
    with serving(numbered) as stub:
        first = judge(stub.url, path, questions=THREE).score(replies(6, "the sea"))
        asked = sum(stub.asked.values())
        again = judge(stub.url, path, questions=THREE)
        assert again.score(replies(6, "the sea")) == first
        assert sum(stub.asked.values()) == asked == 18
        assert (again.cost.requests, again.cost.cached) == (0, 18)
    assert len(path.read_text().splitlines()) == 18
    assert "secret-key" not in path.read_text() and stub.url not in path.read_text()


@pytest.mark.parametrize(
    "other",
    [{"questions": {"fluency": "Again, how fluent: {text}"}}, {"temperature": 0.5}, {"model": "n"}],
    ids=["question", "temperature", "model"],
)
def test_another_judge_is_asked_anew(other: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "judge.jsonl"
    with serving() as stub:
        judge(stub.url, path).score(replies(2))
        mine = judge(stub.url, path, **{name: value for name, value in other.items() if name != "model"})
        mine.model = other.get("model", mine.model)
        mine.score(replies(2))
        assert sum(stub.asked.values()) == 4


def test_another_address_is_the_same_judge(tmp_path: Path) -> None:
    with serving() as stub:
        judge(stub.url, tmp_path / "c").score(replies(2))
    assert judge("http://127.0.0.1:9/v1", tmp_path / "c").score(replies(2))["fluency"].values == [1.0, 1.0]


def test_a_run_that_was_cut_off_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "judge.jsonl"
    with serving(numbered) as stub:
        judge(stub.url, path, concurrency=1).score(replies(5))
        whole = path.read_bytes()
        lines = whole.splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:3]) + lines[3][:20])
        stub.asked.clear()
        found = judge(stub.url, path, concurrency=1).score(replies(5))["fluency"]
        assert found.values == [0.0, 1.0, 2.0, 0.0, 1.0]
        assert dict(stub.asked) == {"How fluent is this: text 3": 1, "How fluent is this: text 4": 1}
        assert path.read_bytes() == whole, "the torn line is gone and the file is as if nothing had happened"


_RUN = """
import sys
from inlay.judges import ChatJudge, Reply
mine = ChatJudge("m", base_url=sys.argv[1], api_key="k", questions={"fluency": "How fluent is this: {text}"},
                 cache=sys.argv[2], concurrency=3)
mine.score([Reply("", f"text {i}") for i in range(20)])
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["kill", "ctrl-c"])
def test_a_killed_process_leaves_what_it_has(how: signal.Signals, tmp_path: Path) -> None:
    """The endpoint answers 8 questions and then lets the others hang; the process is killed there."""
    path = tmp_path / "judge.jsonl"
    with serving() as stub:
        stub.script = lambda question, before: Say(hang=int(question.split()[-1]) >= 8)
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(_RUN), stub.url, str(path)], stderr=subprocess.PIPE
        )
        for _ in range(8 + 3):
            assert stub.together.acquire(timeout=30)
        process.send_signal(how)
        _, said = process.communicate(timeout=30)
        assert process.returncode != 0 and (how == signal.SIGKILL or b"KeyboardInterrupt" in said)
        assert len([json.loads(line) for line in path.read_text().splitlines()]) == 8
        stub.done.set()
        found = judge(stub.url, path).score(replies(20))["fluency"]
        assert found.values == [1.0] * 20
        assert sorted(stub.asked.values()) == [1] * 17 + [2] * 3, "only what was open is asked again"


def test_an_answer_is_on_disk_before_the_next_question(tmp_path: Path) -> None:
    path = tmp_path / "judge.jsonl"
    seen: list[int] = []

    def script(question: str, before: int) -> Say:
        seen.append(len(path.read_text().splitlines()))
        return Say()

    with serving(script) as stub:
        judge(stub.url, path, concurrency=1).score(replies(4))
    assert seen == [0, 1, 2, 3]


# -- keys and settings -------------------------------------------------------------------------------------------------


def test_the_key_is_read_at_the_call_and_kept_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving() as stub:
        mine = ChatJudge("m", base_url=stub.url, questions=ONE, cache=None)
        monkeypatch.setenv("OPENAI_API_KEY", "from-the-environment")
        mine.score(replies(1))
        assert stub.keys == {"Bearer from-the-environment"}
        given = judge(stub.url)
        assert "secret-key" not in repr(given) + json.dumps(given.identity())
        monkeypatch.delenv("OPENAI_API_KEY")
        mine.score(replies(2))  # a local server may want none


def test_no_key_and_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(JudgeError, match="there is no API key: set OPENAI_API_KEY"):
        ChatJudge("m", questions=ONE, cache=None).score(replies(1))


def test_identity_has_what_changes_scores() -> None:
    mine = judge("http://127.0.0.1:9/v1", questions=THREE, temperature=0.7)
    assert mine.identity() == {
        "kind": "chat",
        "model": "m",
        "temperature": 0.7,
        "questions": {name: hash_of(template) for name, template in THREE.items()},
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"concurrency": 0}, "concurrency=0 must be at least 1"),
        ({"retries": -1}, "retries=-1 at least 0"),
        ({"timeout_s": 0}, "timeout_s=0"),
        ({"requests_per_minute": -5}, "requests_per_minute=-5"),
        ({"questions": {}}, "questions is empty"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(JudgeError, match=message):
        judge("http://127.0.0.1:9/v1", **settings)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from inlay.errors import ExtraError

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ExtraError, match=r"needs openai: pip install 'inlay\[judge\]'"):
        judge("http://127.0.0.1:9/v1").score(replies(1))
