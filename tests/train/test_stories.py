"""LoReFT beside LoRA with ten times the parameters: stories260K learns to tell its stories excitedly.

The style is every full stop an exclamation mark, in stories of `tinystories_1000.json`. Stories chosen for much
dialogue teach nothing: the model was trained on such, and LoRA takes 0.001 nats off the loss on them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import inlay
from inlay.model.inputs import Row
from inlay.train.examples import Example
from inlay.train.fit import fit
from inlay.train.frozen import Frozen
from inlay.train.parameterise import lora, reft

PROMPT, RESPONSE = 16, 96
STORIES = 420
RATES = (1e-2, 3e-2)


@pytest.fixture(scope="module")
def model(shared: Path) -> inlay.Model:
    return inlay.load(shared / "data/models/stories260K")


@pytest.fixture(scope="module")
def splits(shared: Path, model: inlay.Model) -> tuple[list[Example], list[Example], list[Example]]:
    """Train, validation and test stories: a beginning of 16 tokens, and the 96 that go on."""
    told = json.loads((shared / "data/text/tinystories_1000.json").read_text())[:STORIES]
    assert len(set(told)) == STORIES
    found = []
    for ids in model.encoder.plain([" ".join(story.split()).replace(".", "!") for story in told]):
        if len(ids) >= PROMPT + RESPONSE:
            prompt = [model.tokenizer.bos_token_id, *ids[:PROMPT]]
            found.append(Example(prompt, ids[PROMPT : PROMPT + RESPONSE]))
    fifth = len(found) // 5
    return found[fifth + 40 :], found[fifth : fifth + 40], found[:fifth]


def losses(model: inlay.Model, edit: inlay.Edit | None, data: list[Example]) -> Tensor:
    """The mean cross entropy of each response's tokens, [rows]."""
    frozen = Frozen(model, None)
    numbers = frozen.add([Row((*one.prompt, *one.chosen), len(one.prompt)) for one in data])
    given = {} if edit is None else {"edit": edit}
    with torch.no_grad():
        return -frozen.score(numbers, False, **given).logps / RESPONSE


def best(model: inlay.Model, make: Callable[[], inlay.Edit], splits: Any) -> tuple[inlay.Edit, float]:
    """The Edit of the rate that the validation stories like best, and the rate."""
    train, validation, _ = splits
    found = []
    for rate in RATES:
        edit = make()
        fit(model, edit, "lm", train, lr=rate, epochs=3, batch=16, warmup=0.1)
        found.append((float(losses(model, edit, validation).mean()), edit, rate))
    _, edit, rate = min(found, key=lambda one: one[0])
    return edit, rate


def interval(values: Tensor, resamples: int = 2000) -> tuple[float, float]:
    """The 95 % bootstrap interval of a mean."""
    draws = torch.Generator().manual_seed(0)
    means = values[torch.randint(len(values), (resamples, len(values)), generator=draws)].mean(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high


def count(edit: inlay.Edit) -> int:
    return sum(parameter.numel() for parameter in edit.parameters())


@pytest.mark.slow
def test_half_a_percent_learns_a_style_as_far_as_lora_of_ten_times_that(model: inlay.Model, splits: Any) -> None:
    total = sum(parameter.numel() for parameter in model.hf.parameters())
    frozen = losses(model, None, splits[2])
    edits = {
        "LoReFT, all tokens": lambda: reft(model, "loreft", 2, "all", "all", init="identity"),
        "LoReFT, ends(7, 7)": lambda: reft(model, "loreft", 2, "all", "ends(7, 7)", init="identity"),
        "LoRA": lambda: lora(model, ["q_proj", "k_proj", "v_proj", "o_proj"], "all", 6),
    }
    gains, sizes = {}, {}
    for name, make in edits.items():
        edit, rate = best(model, make, splits)
        gains[name], sizes[name] = frozen - losses(model, edit, splits[2]), count(edit)
        low, high = interval(gains[name])
        print(
            f"{name}: {sizes[name]} parameters ({sizes[name] / total:.2%}), rate {rate:g}: held-out loss "
            f"{frozen.mean():.3f} - {gains[name].mean():.3f} (95 % {low:.3f} to {high:.3f})"
        )
    everywhere, ends, adapter = gains.values()
    low, high = interval(everywhere - adapter)
    print(f"LoReFT's gain less LoRA's, by story: {low:.4f} to {high:.4f}")

    assert sizes["LoReFT, all tokens"] == sizes["LoReFT, ends(7, 7)"] == 5 * 2 * (2 * 64 + 1) < 0.005 * total
    assert sizes["LoRA"] > 10 * sizes["LoReFT, all tokens"]
    assert interval(everywhere)[0] > 0.1 and interval(adapter)[0] > 0.1
    assert low > -0.1 * float(adapter.mean())  # as far as LoRA, less a tenth of what that gains
    assert interval(ends)[0] > 0.5 * float(adapter.mean())  # from the prompt alone
