"""Trained vectors steer tidepool better than difference in means, and RePS' null takes a concept out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import pytest
import torch
from tests.train.steered import chosen, concepts, interval, pairs, scores

import inlay
import inlay.world
from inlay import Add, Bank, Edit, directions
from inlay.bench import ConceptSet
from inlay.train import Example, reft_r1, steering, suppressing, train_bank

pytestmark = pytest.mark.slow
SITE = "resid_post.3"
NAMES = concepts()
ROWS = {name: row for row, name in enumerate(NAMES, 1)}


@lru_cache(maxsize=1)
def setting() -> tuple[inlay.Model, str, dict[str, list[Example]], torch.Tensor]:
    """tidepool, the steered tokens, the examples, and what difference in means reaches on each concept."""
    model = inlay.load("tidepool")
    tokens = f"prompt[{model.encoder.prefix()}:]+response"
    data = {name: pairs(name) for name in NAMES}

    def texts(name: str, side: str) -> list[tuple[str, str]]:
        return [(one.prompt[0]["content"], getattr(one, side)) for one in data[name]]

    found = [directions.diff_mean(model, texts(n, "chosen"), texts(n, "rejected"), site=SITE) for n in NAMES]
    edit = Edit(SITE, Bank([Add(d.vector * d.scale) for d in found]), tokens)
    factors = [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0]
    return model, tokens, data, chosen(scores(model, edit, NAMES, factors, ROWS))


def better(mine: torch.Tensor, theirs: torch.Tensor, what: str) -> tuple[float, float]:
    gains: Sequence[float] = (mine - theirs).tolist()
    low, high = interval(gains)
    print(f"{what} {mine.mean():.3f}, difference in means {theirs.mean():.3f}: gain {low:.3f} to {high:.3f}")
    return low, high


def test_reft_r1_steers_better_than_difference_in_means() -> None:
    model, tokens, data, theirs = setting()
    both = {
        name: [*mine, *(Example(one.prompt, one.rejected, label=0.0) for one in mine)] for name, mine in data.items()
    }
    found = train_bank(model, reft_r1(model, SITE), "reft_r1", both, epochs=12, lr=0.01, batch=6)
    vectors = [found[name].parts[0].intervention.vector.detach() for name in NAMES]
    edit = Edit(SITE, Bank([Add(v) for v in vectors]), tokens)
    mine = chosen(scores(model, edit, NAMES, [8, 12, 16, 20, 24, 32, 40, 50], ROWS))
    assert better(mine, theirs, "ReFT-r1")[0] > 0


def test_reps_steers_better_than_difference_in_means_and_suppresses() -> None:
    model, _, data, theirs = setting()
    found = train_bank(
        model, steering(model, SITE), "reps", data, epochs=12, lr=0.08, batch=6, factors=[2, 4, 6, 8, 10]
    )
    mine = chosen(scores(model, found.edit, NAMES, [1, 2, 3, 4, 6, 8, 10, 14], ROWS))
    assert better(mine, theirs, "RePS")[0] > 0

    world, ask = inlay.world.tidepool(), ConceptSet.load("tidepool").ask
    prompts = [(name, f"{prompt} {ask.format(concept=name)}") for name in NAMES for prompt in world.prompts(6)]
    shares = []
    for edit in (None, suppressing(found.edit)):
        rows = {} if edit is None else {"rows": [ROWS[name] for name, _ in prompts]}
        texts = model.generate([text for _, text in prompts], edit=edit, max_new_tokens=36, do_sample=False, **rows)
        hits = [world.concept_score(name, text) > 0 for (name, _), text in zip(prompts, texts, strict=True)]
        fluent = [world.fluency(text) for text in texts]
        shares.append(torch.tensor(hits).float().view(len(NAMES), -1).mean(1))
        print(f"asked for the concept: said {float(shares[-1].mean()):.3f}, fluency {sum(fluent) / len(fluent):.2f}")
    low, _ = interval((shares[0] - shares[1]).tolist())
    assert low > 0, "fewer replies have the concept under the null"
