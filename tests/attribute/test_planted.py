"""A model that learnt a task with known evidence: which methods find it.

20 tokens: 1 to 4 of them name the answer, each alone enough; the others are noise, and the last is the query. What is
redundant is what single erasures and plain gradients miss. 15 % of the tokens are blanked in training, so that the
baseline is no strange input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import inlay
from inlay.attribute.asked import Asked
from inlay.attribute.backward import backward_rules
from inlay.attribute.baselines import baselines
from inlay.attribute.features import features
from inlay.attribute.gradients import times_change
from inlay.attribute.metrics import erasure, evidence
from inlay.attribute.metrics.games import game_of
from inlay.attribute.question import question

pytestmark = pytest.mark.slow

QUERY, BLANK, ANSWERS, NOISE, LENGTH, VOCABULARY = 0, 1, (10, 11), 12, 20, 40
ROWS, STEPS, BATCH = 256, 260, 64


@dataclass(frozen=True)
class Drawn:
    """Rows of the task: ids [n, 20], the class of each [n] and where its evidence is, bool [n, 20]."""

    ids: Tensor
    label: Tensor
    evidence: Tensor


def draw(count: int, drawn: torch.Generator) -> Drawn:
    """Class A is named by tokens 2 to 5 and B by 6 to 9."""
    ids = torch.randint(NOISE, VOCABULARY, (count, LENGTH), generator=drawn)
    label = torch.randint(2, (count,), generator=drawn)
    many = torch.randint(1, 5, (count, 1), generator=drawn)
    place = torch.rand(count, LENGTH - 1, generator=drawn).argsort(1).argsort(1)
    mask = torch.cat([place < many, torch.zeros(count, 1, dtype=torch.bool)], 1)
    named = torch.randint(2, 6, (count, LENGTH), generator=drawn) + 4 * label[:, None]
    ids = torch.where(mask, named, ids)
    ids[:, -1] = QUERY
    return Drawn(ids, label, mask)


@pytest.fixture(scope="module")
def trained() -> inlay.Model:
    torch.manual_seed(0)
    drawn = torch.Generator().manual_seed(0)
    hf = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    optimiser = torch.optim.AdamW(hf.parameters(), lr=4e-3, weight_decay=0.01)
    answers = torch.tensor(ANSWERS)
    for _ in range(STEPS):
        batch = draw(BATCH, drawn)
        blank = torch.rand(batch.ids.shape, generator=drawn) < 0.15
        blank[:, -1] = False
        logits = hf(input_ids=batch.ids.masked_fill(blank, BLANK)).logits[:, -1]
        loss = torch.nn.functional.cross_entropy(logits, answers[batch.label])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return inlay.load(hf.eval())


@pytest.fixture(scope="module")
def rows() -> Drawn:
    return draw(ROWS, torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def asked(trained: inlay.Model, rows: Drawn) -> Asked:
    answers = torch.tensor(ANSWERS)
    targets, foils = answers[rows.label].tolist(), answers[1 - rows.label].tolist()
    asks = question(trained, rows.ids.tolist(), target=targets, foil=foils)
    (blank,) = baselines(trained, BLANK, asks.rows)
    return Asked(trained, asks, blank, features(trained, asks.rows, within=slice(0, LENGTH - 1)))


def recall(scores: Tensor, rows: Drawn) -> float:
    """recall@|E|, the mean over the rows; the query is not scored."""
    found = [
        float(evidence.recall(one[None, :-1], truth[:-1])) for one, truth in zip(scores, rows.evidence, strict=True)
    ]
    return sum(found) / len(found)


def by_rules(preset: str) -> Callable[[Asked], Tensor]:
    def score(asked: Asked) -> Tensor:
        with backward_rules(asked.model, preset):
            return times_change(asked)

    return score


def occlusion(asked: Asked) -> Tensor:
    clean = asked.all_values(base=False)
    drop = torch.eye(LENGTH, dtype=torch.bool)
    return torch.stack([clean[row] - asked.without(row, drop).float() for row in range(ROWS)])


def chance(asked: Asked) -> Tensor:
    return torch.rand(ROWS, LENGTH, generator=torch.Generator().manual_seed(2))


def test_it_learnt_the_task(asked: Asked) -> None:
    assert (asked.all_values(base=False) > 0).float().mean() > 0.98


@pytest.mark.parametrize(
    ("method", "low", "high"),
    [
        pytest.param(chance, 0.08, 0.18, id="random"),
        pytest.param(times_change, 0.0, 0.7, id="gradient x input"),
        pytest.param(occlusion, 0.0, 0.8, id="occlusion"),
        pytest.param(by_rules("gim"), 0.95, 1.0, id="gim"),
    ],
)
def test_who_finds_the_evidence(
    asked: Asked, rows: Drawn, method: Callable[[Asked], Tensor], low: float, high: float
) -> None:
    assert low <= recall(method(asked), rows) <= high


def test_the_answer_hangs_on_what_gim_finds(asked: Asked) -> None:
    """The share of the logit difference that is lost without the highest 1 to 6: chance, gradient x input, GIM."""
    scores = [method(asked) for method in (chance, times_change, by_rules("gim"))]
    found = []
    for row in range(64):
        mine = torch.stack([one[row, :-1] for one in scores])
        found.append(erasure.comprehensiveness(game_of([asked], row, asked.features[row]), mine, most=6))
    random, plain, gim = torch.stack(found).mean(0).tolist()
    assert random < 0.15
    assert random < plain < 0.5
    assert gim > 0.65
