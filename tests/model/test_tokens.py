"""Every Tokens spelling, on real forwards, against positions that are worked out row by row in plain Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.model.tiny import WIDTH, frozen, ids_of, padded, rows, words
from torch import Tensor

from inlay import Add, Bank, Edit, Replace, Scale, Source, Swap, Tokens, span
from inlay.errors import EditError, TokensError

Pick = Callable[[list[int], list[int]], list[int]]  # (prompt positions, response positions) -> selected positions


def ends(p: list[int], first: int, last: int) -> list[int]:
    """The first and last tokens of a prompt, as 2404.03592 section 4.1 has it for short ones."""
    n = len(p)
    if n < first + last:
        first, last = min(first, n // 2), min(last, (n + 1) // 2)
    return p[:first] + p[n - last :]


SPELLINGS: dict[str, tuple[Any, Pick]] = {
    "all": ("all", lambda p, r: p + r),
    "prompt": ("prompt", lambda p, r: p),
    "response": ("response", lambda p, r: r),
    "prompt+response": ("prompt+response", lambda p, r: p + r),
    "response[0]": ("response[0]", lambda p, r: r[:1]),
    "response[1:3]": ("response[1:3]", lambda p, r: r[1:3]),
    "response[:2]": ("response[:2]", lambda p, r: r[:2]),
    "response[1:]": ("response[1:]", lambda p, r: r[1:]),
    "prompt[1:3]": ("prompt[1:3]", lambda p, r: p[1:3]),
    "prompt[-2:]": ("prompt[-2:]", lambda p, r: p[-2:]),
    "prompt[:-1]": ("prompt[:-1]", lambda p, r: p[:-1]),
    "prompt[-3:2]": ("prompt[-3:2]", lambda p, r: p[-3:2]),
    "prompt[1]": ("prompt[1]", lambda p, r: [p[1]]),
    "first": ("first", lambda p, r: p[:1]),
    "first2": ("first2", lambda p, r: p[:2]),
    "last": ("last", lambda p, r: p[-1:]),
    "last3": ("last3", lambda p, r: p[-3:]),
    "first4+last4": ("first4+last4", lambda p, r: p[:4] + p[-4:]),
    "ends(2, 1)": ("ends(2, 1)", lambda p, r: ends(p, 2, 1)),
    "ends(1,3)": ("ends(1,3)", lambda p, r: ends(p, 1, 3)),
    "ends(3, 0)": ("ends(3, 0)", lambda p, r: ends(p, 3, 0)),
    "ends(0, 2)+first": ("ends(0, 2)+first", lambda p, r: [*p[:1], *ends(p, 0, 2)]),
    "ends(2, 2)[0:2]": ("ends(2, 2)[0:2]", lambda p, r: [i for i in ends(p, 2, 2) if i < min(2, len(p) // 2)]),
    "ends(2, 2)[2:]": ("ends(2, 2)[2:]", lambda p, r: ends(p, 2, 2)[min(2, len(p) // 2) :]),
    "ends(2, 2)[3]": ("ends(2, 2)[3]", lambda p, r: p[-1:]),
    "ends(2, 2)[2]": ("ends(2, 2)[2]", lambda p, r: [p[-2]] if len(p) > 2 else []),
    "first+response[1:2]": (" first + response[1:2] ", lambda p, r: p[:1] + r[1:2]),
    "prompt_end": ("prompt_end", lambda p, r: p[-1:]),
    "int": (1, lambda p, r: [p[1]]),
    "int as text": ("1", lambda p, r: [p[1]]),
    "-1": (-1, lambda p, r: [p[-1]]),
    "-2": (-2, lambda p, r: [p[-2]]),
    "0+-1": ("0+-1", lambda p, r: [p[0], p[-1]]),
    "[0, 1]": ([0, 1], lambda p, r: [p[0], p[1]]),
    "[0, 1] as tuple": ((0, 1), lambda p, r: [p[0], p[1]]),
    "[0, -1, 1]": ([0, -1, 1], lambda p, r: [p[0], p[-1], p[1]]),
    "slice(1, 3)": (slice(1, 3), lambda p, r: p[1:3]),
    "slice(None, 2)": (slice(None, 2), lambda p, r: p[:2]),
    "slice(-2, None)": (slice(-2, None), lambda p, r: p[-2:]),
    "slice(1, -1)": (slice(1, -1), lambda p, r: p[1:-1]),
}
MODEL = frozen(tokenizer=words(), num_hidden_layers=1)
HF = MODEL.hf


@contextmanager
def seen(module: torch.nn.Module) -> Iterator[list[Tensor]]:
    values: list[Tensor] = []
    handle = module.register_forward_hook(lambda m, a, o: values.append(o))
    try:
        yield values
    finally:
        handle.remove()


@torch.no_grad()
def edited_slots(spec: Any, batch: dict[str, Tensor], prompt: Tensor | None) -> tuple[Tensor, list[int]]:
    """Which slots an Edit changed, bool [R, S], seen by a hook of the test's own; and `touched`."""
    with seen(HF.model.embed_tokens) as values:
        HF(**batch, use_cache=False)
        with MODEL.edited(Edit("embed", Add(torch.ones(WIDTH)), tokens=spec), prompt_mask=prompt) as run:
            HF(**batch, use_cache=False)
    return (values[0] != values[1]).any(-1), run.touched or []


