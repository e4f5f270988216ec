"""Concepts trained together are what each is alone: every parameterisation with every objective that suits it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.interventions import tiny
from tests.train.rows import ragged
from torch import Tensor, nn

import inlay
from inlay import Edit, SetAlong
from inlay.train.fit import fit, train_bank
from inlay.train.parameterise import lora, reft, reft_r1, steering

DATA = {
    name: [replace(one, label=float(i % 2)) for i, one in enumerate(ragged(n, seed))]
    for seed, (name, n) in enumerate((("a", 6), ("b", 4), ("c", 3)))
}
WAYS: dict[str, Callable[[inlay.Model], Edit]] = {
    "vector": lambda model: steering(model, "resid_post.1"),
    "vector, dropout": lambda model: steering(model, "resid_post.1", dropout=0.3),
    "LoReFT": lambda model: reft(model, rank=2, layers=[1, 2], tokens="ends(2, 2)", dropout=0.2),
    "LoReFT, ends apart": lambda model: reft(model, rank=2, layers=1, tokens="ends(2, 2)", share="ends"),
    "LoRA": lambda model: lora(model, "o_proj", [1, 2], dropout=0.1),
    "ReFT-r1": lambda model: reft_r1(model, "resid_post.1", k=2),
    "SetAlong": lambda model: Edit("resid_post.1", SetAlong(nn.Parameter(torch.linspace(-1, 1, tiny.WIDTH)))),
}
ANY = ("lm", "reps", "bipo", "dpo", "ipo", "simpo", "apo_zero", "split", "prism", "imitate")
CASES = [
    *((way, goal) for way in ("vector", "LoReFT", "LoRA") for goal in ANY),
    *((way, goal) for way in ("vector, dropout", "LoReFT, ends apart") for goal in ("lm", "reps")),
    ("ReFT-r1", "reft_r1"),
    ("vector", "probe_bce"),
    ("SetAlong", "jsd_match"),
]


def values(edit: Edit) -> list[Tensor]:
    return [p.detach().clone() for p in edit.parameters()]


FAST = ("lm", "reps", "reft_r1", "probe_bce", "jsd_match")


@pytest.mark.parametrize(
    ("way", "goal", "resume"),
    [
        pytest.param(way, goal, resume, marks=() if resume and goal in FAST else pytest.mark.slow)
        for way, goal in CASES
        for resume in (True, False)
    ],
)
def test_together_is_alone(way: str, goal: str, resume: bool) -> None:
    """12, 8 and 6 steps of unequal responses; alone is what the trained Edit of one concept is."""
    settings: dict[str, Any] = {"epochs": 4, "batch": 2, "lr": 0.02, "factors": [0.5, 1.0, 2.0], "resume": resume}
    model = tiny.model()
    together = train_bank(model, WAYS[way](model), goal, DATA, **settings)
    start = values(WAYS[way](model))
    for name, data in DATA.items():
        edit = WAYS[way](model)
        alone = fit(model, edit, goal, data, **settings)
        for mine, theirs in zip(values(together[name]), values(edit), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=5e-5)
        losses = zip(together.log.losses(name), alone.log.losses(), strict=True)
        assert all(abs(a - b) < 1e-4 * max(1.0, abs(b)) for a, b in losses)
        assert max(float((a - b).abs().max()) for a, b in zip(values(edit), start, strict=True)) > 0.01


def test_a_vector_that_detects_keeps_its_length() -> None:
    model = tiny.model()
    found = train_bank(model, reft_r1(model, "resid_post.1", k=2), "reft_r1", DATA, epochs=3, lr=0.05)
    for name in DATA:
        vector = found[name].parts[0].intervention.vector.detach()
        assert abs(float(vector.norm()) - 1) < 1e-6


def test_bases_stay_orthonormal() -> None:
    model = tiny.model()
    edit = reft(model, rank=3, layers=1, tokens="last")
    fit(model, edit, "lm", DATA["a"], epochs=40, batch=3, lr=0.05, weight_decay=0.1)
    basis = edit.parts[0].intervention.basis()
    torch.testing.assert_close(basis.mT @ basis, torch.eye(3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("goal", ["lm", "reps"])
def test_a_half_precision_model_trains_full_precision_parameters(goal: str) -> None:
    model = inlay.load(tiny.llama(dtype=torch.bfloat16))
    edit = steering(model, "resid_post.1").to(torch.bfloat16)
    losses = fit(model, edit, goal, DATA["a"], epochs=30, lr=0.05).log.losses()
    assert all(p.dtype == torch.float32 for p in edit.parameters()) and model.hf.dtype == torch.bfloat16
    assert sum(losses[-5:]) < sum(losses[:5])


def test_autocast_computes_in_half_precision() -> None:
    seen = []
    model = tiny.model()
    model.hf.model.layers[2].self_attn.o_proj.register_forward_hook(lambda _, args, out: seen.append(out.dtype))
    edit = steering(model, "resid_post.1")
    losses = fit(model, edit, "lm", DATA["a"], epochs=30, lr=0.05, autocast="bfloat16").log.losses()
    assert torch.bfloat16 in seen and all(p.dtype == torch.float32 for p in edit.parameters())
    assert losses[-1] < losses[0]
