"""Baselines: what stands for a token that is not there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.attribute.asking import table
from tests.interventions import tiny
from tests.model import tiny as families

import inlay
from inlay import Add, Edit
from inlay.attribute.baselines import Counterfactual, Expected, baselines
from inlay.attribute.score_tokens import tokens
from inlay.errors import BaselineError
from inlay.model.inserted import embeddings, inserted


@pytest.fixture(scope="module")
def model() -> inlay.Model:
    return inlay.load(tiny.llama().requires_grad_(False), tokenizer=tiny.words())


def one(model: inlay.Model, given: Any, prompts: Any = ((3, 4), (5, 6, 7))) -> Any:
    rows = model.encoder.rows([list(prompt) for prompt in prompts])
    (found,) = baselines(model, given, rows)
    return found


def test_each_kind(model: inlay.Model) -> None:
    weight = table(model).weight
    assert torch.equal(one(model, 9).embeds[0, 0], weight[9]) and one(model, 9).name == "'w9'"
    assert torch.equal(one(model, "w9").embeds, one(model, 9).embeds)
    assert torch.equal(one(model, "zero").embeds, torch.zeros(1, 1, tiny.WIDTH))
    torch.testing.assert_close(one(model, "mean").embeds[0, 0], weight.mean(0))
    given = torch.randn(tiny.WIDTH)
    assert torch.equal(one(model, given).embeds[0, 0], given)
    other = one(model, Counterfactual([[9, 8], [7, 6, 5]])).embeds
    assert torch.equal(other[1], weight[[7, 6, 5]]) and torch.equal(other[0, :2], weight[[9, 8]])


def test_a_space_or_what_comes_nearest(model: inlay.Model) -> None:
    space = model.tokenizer(" ", add_special_tokens=False)["input_ids"]
    assert not space, "this tokenizer has no space, so that the pad token stands for it"
    assert torch.equal(one(model, "space").embeds[0, 0], table(model).weight[model.tokenizer.pad_token_id])
    bare = inlay.load(tiny.llama())
    with pytest.raises(BaselineError, match="needs a tokenizer"):
        one(bare, "space")


def test_several_are_averaged(model: inlay.Model) -> None:
    prompts, each = [[3, 4, 5], [6, 7]], []
    for token in (9, 11):
        each.append(tokens(model, prompts, [20, 21], method="grad", baseline=token))
    both = tokens(model, prompts, [20, 21], method="grad", baseline=Expected([9, 11]))
    torch.testing.assert_close(both.scores, (each[0].scores + each[1].scores) / 2, equal_nan=True)
    torch.testing.assert_close(both.m_baseline, (each[0].m_baseline + each[1].m_baseline) / 2)
    assert both.baseline == "mean over 'w9', 'w11'"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("w1 w2", "2 tokens"),
        (64, "ids from 0 to 63"),
        (1.5, "'space', 'zero', 'mean'"),
        (torch.zeros(3), r"give embeddings \[32\]"),
        (Counterfactual([[1, 2]]), "1 counterfactual prompts for 2 rows"),
        (Counterfactual([[1, 2], [3]]), "row 1 has 3 tokens and its counterfactual 1"),
        (Expected([]), "at least one"),
    ],
)
def test_what_is_none(model: inlay.Model, given: Any, said: str) -> None:
    with pytest.raises(BaselineError, match=said):
        one(model, given)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_embeddings_are_those_of_the_table_and_go_where_it_puts_them(family: str) -> None:
    model = families.frozen(family)
    ids = torch.tensor([[9, 10, 11], [12, 13, 14]])
    embeds = embeddings(model, ids)
    assert torch.equal(embeds, table(model)(ids))
    with torch.no_grad():
        plain = model.hf(ids, use_cache=False).logits
        with inserted(model, embeds):
            assert torch.equal(model.hf(torch.full_like(ids, 8), use_cache=False).logits, plain)
        assert torch.equal(model.hf(ids, use_cache=False).logits, plain)


def test_an_edit_of_the_embeddings_acts_once(model: inlay.Model) -> None:
    ids, edit = torch.tensor([[9, 10, 11]]), Edit("embed", Add(torch.ones(tiny.WIDTH)))
    with torch.no_grad(), model.edited(edit):
        wanted = model.hf(ids, use_cache=False).logits
        assert torch.equal(embeddings(model, ids), table(model).weight[ids])
        with inserted(model, table(model).weight[ids]):
            assert torch.equal(model.hf(ids, use_cache=False).logits, wanted)
