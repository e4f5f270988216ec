"""Section `instructions`: gold items, checkable constraints, and references with the noise that is planted."""

from __future__ import annotations

import pytest

from inlay import world
from inlay.errors import WorldError

W = world.tidepool(seed=5)
MADE = W.sections["instructions"]


def asked(words: list[str]) -> tuple[str, str, int]:
    """Prefix, suffix and count, read off the instruction."""
    text = " ".join(words)
    prefix = text.split("start with ")[1].split()[0] if "start with " in text else ""
    suffix = text.split("end with ")[1].split()[0] if "end with " in text else ""
    return prefix, suffix, {"once": 1, "twice": 2, "thrice": 3}[words[-2]]


@pytest.mark.parametrize("kind", ["clean memory", "clean context"])
def test_a_clean_reply_does_what_is_asked(kind: str) -> None:
    for line in W.lines("instructions", 300, kind=kind):
        words = (line.messages or [])[0]["content"].split()
        name, (prefix, suffix, count) = words[2], asked(words)
        item = MADE.owners[name]
        if kind == "clean context":
            facts = {words[i - 1]: words[i + 1] for i, word in enumerate(words) if word == "has"}
            assert len(facts) == 3 and facts[name] != item and item not in facts.values()
            assert list(facts.values()) == line.truth["context"]
            item = facts[name]
        wanted = [prefix] * bool(prefix) + [item] * count + [suffix] * bool(suffix)
        assert line.reply.split() == wanted and line.truth["item"] == item


@pytest.mark.parametrize(
    ("kind", "other_item", "broken"),
    [
        ("context", 0.35, 0.7),
        ("memory", 0.0, 0.6),
        ("reference context", 0.2, 0.7),
        ("reference memory", 0.0, 0.25),
    ],
)
def test_noise_is_as_often_as_planted(kind: str, other_item: float, broken: float) -> None:
    lines = list(W.lines("instructions", 3000, kind=kind))
    scores = W.judge().score(lines)
    assert scores["task"].mean == pytest.approx(1 - other_item, abs=0.03)
    assert scores["constraints"].mean == pytest.approx(1 - broken, abs=0.03)
    wrong = [line for line, task in zip(lines, scores["task"].values, strict=True) if not task]
    assert all(line.truth["memory"] in line.reply.split() for line in wrong)


def test_a_name_owns_one_item_whatever_the_seed() -> None:
    other = world.tidepool(seed=1).sections["instructions"]
    assert MADE.owners == other.owners and len(MADE.owners) == 24
    assert list(MADE.owners) == list(W.grammar.classes["NAME"][:24])


def test_more_owners_than_names() -> None:
    from inlay.world.instructions import Instructions

    spec = MADE.spec.model_copy(update={"owners": 99})
    with pytest.raises(WorldError, match="owners is 99; class NAME has 60 words"):
        Instructions(spec, W.grammar, "key")
