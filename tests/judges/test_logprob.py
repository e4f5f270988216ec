"""LogprobJudge on a random tiny Llama, against a plain loop over single rows and single tokens."""

from __future__ import annotations

import json
import math

import pytest
import torch
from tests.cli.random_folder import byte_tokenizer
from tests.model import tiny
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

import inlay
from inlay.errors import JudgeError, ModelError
from inlay.judges import LogprobJudge, Reply

ASK = {"concept": "is the {concept} in {text}", "instruction": "{prompt} then {text}"}
REPLIES = [
    Reply("the old boat", "sees the sea", "red hill"),
    Reply("a dog", "likes it and finds it here now", "sea"),
    Reply("now", "sea"),
    Reply("the new red boat on the hill", "", "sea"),
    Reply("it was there", "boat boat boat boat boat boat boat boat boat", "boat and dog"),
]
WORDS = {"yes": "red", "no": "blue"}


def model(seed: int = 0, template: str | None = tiny.TEMPLATE) -> inlay.Model:
    return tiny.frozen(seed=seed, tokenizer=tiny.words(template))


def chatted(text: str) -> list[int]:
    return tiny.ids_of(f"<user> {text} <end> <assistant>")


def logprobs(mine: inlay.Model, ids: list[int]) -> torch.Tensor:
    """log P of the token behind `ids`, by a forward of its own."""
    with torch.no_grad():
        return mine.hf(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)


def fluency(mine: inlay.Model, reply: Reply) -> float:
    prompt, said = chatted(reply.prompt), tiny.ids_of(reply.text)
    each = [float(logprobs(mine, prompt + said[:k])[token]) for k, token in enumerate(said)]
    return 2 * math.exp(sum(each) / len(each)) * new(said) if each else 0.0


def new(ids: list[int]) -> float:
    """The share of trigrams that are not there before, counted one by one."""
    seen: list[list[int]] = []
    fresh = 0
    for at in range(len(ids) - 2):
        fresh += ids[at : at + 3] not in seen
        seen.append(ids[at : at + 3])
    return fresh / len(seen) if seen else 1.0


def yes_no(mine: inlay.Model, question: str) -> float:
    p = logprobs(mine, chatted(question)).exp()
    yes, no = (float(p[tiny.WORDS.index(WORDS[which])]) for which in ("yes", "no"))
    return 2 * yes / (yes + no)


def test_fluency_is_the_mean_over_the_texts_own_tokens() -> None:
    mine = model()
    found = LogprobJudge(mine, axes=["fluency"]).score(REPLIES)["fluency"]
    assert found.values == pytest.approx([fluency(mine, reply) for reply in REPLIES], rel=1e-4)
    assert found.values[3] == 0 and found.raw[3] == "no token to score"
    assert found.values[0] == pytest.approx(2 * math.exp(float(found.raw[0])))
    assert found.values[4] == pytest.approx(2 * math.exp(float(found.raw[4])) / 7), "nine times boat: 1 trigram of 7"
    assert all(0 <= (value or 0) <= 2 for value in found.values)


def test_questions_are_answered_by_yes_against_no() -> None:
    mine = model()
    found = LogprobJudge(mine, **WORDS, questions=ASK).score(REPLIES)
    assert list(found) == ["concept", "instruction", "fluency"]
    asked = [yes_no(mine, f"{r.prompt} then {r.text}") for r in REPLIES]
    assert found["instruction"].values == pytest.approx(asked, rel=1e-4)
    asked = [yes_no(mine, f"is the {r.concept} in {r.text}") for r in REPLIES if r.concept]
    values = found["concept"].values
    assert values.pop(2) is None and values == pytest.approx(asked, rel=1e-4)


