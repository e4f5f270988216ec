"""The judge of a run that is given none."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.bench import small
from tests.model.tiny import frozen, words

from inlay.bench.concept_set import Concept, ConceptSet
from inlay.bench.default_judge import judges_for
from inlay.errors import JudgeError


def test_judges_that_need_no_other_model() -> None:
    assert judges_for(small.model(), small.concepts()).identity()["kind"] == "world"
    tokenizer = words()
    tokenizer.add_tokens(["yes", "no"])  # which a model rates an instruction with
    mine = ConceptSet("mine", (Concept(0, "the sea", lexicon=("oar",)),), (), ())
    identity = judges_for(frozen("llama", tokenizer=tokenizer), mine).identity()
    assert {axis: judge["kind"] for axis, judge in identity["axes"].items()} == {
        "concept": "lexicon",
        "instruction": "logprob",
        "fluency": "logprob",
    }
    with pytest.raises(JudgeError, match="lexicon of 'the sea' is empty"):
        judges_for(small.model(), replace(mine, concepts=(Concept(0, "the sea"),)))