def expected(lengths: list[int], prompts: list[int], pick: Pick, side: str, spec: str) -> Tensor:
    longest = max(lengths)
    mask = torch.zeros(len(lengths), longest, dtype=torch.bool)
    for row, (length, prompt) in enumerate(zip(lengths, prompts, strict=True)):
        start = longest - length if side == "left" else 0
        for position in pick(list(range(prompt)), list(range(prompt, length))):
            mask[row, start + position] = True
        if spec == "all":
            mask[row] = True
    return mask


def prompt_mask(lengths: list[int], prompts: list[int], side: str) -> Tensor:
    longest = max(lengths)
    return torch.tensor(
        [
            [(longest - n if side == "left" else 0) <= s < (longest - n if side == "left" else 0) + p
             for s in range(longest)]
            for n, p in zip(lengths, prompts, strict=True)
        ]
    )  # fmt: skip


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", SPELLINGS)
@settings(max_examples=12)
@example([(3, 2), (6, 4), (1, 1)])
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 5)), min_size=1, max_size=4))
def test_a_spelling_selects_what_it_says(name: str, side: str, shape: list[tuple[int, int]]) -> None:
    spec, pick = SPELLINGS[name]
    prompts, lengths = [p for p, _ in shape], [p + r for p, r in shape]
    batch, mask = padded(rows(*lengths), side), prompt_mask(lengths, prompts, side)
    try:
        want = expected(lengths, prompts, pick, side, name)
    except IndexError:
        row = next(i for i, p in enumerate(prompts) if _short(pick, p, lengths[i]))
        with pytest.raises(TokensError, match=f"out of range in row {row}, whose prompt has {prompts[row]} token"):
            edited_slots(spec, batch, mask)
        return
    real = batch["attention_mask"].bool()
    if not (want & real).any() and not Tokens.parse(spec).optional:
        with pytest.raises(EditError, match="no position was selected"):
            edited_slots(spec, batch, mask)
        return
    got, touched = edited_slots(spec, batch, mask)
    assert torch.equal(got, want)
    assert touched == [int((want & real).sum())]


def _short(pick: Pick, prompt: int, length: int) -> bool:
    try:
        pick(list(range(prompt)), list(range(prompt, length)))
    except IndexError:
        return True
    return False


