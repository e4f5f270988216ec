"""A grid equals the loop over its cells, one forward each; on gpt-nano-sort, what an exhaustive count gives."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.interventions import tiny
from tests.model.families import FAMILIES, build
from torch import Tensor

import inlay
from inlay import Edit, Mean, Swap, Zero
from inlay.causal import (
    Grid,
    ablate_grid,
    accuracy,
    kl_divergence,
    logit_difference,
    normalised,
    patch_grid,
)
from inlay.errors import CausalError, InputError, ModelError, SiteError, TargetError, TokensError
from inlay.model import patch, span

BASE: list[list[int]] = [[5, 9, 17, 33, 2], [40, 3], [8, 60, 7]]
SOURCE: list[list[int]] = [[(7 * i + 3) % 64 for i in row] for row in BASE]
ANSWERS, FOILS = [5, 6, 7], [[9], [8, 2], [1]]
IN_SINGLE = ("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss")  # torch's grouped experts take no float64
DIFFERENCE = logit_difference(ANSWERS, FOILS)
WHOLE_SITES = ["resid_pre", "resid_mid", "resid_post", "attn_in", "attn_out", "mlp_in", "mlp_out", "mlp_act"]
every_family = pytest.mark.parametrize("family", tiny.FAMILIES)


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    with torch.no_grad():
        yield
    assert patch.standing() == 0


def model(family: str = "llama", **changes: Any) -> inlay.Model:
    """In float64, so that a grid and a loop differ by the rounding of float32 results alone."""
    return inlay.load(tiny.FAMILIES[family](dtype=torch.float64, **changes))


def by_hand(logits: Tensor, pair: int) -> float:
    """The logit difference of a pair at the last token of logits [1, tokens, vocabulary]."""
    foils = FOILS[pair]
    return float(logits[0, -1, ANSWERS[pair]] - sum(logits[0, -1, i] for i in foils) / len(foils))


def loop(m: inlay.Model, site: str, tokens: Any, pair: int) -> float:
    """One cell by one forward."""
    edit = Edit(site, Swap([SOURCE[pair]]), tokens=tokens)
    return by_hand(m.forward([BASE[pair]], edit=edit).logits, pair)


@every_family
def test_the_grid_is_the_loop_over_its_cells(family: str) -> None:
    m = model(family)
    g = patch_grid(m, BASE, SOURCE, [f"{name}.*" for name in WHOLE_SITES], metric=DIFFERENCE)
    assert type(g) is Grid and g.dtype == np.float32
    assert g.dims == ("component", "layer", "token", "pair") and g.shape == (len(WHOLE_SITES), 3, 5, 3)
    for name, layer, pair in itertools.product(WHOLE_SITES, (0, 2), range(3)):
        for token in range(len(BASE[pair])):
            found = float(g.sel(component=name, layer=layer, token=token, pair=pair))
            assert found == pytest.approx(loop(m, f"{name}.{layer}", token, pair), abs=1e-5)
    lacking = [[token >= len(row) for row in BASE] for token in range(5)]
    assert (g.isnull().values == np.array(lacking)).all(), "empty where a pair has no such token, and nowhere else"


@every_family
@pytest.mark.parametrize("site", ["z", "q", "k", "v", "q_rot", "k_rot", "pattern"])
def test_heads_are_cells_of_their_own(family: str, site: str) -> None:
    m = model(family)
    heads = tiny.KV if family == "llama" and site in ("k", "v", "k_rot") else tiny.HEADS
    g = patch_grid(m, BASE[:1], SOURCE[:1], f"{site}.*", metric=logit_difference(5, 9))
    assert g.dims == ("layer", "head", "token") and g.shape == (3, heads, 5) and g.component == site
    for layer, head, token in itertools.product((0, 2), range(heads), (0, 4)):
        found = float(g.sel(layer=layer, head=head, token=token))
        assert found == pytest.approx(loop(m, f"{site}.{layer}.h{head}", token, 0), abs=1e-5)


def test_some_heads_and_layers() -> None:
    m = model()
    g = patch_grid(m, BASE[0], SOURCE[0], ["z.0.h[1,3]", "z.-1.h1"], metric=logit_difference(5, 9))
    assert g["layer"].values.tolist() == [0, 2] and g["head"].values.tolist() == [1, 3]
    assert bool(g.sel(layer=2, head=3).isnull().all()), "not asked for"
    for layer, head in ((0, 1), (0, 3), (2, 1)):
        assert float(g.sel(layer=layer, head=head, token=4)) == pytest.approx(
            loop(m, f"z.{layer}.h{head}", 4, 0), abs=1e-5
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_goes_on_from_its_own_states(name: str) -> None:
    """Each family's blocks hand on what they need beside the stream; a patch in the middle shows if it is there."""
    hf = build(name)
    m = inlay.load(hf if name in IN_SINGLE else hf.double())
    prompts, others = [[5, 9, 17, 33], [40, 3]], [[6, 2, 18, 30], [41, 7]]
    kinds = [kind for kind in ("resid_post", "mlp_out", "attn_out") if 1 in m.sites().places.get(kind, {})]
    for sites in ([f"{kind}.1" for kind in kinds], ["z.1.h1"] if "z" in m.sites().places else []):
        for site in sites:
            g = patch_grid(m, prompts, others, site, -2, metric=lambda logits: logits[:, 5] - logits[:, 9])
            edit = Edit(site, Swap(others), tokens=-2)
            logits = m.forward(prompts, edit=edit).logits[[0, 1], [3, 1]]
            wanted = (logits[:, 5] - logits[:, 9]).float()
            np.testing.assert_allclose(g.values.squeeze(), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 12, 40])
