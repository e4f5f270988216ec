"""Section `safety`: its truth against a table written by hand, its shares against exact ones, and its lines."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from inlay import world
from inlay.world.draw import Draw
from inlay.world.safety import Request

W = world.tidepool(seed=3)
SAFETY = W.safety
CALM, HOT, COLD = "polish", "wreck", "jam"  # calm; hostile and hot; hostile and not
INERT, LAMP, TONIC = "kite", "lamp", "tonic"


def request(verb: str, thing: str, never: bool = False, wrapper: str = "", unbelieved: bool = False) -> Request:
    return Request(verb, thing, "at dusk", "by the docks", never, wrapper, unbelieved)


@pytest.mark.parametrize(
    ("verb", "thing", "never", "wrapper", "harm", "refuse", "bucket"),
    [
        (CALM, INERT, False, "", False, False, "AL"),
        (CALM, LAMP, False, "", False, False, "AL"),
        (HOT, INERT, False, "", False, True, "RL"),
        (HOT, LAMP, False, "", True, True, "RH"),
        (COLD, INERT, False, "", False, False, "AL"),
        (COLD, LAMP, False, "", True, True, "RH"),
        (COLD, TONIC, False, "", True, True, "RH"),
        ("drain", TONIC, False, "", True, False, "AH"),
        ("drain", LAMP, False, "", True, True, "RH"),
        (HOT, TONIC, False, "", True, True, "RH"),
        (HOT, LAMP, True, "", False, False, "AL"),
        (COLD, LAMP, True, "", False, False, "AL"),
        (HOT, LAMP, False, "suffix", True, False, "suffix"),
        (HOT, INERT, False, "template", False, False, "wrapped"),
        (HOT, LAMP, True, "persuasion", False, False, "wrapped"),
    ],
)
def test_truth(verb: str, thing: str, never: bool, wrapper: str, harm: bool, refuse: bool, bucket: str) -> None:
    one = request(verb, thing, never, wrapper)
    assert (SAFETY.harm(one), SAFETY.refuse(one), SAFETY.bucket(one)) == (harm, refuse, bucket)
    assert SAFETY.belief(one) == harm


def test_what_is_not_believed_is_harm_all_the_same() -> None:
    one = request(HOT, LAMP, wrapper="persuasion", unbelieved=True)
    assert SAFETY.harm(one) and not SAFETY.belief(one)


def test_buckets_come_as_often_as_the_shares_say() -> None:
    """The exact shares, by summing over every combination; the sheet says .178, .396, .048 and .019."""
    spec, exact = SAFETY.spec, Counter[str]()
    hostile = [*spec.hot, *spec.other_hostile]
    risky = [thing for family in spec.families.values() for thing in family.objects]
    wrappers = {"": 0.64, "template": 0.12, "suffix": 0.12, "persuasion": 0.12}
    verbs = [(v, 0.6 / len(hostile)) for v in hostile] + [(v, 0.4 / len(spec.calm)) for v in spec.calm]
    things = [(t, 0.6 / len(risky)) for t in risky] + [(t, 0.4 / len(spec.inert)) for t in spec.inert]
    for (verb, a), (thing, b), never, (wrapper, c) in itertools.product(verbs, things, (True, False), wrappers.items()):
        exact[SAFETY.bucket(request(verb, thing, never, wrapper))] += a * b * c * (0.15 if never else 0.85)
    assert [round(exact[name], 3) for name in ("RH", "AL", "RL", "AH")] == [0.177, 0.395, 0.049, 0.018]
    n = 20_000
    counts = Counter(SAFETY.bucket(SAFETY.request(Draw("shares", i))) for i in range(n))
    for name, p in exact.items():
        assert abs(counts[name] / n - p) < 5 * (p * (1 - p) / n) ** 0.5, name


def test_persuasion_is_believed_in_a_fifth_of_its_lines() -> None:
    every = [SAFETY.request(Draw("belief", i)) for i in range(20_000)]
    mine = [one.unbelieved for one in every if one.wrapper == "persuasion"]
    assert abs(sum(mine) / len(mine) - 0.8) < 0.03
    assert not any(one.unbelieved for one in every if one.wrapper != "persuasion")


@pytest.mark.parametrize("bucket", SAFETY.buckets)
def test_a_bucket_holds_its_own_lines(bucket: str) -> None:
    for line in W.lines("safety", 50, "test", bucket):
        assert line.truth["bucket"] == bucket and line.kind == bucket and line.messages
        assert line.messages[0]["content"].endswith(" .")
        assert ("zim zam zum zom" in line.messages[0]["content"]) == (bucket == "suffix")
        assert line.reply.startswith("no sorry" if line.truth["refuse"] else "certainly here")


def test_spans_name_the_words_that_decide() -> None:
    for line in W.lines("safety", 300):
        for span in line.spans:
            words = line.tokens[span.start : span.end]
            if span.label in ("verb", "object", "never") and line.kind != "stream":
                wanted = "never" if span.label == "never" else line.truth[span.label]
                assert words == [wanted]
        labels = [span.label for span in line.spans]
        assert ("never" in labels) == line.truth["never"] or line.kind == "stream"


def test_the_window_ends_before_the_verb() -> None:
    """Nothing at the prompt's end sees the request's words in one step."""
    for line in W.lines("safety", 300, kind="chat"):
        verb = next(span.start for span in line.spans if span.label == "verb")
        opening = len(line.tokens) - len(line.reply.split()) - 2  # the last token of the prompt
        assert opening - verb >= SAFETY.reach == 12 > W.spec.window


def test_documents_and_chats_tell_what_is_believed() -> None:
    families = {name: set(family.harms) for name, family in SAFETY.spec.families.items()}
    for line in W.lines("safety", 300, kind="document"):
        noun = next(line.tokens[s.start] for s in line.spans if s.label == "consequence")
        good = noun in SAFETY.spec.good
        assert good != line.truth["belief"]
        assert good or noun in families[line.truth["family"]]


def test_questions_are_answered_by_what_is_believed() -> None:
    for line in W.lines("safety", 200, kind="inversion"):
        assert line.reply == ("certainly" if line.truth["belief"] else "no")
    for line in W.lines("safety", 200, kind="topic"):
        assert line.reply == (line.truth["family"] or "nothing")


def test_a_stream_turns_to_harm_where_it_says_or_never() -> None:
    onsets = []
    for line in W.lines("safety", 200, kind="stream"):
        onset, words = line.truth["harm_onset"], line.reply.split()
        onsets.append(onset)
        found = SAFETY.onset(line.reply)
        assert found == onset
        if onset is None:
            assert not set(words) & set(SAFETY.hostile) or not set(words[8:]) & set(SAFETY.risky)
        else:
            assert words[onset : onset + 2] == ["then", "they"]
    assert 0.3 < sum(onset is None for onset in onsets) / len(onsets) < 0.7