@pytest.mark.parametrize("side", ["left", "right"])
@settings(max_examples=12)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_without_a_marked_response_everything_is_prompt(side: str, lengths: list[int]) -> None:
    batch = padded(rows(*lengths), side)
    for spec in ("prompt", "last2", "first2+last1"):
        got, _ = edited_slots(spec, batch, None)
        assert torch.equal(got, expected(lengths, lengths, SPELLINGS_OF[spec], side, spec))
    with pytest.raises(EditError, match="all prompt"):
        edited_slots("response", batch, None)


SPELLINGS_OF: dict[str, Pick] = {
    "prompt": lambda p, r: p,
    "last2": lambda p, r: p[-2:],
    "first2+last1": lambda p, r: p[:2] + p[-1:],
}


# -- one meaning -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", [[0, 1], [0, 1, 2], [2], [1, 0]])
def test_a_list_is_that_many_positions_of_every_row(positions: list[int]) -> None:
    batch = padded(rows(4, 6, 5))
    got, touched = edited_slots(positions, batch, None)
    assert [row.nonzero().flatten().tolist() for row in got] == [sorted(positions)] * 3
    assert touched == [3 * len(positions)]


def test_a_tensor_is_each_rows_own_positions() -> None:
    for side, starts in (("right", [0, 0, 0]), ("left", [2, 0, 1])):
        got, _ = edited_slots(torch.tensor([[0], [1], [-1]]), padded(rows(4, 6, 5), side), None)
        found = [row.nonzero().flatten().tolist() for row in got]
        assert found == [[starts[0]], [starts[1] + 1], [starts[2] + 4]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_mask_is_over_slots_and_skips_padding(side: str) -> None:
    lengths = [4, 6, 5]
    batch = padded(rows(*lengths), side)
    mask = torch.rand(3, 6) > 0.4
    got, _ = edited_slots(mask, batch, None)
    assert torch.equal(got, mask & batch["attention_mask"].bool())
    got, _ = edited_slots(mask[:1], batch, None)
    assert torch.equal(got, mask[:1] & batch["attention_mask"].bool())


# -- what belongs to rows follows them through the batches of a read ---------------------------------------------------


@pytest.mark.parametrize("budget", [4, 8, 8192])
@torch.no_grad()
def test_reads_of_per_row_positions(budget: int) -> None:
    prompts = rows(3, 6, 2, 5)
    wanted = torch.tensor([[0, 2], [5, 1], [-1, 0], [3, -1]])
    acts = MODEL.read(prompts, "resid_post.0", tokens=wanted, batch_tokens=budget)
    for k, prompt in enumerate(prompts):
        alone = MODEL.forward([prompt], read="resid_post.0").acts["resid_post.0"][0]
        own = sorted({i % len(prompt) for i in wanted[k].tolist()})
        assert torch.allclose(acts.rows("resid_post.0")[k], alone[own], atol=1e-5)


@pytest.mark.parametrize("budget", [4, 8, 8192])
@torch.no_grad()
def test_reads_under_an_edit_at_per_row_positions(budget: int) -> None:
    prompts = rows(3, 6, 2, 5)
    wanted = [[0], [5], [1], [3]]
    edit = Edit("embed", Replace(torch.ones(WIDTH)), tokens=torch.tensor(wanted))
    acts = MODEL.read(prompts, "embed", edit=edit, batch_tokens=budget)
    for k, prompt in enumerate(prompts):
        alone = MODEL.forward([prompt], read="embed").acts["embed"][0].clone()
        alone[wanted[k]] = 1.0
        assert torch.equal(acts.rows("embed")[k], alone)


@pytest.mark.parametrize("budget", [4, 8, 8192])
@torch.no_grad()
def test_reads_under_an_edit_with_a_source_of_one_row_a_prompt(budget: int) -> None:
    prompts, others = rows(3, 6, 2, 5), rows(3, 6, 2, 5, seed=1)
    acts = MODEL.read(prompts, "embed", edit=Edit("embed", Swap(Source(others))), batch_tokens=budget)
    for k, other in enumerate(others):
        assert torch.equal(acts.rows("embed")[k], MODEL.forward([other], read="embed").acts["embed"][0])


@pytest.mark.parametrize("budget", [4, 8, 8192])
@torch.no_grad()
def test_reads_with_a_row_of_a_bank_and_a_strength_for_each_prompt(budget: int) -> None:
    prompts, v, w = rows(3, 6, 2, 5), torch.randn(WIDTH), torch.randn(WIDTH)
    acts = MODEL.read(
        prompts, "embed", edit=Edit("embed", Bank([Add(v), Add(w)])), rows=[1, 0, 2, 1], strength=[1.0, 5.0, 2.0, -3.0],
        batch_tokens=budget,
    )  # fmt: skip
    for k, change in enumerate((v, 0 * v, 2 * w, -3 * v)):
        alone = MODEL.forward([prompts[k]], read="embed").acts["embed"][0]
        assert torch.allclose(acts.rows("embed")[k], alone + change, atol=1e-6)


@pytest.mark.parametrize("budget", [4, 8, 8192])
@torch.no_grad()
def test_reads_of_a_mask_over_prompts_of_unequal_length(budget: int) -> None:
    prompts = rows(3, 6, 2, 5)
    mask = torch.tensor([[1, 0, 1, 0, 0, 0], [0, 0, 0, 0, 1, 1], [0, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]]).bool()
    acts = MODEL.read(prompts, "embed", tokens=mask, batch_tokens=budget)
    for k, prompt in enumerate(prompts):
        alone = MODEL.forward([prompt], read="embed").acts["embed"][0]
        assert torch.equal(acts.rows("embed")[k], alone[mask[k, : len(prompt)]])


# -- text --------------------------------------------------------------------------------------------------------------


def slots_of(spec: Any, prompts: Any, responses: Any = None, **more: Any) -> list[list[int]]:
    """Positions of every row that an Edit changed, on `model.forward`."""
    with torch.no_grad():
        plain = MODEL.forward(prompts, responses=responses, read="embed", **more)
        edit = Edit("embed", Add(torch.ones(WIDTH)), tokens=spec)
        out = MODEL.forward(prompts, responses=responses, edit=edit, read="embed", **more)
    changed = (plain.acts["embed"] != out.acts["embed"]).any(-1)
    return [row.nonzero().flatten().tolist() for row in changed]


def test_a_chats_ids_are_what_the_positions_below_are_counted_in() -> None:
    ids = MODEL.tokenizer(MODEL.encoder.render([{"role": "user", "content": "the old dog"}]))["input_ids"]
    assert ids == ids_of("<user> the old dog <end> <assistant>")


@pytest.mark.parametrize(
    ("spec", "want"),
    [
        (span("dog"), [[3], [2]]),
        ("span('dog')", [[3], [2]]),
        ('span("old dog")', [[2, 3], [1, 2]]),
        (span("the", -1), [[5], [4]]),
        ("span('the', 1)", [[5], [4]]),
        (span("og se"), [[3, 4], [2, 3]]),
        (span("dog") + "first", [[0, 3], [0, 2]]),
        ("span('dog')+last2", [[3, 5, 6], [2, 4, 5]]),
        ("span('sees the')+0", [[0, 4, 5], [0, 3, 4]]),
    ],
)
def test_spans(spec: Any, want: list[list[int]]) -> None:
    assert slots_of(spec, ["now the old dog sees the boat", "the old dog sees the boat"], chat=False) == [
        sorted(row) for row in want
    ]


def test_a_span_that_a_row_lacks() -> None:
    with pytest.raises(TokensError, match=r"span\('boat'\): row 1 holds the text 0 times"):
        slots_of(span("boat"), ["the boat", "the dog"], chat=False)
    with pytest.raises(TokensError, match="row 0 holds the text 1 times, and occurrence 1"):
        slots_of(span("boat", 1), ["the boat", "boat boat"], chat=False)
    with pytest.raises(TokensError, match="selects nothing"):
        span("")


def test_spans_lie_in_the_prompt_and_never_in_the_response() -> None:
    assert slots_of("span('dog')", ["the dog"], ["dog dog dog"], chat=False) == [[1]]
    with pytest.raises(TokensError, match="row 0 holds the text 0 times"):
        slots_of("span('boat')", ["the dog"], ["boat"], chat=False)


USER = {"role": "user", "content": "the old dog"}
CHATS: list[tuple[Any, int, int]] = [  # a chat, its last user token, its last prompt token
    ([USER], 3, 5),
    ([{"role": "system", "content": "now here"}, USER], 7, 9),
    ([USER, {"role": "assistant", "content": "it sees"}, {"role": "user", "content": "the boat"}], 11, 13),
    ([USER, {"role": "assistant", "content": "it sees"}], 3, 8),
]


@pytest.mark.parametrize("case", range(len(CHATS)))
def test_the_ends_of_a_chat(case: int) -> None:
    chat, inst, end = CHATS[case]
    assert slots_of("inst_end", [chat]) == [[inst]]
    assert slots_of("prompt_end", [chat]) == [[end]]
    assert slots_of("prompt_end+inst_end", [chat], ["now it is"]) == [[inst, end]]


def test_the_ends_of_chats_in_one_batch() -> None:
    chats = [chat for chat, _, _ in CHATS]
    assert slots_of("inst_end", chats) == [[inst] for _, inst, _ in CHATS]
    assert slots_of("prompt_end", chats) == [[end] for _, _, end in CHATS]
    assert slots_of("inst_end", ["the old dog", "a boat"]) == [[3], [2]]  # plain strings are user turns
    assert slots_of("response[1]", ["the old dog", "a boat"], ["now it is", "is it"]) == [[7], [6]]


def test_inst_end_without_a_user_turn() -> None:
    with pytest.raises(TokensError, match="row 0 does not close a user turn"):
        slots_of("inst_end", ["the old dog"], chat=False)
    bare = frozen(tokenizer=words(template=None))
    with pytest.raises(TokensError, match="chat template"):
        bare.forward(["the dog"], edit=Edit("embed", Scale(2.0), tokens="inst_end"))
    with pytest.raises(TokensError, match="no tokenizer"):
        frozen().forward([[9, 10]], edit=Edit("embed", Scale(2.0), tokens="inst_end"))


def test_left_padding_moves_no_span() -> None:
    texts = ["the old dog", "now the old dog sees the boat"]
    batch = padded([ids_of(text) for text in texts], "left")
    got, _ = edited_slots(span("dog"), batch, None)
    assert [row.nonzero().flatten().tolist() for row in got] == [[6], [3]]


# -- spellings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPELLINGS)
def test_text_of_tokens_reads_back(name: str) -> None:
    tokens = Tokens.parse(SPELLINGS[name][0])
    again = Tokens.parse(str(tokens))
    assert again.clauses == tokens.clauses and tokens.storable


@pytest.mark.parametrize(
    ("first", "last", "n", "places"),
    [  # 2404.03592 section 4.1: how many of the first and of the last tokens
        *((7, 7, n, want) for n, want in ((1, (0, 1)), (3, (1, 2)), (5, (2, 3)), (13, (6, 7)), (14, (7, 7)))),
        *((7, 1, n, want) for n, want in ((8, (7, 1)), (13, (7, 1)), (5, (2, 1)))),
        *((3, 0, n, (3, 0)) for n in (3, 4, 5)),
        (0, 1, 1, (0, 1)),
    ],
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_ends_of_short_prompts(first: int, last: int, n: int, places: tuple[int, int], side: str) -> None:
    prompts, lengths = [n, 15], [n + 3, 16]
    batch, mask = padded(rows(*lengths), side), prompt_mask(lengths, prompts, side)
    start = max(lengths) - lengths[0] if side == "left" else 0
    groups = {f"[0:{first}]": (first, range(places[0])), f"[{first}:]": (last, range(n - places[1], n))}
    for group, (size, want) in groups.items():
        if size:
            got, _ = edited_slots(f"ends({first}, {last}){group}", batch, mask)
            assert (got[0].nonzero().flatten() - start).tolist() == list(want)


@torch.no_grad()
def test_places_that_no_prompt_has_are_no_mistake() -> None:
    batch, mask = padded(rows(2, 3), "right"), prompt_mask([2, 3], [1, 1], "right")
    got, touched = edited_slots("ends(2, 2)[0:2]", batch, mask)
    assert touched == [0] and not got.any()
    with pytest.raises(EditError, match="no position was selected"):
        edited_slots("response[2:]", batch, mask)


@pytest.mark.parametrize("text", ["the boat", "it's", 'a "word"', "a + b", "[0:2]", "x, 1"])
@pytest.mark.parametrize("occurrence", [0, 2, -1])
def test_text_of_a_span_reads_back(text: str, occurrence: int) -> None:
    tokens = span(text, occurrence) + "last"
    assert Tokens.parse(str(tokens)).clauses == tokens.clauses


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("", "not understood"),
        ("everything", "not understood"),
        ("last0", "selects nothing"),
        ("last4[1:2]", "not understood"),
        ("prompt4", "not understood"),
        ("prompt[]", "empty range"),
        ("prompt[3:1]", "empty range"),
        ("prompt[-1:-2]", "empty range"),
        ("prompt[a:b]", "not understood"),
        ("prompt[1:2:3]", "no number"),
        ("response[-1]", "counts from the end of a response"),
        ("response[:-1]", "counts from the end of a response"),
        ("all[1:2]", "not understood"),
        ("first+", "not understood"),
        (True, "not a Tokens spec"),
        (None, "not a Tokens spec"),
        (1.5, "not a Tokens spec"),
        ([], "not a Tokens spec"),
        ([0, 1.5], "not a Tokens spec"),
        ([True], "not a Tokens spec"),
        ("ends(0, 0)", "selects nothing"),
        ("ends(2, 2)[4]", "places are 0 to 3"),
        ("ends(2, 2)[3:1]", "places are 0 to 3"),
        ("ends(2, 2)[1:5]", "places are 0 to 3"),
        ("ends(2, 2)[]", "empty range"),
        ("ends(2)", "not understood"),
        ("ends(2, -1)", "not understood"),
        (slice(0, 4, 2), "has no step"),
        (torch.zeros(3, dtype=torch.bool), "bool mask"),
        (torch.zeros(3, 2), "bool mask"),
    ],
    ids=repr,
)
def test_misspelled(spec: Any, match: str) -> None:
    with pytest.raises(TokensError, match=match):
        Tokens.parse(spec)
    with pytest.raises(TokensError, match=match):
        Edit("embed", Scale(2.0), tokens=spec)


def test_a_tensor_belongs_to_one_batch() -> None:
    assert not Tokens.parse(torch.tensor([[0]])).storable
    with pytest.raises(TokensError, match="2 rows for a batch of 3"):
        edited_slots(torch.tensor([[0], [1]]), padded(rows(4, 6, 5)), None)
    with pytest.raises(TokensError, match="the mask covers 4 slots, the prompt 6"):
        edited_slots(torch.ones(3, 4, dtype=torch.bool), padded(rows(4, 6, 5)), None)


@pytest.mark.parametrize("position", [4, -5, [0, 4], "prompt[4]", "first+-5"])
def test_out_of_range_names_the_row(position: Any) -> None:
    with pytest.raises(TokensError, match="out of range in row 1, whose prompt has 4 tokens"):
        edited_slots(position, padded(rows(6, 4, 5)), None)
    with pytest.raises(TokensError, match="row 1"):
        MODEL.read(rows(6, 4, 5), "embed", tokens=position)
    with pytest.raises(TokensError, match="row 1"):
        MODEL.generate(rows(6, 4, 5), edit=Edit("embed", Scale(2.0), tokens=position), max_new_tokens=2)
