"""Asked and Question against whole forwards of naive ids, and each quantity against its formula."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.attribute.asking import BASE as BLANK
from tests.attribute.asking import asked
from tests.interventions import tiny
from tests.model import families
from torch import Tensor

import inlay
from inlay.attribute.asked import Asked
from inlay.attribute.question import Projection
from inlay.interventions import Add, Edit

PROMPTS = [[5, 9, 17, 33, 2, 8, 30], [4, 3, 21, 6], [8, 8, 31, 7, 11, 30, 4, 12, 3]]


def ask(model: Any, prompts: Any = PROMPTS, **options: Any) -> Asked:
    return asked(model, prompts, **({} if options else {"target": None}), **options)


def build(family: str) -> Any:
    return tiny.FAMILIES[family]() if family in tiny.FAMILIES else families.build(family, attention=None)


def last(hf: Any, ids: Sequence[int]) -> Tensor:
    """Logits behind the last token of one row alone, without a cache, float64 [V]."""
    with torch.no_grad():
        return hf(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, -1].double()


def blanked(ids: Sequence[int], dropped: Tensor) -> list[int]:
    return [BLANK if gone else token for token, gone in zip(ids, dropped.tolist(), strict=False)]


def sets(length: int, seed: int = 0) -> Tensor:
    """None, each token alone, all, and random ones, bool [k, length]."""
    made = torch.Generator().manual_seed(seed)
    some = torch.rand(6, length, generator=made) < 0.4
    none = torch.zeros(1, length, dtype=torch.bool)
    return torch.cat([none, torch.eye(length, dtype=torch.bool), ~none, some])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral"])
def test_without_equals_whole_forwards_of_other_ids(family: str) -> None:
    hf = build(family)
    given = ask(inlay.load(hf), target=[1, 2, 3], foil=5)
    for row, ids in enumerate(PROMPTS):
        dropped = sets(len(ids), row)
        wide = torch.nn.functional.pad(dropped, (0, given.longest - len(ids)))
        want = torch.stack([(logits := last(hf, blanked(ids, one)))[row + 1] - logits[5] for one in dropped])
        torch.testing.assert_close(given.without(row, wide), want, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("batch_tokens", [1, 25])
def test_without_is_the_same_in_chunks_of_any_size(family: str, batch_tokens: int) -> None:
    model = inlay.load(build(family))
    dropped = sets(9)
    want = ask(model, target=1).without(2, dropped)
    found = ask(model, batch_tokens=batch_tokens, target=1).without(2, dropped)
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", families.FAMILIES)
def test_without_from_a_shared_beginning_equals_whole_forwards_in_every_family(family: str) -> None:
    hf = build(family)
    given = ask(inlay.load(hf), batch_tokens=1, target=[[1, 2, 3]] * 3)
    for row, ids in enumerate(PROMPTS):
        dropped = sets(len(ids), row)
        want = torch.stack([last(hf, blanked(ids, one)).log_softmax(-1)[1:4].logsumexp(0) for one in dropped])
        found = given.without(row, torch.nn.functional.pad(dropped, (0, given.longest - len(ids))))
        torch.testing.assert_close(found, want, rtol=1e-4, atol=5e-5)


def test_an_edit_in_force_acts_at_its_tokens_of_the_whole_row() -> None:
    hf = tiny.llama()
    model = inlay.load(hf)
    given = ask(model, batch_tokens=1, target=1)
    dropped = sets(9)
    push = torch.randn(tiny.WIDTH, generator=torch.Generator().manual_seed(1))

    def at_last(h: Tensor) -> Tensor:
        return torch.cat([h[:, :-1], h[:, -1:] + push], 1)

    with model.edited(Edit("resid_post.0", Add(push), tokens="last")):
        found = given.without(2, dropped)
    with tiny.hook(tiny.block(hf, 0), at_last):
        want = torch.stack([last(hf, blanked(PROMPTS[2], one)).log_softmax(-1)[1] for one in dropped])
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)


def test_copies_that_begin_alike_share_the_run_of_their_beginning() -> None:
    hf = tiny.llama()
    given = ask(inlay.load(hf), [[5, 9, 17, 33, 2, 8]], target=1)
    dropped = torch.zeros(3, 6, dtype=torch.bool)
    dropped[0, 4] = dropped[1, 5] = dropped[2, 4:] = True
    _ = given.base  # read from the table before the count
    seen = []
    handle = tiny.block(hf, 0).register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[:2].numel()))
    given.without(0, dropped)
    handle.remove()
    assert seen == [1, 4, 3 * 2]  # a token to look at the cache, the beginning, and what differs


def test_many_copies_are_run_in_parts_that_begin_late() -> None:
    hf = tiny.llama()
    given = ask(inlay.load(hf), [list(range(8, 28))], target=1)
    dropped = torch.eye(20, dtype=torch.bool)  # one token in each copy
    _ = given.base
    seen = []
    handle = tiny.block(hf, 0).register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[:2].numel()))
    found = given.without(0, dropped)
    handle.remove()
    assert seen == [1, 15, 5 * 5, 10, 5 * 10, 5, 5 * 15, 5 * 20]  # 271 tokens in place of 400
    want = torch.stack([last(hf, blanked(range(8, 28), one)).log_softmax(-1)[1] for one in dropped])
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)


def test_a_read_before_what_is_dropped_is_still_run() -> None:
    hf = tiny.llama()
    ids = PROMPTS[0]
    given = ask(inlay.load(hf), [ids], target=1, at=2)
    dropped = torch.zeros(2, len(ids), dtype=torch.bool)
    dropped[:, 5] = True
    dropped[1, 1] = True
    want = torch.stack([last(hf, blanked(ids[:3], one)).log_softmax(-1)[1] for one in dropped])
    torch.testing.assert_close(given.without(0, dropped), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral"])
def test_values_of_a_batch_are_those_of_its_rows_alone(family: str) -> None:
    hf = build(family)
    model = inlay.load(hf)
    given = ask(model, target=[1, 2, 3])
    with torch.no_grad():
        found, base = given.values([0, 1, 2]), given.values([0, 1, 2], given.base)
    for row, ids in enumerate(PROMPTS):
        want = last(hf, ids).log_softmax(-1)[row + 1]
        torch.testing.assert_close(found[row].double(), want, rtol=1e-4, atol=1e-5)
        want = last(hf, [BLANK] * len(ids)).log_softmax(-1)[row + 1]
        torch.testing.assert_close(base[row].double(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("at", [-1, 1])
def test_a_projection_is_the_component_of_a_state(at: int) -> None:
    hf = tiny.llama()
    vector = torch.randn(tiny.WIDTH, generator=torch.Generator().manual_seed(0))
    given = ask(inlay.load(hf), target=Projection("resid_post.1", vector), at=at)
    found = given.values([0, 1, 2])
    dropped = sets(4)
    without = given.without(1, torch.nn.functional.pad(dropped, (0, 5)))
    for row, ids in enumerate(PROMPTS):
        torch.testing.assert_close(found[row], tiny.states(hf, [ids], 1)[0, at] @ vector)
    want = [tiny.states(hf, [blanked(PROMPTS[1], one)], 1)[0, at] @ vector for one in dropped]
    torch.testing.assert_close(without.float(), torch.stack(want))


@pytest.mark.parametrize(("at", "behind"), [("last", -1), ("response[0:1]", 0)])
def test_a_projection_may_be_read_in_a_response(at: str, behind: int) -> None:
    hf = tiny.llama()
    vector = torch.randn(tiny.WIDTH, generator=torch.Generator().manual_seed(0))
    model = inlay.load(hf, tokenizer=tiny.words())
    target = Projection("resid_post.1", vector)
    given = ask(model, tiny.text(PROMPTS), responses=tiny.text(RESPONSES), target=target, at=at)
    found = given.values([0, 1, 2])
    for row, (ids, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        torch.testing.assert_close(found[row], tiny.states(hf, [[*ids, *response]], 1)[0, len(ids) + behind] @ vector)


def p(logits: Tensor) -> Tensor:
    return logits.exp() / logits.exp().sum()


FORMULAS = {
    "logit": lambda z, clean: (z[3] + z[7]) / 2,
    "logprob": lambda z, clean: (p(z)[3] + p(z)[7]).log(),
    "prob": lambda z, clean: p(z)[3] + p(z)[7],
    "logit_diff": lambda z, clean: (z[3] + z[7]) / 2 - z[5],
    "prob_diff": lambda z, clean: p(z)[3] + p(z)[7] - p(z)[5],
    "entropy": lambda z, clean: -(p(z) * p(z).log()).sum(),
    "kl": lambda z, clean: (p(clean) * (p(clean) / p(z)).log()).sum(),
}


@pytest.mark.parametrize("quantity", FORMULAS)
def test_quantities_are_their_formulas(quantity: str) -> None:
    hf = tiny.llama()
    options: dict[str, Any] = {"quantity": quantity}
    if quantity not in ("entropy", "kl"):
        options["target"] = [[3, 7]] * 3
    if quantity.endswith("_diff"):
        options["foil"] = 5
    given = ask(inlay.load(hf), **options)
    for row, ids in enumerate(PROMPTS):
        clean = last(hf, ids)
        dropped = sets(len(ids))
        found = given.without(row, torch.nn.functional.pad(dropped, (0, 9 - len(ids))))
        want = torch.stack([FORMULAS[quantity](last(hf, blanked(ids, one)), clean) for one in dropped])
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)


def test_without_a_target_the_likeliest_token_is_fixed_beforehand() -> None:
    hf = tiny.llama()
    given = ask(inlay.load(hf))
    for row, ids in enumerate(PROMPTS):
        token = int(last(hf, ids).argmax())
        assert given.question.target[row] == str(token)
        found = given.values([row], given.base[[row]])
        want = last(hf, [BLANK] * len(ids)).log_softmax(-1)[token]
        torch.testing.assert_close(found[0].double(), want, rtol=1e-4, atol=1e-5)


RESPONSES = [[6, 7, 8], [9], [10, 11]]


def logprobs(hf: Any, ids: Sequence[int], response: Sequence[int]) -> list[Tensor]:
    """The log-probability of each token of a response, each by a forward of its own."""
    whole = [*ids, *response]
    starts = range(len(ids), len(whole))
    return [last(hf, whole[:start]).log_softmax(-1)[whole[start]] for start in starts]


def test_a_response_is_the_sum_of_its_tokens() -> None:
    hf = tiny.llama()
    model = inlay.load(hf, tokenizer=tiny.words())
    given = ask(model, tiny.text(PROMPTS), responses=tiny.text(RESPONSES))
    found = given.values([0, 1, 2])
    for row, (ids, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        torch.testing.assert_close(
            found[row].double(), torch.stack(logprobs(hf, ids, response)).sum(), rtol=1e-5, atol=0
        )
    dropped = torch.zeros(2, given.longest, dtype=torch.bool)
    dropped[0, 6] = dropped[1, 7] = True  # the last of the prompt, and the response's own first token
    want = []
    for one in dropped:
        ids = blanked([*PROMPTS[0], *RESPONSES[0]], one)
        want.append(torch.stack([last(hf, ids[: 7 + i]).log_softmax(-1)[t] for i, t in enumerate(RESPONSES[0])]).sum())
    torch.testing.assert_close(given.without(0, dropped), torch.stack(want), rtol=1e-5, atol=1e-5)


def test_per_step_each_token_of_a_response_is_asked_about_the_text_before_it() -> None:
    hf = tiny.llama()
    model = inlay.load(hf, tokenizer=tiny.words())
    given = ask(model, tiny.text(PROMPTS), responses=tiny.text(RESPONSES), per_step=True)
    assert given.question.steps == ((0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1))
    found = given.values(range(6))
    for index, (row, step) in enumerate(given.question.steps):
        assert list(given.rows[index].ids) == [*PROMPTS[row], *RESPONSES[row][:step]]
        want = logprobs(hf, PROMPTS[row], RESPONSES[row])[step]
        torch.testing.assert_close(found[index].double(), want, rtol=1e-5, atol=0)