@pytest.mark.parametrize("batch_tokens", [1, 25, 40, 10_000])
def test_batched_is_one_by_one(batch_tokens: int) -> None:
    mine = model()
    many = LogprobJudge(mine, **WORDS, questions=ASK, batch_tokens=batch_tokens).score(REPLIES * 3)
    alone = [LogprobJudge(mine, **WORDS, questions=ASK).score([reply]) for reply in REPLIES]
    for name, scores in many.items():
        for value, one in zip(scores.values, [one[name].values[0] for one in alone] * 3, strict=True):
            assert value == (None if one is None else pytest.approx(one, rel=1e-4))


def test_no_forward_has_more_tokens_than_allowed() -> None:
    mine, seen = model(), []
    mine.hf.model.embed_tokens.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    LogprobJudge(mine, axes=["fluency"], batch_tokens=30).score(REPLIES * 4)
    assert len(seen) > 1 and all(rows * tokens <= 30 for rows, tokens in seen)
    assert max(rows for rows, _ in seen) > 1


def test_the_model_is_left_as_it_was() -> None:
    mine = model()
    record = tiny.Record(mine.hf)
    LogprobJudge(mine, **WORDS, questions=ASK).score(REPLIES)
    record.check()


def test_plain_text_where_there_is_no_chat_template() -> None:
    mine = model(template=None)
    found = LogprobJudge(mine, axes=["fluency"]).score([Reply("the old", "boat"), Reply("", "the old boat")])["fluency"]
    one = float(logprobs(mine, tiny.ids_of("the old"))[tiny.WORDS.index("boat")])
    assert found.values[0] == pytest.approx(2 * math.exp(one), rel=1e-4)
    ids = tiny.ids_of("the old boat")
    rest = [float(logprobs(mine, ids[:k])[ids[k]]) for k in (1, 2)]  # nothing foretells the first token of all
    assert found.values[1] == pytest.approx(2 * math.exp(sum(rest) / 2), rel=1e-4)


def test_nothing_to_judge() -> None:
    assert {n: s.values for n, s in LogprobJudge(model(), **WORDS, questions=ASK).score([]).items()} == {
        "concept": [],
        "instruction": [],
        "fluency": [],
    }


# -- yes and no --------------------------------------------------------------------------------------------------------


