"""Scores of Sites: by hand, and the identities that linear maps between Sites give."""

from __future__ import annotations

from html import escape
from typing import Any

import pytest
import torch
from tests.attribute.asking import BASE, FOIL, TARGETS
from tests.interventions import tiny
from torch import Tensor

import inlay
from inlay import SAE
from inlay.attribute.score_sites import site
from inlay.attribute.site_scores import SiteScores
from inlay.errors import InputError, SiteError


@pytest.fixture(scope="module")
def model() -> inlay.Model:
    return inlay.load(tiny.llama(dtype=torch.float64, attn_implementation="sdpa").requires_grad_(False))


def score(model: inlay.Model, sites: Any, method: str = "grad", rows: Any = None, **options: Any) -> SiteScores:
    which = range(len(tiny.RAGGED)) if rows is None else rows
    prompts, targets = [tiny.RAGGED[r] for r in which], [TARGETS[r] for r in which]
    return site(model, prompts, sites, targets, FOIL, method, **{"baseline": BASE, **options})


def by_hand(model: inlay.Model, layer: int, row: int, baseline: bool) -> tuple[Tensor, Tensor]:
    """A block's output and the gradient there, [T, d]."""
    kept: list[Tensor] = []

    def hook(module: Any, args: Any, output: Any) -> Any:
        kept.append(output.detach().requires_grad_())
        return kept[0]

    handle = model.hf.model.layers[layer].register_forward_hook(hook)
    ids = torch.tensor([[BASE] * len(tiny.RAGGED[row]) if baseline else tiny.RAGGED[row]])
    logits = model.hf(ids, use_cache=False).logits[0, -1]
    handle.remove()
    (slope,) = torch.autograd.grad(logits[TARGETS[row]] - logits[FOIL], kept[0])
    return kept[0].detach()[0], slope[0]


def test_a_layer_by_hand(model: inlay.Model) -> None:
    found = score(model, "resid_post.*", batch_tokens=9)
    zero = score(model, "resid_post.*", baseline="zero")
    assert list(found.scores) == ["resid_post.0", "resid_post.1", "resid_post.2"] and found.level == "position"
    for row, ids in enumerate(tiny.RAGGED):
        for layer in range(3):
            h, slope = by_hand(model, layer, row, False)
            ground, _ = by_hand(model, layer, row, True)
            name, n = f"resid_post.{layer}", len(ids)
            close(found[name][row, :n], ((h - ground) * slope).sum(-1))
            close(zero[name][row, :n], (h * slope).sum(-1))
            assert not found[name][row, n:].any() and found.mask[row].tolist() == [k < n for k in range(7)]
            assert found.tokens[row] == [str(i) for i in ids]


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted.to(found.dtype), rtol=1e-5, atol=1e-6)


def test_heads_and_neurons_add_up_to_what_they_are_mapped_to(model: inlay.Model) -> None:
    found = score(model, ["z.1", "attn_out.1"], level="position")
    close(found["z.1"], found["attn_out.1"])  # the out projection has no bias
    heads = score(model, "z.1")
    assert heads.level == "head" and heads["z.1"].shape == (4, 7, tiny.HEADS)
    close(heads["z.1"].sum(-1), found["z.1"])
    neurons, whole = score(model, "mlp_act.2", level="unit"), score(model, "mlp_out.2")
    assert neurons["mlp_act.2"].shape == (4, 7, tiny.INNER)
    close(neurons["mlp_act.2"].sum(-1), whole["mlp_out.2"])


def test_latents_of_a_perfect_autoencoder_add_up(model: inlay.Model) -> None:
    eye = torch.eye(tiny.WIDTH)
    sae = SAE(torch.cat((eye, -eye), 1), torch.zeros(2 * tiny.WIDTH), torch.cat((eye, -eye)), torch.zeros(tiny.WIDTH))
    latents, whole = score(model, "resid_post.1", sae=sae), score(model, "resid_post.1")
    assert latents.level == "unit" and latents["resid_post.1"].shape == (4, 7, 2 * tiny.WIDTH)
    torch.testing.assert_close(latents["resid_post.1"].sum(-1), whole["resid_post.1"], rtol=1e-4, atol=1e-5)


def test_conductance_adds_up_at_every_layer(model: inlay.Model) -> None:
    coarse, fine = (score(model, "resid_post.*", "conductance", rows=[3], n=n) for n in (50, 200))
    change = (fine.m_clean - fine.m_baseline).item()
    gaps = [(found.stack()[:, 0].sum(-1) - change).abs().max() for found in (coarse, fine)]
    assert gaps[1] < 5e-3 and gaps[1] < gaps[0] / 8  # the trapezoid rule's error falls with n squared


def test_each_row_is_as_it_is_alone_at_the_tokens_asked_for(model: inlay.Model) -> None:
    every = score(model, ["z.0", "resid_post.2"], tokens="last2")
    for row in range(4):
        alone = score(model, ["z.0", "resid_post.2"], rows=[row], tokens="last2")
        for name in ("z.0", "resid_post.2"):
            close(every[name][row], alone[name][0])
    last = score(model, "resid_post.2", tokens="last")
    close(
        last["resid_post.2"][:, 0],
        every["resid_post.2"].sum(-1) if every["resid_post.2"].ndim == 3 else every["resid_post.2"][:, -1],
    )


def test_what_is_largest(model: inlay.Model) -> None:
    found = score(model, "z.*")
    first = found.top(3, row=1)
    values = found.stack()[:, 1]
    assert abs(first[0][3]) == pytest.approx(float(values.abs().max()))
    name, token, head, value = first[0]
    assert float(found[name][1, found.tokens[1].index(token), head]) == pytest.approx(value)
    close(found.heads(1), values.sum(1))
    close(found.matrix(1), values.sum(-1))


def test_pictures(model: inlay.Model) -> None:
    layers, heads = score(model, "resid_post.*"), score(model, "z.*")
    for found, cells in ((layers, 3 * len(tiny.RAGGED[1])), (heads, 3 * tiny.HEADS)):
        page = found.html(1)
        assert page.count("<td") == cells and escape(found.caption) in page
        axes = found.figure(1).axes[0]
        assert [label.get_text() for label in axes.get_yticklabels()]


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"sites": "resid_post.1", "method": "occlusion"}, InputError, "or conductance"),
        ({"sites": "resid_post.1", "level": "head"}, SiteError, "made of heads"),
        ({"sites": "resid_post.1", "level": "row"}, SiteError, "'position', 'head' or 'unit'"),
        ({"sites": "resid_post.1", "method": "conductance", "baseline": "zero"}, InputError, "path of embeddings"),
        ({"sites": "resid_post.1", "method": "conductance", "n": 0}, InputError, "at least 1 step"),
        ({"sites": "resid_post.1", "rules": "gim"}, InputError, "is a rule set already"),
        ({"sites": "resid_post.9"}, SiteError, "out of range"),
        ({"sites": "logits"}, SiteError, "Sites below them"),
    ],
)
def test_what_cannot_be_scored(model: inlay.Model, options: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        score(model, **options)
