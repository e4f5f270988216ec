"""From prompts to rows of ids to padded batches, and every prompt that cannot be one."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.model import chat
from tests.model.chat import LIMIT, ids, tokenizer

import inlay
from inlay.errors import InputError, ModelError, TemplateError
from inlay.model.inputs import Encoder, Row, pad, plan_batches

SEA, MOON = "the deep sea", "a new moon rises"
CHAT = [{"role": "system", "content": "calm"}, {"role": "user", "content": SEA}]
ANSWERED = [*CHAT, {"role": "assistant", "content": "blue"}]


def chatted(text: str) -> list[int]:
    return ids(f"<user> {text} <end> <assistant>")


def encoder(**more: Any) -> Encoder:
    return Encoder(tokenizer(), LIMIT, **more)


def plain() -> Encoder:
    return Encoder(tokenizer(template=None), LIMIT)


def as_lists(rows: list[Row]) -> list[list[int]]:
    assert all(row.prompt == len(row.ids) for row in rows), "no response was given"
    return [list(row.ids) for row in rows]


FORMS: dict[str, tuple[Any, list[list[int]]]] = {
    "a string is a user turn": (SEA, [chatted(SEA)]),
    "strings": ([SEA, MOON], [chatted(SEA), chatted(MOON)]),
    "a tuple of strings": ((SEA, MOON), [chatted(SEA), chatted(MOON)]),
    "a chat": (CHAT, [ids("<system> calm <end> <user> the deep sea <end> <assistant>")]),
    "chats": ([CHAT, CHAT[1:]], [ids("<system> calm <end> <user> the deep sea <end> <assistant>"), chatted(SEA)]),
    "a chat that ends with the assistant": (
        ANSWERED,
        [ids("<system> calm <end> <user> the deep sea <end> <assistant> blue <end>")],
    ),
    "a row of ids": ([9, 10, 11], [[9, 10, 11]]),
    "rows of ids": ([[9, 10, 11], [12]], [[9, 10, 11], [12]]),
    "tuples of ids": (((9, 10, 11), (12,)), [[9, 10, 11], [12]]),
    "a mixture": ([SEA, [12, 13], CHAT[1:]], [chatted(SEA), [12, 13], chatted(SEA)]),
    "a tensor": (torch.tensor([[9, 10], [11, 12]]), [[9, 10], [11, 12]]),
    "one row as a tensor": (torch.tensor([9, 10, 11]), [[9, 10, 11]]),
    "an int32 tensor": (torch.tensor([[9, 10]], dtype=torch.int32), [[9, 10]]),
    "right-padded": (
        {"input_ids": torch.tensor([[9, 10, 0], [11, 0, 0]]), "attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0]])},
        [[9, 10], [11]],
    ),
    "left-padded": (
        {"input_ids": torch.tensor([[9, 10, 8], [0, 0, 11]]), "attention_mask": torch.tensor([[1, 1, 1], [0, 0, 1]])},
        [[9, 10, 8], [11]],
    ),
    "a mapping without a mask": ({"input_ids": [[9, 10], [11, 12]]}, [[9, 10], [11, 12]]),
    "a mapping of lists": ({"input_ids": [[9, 10], [11, 0]], "attention_mask": [[1, 1], [1, 0]]}, [[9, 10], [11]]),
    "unequal lists in a mapping": (
        {"input_ids": [[9, 10], [11]], "attention_mask": [[1, 1], [1]]},
        [[9, 10], [11]],
    ),
    "one row in a mapping": ({"input_ids": [9, 10], "attention_mask": [1, 1]}, [[9, 10]]),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_prompts(form: str) -> None:
    prompts, wanted = FORMS[form]
    assert as_lists(encoder().rows(prompts)) == wanted


def test_a_tokenizers_own_output() -> None:
    made = tokenizer()
    for side in ("left", "right"):
        made.padding_side = side
        found = Encoder(made, LIMIT).rows(made([SEA, MOON], padding=True, return_tensors="pt"))
        assert as_lists(found) == [ids(SEA), ids(MOON)]
    assert as_lists(Encoder(made, LIMIT).rows(made([SEA, MOON]))) == [ids(SEA), ids(MOON)]
    templated = made.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert as_lists(Encoder(made, LIMIT).rows(templated)) == as_lists(encoder().rows(CHAT))


def test_strings_are_turns_where_there_is_a_template() -> None:
    assert encoder().chat and not plain().chat
    assert as_lists(plain().rows([SEA, MOON])) == [ids(SEA), ids(MOON)]
    assert as_lists(encoder().rows(SEA, chat=False)) == [ids(SEA)]
    assert as_lists(encoder(chat=False).rows(SEA)) == [ids(SEA)]
    assert as_lists(encoder(chat=False).rows(SEA, chat=True)) == [chatted(SEA)]
    assert as_lists(encoder(chat=False).rows(CHAT[1:])) == [chatted(SEA)], "a chat is a chat"
    model = chat.wrapped("llama")
    assert model.encoder.chat and repr(model).endswith("chat)")
    assert not inlay.load(model.hf, tokenizer=tokenizer(), chat=False).encoder.chat


def test_the_template_adds_its_own_special_tokens_once() -> None:
    """A tokenizer that puts <s> in front does so for plain text; a template that writes <s> must not get a second."""
    from tokenizers.processors import TemplateProcessing

    made = tokenizer("<s> " + chat.TEMPLATE)
    made.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    one = Encoder(made, LIMIT)
    assert as_lists(one.rows(SEA)) == [[2, *chatted(SEA)]]
    assert as_lists(one.rows(SEA, chat=False)) == [[2, *ids(SEA)]]
    [row] = one.rows(SEA, ["blue"], chat=False)
    assert list(row.ids) == [2, *ids(SEA), *ids("blue")], "none in front of the response"


def test_responses() -> None:
    rows = encoder().rows([SEA, MOON], ["blue and grey", "sings"])
    assert [list(row.ids) for row in rows] == [chatted(SEA) + ids("blue and grey"), chatted(MOON) + ids("sings")]
    assert [row.prompt for row in rows] == [len(chatted(SEA)), len(chatted(MOON))]
    [row] = encoder().rows(SEA, "blue")
    assert row == Row((*chatted(SEA), *ids("blue")), len(chatted(SEA)))
    [row] = encoder().rows([[9, 10]], ["blue"])
    assert row == Row((9, 10, *ids("blue")), 2)
    for responses, count in ((["blue"], 1), ([], 0), (["blue"] * 3, 3)):
        with pytest.raises(InputError, match=f"{count} responses for 2 prompts: give one for each"):
            encoder().rows([SEA, MOON], responses)
    with pytest.raises(InputError, match="1 responses for 2 prompts"):
        encoder().rows([SEA, MOON], "blue")


def test_the_callers_prompts_stay_as_they_were() -> None:
    turns = [dict(turn) for turn in CHAT]
    rows, mapping = [[9, 10]], {"input_ids": torch.tensor([[9, 10]])}
    for prompts in (turns, rows, mapping):
        encoder().rows(prompts, ["blue"])
    assert turns == CHAT and rows == [[9, 10]] and mapping["input_ids"].tolist() == [[9, 10]]


def test_turn_end() -> None:
    assert str(encoder().turn_end()).strip() == "<end> <assistant>"
    assert plain().turn_end() is None
    assert Encoder(tokenizer("{% for turn in messages %}{{ turn.content }}{% endfor %}"), LIMIT).turn_end() is None


# -- what every prompt begins with -----------------------------------------------------------------------------------


def with_bos(template: str | None = None) -> Encoder:
    """An encoder whose tokenizer puts <s> in front of plain text, and </s> behind it."""
    from tokenizers.processors import TemplateProcessing

    made = tokenizer(template)
    ends = [("<s>", 2), ("</s>", 3)]
    made.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return Encoder(made, LIMIT)


SYSTEM = "<system> calm and cold <end> " + chat.TEMPLATE

PREFIXES: dict[str, tuple[Encoder, int]] = {
    "a template's opening": (encoder(), 1),
    "nothing, where strings are no turns": (encoder(chat=False), 0),
    "nothing, without a template": (plain(), 0),
    "bos": (with_bos(), 1),
    "bos is the template's own": (with_bos("<s> " + chat.TEMPLATE), 2),
    "a system turn that the template puts first": (Encoder(tokenizer(SYSTEM), LIMIT), 6),
    "no tokenizer": (Encoder(None, LIMIT), 0),
}


@pytest.mark.parametrize("case", PREFIXES)
def test_prefix(case: str) -> None:
    one, wanted = PREFIXES[case]
    assert one.prefix() == wanted
    if one.tokenizer is not None:
        (first,), (other,) = as_lists(one.rows(SEA)), as_lists(one.rows("a " + MOON))
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, other, strict=False))
        assert len(list(same)) == wanted, "as two prompts that begin differently have in common"


def test_the_prefix_of_plain_text_where_there_is_a_template() -> None:
    both = with_bos("<s> " + chat.TEMPLATE)
    assert (both.prefix(), both.prefix(chat=True), both.prefix(chat=False)) == (2, 2, 1)
    assert encoder(chat=False).prefix(chat=True) == 1
    with pytest.raises(TemplateError, match="no chat template"):
        plain().prefix(chat=True)


def test_a_token_that_joins_the_opening_and_the_text_is_no_prefix() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    letters = {letter: i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz:")}
    joined = Tokenizer(models.BPE({**letters, ":i": len(letters)}, [(":", "i")]))
    made = PreTrainedTokenizerFast(tokenizer_object=joined)
    made.chat_template = "say:{{ messages[0].content }}"
    assert Encoder(made, None).prefix() == len("say")
    made.chat_template = "say:a{{ messages[0].content }}"
    assert Encoder(made, None).prefix() == len("say:a")


def test_without_a_limit() -> None:
    long = " ".join(["sea"] * (LIMIT + 1))
    for one in (encoder(), encoder(chat=False), Encoder(tokenizer(), LIMIT, vocabulary=10)):
        free = one.without_limit()
        assert free.limit is None and one.limit == LIMIT
        assert free.chat == one.chat and free.tokenizer is one.tokenizer and free.vocabulary == one.vocabulary
    assert as_lists(encoder().without_limit().rows(long)) == [chatted(long)]


# -- prompts that cannot be ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nothing", [[], (), torch.zeros(0, 3, dtype=torch.long)])
def test_no_prompts(nothing: Any) -> None:
    with pytest.raises(InputError, match="list of prompts is empty: give at least one"):
        encoder().rows(nothing)


@pytest.mark.parametrize(
    ("prompts", "index"),
    [
        ("", 0),
        ([SEA, ""], 1),
        ([[9], []], 1),
        ([[]], 0),
        (torch.zeros(2, 0, dtype=torch.long), 0),
        ({"input_ids": [[9, 10], [11, 12]], "attention_mask": [[1, 1], [0, 0]]}, 1),
    ],
)
def test_an_empty_prompt_is_named(prompts: Any, index: int) -> None:
    with pytest.raises(InputError, match=f"prompt {index} has no tokens"):
        encoder(chat=False).rows(prompts)


def test_a_prompt_longer_than_the_context() -> None:
    long = " ".join(["sea"] * (LIMIT + 1))
    for prompts in ([SEA, long], [[9], [9] * (LIMIT + 1)]):
        with pytest.raises(InputError, match=r"prompt 1 has 65 tokens, and the model's context holds 64: shorten it"):
            plain().rows(prompts)
    with pytest.raises(InputError, match="prompt 0 has 65 tokens"):
        plain().rows([" ".join(["sea"] * 60)], ["blue blue blue blue blue"])
    assert len(plain().rows([[9] * LIMIT])) == 1
    assert len(Encoder(tokenizer(), None).rows([[9] * 1000])) == 1
    with pytest.raises(InputError, match="context holds 64"):
        chat.wrapped("gpt2").forward([[9] * (LIMIT + 1)])


def test_a_chat_without_a_template() -> None:
    remedy = r"no chat template: give plain strings with chat=False, or set tokenizer\.chat_template"
    for call in (lambda: plain().rows(CHAT), lambda: plain().rows([CHAT]), lambda: plain().rows(SEA, chat=True)):
        with pytest.raises(TemplateError, match=remedy):
            call()
    with pytest.raises(InputError):
        plain().rows(CHAT)


def test_a_chat_that_the_template_refuses() -> None:
    strict = tokenizer(
        "{% if messages[0].role != 'user' %}{{ raise_exception('the user speaks first') }}{% endif %}" + chat.TEMPLATE
    )
    with pytest.raises(TemplateError, match=r"refuses .*calm.*the user speaks first"):
        Encoder(strict, LIMIT).rows(CHAT)
    with pytest.raises(TemplateError, match="refuses"):
        Encoder(tokenizer("{% for %}"), LIMIT).rows(CHAT)


@pytest.mark.parametrize(
    ("prompts", "match"),
    [
        (None, "not NoneType"),
        (5, "not int"),
        ([SEA, None], "prompt 1 is None"),
        ([SEA, 5], "prompt 1 is 5"),
        ([[9, "sea"]], r"prompt 0 is \[9, 'sea'\]"),
        ([{"content": "sea"}], r"prompt 0 is \{'content': 'sea'\}"),
        ([[9.0, 10.0]], r"prompt 0 is \[9\.0, 10\.0\]"),
        ([True, False], "prompt 0 is True"),
        (torch.rand(2, 3), r"int tensor .*float32 \[2, 3\]"),
        (torch.zeros(2, 3, 4, dtype=torch.long), r"\[2, 3, 4\]"),
        ({"input_ids": torch.rand(2, 3)}, "float32"),
        ({"ids": [[1]]}, "not dict"),
        ([torch.tensor([9, 10])], r"prompt 0 is tensor\(\[ 9, 10\]\)"),
    ],
)
def test_what_is_no_prompt(prompts: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        encoder().rows(prompts)


def test_a_mask_of_another_shape() -> None:
    with pytest.raises(InputError, match=r"attention_mask.*\[1, 3\].*\[1, 2\]"):
        encoder().rows({"input_ids": torch.tensor([[9, 10]]), "attention_mask": torch.tensor([[1, 1, 0]])})


@pytest.mark.parametrize("bad", [-1, len(chat.VOCABULARY)])
def test_ids_outside_of_the_vocabulary(bad: int) -> None:
    model = chat.wrapped("llama")
    with pytest.raises(InputError, match=rf"prompt 1 .*{bad}.*62"):
        model.forward([[9, 10], [9, bad]])


def test_text_without_a_tokenizer() -> None:
    bare = Encoder(None, LIMIT)
    assert as_lists(bare.rows([[9, 10]])) == [[9, 10]]
    for prompts in (SEA, [SEA]):
        with pytest.raises(ModelError, match="no tokenizer: give rows of ids, or load it with tokenizer="):
            bare.rows(prompts)
    with pytest.raises(ModelError, match="no tokenizer"):
        bare.rows([[9, 10]], ["blue"])
    with pytest.raises(TemplateError, match="no chat template"):
        bare.rows(CHAT)


# -- batches ---------------------------------------------------------------------------------------------------------

lengths_ = st.lists(st.integers(1, 30), min_size=1, max_size=40)


def rows_of(lengths: list[int]) -> list[Row]:
    return [Row(tuple(range(1, n + 1)), n) for n in lengths]


@given(lengths=lengths_, budget=st.integers(1, 100))
def test_batches_are_a_partition_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = plan_batches(rows_of(lengths), budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(lengths[i] for i in batch)
        assert batch and (padded <= budget or len(batch) == 1)


@given(lengths=lengths_, budget=st.integers(1, 100))
def test_batches_are_few_and_of_like_lengths(lengths: list[int], budget: int) -> None:
    batches = plan_batches(rows_of(lengths), budget)
    assert batches == plan_batches(rows_of(lengths), budget), "a resumed read plans the same"
    spans = [(min(lengths[i] for i in b), max(lengths[i] for i in b)) for b in batches]
    assert all(high >= other for (low, high), (_, other) in itertools.pairwise(spans)), "longest first"
    assert all(low >= other for (low, _), (_, other) in itertools.pairwise(spans)), "lengths do not overlap"
    for batch, after in itertools.pairwise(batches):
        padded = (len(batch) + 1) * max(lengths[i] for i in [*batch, after[0]])
        assert padded > budget, "no batch could have taken the next row"


@given(lengths=lengths_, responses=st.lists(st.integers(0, 5), min_size=40, max_size=40))
def test_padding(lengths: list[int], responses: list[int]) -> None:
    rows = [Row(tuple(range(1, n + 1)), max(1, n - r)) for n, r in zip(lengths, responses, strict=False)]
    for side in ("right", "left"):
        batch = pad(rows, 77, torch.device("cpu"), side)
        longest = max(lengths)
        assert batch.ids.shape == batch.mask.shape == batch.positions.shape == (len(rows), longest)
        marked = any(row.prompt < len(row.ids) for row in rows)
        assert (batch.prompt is not None) == marked
        for i, row in enumerate(rows):
            n = len(row.ids)
            room = longest - n
            real = slice(room, None) if side == "left" else slice(0, n)
            fill = slice(0, room) if side == "left" else slice(n, None)
            assert batch.ids[i, real].tolist() == list(row.ids) and (batch.ids[i, fill] == 77).all()
            assert batch.mask[i, real].all() and not batch.mask[i, fill].any()
            assert batch.positions[i, real].tolist() == list(range(n)) and not batch.positions[i, fill].any()
            if batch.prompt is not None:
                wanted = [k < row.prompt for k in range(n)]
                assert batch.prompt[i, real].tolist() == wanted and not batch.prompt[i, fill].any()
