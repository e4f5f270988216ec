"""Causal tracing equals ROME's loop, one forward for every draw and cell, and obeys what a causal model must."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tests.interventions import tiny
from torch import Tensor

import inlay
from inlay import Edit, Noise, Source, Swap
from inlay.causal import Grid, causal_trace
from inlay.errors import CausalError, TargetError, TokensError
from inlay.model import patch, span

PROMPTS: list[list[int]] = [[5, 9, 17, 33, 2], [40, 3, 21], [8, 8, 60, 7, 11, 30]]
SUBJECTS = [[1, 2], [0], [2, 3]]
LAYERS, NU, DRAWS = 4, 0.7, 3
every_family = pytest.mark.parametrize("family", tiny.FAMILIES)


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    with torch.no_grad():
        yield
    assert patch.standing() == 0


def model(family: str = "llama") -> inlay.Model:
    """In float64, so that what is compared differs by the rounding of float32 results alone."""
    shape = {"n_layer": LAYERS} if family == "gpt2" else {"num_hidden_layers": LAYERS}
    return inlay.load(tiny.FAMILIES[family](dtype=torch.float64, **shape))


def positions(subjects: Sequence[Sequence[int]]) -> list[Tensor]:
    """Each prompt's own positions as Tokens specs."""
    return [torch.tensor([subject]) for subject in subjects]


def trace(m: inlay.Model, **options: Any) -> Grid:
    options = {"noise": NU, "draws": DRAWS, "window": 2} | options
    return causal_trace(m, PROMPTS, positions(SUBJECTS), **options)


def restored(kind: str, layer: int, window: int) -> list[str]:
    """The Sites that are restored together, by the definition."""
    if kind == "resid_post":
        return [f"{kind}.{layer}"]
    low, high = layer - (window - 1) // 2, layer + window // 2
    return [f"{kind}.{i}" for i in range(LAYERS) if low <= i <= high]


def chance(m: inlay.Model, prompt: int, answer: int, restore: Edit | None = None) -> float:
    """The mean over draws of the answer's probability in a corrupted run, by one forward for each."""
    total = 0.0
    for draw in range(DRAWS):
        edit = Edit("embed", Noise(NU, seed=draw), tokens=SUBJECTS[prompt])
        edit = edit if restore is None else edit + restore
        total += float(m.forward([PROMPTS[prompt]], edit=edit).logits[0, -1].softmax(-1)[answer])
    return total / DRAWS


def clean(m: inlay.Model, site: str, prompt: int, tokens: Any) -> Swap:
    """Sets a Site to what it is in the clean run."""
    values = m.forward([PROMPTS[prompt]], read=site, tokens=tokens).acts[site]
    return Swap(Source(values if values.ndim == 3 else values[:, None]))


