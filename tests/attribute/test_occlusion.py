"""Occlusion against forwards of other ids."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.attribute.asking import BASE as BLANK
from tests.attribute.asking import asked
from tests.interventions import tiny
from torch import Tensor

import inlay
from inlay.attribute.asked import Asked
from inlay.attribute.occlusion import occlusion
from inlay.attribute.question import Projection

PROMPTS = [[5, 9, 17, 33, 2], [40, 3, 21], [8, 8, 60, 7, 11, 30, 4]]


def ask(hf: Any, prompts: Any = PROMPTS, **options: Any) -> Asked:
    given = {} if "target" in options else {"target": 1, "foil": 2}
    return asked(inlay.load(hf), prompts, **given, **options)


def number(hf: Any, ids: list[int]) -> Tensor:
    with torch.no_grad():
        logits = hf(input_ids=torch.tensor([ids])).logits[0, -1]
    return logits[1] - logits[2]


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("batch_tokens", [8, 8192])
def test_a_score_is_what_is_lost_with_the_token(family: str, batch_tokens: int) -> None:
    hf = tiny.FAMILIES[family]()
    found = occlusion(ask(hf, batch_tokens=batch_tokens))
    assert found.dtype == torch.float32
    for row, ids in enumerate(PROMPTS):
        lost = [number(hf, ids) - number(hf, [*ids[:i], BLANK, *ids[i + 1 :]]) for i in range(len(ids))]
        torch.testing.assert_close(found[row, : len(ids)], torch.stack(lost), rtol=1e-4, atol=2e-5)
        assert not found[row, len(ids) :].any()


def test_tokens_of_a_group_go_together_and_share_its_score() -> None:
    hf = tiny.llama()
    ids = PROMPTS[2]
    found = occlusion(ask(hf, [ids], within=slice(1, 6), by=[slice(0, 3), [4]]))[0]
    first = number(hf, ids) - number(hf, [8, BLANK, BLANK, *ids[3:]])  # slot 0 is not within
    second = number(hf, ids) - number(hf, [*ids[:4], BLANK, *ids[5:]])
    want = torch.stack([first * 0, first / 2, first / 2, first * 0, second, first * 0, first * 0])
    torch.testing.assert_close(found, want, rtol=1e-4, atol=2e-5)


def test_of_a_state_only_what_lies_before_it_counts() -> None:
    hf = tiny.llama()
    vector = torch.randn(tiny.WIDTH, generator=torch.Generator().manual_seed(0))
    found = occlusion(ask(hf, target=Projection("resid_post.1", vector), at=1))
    for row, ids in enumerate(PROMPTS):
        for slot in range(2):
            other = [*ids[:slot], BLANK, *ids[slot + 1 :]]
            want = (tiny.states(hf, [ids], 1) - tiny.states(hf, [other], 1))[0, 1] @ vector
            torch.testing.assert_close(found[row, slot], want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[row, 2:], torch.zeros(5), rtol=0, atol=1e-6)
