"""Scores of tokens from end to end: rows, targets, rules, folders, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.attribute.asking import difference, ends, slope
from tests.interventions import tiny
from transformers import BertConfig, BertForMaskedLM

import inlay
from inlay import Add, Edit, Zero
from inlay.attribute.asked import Asked
from inlay.attribute.baselines import Counterfactual
from inlay.attribute.question import Projection
from inlay.attribute.rules import PRESETS
from inlay.attribute.score_sites import site
from inlay.attribute.score_tokens import tokens
from inlay.attribute.token_scores import TokenScores
from inlay.directions import Direction
from inlay.errors import BaselineError, FolderError, InputError, RuleError, SiteError, TargetError
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
        torch.testing.assert_close(every.m_baseline[row], alone.m_baseline[0], equal_nan=True)
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


def test_against_another_response(model: inlay.Model) -> None:
    """With a prompt and response of the same lengths for a baseline, whole and step by step."""
    prompts, said = [[3, 4], [5, 6, 7]], ["w7 w8", "w9 w10"]
    other = Counterfactual([[13, 14], [15, 16, 17]], ["w17 w18", "w19 w20"])
    whole = tokens(model, prompts, responses=said, method="occlusion", baseline=other)
    steps = tokens(model, prompts, responses=said, method="occlusion", baseline=other, per_step=True)
    for prompt, (ids, others) in enumerate(
        (([3, 4, 7, 8], [13, 14, 17, 18]), ([5, 6, 7, 9, 10], [15, 16, 17, 19, 20]))
    ):
        length, value = len(ids), []
        for row in [ids, *([*ids[:i], others[i], *ids[i + 1 :]] for i in range(length))]:
            logp = model.forward([row]).logits[0].log_softmax(-1)
            value.append([float(logp[length - 3 + step, ids[length - 2 + step]]) for step in range(2)])
        lost = torch.tensor(value[0])[None] - torch.tensor(value[1:])  # [T, 2]
        torch.testing.assert_close(whole.scores[prompt, :length], lost.sum(1), rtol=1e-4, atol=1e-4)
        for step in range(2):
            n = length - 2 + step
            torch.testing.assert_close(steps.matrix(prompt)[step, :n], lost[:n, step], rtol=1e-4, atol=1e-4)
    with pytest.raises(BaselineError, match="1 counterfactual prompts for 2"):
        tokens(model, prompts, responses=said, baseline=Counterfactual([[13, 14]], ["w17 w18"]), per_step=True)


def test_an_encoder_has_gradients_and_no_rules_for_its_attention() -> None:
    torch.manual_seed(0)
    shape = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    hf = BertForMaskedLM(BertConfig(**shape, intermediate_size=48, max_position_embeddings=64)).eval()
    model, ids = inlay.load(hf.requires_grad_(False)), torch.tensor([[3, 4, 5]])
    found = tokens(model, ids, 7, method="occlusion", baseline=BASE, at=1, quantity="logit")
    whole = hf(ids).logits[0, 1, 7]
    for slot in range(3):
        other = ids.clone()
        other[0, slot] = BASE
        torch.testing.assert_close(found.scores[0, slot], whole - hf(other).logits[0, 1, 7], rtol=1e-4, atol=1e-5)
    with pytest.raises(RuleError, match="attention rule cannot act in bert"):
        tokens(model, ids, 7, baseline=BASE)


def test_ids_as_arrays_hold_them(model: inlay.Model) -> None:
    wanted = score(model).scores.nan_to_num()
    for targets, base in ((torch.tensor(TARGETS), np.int64(BASE)), (np.array(TARGETS), torch.tensor(BASE).item())):
        found = score(model, target=targets, foil=np.int64(FOIL), baseline=base)
        assert torch.equal(found.scores.nan_to_num(), wanted)


def test_inside_of_inference_mode(model: inlay.Model) -> None:
    wanted = score(model, "gim").scores.nan_to_num()
    with torch.inference_mode():
        assert torch.equal(score(model, "gim").scores.nan_to_num(), wanted)


def test_methods_that_have_a_baseline_of_their_own() -> None:
    bare = inlay.load(tiny.llama().requires_grad_(False))  # no tokenizer, so no space either
    for method, name in (("rollout", "none"), ("value_occlusion", "values of 0")):
        found = tokens(bare, [[3, 4, 5]], 7, method=method)
        assert found.baseline == name and found.m_baseline.isnan().all() and found.residual.isnan().all()


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


@pytest.mark.parametrize("method", ["smoothgrad", "gradient_shap"])
def test_random_draws_are_each_rows_own_and_leave_the_other_tokens_alone(model: inlay.Model, method: str) -> None:
    settings = {"samples": 3, "noise": 0.2, "within": [0, 1]}
    every, split = score(model, method, **settings), score(model, method, batch_tokens=8, **settings)
    torch.testing.assert_close(split.scores, every.scores, rtol=1e-4, atol=1e-4, equal_nan=True)
    for row, ids in enumerate(tiny.RAGGED):
        alone = score(model, method, [row], **settings).scores[0]
        torch.testing.assert_close(every.scores[row, : len(ids)], alone, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("method", ["grad", "ig", "occlusion", "rollout"])
def test_dropout_is_refused_by_every_method(method: str) -> None:
    made = inlay.load(tiny.gpt2())
    made.hf.train()
    with pytest.raises(RuleError, match="training mode"):
        score(made, method)
    with pytest.raises(RuleError, match="training mode"):
        site(made, tiny.RAGGED, "resid_post.0", 5, method="conductance", baseline=BASE)


def test_a_divergence_has_no_gradient_at_the_row(model: inlay.Model) -> None:
    for method in ("gim", "grad", "saliency"):
        with pytest.raises(TargetError, match="its gradient 0"):
            tokens(model, tiny.RAGGED, method=method, quantity="kl", baseline=BASE)
    with pytest.raises(TargetError, match="its gradient 0"):
        site(model, tiny.RAGGED, "z.*", quantity="kl", baseline=BASE)
    assert tokens(model, tiny.RAGGED, method="occlusion", quantity="kl", baseline=BASE).scores.nan_to_num().min() < 0


@pytest.mark.parametrize(
    ("place", "width", "said"),
    [("resid_post.*", 32, "is 3: name a layer"), ("resid_post.1", 31, "32 wide"), ("pattern.1", 8, "no vector fits")],
)
def test_a_direction_has_one_site_and_its_width(model: inlay.Model, place: str, width: int, said: str) -> None:
    with pytest.raises(TargetError, match=said):
        tokens(model, tiny.RAGGED, Projection(place, torch.ones(width)), baseline=BASE)


@pytest.mark.parametrize("rows", [[0], [0, 1, 2, 3]])
def test_an_edit_of_the_logits_is_part_of_what_is_explained(model: inlay.Model, rows: list[int]) -> None:
    plain = score(model, "occlusion", rows)
    with model.edited(Edit("logits", Zero(), tokens=0)):  # not where the target is read
        torch.testing.assert_close(
            score(model, "occlusion", rows).scores, plain.scores, rtol=1e-4, atol=1e-4, equal_nan=True
        )
    with model.edited(Edit("logits", Zero(), tokens="last")):
        assert not score(model, "occlusion", rows).scores.nan_to_num().any()


def test_a_second_table_of_ids_is_refused() -> None:
    made = inlay.load(tiny.llama())
    made.base.config.hidden_size_per_layer_input = 8  # as in Gemma 3n and Gemma 4
    with pytest.raises(SiteError, match="second time"):
        score(made, "occlusion")