@every_family
def test_the_trace_is_the_loop_over_draws_and_cells(family: str) -> None:
    m = model(family)
    g = trace(m)
    assert g.dims == ("component", "layer", "token", "prompt") and g.shape == (3, LAYERS, 6, 3)
    assert g["component"].values.tolist() == ["resid_post", "mlp_out", "attn_out"]
    for p, prompt in enumerate(PROMPTS):
        whole = m.forward([prompt]).logits[0, -1].softmax(-1)
        answer = int(whole.argmax())
        corrupted = chance(m, p, answer)
        assert str(g["answer"].values[p]) == str(answer), "the likeliest, by default"
        assert float(g["clean"][p]) == pytest.approx(float(whole[answer]), abs=1e-6)
        assert float(g["corrupted"][p]) == pytest.approx(corrupted, abs=1e-6)
        assert float(g["total_effect"][p]) == pytest.approx(float(whole[answer]) - corrupted, abs=1e-6)
        for kind in ("resid_post", "mlp_out", "attn_out"):
            for layer in (0, 2):
                for token in (len(prompt) // 2, len(prompt) - 1):
                    edits = [Edit(s, clean(m, s, p, token), tokens=token) for s in restored(kind, layer, 2)]
                    edit = Edit.of(tuple(part for one in edits for part in one.parts))
                    wanted = chance(m, p, answer, edit) - corrupted
                    found = float(g.sel(component=kind, layer=layer, token=token, prompt=p))
                    assert found == pytest.approx(wanted, abs=1e-6)
    lacking = [[token >= len(row) for row in PROMPTS] for token in range(6)]
    assert (g.isnull().values == np.array(lacking)).all()


@every_family
def test_nothing_can_be_restored_before_the_subject(family: str) -> None:
    g = trace(model(family))
    for p, subject in enumerate(SUBJECTS):
        before = g.isel(prompt=p, token=slice(0, subject[0]))
        assert float(abs(before).max() if before.size else 0) < 1e-6
        assert float(abs(g.isel(prompt=p, token=subject[0])).max()) > 1e-4


@every_family
def test_restoring_the_last_state_undoes_the_corruption(family: str) -> None:
    g = trace(model(family))
    for p, prompt in enumerate(PROMPTS):
        last = g.sel(component="resid_post", layer=LAYERS - 1, prompt=p)
        assert float(last.sel(token=len(prompt) - 1)) == pytest.approx(float(g["total_effect"][p]), abs=1e-6)
        others = last.isel(token=slice(0, len(prompt) - 1))
        assert float(abs(others).max()) < 1e-6, "no other token's last state is read"


def test_a_severed_mlp_stays_corrupted_at_the_restored_token() -> None:
    m = model()
    g = trace(m, kinds=("resid_post", "attn_out"), severed="mlp_out")
    plain = trace(m, kinds=("resid_post", "attn_out"))
    p, token, answer = 0, 2, int(m.forward([PROMPTS[0]]).logits[0, -1].argmax())
    corrupted = chance(m, p, answer)
    for kind, layer in (("resid_post", 0), ("resid_post", 2), ("attn_out", 1), ("attn_out", 3)):
        sites, total = restored(kind, layer, 2), 0.0
        lowest = int(sites[0][-1]) + (kind == "resid_post")
        for draw in range(DRAWS):
            noise = Edit("embed", Noise(NU, seed=draw), tokens=SUBJECTS[p])
            edit = noise
            for site in sites:
                edit = edit + Edit(site, clean(m, site, p, token), tokens=token)
            for above in range(lowest, LAYERS):
                site = f"mlp_out.{above}"
                own = m.forward([PROMPTS[p]], edit=noise, read=site, tokens=token).acts[site][:, None]
                edit = edit + Edit(site, Swap(Source(own)), tokens=token)
            total += float(m.forward([PROMPTS[p]], edit=edit).logits[0, -1].softmax(-1)[answer])
        at = {"component": kind, "layer": layer, "token": token, "prompt": p}
        assert float(g.sel(at)) == pytest.approx(total / DRAWS - corrupted, abs=1e-6)
        if layer < 2:  # above, no later layer reads what the MLP adds at this token
            assert abs(float(g.sel(at) - plain.sel(at))) > 1e-4, "it makes a difference"
    assert g.attrs["severed"] == "mlp_out" and plain.attrs["severed"] == ""


@pytest.mark.parametrize("batch_tokens", [20, 400])
def test_draws_do_not_depend_on_batches(batch_tokens: int) -> None:
    m = model()
    whole, some = trace(m), trace(m, batch_tokens=batch_tokens)
    np.testing.assert_allclose(some, whole, atol=1e-6)
    np.testing.assert_allclose(some["corrupted"], whole["corrupted"], atol=1e-6)


def test_a_prompt_alone_is_the_prompt_among_others() -> None:
    m = model()
    whole = trace(m)
    for p, prompt in enumerate(PROMPTS):
        alone = causal_trace(m, prompt, SUBJECTS[p], noise=NU, draws=DRAWS, window=2)
        assert alone.dims == ("component", "layer", "token") and alone["text"].values.tolist() == list(map(str, prompt))
        np.testing.assert_allclose(alone, whole.sel(prompt=p).isel(token=slice(0, len(prompt))), atol=1e-6)
        assert float(alone["total_effect"]) == pytest.approx(float(whole["total_effect"][p]), abs=1e-6)


def test_seeds_and_draws() -> None:
    m = model()
    one = [trace(m, draws=1, seed=seed) for seed in (4, 5)]
    np.testing.assert_allclose(trace(m, draws=2, seed=4), (one[0] + one[1]) / 2, atol=1e-6)
    assert float(abs(one[0] - one[1]).max()) > 1e-3


def test_the_default_noise_is_3_sigma_of_the_subjects_embeddings() -> None:
    m = model()
    table = m.hf.get_input_embeddings().weight
    ids = [prompt[i] for prompt, subject in zip(PROMPTS, SUBJECTS, strict=True) for i in subject]
    g = trace(m, noise=None)
    assert g.attrs["noise"] == pytest.approx(3 * float(table[ids].std()), rel=1e-5)
    np.testing.assert_allclose(trace(m, noise=g.attrs["noise"]), g, atol=1e-6)


def test_subjects_and_answers_as_text_and_columns_by_name() -> None:
    m = inlay.load(tiny.llama(), tokenizer=tiny.words())
    prompts, options = ["w5 w9 w17 w33", "w40 w9 w17"], {"noise": NU, "draws": 2}
    ids = [[5, 9, 17, 33], [40, 9, 17]]
    wanted = causal_trace(m, ids, [1, 2], [33, 2], **options)
    for subject in ("w9 w17", ["w9 w17", "w9 w17"], span("w9 w17")):
        found = causal_trace(m, prompts, subject, ["w33", "w2"], **options)
        np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert found["answer"].values.tolist() == ["w33", "w2"] and found["text"][0, 3] == "w33"
    named = causal_trace(m, prompts, "w9 w17", ["w33", "w2"], {"subject's last": [2, 2], "last": -1}, **options)
    assert named["token"].values.tolist() == ["subject's last", "last"]
    np.testing.assert_allclose(named.sel(token="subject's last"), wanted.sel(token=2), atol=1e-6)
    np.testing.assert_allclose(named.sel(token="last", prompt=0), wanted.sel(token=3, prompt=0), atol=1e-6)
    both = causal_trace(m, prompts[:1], "w9", [[33, 2]], **options)
    each = [causal_trace(m, prompts[:1], "w9", answer, **options) for answer in (33, 2)]
    np.testing.assert_allclose(both, each[0] + each[1], atol=1e-6)
    assert both["answer"] == "w33 | w2"


def test_the_means_over_prompts_are_told() -> None:
    g = trace(model())
    for name in ("clean", "corrupted", "total_effect"):
        assert g.attrs[name] == pytest.approx(float(g[name].values.mean()), rel=1e-6)
    assert (g.attrs["draws"], g.attrs["window"], g.attrs["noise"]) == (DRAWS, 2, NU)
    assert (g.attrs["long_name"], g.attrs["units"]) == ("indirect effect", "probability")


def test_what_cannot_be_traced() -> None:
    m = model()
    for options, message in (
        ({"draws": 0}, "draws=0 and window=2 must be at least 1"),
        ({"window": 0}, "draws=3 and window=0 must be at least 1"),
        ({"severed": "mlp_out"}, "severed='mlp_out' is also restored"),
        ({"kinds": ("z",)}, r"z\.0 is made of heads"),
    ):
        with pytest.raises(CausalError, match=message):
            trace(m, **options)
    with pytest.raises(TargetError, match="2 answers for 3 prompts"):
        trace(m, answer=[1, 2])
    with pytest.raises(TokensError, match="out of range in row 1"):
        causal_trace(m, PROMPTS, 4, noise=NU)
    with pytest.raises(TokensError, match="has no tokenizer"):
        causal_trace(m, PROMPTS, "Paris", noise=NU)
    sites = {"mlp_out": "model.layers.{layer}.mlp:out", "embed": "model.embed_tokens:out"}
    blind = inlay.Model(tiny.llama(), sites=sites)
    with pytest.raises(CausalError, match="goes on from stored residual streams"):
        causal_trace(blind, PROMPTS, 0, kinds=("mlp_out",), noise=NU)