def test_batches_do_not_show(batch_tokens: int) -> None:
    m = model()
    sites = ["resid_post.*", "mlp_out.1"]
    whole = patch_grid(m, BASE, SOURCE, sites, metric=DIFFERENCE)
    some = patch_grid(m, BASE, SOURCE, sites, metric=DIFFERENCE, batch_tokens=batch_tokens)
    assert (
        some.coords.to_dataset()
        .drop_vars(["clean", "corrupted"])
        .identical(whole.coords.to_dataset().drop_vars(["clean", "corrupted"]))
    )
    np.testing.assert_allclose(some, whole, atol=1e-5)
    np.testing.assert_allclose(some.clean, whole.clean, atol=1e-5)


def test_what_labels_the_numbers() -> None:
    m = inlay.load(tiny.llama(), tokenizer=tiny.words())
    g = patch_grid(
        m, tiny.text(BASE), tiny.text(SOURCE), ["mlp_out.*", "attn_out.*"], metric=logit_difference("w5", "w9")
    )
    assert g["component"].values.tolist() == ["mlp_out", "attn_out"], "as asked for"
    assert g["text"].dims == ("pair", "token")
    assert g["text"].values.tolist() == [
        ["w5", "w9", "w17", "w33", "w2"],
        ["w40", "w3", *[""] * 3],
        ["w8", "w60", "w7", "", ""],
    ]
    assert g.attrs == {"direction": "denoise", "long_name": "logit difference", "units": "nats", "model": m.name}
    last = [len(row) - 1 for row in BASE]
    for rows, name in ((SOURCE, "clean"), (BASE, "corrupted")):
        logits = m.forward(rows).logits[[0, 1, 2], last]
        np.testing.assert_allclose(g[name], logits[:, 5] - logits[:, 9], atol=1e-5)
    alone = patch_grid(m, tiny.text(BASE[:1]), tiny.text(SOURCE[:1]), "mlp_out.1", metric=logit_difference("w5", "w9"))
    assert alone.dims == ("layer", "token") and alone["text"].values.tolist() == ["w5", "w9", "w17", "w33", "w2"]
    assert alone["clean"].ndim == 0 and alone["component"] == "mlp_out"
    np.testing.assert_allclose(alone.sel(layer=1), g.sel(component="mlp_out", layer=1, pair=0), atol=1e-5)
    assert patch_grid(model(), BASE[0], SOURCE[0], "mlp_out.1", metric=DIFFERENCE_OF_ONE)["text"][1] == "9", (
        "ids, without"
    )


