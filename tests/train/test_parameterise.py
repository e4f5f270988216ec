"""Edits by the names that papers give them: where they act, how many parameters they train, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.interventions import tiny
from torch import nn

import inlay
from inlay.errors import SiteError, TrainError
from inlay.interventions.reft import LoReFT
from inlay.train.parameterise import KINDS, lora, reft, reft_r1, steering

D, L = tiny.WIDTH, tiny.LAYERS


def trained(edit: inlay.Edit) -> int:
    return sum(p.numel() for p in edit.parameters() if p.requires_grad)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_of_a_kind(kind: str) -> None:
    rank = 4
    each = {"consreft": rank * (D + 1), "lobireft": rank * (D + 1), "red": 2 * D}.get(kind, rank * (2 * D + 1))
    edit = reft(tiny.model(), kind, rank)
    assert trained(edit) == L * each and [str(part.site) for part in edit.parts] == [
        f"resid_post.{i}" for i in range(L)
    ]


@pytest.mark.parametrize(
    ("layers", "width", "rank", "groups", "want"),
    [  # 2404.03592, the parameter counts of its tables: layers x interventions x r (2 d + 1)
        (32, 4096, 8, 1, 2_097_408),
        (40, 5120, 8, 1, 3_277_120),
        (4, 4096, 4, 2, 262_176),
        (12, 768, 1, 1, 18_444),
        (24, 1024, 1, 1, 49_176),
        (1, 4096, 4, 1, 32_772),
    ],
)
def test_the_papers_parameter_counts(layers: int, width: int, rank: int, groups: int, want: int) -> None:
    assert layers * groups * trained(inlay.Edit("resid_post.0", LoReFT(width, rank))) == want


def test_what_is_shared() -> None:
    model = tiny.model()
    one, two, each = (
        reft(model, rank=2, layers=[0, -1], tokens="ends(3, 2)", share=s) for s in ("layer", "ends", "position")
    )
    assert [len(edit.parts) for edit in (one, two, each)] == [2, 4, 10]
    assert trained(two) == 2 * trained(one) and trained(each) == 5 * trained(one)
    assert [str(part.tokens) for part in two.parts[:2]] == ["ends(3, 2)[0:3]", "ends(3, 2)[3:5]"]
    assert {str(part.site) for part in one.parts} == {"resid_post.0", f"resid_post.{L - 1}"}
    for short in ("first3+last2", "f3+l2", " first3 + last2 "):
        assert reft(model, rank=2, layers=0, tokens=short).parts[0].tokens.clauses == one.parts[0].tokens.clauses


@pytest.mark.parametrize("share", ["ends", "position"])
def test_untied_with_equal_weights_is_tied(share: str) -> None:
    model = tiny.model()
    tied, untied = (reft(model, rank=2, layers=1, tokens="ends(2, 2)", share=s) for s in ("layer", share))
    state = tied.parts[0].intervention.state_dict()
    for part in untied.parts:
        part.intervention.load_state_dict(state)
    for rows in (tiny.RAGGED, [[3], [3, 4, 5]]):
        a, b = (model.forward(rows, edit=edit.eval()) for edit in (tied, untied))
        torch.testing.assert_close(a.logits, b.logits, rtol=1e-5, atol=1e-5)


def test_interventions_start_apart_and_alike() -> None:
    first, again, other = (reft(tiny.model(), rank=2, seed=seed) for seed in (0, 0, 9))
    bases = [part.intervention.raw for part in first.parts]
    assert not torch.equal(bases[0], bases[1])
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(bases[0], other.parts[0].intervention.raw)


def test_steering_vectors() -> None:
    model = tiny.model()
    edit = steering(model, "resid_post.*")
    vectors = [part.intervention.vector for part in edit.parts]
    assert len(vectors) == L and not torch.equal(vectors[0], vectors[1]) and trained(edit) == L * (D + 1)
    assert all(float(v.detach().abs().max()) <= D**-0.5 for v in vectors)
    fixed = steering(model, "resid_post.1", start=0.01, bias=False)
    assert trained(fixed) == D and bool((fixed.parts[0].intervention.vector == 0.01).all())
    talking = inlay.load("tidepool")
    assert str(steering(talking, "resid_post.3").parts[0].tokens) == "prompt[2:]+response"


def test_reft_r1_starts_at_length_1() -> None:
    (part,) = reft_r1(tiny.model(), "resid_post.1", k=3).parts
    torch.testing.assert_close(part.intervention.vector.detach(), torch.full((D,), D**-0.5))
    assert part.intervention.k == 3


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_adapters_find_their_modules(family: str) -> None:
    model = inlay.load(getattr(tiny, family)())
    ends, inputs = (("o_proj", "down_proj"), D + tiny.INNER) if family == "llama" else (("c_proj",), D + 4 * D)
    edit = lora(model, ends, layers=[1, 2], rank=3)
    assert len(edit.parts) == 4 and trained(edit) == 2 * 3 * (inputs + 2 * D)
    plain = model.forward(tiny.RAGGED)
    torch.testing.assert_close(model.forward(tiny.RAGGED, edit=edit.eval()).logits, plain.logits)
    for part in edit.parts:
        nn.init.normal_(
            part.intervention.state()["up"]
            if "up" in part.intervention.state()
            else list(part.intervention.parameters())[1]
        )
    assert not torch.allclose(model.forward(tiny.RAGGED, edit=edit).logits, plain.logits)


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda m: reft(m, "daft"), TrainError, "kind='daft': one of loreft"),
        (lambda m: reft(m, share="all"), TrainError, "share='all'"),
        (lambda m: reft(m, tokens="last", share="ends"), TrainError, "give tokens='ends"),
        (lambda m: reft(m, layers=7), TrainError, "layer 7 is out of range: the model has layers 0 to 2"),
        (lambda m: reft(m, layers="some"), TrainError, "layers='some'"),
        (lambda m: reft(m, site="nowhere"), SiteError, "nowhere"),
        (lambda m: lora(m, "w_proj"), TrainError, "modules='w_proj': no module"),
    ],
)
def test_what_is_refused(make: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        make(tiny.model())
