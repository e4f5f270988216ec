"""What counts as the same question."""

from __future__ import annotations

import pytest
import torch
from tests.interventions import tiny

import inlay
from inlay.attribute.metrics import faithfulness
from inlay.attribute.question import Projection
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