DIFFERENCE_OF_ONE = logit_difference(5, 9)


def test_both_directions_reach_the_other_run() -> None:
    """All tokens of resid_pre.0 are the whole input; a last token of the last layer is the whole output."""
    m = model()
    for direction, wanted in (("denoise", 1.0), ("noise", 0.0)):
        options: dict[str, Any] = {"metric": normalised(DIFFERENCE), "direction": direction}
        g = patch_grid(m, BASE, SOURCE, ["resid_pre.0", "resid_post.2"], {"all": "all", "last": -1}, **options)
        assert g.dims == ("component", "layer", "token", "pair") and g["token"].values.tolist() == ["all", "last"]
        np.testing.assert_allclose(g.sel(component="resid_pre", layer=0, token="all"), wanted, atol=1e-4)
        np.testing.assert_allclose(g.sel(component="resid_post", layer=2), wanted, atol=1e-4)
        assert g["clean"].values.tolist() == [1, 1, 1] and g["corrupted"].values.tolist() == [0, 0, 0]
    kl = patch_grid(m, BASE, SOURCE, "resid_post.2", {"last": -1}, metric=kl_divergence())
    np.testing.assert_allclose(kl.sel(layer=2, token="last"), 0, atol=1e-6)
    assert (kl["corrupted"] > 0.01).all()


def test_named_tokens_of_unequal_prompts() -> None:
    """Runs of other lengths, with a span of two tokens that lies elsewhere in each."""
    m = inlay.load(tiny.gpt2(dtype=torch.float64), tokenizer=tiny.words())
    base, source = ["w5 w9 w17 w33 w2", "w40 w3 w4"], ["w1 w1 w1 w9 w17 w7", "w1 w2"]
    tokens = {"subject": [span("w9 w17"), [0, 1]], "last": "last"}
    theirs = {"subject": [span("w9 w17"), [1, 0]], "last": -1}
    g = patch_grid(m, base, source, "resid_post.*", tokens, source_tokens=theirs, metric=logit_difference(5, 9))
    assert g.dims == ("layer", "token", "pair") and "text" not in g.coords
    for pair, layer in itertools.product(range(2), range(3)):
        for name in tokens:
            where = [t[name][pair] if name == "subject" else t[name] for t in (tokens, theirs)]
            edit = Edit(f"resid_post.{layer}", Swap(inlay.Source([source[pair]], tokens=where[1])), tokens=where[0])
            logits = m.forward([base[pair]], edit=edit).logits[0, -1]
            assert float(g.sel(layer=layer, token=name, pair=pair)) == pytest.approx(
                float(logits[5] - logits[9]), abs=1e-5
            )


def test_only_the_layers_above_run_and_nothing_is_kept_for_backward() -> None:
    m, counts = model(), [0, 0, 0]
    norms = [tiny.block(m.hf, i).input_layernorm for i in range(3)]
    for index, norm in enumerate(norms):
        norm.register_forward_pre_hook(lambda *_, i=index: counts.__setitem__(i, counts[i] + 1))
    with torch.enable_grad():
        g = patch_grid(m, BASE[0], SOURCE[0], "resid_pre.*", metric=DIFFERENCE_OF_ONE, batch_tokens=10)
    # 2 runs whole; then 5 cells a layer, 2 rows a batch: 3 batches from each layer's own state
    assert counts == [2 + 3, 2 + 6, 2 + 9]
    assert not g.isnull().any() and all(p.grad is None for p in m.hf.parameters())


def test_models_without_a_residual_stream_run_whole() -> None:
    hf = tiny.llama(dtype=torch.float64)
    blind = inlay.Model(
        hf, sites={"mlp_out": "model.layers.{layer}.mlp:out", "z": ("model.layers.{layer}.self_attn.o_proj:in", 4)}
    )
    for sites in ("mlp_out.*", "z.*"):
        found, wanted = (
            patch_grid(m, BASE, SOURCE, sites, metric=DIFFERENCE, batch_tokens=20) for m in (blind, inlay.load(hf))
        )
        np.testing.assert_allclose(found, wanted, atol=1e-5)