def spelled(*words: str) -> inlay.Model:
    """A model whose tokenizer knows some words, spaces and case included, and splits nothing."""
    names = ["<pad>", "<s>", "<unk>", *words]
    made = Tokenizer(WordLevel({word: i for i, word in enumerate(names)}, unk_token="<unk>"))
    return tiny.frozen(tokenizer=PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", pad_token="<pad>"))


def test_all_usual_spellings_count() -> None:
    mine = spelled("yes", " yes", "Yes", " No", "YES", "x", "?")
    value = LogprobJudge(mine, axes=["instruction"], questions={"instruction": "{text}"}).score([Reply("", "x")])
    p = logprobs(mine, [8]).exp()
    yes, no = float(p[3] + p[4] + p[5]), float(p[6])
    assert value["instruction"].values == [pytest.approx(2 * yes / (yes + no), rel=1e-4)]


def test_first_tokens_stand_for_words_of_many() -> None:
    """One token a byte: " yes" and " no" begin with the same space, "yes" and "no" do not."""
    tokenizer = byte_tokenizer(None)
    mine = tiny.frozen(tokenizer=tokenizer, vocab_size=len(tokenizer))
    value = LogprobJudge(mine, axes=["instruction"], questions={"instruction": "{text}"}).score([Reply("", "x")])
    p = logprobs(mine, tokenizer("x")["input_ids"]).exp()
    yes, no = (float(p[tokenizer(char, add_special_tokens=False)["input_ids"][0]]) for char in "yn")
    assert value["instruction"].values == [pytest.approx(2 * yes / (yes + no), rel=1e-4)]
    with pytest.raises(ModelError, match="begins ' maybe' and ' might' with the same token"):
        LogprobJudge(mine, yes=" maybe", no=" might")


def test_words_that_the_tokenizer_does_not_know() -> None:
    with pytest.raises(ModelError, match=r"does not know them: give words .* or score axes=\['fluency'\] alone"):
        LogprobJudge(model())
    assert LogprobJudge(model(), axes=["fluency"]).axes.keys() == {"fluency"}


# -- what cannot be ----------------------------------------------------------------------------------------------------


def test_settings_that_cannot_be() -> None:
    mine = model()
    with pytest.raises(JudgeError, match="batch_tokens is 0: give 1 or more"):
        LogprobJudge(mine, axes=["fluency"], batch_tokens=0)
    with pytest.raises(JudgeError, match="there is no axis 'taste'; these are: concept, instruction, fluency"):
        LogprobJudge(mine, axes=["taste"])
    with pytest.raises(JudgeError, match="axis 'concept' has no question"):
        LogprobJudge(mine, **WORDS, questions={"instruction": "{text}"})
    with pytest.raises(JudgeError, match=r"has no \{text\}"):
        LogprobJudge(mine, **WORDS, questions={"instruction": "well?"}, axes=["instruction"])
    with pytest.raises(ModelError, match="has no tokenizer"):
        LogprobJudge(tiny.frozen())


def test_only_the_texts_own_trigrams_count() -> None:
    """What the prompt says is no repetition, and one trigram in four is."""
    mine = model()
    said = [
        Reply("the red boat", "the red boat"),
        Reply("a", "the red boat the red boat"),
        Reply("a", "boat boat"),
    ]
    found = LogprobJudge(mine, axes=["fluency"]).score(said)["fluency"]
    shares = [value / (2 * math.exp(float(raw))) for value, raw in zip(found.values, found.raw, strict=True) if value]
    assert shares == pytest.approx([1, 3 / 4, 1])


def test_a_text_that_is_too_long_fails_and_the_others_are_scored() -> None:
    mine = model()
    judge = LogprobJudge(mine, **WORDS, questions=ASK)
    long = Reply("a", "dog " * 200, "sea")
    found, alone = judge.score([REPLIES[0], long, REPLIES[1]]), judge.score(REPLIES[:2])
    for name, tokens in (("fluency", 204), ("concept", 207), ("instruction", 205)):
        one = found[name]
        assert one.values[::2] == pytest.approx(alone[name].values, rel=1e-4), name
        why = f"{tokens} tokens are more than the model's context of 64"
        assert one.values[1] is None and one.failed == [None, why, None] and one.failures == 1, name
    assert [scores.values for scores in judge.score([long]).values()] == [[None]] * 3


def test_a_text_may_fill_the_context() -> None:
    judge = LogprobJudge(model(), axes=["fluency"])
    at_64, over = Reply("a", "dog " * 60), Reply("a", "dog " * 61)
    assert judge.score([at_64])["fluency"].failures == 0
    found = judge.score([over])["fluency"]
    assert found.values == [None] and found.failed == ["65 tokens are more than the model's context of 64"]


def test_identity_tells_judges_apart() -> None:
    mine = model()
    one = LogprobJudge(mine, **WORDS, questions=ASK).identity()
    assert json.loads(json.dumps(one)) == one and one["kind"] == "logprob"
    assert one == LogprobJudge(mine, **WORDS, questions=ASK, batch_tokens=7).identity()
    assert one == LogprobJudge(model(), **WORDS, questions=ASK).identity(), "the same weights"
    others = [
        LogprobJudge(mine, yes="old", no="blue", questions=ASK),
        LogprobJudge(mine, **WORDS, questions={**ASK, "concept": "{text} {concept}"}),
        LogprobJudge(mine, axes=["fluency"]),
        LogprobJudge(model(seed=1), **WORDS, questions=ASK),  # other weights
        LogprobJudge(tiny.frozen(tokenizer=tiny.words(), num_hidden_layers=2), **WORDS, questions=ASK),
    ]
    assert all(other.identity() != one for other in others)
