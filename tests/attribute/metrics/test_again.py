"""What counts as the same question."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.interventions import tiny

import inlay
from inlay.attribute.baselines import Counterfactual
from inlay.attribute.metrics import faithfulness
from inlay.attribute.question import Projection
from inlay.attribute.token_scores import TokenScores
from inlay.errors import InputError


def test_numbers_that_are_read_elsewhere_are_other_questions() -> None:
    model, (up, down) = inlay.load(tiny.llama()), (torch.ones(32), -torch.ones(32))
    pairs = (
        ("read positions", [{"target": 5}, {"target": 5, "at": 1}]),
        ("function", [{"target": function} for function in (lambda logits: logits[:, 1], lambda logits: logits[:, 2])]),
        ("projection", [{"target": Projection("resid_post.1", vector)} for vector in (up, down)]),
    )
    for said, (one, other) in pairs:
        both = [
            inlay.attribute.tokens(model, tiny.RAGGED, method=method, baseline=20, **options)
            for method, options in (("grad", one), ("gim", other))
        ]
        with pytest.raises(InputError, match=f"other {said}"):
            faithfulness(model, both, ["aopc"])


def test_steps_from_disk_are_asked_again_against_another_response(tmp_path: Path) -> None:
    model = inlay.load(tiny.llama(), tokenizer=tiny.words())
    asked = {"prompts": [[3, 4]], "responses": ["w7 w8"], "per_step": True}
    asked["baseline"] = Counterfactual([[13, 14]], ["w17 w18"])
    made = inlay.attribute.tokens(model, method="grad", **asked)
    made.save(tmp_path / "scores")
    again = faithfulness(model, TokenScores.load(tmp_path / "scores"), ["aopc"], **asked)
    assert torch.equal(again.values, faithfulness(model, made, ["aopc"]).values)


def test_a_size_foresees_no_change() -> None:
    model = inlay.load(tiny.llama())
    some = [inlay.attribute.tokens(model, [[3, 4, 5]], 7, method=m, baseline=20) for m in ("saliency", "grad")]
    found = faithfulness(model, some, ["infidelity"])
    assert found.of("saliency", "infidelity").isnan().all() and not found.of("grad", "infidelity").isnan().any()