@every_family
def test_ablations_are_edits(family: str) -> None:
    m = model(family)
    others = [[1, 2, 3], [4, 5, 6, 7, 8, 9]]
    for sites, names in (("z.*", [f".h{h}" for h in range(4)]), (["mlp_out.*"], [""])):
        for mean_of in (None, others):
            g = ablate_grid(m, BASE, sites, metric=DIFFERENCE, mean_of=mean_of)
            assert g.dims == (("layer", "head", "prompt") if len(names) > 1 else ("layer", "prompt"))
            for layer, head, pair in itertools.product(range(3), range(len(names)), range(3)):
                site = f"{'z' if len(names) > 1 else 'mlp_out'}.{layer}{names[head]}"
                change = Zero() if mean_of is None else Mean(others)
                wanted = by_hand(m.forward([BASE[pair]], edit=Edit(site, change)).logits, pair)
                at = {"layer": layer, "prompt": pair} | ({"head": head} if len(names) > 1 else {})
                assert float(g.sel(at)) == pytest.approx(wanted, abs=1e-5)
    plain = [by_hand(m.forward([row]).logits, i) for i, row in enumerate(BASE)]
    np.testing.assert_allclose(g["clean"], plain, atol=1e-5)
    assert "corrupted" not in g.coords


def test_ablations_at_some_tokens() -> None:
    m = model()
    g = ablate_grid(m, BASE, "attn_out.1", [[0, 2], 1, "last"], metric=DIFFERENCE)
    for pair, tokens in enumerate(([0, 2], 1, "last")):
        edit = Edit("attn_out.1", Zero(), tokens=tokens)
        assert float(g.sel(prompt=pair, layer=1)) == pytest.approx(
            by_hand(m.forward([BASE[pair]], edit=edit).logits, pair), abs=1e-5
        )


def test_any_function_of_the_logits_is_a_metric() -> None:
    m = model()
    g = patch_grid(m, BASE[0], SOURCE[0], "resid_post.2", metric=lambda logits: logits[:, 5] - logits[:, 9])
    wanted = patch_grid(m, BASE[0], SOURCE[0], "resid_post.2", metric=DIFFERENCE_OF_ONE)
    assert np.array_equal(g.values, wanted.values)


def test_what_makes_no_grid() -> None:
    m = model()

    def grid(
        base: Any = BASE, source: Any = SOURCE, sites: Any = "mlp_out.*", tokens: Any = "all", **more: Any
    ) -> Grid:
        return patch_grid(m, base, source, sites, tokens, **{"metric": DIFFERENCE, **more})

    with pytest.raises(CausalError, match="3 base prompts and 2 source prompts"):
        grid(source=SOURCE[:2])
    with pytest.raises(TokensError, match="pair 1 selects 2 tokens of its base and 3 of its source"):
        grid(source=[SOURCE[0], [1, 2, 3], SOURCE[2]])
    with pytest.raises(CausalError, match=r"mlp_out\.0, z\.1: some of these Sites are made of heads"):
        grid(sites=["mlp_out.0", "z.1"])
    with pytest.raises(CausalError, match="embed: cells are set at Sites of a layer"):
        grid(sites="embed")
    with pytest.raises(SiteError, match="layer 7 is out of range"):
        grid(sites="mlp_out.7")
    with pytest.raises(CausalError, match="direction='restore'"):
        grid(direction="restore")
    with pytest.raises(TargetError, match="3 answers for 1 prompts"):
        grid(base=BASE[:1], source=SOURCE[:1])
    with pytest.raises(InputError, match="empty"):
        grid(base=[], source=[])
    with pytest.raises(CausalError, match="one run only"):
        ablate_grid(m, BASE, "mlp_out.*", metric=normalised(DIFFERENCE))
    with pytest.raises(SiteError, match="both runs need equally many"):
        grid(base=[[1, 2, 3]], source=[[1, 2, 3, 4]], sites="pattern.0", tokens={"last": -1}, metric=DIFFERENCE_OF_ONE)


