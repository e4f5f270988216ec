"""Attention weights, rollout and value zeroing against the model's own weights and against hooks on its values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from tests.attribute.asking import asked
from tests.interventions import tiny
from tests.model import families
from torch import Tensor

import inlay
from inlay.attribute import attention as subject
from inlay.attribute.asked import Asked
from inlay.attribute.attention import attention, rollout, value_occlusion, value_zeroing
from inlay.attribute.question import Projection
from inlay.errors import InputError, SiteError

PROMPTS = [[5, 9, 17, 33, 2, 8, 30], [4, 3, 21, 6], [8, 8, 31, 7, 11, 30, 4, 12, 3]]
FAST = ["llama", "gpt2", "gemma2", "mistral"]  # grouped heads; one fused map; window and soft-cap; window
SLOW = ["mixtral", "gpt_oss", "gemma3", "qwen3", "phi3", "gpt_neox", "bloom", "cohere2", "opt"]


def both(fast: Sequence[Any], slow: Sequence[Any]) -> list[Any]:
    return [*fast, *(pytest.param(one, marks=pytest.mark.slow) for one in slow)]


def ask(hf: Any, prompts: Any = PROMPTS, target: Any = 1, **options: Any) -> Asked:
    return asked(inlay.load(hf), prompts, target=target, **options)


def weights(family: str, ids: list[int]) -> Tensor:
    """The family's own attention weights of one row alone, float64 [layers, heads, T, T]."""
    with torch.no_grad():
        found = families.build(family)(input_ids=torch.tensor([ids]), output_attentions=True, use_cache=False)
    return torch.cat(found.attentions).double()


def product(maps: Tensor) -> Tensor:
    """Rollout by hand, from weights [layers, heads, T, T] to [T, T]."""
    total = torch.eye(maps.shape[-1], dtype=torch.float64)
    for one in maps.mean(1):
        mixed = 0.5 * one + 0.5 * torch.eye(len(one))
        total = (mixed / mixed.sum(-1, keepdim=True)) @ total
    return total


def same(found: Tensor, want: Callable[[list[int]], Tensor], prompts: Any = PROMPTS, **tolerance: float) -> None:
    """Each row's scores are `want` of its ids, and 0 on padding."""
    assert found.shape == (len(prompts), max(map(len, prompts)))
    for row, ids in enumerate(prompts):
        torch.testing.assert_close(
            found[row, : len(ids)].double(), want(ids), **(tolerance or {"rtol": 1e-4, "atol": 1e-6})
        )
        assert not found[row, len(ids) :].any()


# -- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", both(FAST, SLOW))
def test_rollout_is_the_product_of_the_models_own_weights(family: str) -> None:
    found = rollout(ask(families.build(family, attention=None)))
    same(found, lambda ids: product(weights(family, ids))[-1])
    torch.testing.assert_close(found.sum(1), torch.ones(3))


@pytest.mark.parametrize("family", both(FAST, SLOW))
def test_weights_of_layers_and_heads_are_the_models_own(family: str) -> None:
    given = ask(families.build(family, attention=None))
    same(attention(given), lambda ids: weights(family, ids)[-1].mean(0)[-1])
    same(attention(given, "pattern.1"), lambda ids: weights(family, ids)[1].mean(0)[-1])
    same(attention(given, "pattern.0.h3"), lambda ids: weights(family, ids)[0, 3, -1])
    same(attention(given, "pattern.-1.h[0,2]"), lambda ids: weights(family, ids)[-1, [0, 2], -1].mean(0))
    same(attention(given, "pattern.*"), lambda ids: weights(family, ids).mean((0, 1))[-1])


def test_even_weights_roll_out_to_their_closed_form() -> None:
    """Keys of 0: all attend evenly, and (A + 1) / 2 is [[1, 0, 0], [1/4, 3/4, 0], [1/6, 1/6, 2/3]] in both layers."""
    hf = tiny.llama(num_hidden_layers=2)
    with torch.no_grad():
        for one in hf.model.layers:
            one.self_attn.k_proj.weight.zero_()
    found = rollout(ask(hf, [[5, 9, 17]]))[0]
    torch.testing.assert_close(found, torch.tensor([23 / 72, 17 / 72, 32 / 72]))


def test_rows_do_not_depend_on_their_batch_nor_on_how_many_layers_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    hf = tiny.llama()
    want = rollout(ask(hf))
    torch.testing.assert_close(rollout(ask(hf, batch_tokens=1)), want)
    monkeypatch.setattr(subject, "_AT_ONCE", 1)
    torch.testing.assert_close(rollout(ask(hf)), want)


def test_only_what_is_scored_has_a_score() -> None:
    hf = tiny.llama()
    whole, part = ask(hf), ask(hf, within="first2")
    for method in (attention, rollout, value_zeroing):
        assert torch.equal(method(part)[:, :2], method(whole)[:, :2])
        assert not method(part)[:, 2:].any()


