"""Scores of tokens from end to end: rows, targets, rules, folders, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.attribute.asking import difference, ends, slope
from tests.interventions import tiny

import inlay
from inlay import Add, Edit
from inlay.attribute.asked import Asked
from inlay.attribute.question import Projection
from inlay.attribute.rules import PRESETS
from inlay.attribute.score_tokens import tokens
from inlay.attribute.token_scores import TokenScores
from inlay.directions import Direction
from inlay.errors import FolderError, InputError, TargetError
from inlay.model.sites import Site

TARGETS, FOIL, BASE = [5, 9, 17, 33], 40, 20
FAST = [*PRESETS, "saliency", "ig", "occlusion"]


@pytest.fixture(scope="module")
def model() -> inlay.Model:
    return inlay.load(tiny.llama(attn_implementation="sdpa").requires_grad_(False), tokenizer=tiny.words())


def score(model: inlay.Model, method: Any = "grad", rows: Any = None, **options: Any) -> TokenScores:
    which = range(len(tiny.RAGGED)) if rows is None else rows
    given = {"target": [TARGETS[r] for r in which], "foil": FOIL, "baseline": BASE}
    return tokens(model, [tiny.RAGGED[r] for r in which], method=method, **{**given, **options})


@pytest.mark.parametrize("method", FAST)
def test_each_row_is_as_it_is_alone(method: str, model: inlay.Model) -> None:
    every = score(model, method)
    assert every.scores.shape == (4, 7) and every.method == method
    for row, ids in enumerate(tiny.RAGGED):
        alone, n = score(model, method, [row]), len(ids)
        torch.testing.assert_close(every.scores[row, :n], alone.scores[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(every.m_clean[row], alone.m_clean[0])
        torch.testing.assert_close(every.m_baseline[row], alone.m_baseline[0])
        assert every.scores[row, n:].isnan().all() and every.tokens[row] == [f"w{i}" for i in ids]


def test_plain_gradients_and_what_they_leave(model: inlay.Model) -> None:
    found = score(model)
    for row in range(4):
        x, b = ends(model, row)
        wanted = ((x - b) * slope(model, x, row)).sum(-1)
        torch.testing.assert_close(found.scores[row, : len(wanted)], wanted, rtol=1e-4, atol=1e-5)
        whole, ground = difference(model, x, row).detach(), difference(model, b, row).detach()
        torch.testing.assert_close(found.residual[row], whole - ground - wanted.sum(), rtol=1e-4, atol=1e-4)
    assert found.quantity == "logit_diff" and found.title(0) == "logit_diff of 'w5' against 'w40'"
    assert found.caption == "logit_diff by grad, baseline 'w20'; positive: the token raises it"


def test_rules_are_reported(model: inlay.Model) -> None:
    found = score(model, "gim")
    for rule in ("norm       LlamaRMSNorm x 7", "product    LlamaMLP x 3", "attention  LlamaAttention x 3"):
        assert rule in found.report
    assert not score(model, "ig").report
    assert not torch.equal(found.scores.nan_to_num(), score(model, "grad").scores.nan_to_num())
    under = score(model, "ig", rules="gim", n=3)
    assert under.method == "ig(n=3) under gim" and under.report


def test_steps_of_a_response(model: inlay.Model) -> None:
    said = "w7 w8 w9"
    whole = tokens(model, [[3, 4], [5, 6, 7]], responses=[said, said], method="grad", baseline=BASE)
    steps = tokens(model, [[3, 4], [5, 6, 7]], responses=[said, said], method="grad", baseline=BASE, per_step=True)
    assert steps.steps == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)] and steps.target[:3] == ["w7", "w8", "w9"]
    for prompt, ids in enumerate(([3, 4], [5, 6, 7])):
        for step, token in enumerate((7, 8, 9)):
            alone = tokens(model, [[*ids, *[7, 8, 9][:step]]], token, method="grad", baseline=BASE)
            torch.testing.assert_close(
                steps.matrix(prompt)[step, : len(ids) + step], alone.scores[0], rtol=1e-4, atol=1e-5
            )
        total = steps.matrix(prompt).nansum(0)
        torch.testing.assert_close(whole.scores[prompt, : len(total)].nan_to_num(), total, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="per_step=True"):
        whole.matrix()


def test_why_a_detector_fired(model: inlay.Model) -> None:
    vector = torch.randn(tiny.WIDTH, generator=torch.Generator().manual_seed(0))
    x, b = ends(model, 0)
    leaf = x.clone().requires_grad_()
    h = model.hf(inputs_embeds=leaf[None], output_hidden_states=True).hidden_states[2][0, -1]  # behind block 1
    (g,) = torch.autograd.grad(h @ vector, leaf)
    found = tokens(model, [tiny.RAGGED[0]], Projection("resid_post.1", vector), method="grad", baseline=BASE)
    torch.testing.assert_close(found.scores[0], ((x - b) * g).sum(-1), rtol=1e-4, atol=1e-5)
    assert found.quantity == "projection"
    assert float(found.m_clean[0]) == pytest.approx(float((h @ vector).detach()), rel=1e-4)
    direction = Direction(vector, Site.parse("resid_post.1"), 1.0, "given")
    unit = tokens(model, [tiny.RAGGED[0]], direction, method="grad", baseline=BASE)
    torch.testing.assert_close(unit.scores, found.scores / vector.norm(), rtol=1e-4, atol=1e-5)


def test_an_edit_is_part_of_what_is_explained(model: inlay.Model) -> None:
    plain = score(model, "gim")
    with model.edited(Edit("resid_post.0", Add(torch.ones(tiny.WIDTH)))):
        edited = score(model, "gim")
    assert not torch.allclose(plain.scores.nan_to_num(), edited.scores.nan_to_num())
    assert torch.equal(score(model, "gim").scores.nan_to_num(), plain.scores.nan_to_num())


def test_a_method_of_ones_own_and_what_is_scored(model: inlay.Model) -> None:
    def halves(asked: Asked, by: float = 2.0) -> torch.Tensor:
        return asked.scored / by

    found = score(model, halves, within="last2")
    assert found.method == "halves" and found.scores[0].tolist()[3:5] == [0.5, 0.5]
    assert found.scores[0, :3].isnan().all()
    assert score(model, halves, rows=[0], seed=1).scores.shape == (1, 5)


def test_half_precision_scores_in_float32() -> None:
    exact = inlay.load(tiny.llama().requires_grad_(False), tokenizer=tiny.words())
    half = inlay.load(tiny.llama(dtype=torch.bfloat16).requires_grad_(False), tokenizer=tiny.words())
    a, b = score(exact, "gim").scores.nan_to_num(), score(half, "gim").scores.nan_to_num()
    assert b.dtype == torch.float32 and torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.99


def test_a_folder(model: inlay.Model, tmp_path: Path) -> None:
    found = score(model, "gim")
    found.save(tmp_path / "scores")
    again = TokenScores.load(tmp_path / "scores")
    assert torch.equal(again.scores.nan_to_num(nan=7), found.scores.nan_to_num(nan=7))
    for name in ("tokens", "ids", "target", "foil", "quantity", "method", "baseline", "steps", "report", "caption"):
        assert getattr(again, name) == getattr(found, name)
    assert torch.equal(again.residual, found.residual)
    (tmp_path / "scores" / "scores.json").write_text("{")
    with pytest.raises(FolderError, match="holds no scores"):
        TokenScores.load(tmp_path / "scores")


def test_a_frame_and_sums(model: inlay.Model) -> None:
    found = score(model)
    frame = found.frame({"start": [[0, 1]] * 4})
    assert frame.columns == ["row", "pos", "token", "score", "span"] and frame.height == sum(map(len, tiny.RAGGED))
    assert frame["span"].to_list()[:3] == ["start", "start", None]
    sums = found.by([[[0, 1], [2]], [[0]], [[1, 2]], [[1]]])
    assert sums[0][0] == pytest.approx(float(found.scores[0, :2].sum())) and len(sums[1]) == 1


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"method": "gmi"}, InputError, "method='gmi': one of grad, gim"),
        ({"method": "ig", "m": 3}, InputError, "ig has no setting m; it has n, rule"),
        ({"method": "gim", "rules": "relp"}, InputError, "is a rule set already"),
        ({"method": "occlusion", "rules": "gim"}, InputError, "takes no gradient"),
        ({"quantity": "logits"}, TargetError, "one of logit"),
        ({"quantity": "logprob"}, TargetError, "takes no foil="),
        ({"foil": None, "quantity": "logit_diff"}, TargetError, "needs foil="),
        ({"target": "w1 w2"}, TargetError, "2 tokens"),
        ({"target": [1, 2]}, TargetError, "2 answers for 4 prompts"),
        ({"at": "first2"}, TargetError, "is 2 tokens of row 0"),
        ({"per_step": True}, TargetError, "give responses="),
    ],
)
def test_what_is_refused(model: inlay.Model, options: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        score(model, **options)