def test_encoder_decoders_are_refused() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    shape = {
        "vocab_size": 64,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_heads": 4,
        "decoder_start_token_id": 0,
    }
    m = inlay.load(T5ForConditionalGeneration(T5Config(**shape)).eval())
    with pytest.raises(ModelError, match="patching starts from one stack of blocks"):
        patch_grid(m, BASE, SOURCE, "resid_post.*", metric=DIFFERENCE)


# -- gpt-nano-sort: what it does is known for every input -------------------------------------------------------------

LETTERS = [list(letters) for letters in itertools.product(range(3), repeat=6)]


@pytest.fixture(scope="module")
def nano(shared: Path) -> inlay.Model:
    return inlay.load(shared / "data/models/gpt-nano-sort")


@pytest.mark.slow
def test_ablating_a_sorter_exhaustively(nano: inlay.Model) -> None:
    """All 729 inputs, each followed by 0 to 5 of its sorted letters; a sequence counts when all 6 are right."""
    prompts = [row + sorted(row)[:known] for row in LETTERS for known in range(6)]
    metric = accuracy([letter for row in LETTERS for letter in sorted(row)])

    def exact(g: Grid) -> np.ndarray:
        return g.values.reshape(*g.shape[:-1], 729, 6).min(-1).mean(-1)

    heads = ablate_grid(nano, prompts, "z.*", metric=metric)
    assert (heads["clean"] == 1).all()
    wanted = [[0.9506, 0.9328, 0.9616], [0.9986, 0.9959, 1.0], [0.9986, 0.9945, 0.9959]]
    np.testing.assert_allclose(exact(heads), wanted, atol=5e-5)
    mlps = exact(ablate_grid(nano, prompts, "mlp_out.*", metric=metric))
    np.testing.assert_allclose(mlps, [0.6529, 0.9053, 0.9973], atol=5e-5)


def test_patching_a_sorter_at_its_answer(nano: inlay.Model) -> None:
    """The source is the input 364 places before; 127 pairs have another first sorted letter."""
    pairs = [(LETTERS[i], LETTERS[(i - 364) % 729]) for i in range(729)]
    pairs = [(base, source) for base, source in pairs if min(base) != min(source)]
    assert len(pairs) == 127
    base, source = (list(side) for side in zip(*pairs, strict=True))
    metric = accuracy([min(row) for row in source])
    g = patch_grid(nano, base, source, "resid_post.*", {"last": 5, "all": "prompt"}, metric=metric).mean("pair")
    np.testing.assert_allclose(g.sel(token="last"), [0.5039, 0.6614, 1.0], atol=5e-5)
    assert g.sel(token="all").values.tolist() == [1, 1, 1]


def test_indirect_objects_run_end_to_end(shared: Path) -> None:
    """Real prompts through a real tokenizer: names of unequal lengths pair up by name of place, all 499 load."""
    m = inlay.load(shared / "data/models/stories260K", chat=False)
    with (shared / "data/circuits/ioi_llama.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 499
    some = rows[:6]
    clean, corrupted = ([row[name] for row in some] for name in ("clean", "corrupted"))
    answers, foils = ([int(row[name]) % 512 for row in some] for name in ("correct_idx", "incorrect_idx"))
    last: dict[str, Any] = {"last": -1, "before": -2}
    metric = normalised(logit_difference(answers, foils))
    g = patch_grid(m, corrupted, clean, "z.*", last, metric=metric)
    assert g.dims == ("layer", "head", "token", "pair") and g.shape == (5, 8, 2, 6) and not g.isnull().any()
    stream = patch_grid(m, corrupted, clean, "resid_post.4", last, metric=metric)
    np.testing.assert_allclose(stream.sel(layer=4, token="last"), 1, atol=1e-3)
    np.testing.assert_allclose(stream.sel(layer=4, token="before"), 0, atol=1e-3)
