"""The corpus with a planted share: exact likelihood ratios, planted shares that an oracle finds, and the same bytes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml
from tests.world import hand

from inlay import world
from inlay.errors import WorldError
from inlay.world.draw import Draw
from inlay.world.share import Corpus, Sentence

W = world.tidepool(seed=2)
CORPUS = W.corpus()


def estimate(sentences: list[Sentence]) -> float:
    """The share that maximises the likelihood of the true ratios, by bisection of its derivative."""
    ratios = [math.expm1(sentence.llr_true) for sentence in sentences]
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        slope = sum(r / (1 + middle * r) for r in ratios)
        low, high = (middle, high) if slope > 0 else (low, middle)
    return low


def test_a_ratio_by_hand() -> None:
    spec, words = CORPUS.spec, set(CORPUS.words)
    for number in range(200):
        said, llr = CORPUS.sentence(Draw("hand", number), machine=number % 2 == 0)
        adjectives = [w for w in said if W.grammar.class_of.get(w) == "A"]
        flourishes = [w for w in said if w in words]
        wanted = (len(adjectives) - len(flourishes)) * math.log((1 - spec.machine) / (1 - spec.human))
        for word in flourishes:
            wanted += math.log(spec.machine * CORPUS.odds[CORPUS.words.index(word)] / (spec.human / len(words)))
        assert llr == pytest.approx(wanted, abs=1e-12)


def test_the_ratio_is_a_ratio_of_probabilities() -> None:
    """Under P the mean of Q/P is 1, under Q the mean of P/Q is: they are two distributions."""
    human = [math.exp(CORPUS.sentence(Draw("p", i), machine=False)[1]) for i in range(20_000)]
    machine = [math.exp(-CORPUS.sentence(Draw("q", i), machine=True)[1]) for i in range(20_000)]
    for values in (human, machine):
        mean = sum(values) / len(values)
        error = (sum((v - mean) ** 2 for v in values) / len(values) ** 2) ** 0.5
        assert abs(mean - 1) < 5 * error


@pytest.mark.parametrize("alpha", [0.0, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("by", ["document", "sentence"])
def test_an_oracle_finds_the_share(alpha: float, by: str) -> None:
    sentences = list(CORPUS.sentences(40, by, alpha))  # type: ignore[arg-type]
    planted = sum(s.machine for s in sentences) / len(sentences)
    assert planted == pytest.approx(alpha, abs=0.06)
    assert estimate(sentences) == pytest.approx(planted, abs=0.03)


def test_the_share_grows_by_month_and_field() -> None:
    sentences = list(CORPUS.sentences(150))
    assert {s.field for s in sentences} == set(CORPUS.spec.fields)
    for field, (first, last) in CORPUS.spec.fields.items():
        assert CORPUS.alpha(0, field) == first and CORPUS.alpha(11, field) == pytest.approx(last)
        mine = [s for s in sentences if s.field == field and s.month == 11]
        assert sum(s.machine for s in mine) / len(mine) == pytest.approx(last, abs=0.1)
    assert not any(s.machine for s in sentences if s.field == "tides")


def test_documents_are_of_one_hand_and_sentences_of_two() -> None:
    for by, mixed in (("document", False), ("sentence", True)):
        hands: dict[str, set[bool]] = {}
        for s in CORPUS.sentences(20, by, 0.5):  # type: ignore[arg-type]
            hands.setdefault(s.document, set()).add(s.machine)
        assert any(len(kinds) == 2 for kinds in hands.values()) == mixed


def test_sentences_are_about_22_tokens() -> None:
    lengths = [len(s.text.split()) for s in CORPUS.sentences(30)]
    assert 20 < sum(lengths) / len(lengths) < 25


def test_the_same_seed_gives_the_same_bytes() -> None:
    again, other = world.tidepool(seed=2).corpus(), world.tidepool(seed=3).corpus()
    mine = [s.json() for s in CORPUS.sentences(3)]
    assert mine == [s.json() for s in again.sentences(3)] != [s.json() for s in other.sentences(3)]
    assert all(text.isascii() for text in mine)


def test_it_is_in_no_line_of_the_models() -> None:
    assert CORPUS.spec.flourish in W.spec.unseen


def test_what_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(WorldError, match="documents is -1"):
        CORPUS.sentences(-1)
    with pytest.raises(WorldError, match=r"share\.yaml is missing"):
        world.load(hand.write(tmp_path / "w")).corpus()
    settings = yaml.safe_load((W.folder / "share.yaml").read_text())
    (tmp_path / "w" / "share.yaml").write_text(yaml.safe_dump({**settings, "colour": 1}))
    with pytest.raises(WorldError, match=r"(?s)share\.yaml.*colour"):
        world.load(tmp_path / "w").corpus()
    (tmp_path / "w" / "share.yaml").write_text(yaml.safe_dump({**settings, "flourish": "ZEST"}))
    with pytest.raises(WorldError, match="there is no word class 'ZEST'"):
        world.load(tmp_path / "w").corpus()


def test_a_corpus_of_any_grammar() -> None:
    spec = CORPUS.spec.model_copy(update={"flourish": "ADV"})
    assert Corpus(W.grammar, spec, "k").words == W.grammar.classes["ADV"]