def test_what_is_asked_about_is_where_the_scores_start() -> None:
    """A target behind the second token, and a response, whose reads are averaged."""
    own = families.build("llama")
    same(rollout(ask(own, at=1)), lambda ids: product(weights("llama", ids))[1])
    response = asked(inlay.load(own, tokenizer=tiny.words()), tiny.text(PROMPTS[:1]), responses=["w6 w7 w8"])
    want = product(weights("llama", [*PROMPTS[0], 6, 7, 8]))[[6, 7, 8]].mean(0)
    torch.testing.assert_close(rollout(response)[0].double(), want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("site", "layers"),
    [("resid_pre.1", 1), ("resid_mid.1", 2), ("resid_post.-2", 2), ("resid_post.2", 3), ("final_norm", 3)],
)
def test_of_a_state_the_layers_below_it_count(site: str, layers: int) -> None:
    given = ask(families.build("llama"), target=Projection(site, torch.ones(families.WIDTH)))
    same(rollout(given), lambda ids: product(weights("llama", ids)[:layers])[-1])
    same(attention(given), lambda ids: weights("llama", ids)[layers - 1].mean(0)[-1])


def test_where_no_weights_can_be_read_the_error_says_so() -> None:
    for method in (attention, rollout):
        with pytest.raises(SiteError, match=r"falcon has no Site 'pattern' \(its attention is computed"):
            method(ask(families.build("falcon_alibi", attention=None)))
    llama = families.build("llama")
    with pytest.raises(InputError, match=r"no attention lies below resid_pre.0"):
        rollout(ask(llama, target=Projection("resid_pre.0", torch.ones(families.WIDTH))))
    with pytest.raises(InputError, match=r"site='z.0' holds no attention weights"):
        attention(ask(llama), "z.0")
    with pytest.raises(SiteError, match=r"layer 7 is out of range"):
        value_zeroing(ask(llama), layer=7)


# -- values ----------------------------------------------------------------------------------------------------------


def drop_value(hf: Any, layer: int, slots: Sequence[int]) -> Any:
    """A bare hook that zeroes the value vectors of some tokens in one block."""
    own = tiny.block(hf, layer)
    module = own.self_attn.v_proj if hasattr(own, "self_attn") else own.attn.c_attn

    def change(output: Tensor) -> Tensor:
        kept = output.clone()
        kept[:, list(slots), -(output.shape[-1] if hasattr(own, "self_attn") else output.shape[-1] // 3) :] = 0
        return kept

    return tiny.hook(module, change)


def mixing(hf: Any, ids: list[int], layer: int) -> Tensor:
    """C [T, T] by hand: cosine distances of a block's output, scaled to lines of sum 1."""
    clean = tiny.states(hf, [ids], layer)[0].double()
    found = torch.zeros(len(ids), len(ids), dtype=torch.float64)
    for slot in range(len(ids)):
        with drop_value(hf, layer, [slot]):
            other = tiny.states(hf, [ids], layer)[0].double()
        found[:, slot] = 1 - torch.cosine_similarity(clean, other, dim=-1)
    return found / found.sum(1, keepdim=True)


@pytest.mark.parametrize("family", both(["llama", "gemma2"], ["gpt2", "mistral"]))
@pytest.mark.parametrize("batch_tokens", both([10], [8192]))
def test_value_zeroing_is_the_turn_of_a_blocks_output(family: str, batch_tokens: int) -> None:
    hf = tiny.FAMILIES[family]() if family in tiny.FAMILIES else families.build(family, attention=None)
    given = ask(hf, PROMPTS[1:], batch_tokens=batch_tokens)
    same(value_zeroing(given, layer=1), lambda ids: mixing(hf, ids, 1)[-1], PROMPTS[1:], rtol=1e-3, atol=2e-5)
    same(
        value_zeroing(given),
        lambda ids: (mixing(hf, ids, 2) @ mixing(hf, ids, 1) @ mixing(hf, ids, 0))[-1],
        PROMPTS[1:],
        rtol=1e-3,
        atol=2e-5,
    )


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("layer", [None, 1])
def test_value_occlusion_is_what_is_lost_with_the_values(family: str, layer: int | None) -> None:
    hf = tiny.FAMILIES[family]()

    def number(ids: list[int], slots: Sequence[int] = ()) -> Tensor:
        with ExitStack() as stack:
            for one in range(3) if layer is None else [layer]:
                stack.enter_context(drop_value(hf, one, slots))
            logits = tiny.plain(hf, [ids])[0, -1].double()
        return logits[1] - logits[2]

    def lost(ids: list[int]) -> Tensor:
        return torch.stack([number(ids) - number(ids, [slot]) for slot in range(len(ids))])

    same(value_occlusion(ask(hf, foil=2, batch_tokens=10), layer), lost, rtol=1e-4, atol=2e-5)
    ids = PROMPTS[0]
    found = value_occlusion(ask(hf, [ids], foil=2, by=[slice(0, 2), [4]]), layer)[0]
    pair, single = (number(ids) - number(ids, slots) for slots in ([0, 1], [4]))
    want = torch.stack([pair / 2, pair / 2, pair * 0, pair * 0, single, pair * 0, pair * 0])
    torch.testing.assert_close(found.double(), want, rtol=1e-4, atol=2e-5)


def test_nothing_is_left_behind() -> None:
    hf = tiny.llama()
    before = tiny.plain(hf, PROMPTS)
    given = ask(hf)
    for method in (attention, rollout, value_zeroing, value_occlusion):
        method(given)
    assert inlay.model.patch.standing() == 0
    assert torch.equal(tiny.plain(hf, PROMPTS), before)
