"""Path patching against a two-layer model written out as a tree, and against ordinary patching where they agree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tests.interventions import tiny
from torch import Tensor

import inlay
from inlay import Edit, Source, Swap
from inlay.causal import Grid, logit_difference, normalised, patch_grid, path_grid, path_patch
from inlay.errors import CausalError, SiteError, TokensError
from inlay.model import patch

BASE: list[list[int]] = [[5, 9, 17, 33, 2], [40, 3], [8, 60, 7]]
SOURCE: list[list[int]] = [[(7 * i + 3) % 64 for i in row] for row in BASE]
LAST = [len(row) - 1 for row in BASE]
METRIC = logit_difference(5, 9)
every_family = pytest.mark.parametrize("family", tiny.FAMILIES)


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    with torch.no_grad():
        yield
    assert patch.standing() == 0


def model(family: str = "llama", **changes: Any) -> inlay.Model:
    """In float64, so that what is compared differs by the rounding of float32 results alone."""
    return inlay.load(tiny.FAMILIES[family](dtype=torch.float64, **changes))


def difference(logits: Tensor) -> Tensor:
    """The metric of every pair from logits [pairs, tokens, vocabulary]."""
    at = logits[range(3), LAST]
    return at[:, 5] - at[:, 9]


def same(found: Grid, wanted: Tensor) -> None:
    np.testing.assert_allclose(found, wanted, atol=1e-5)


# -- ordinary patching ------------------------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("freeze", [("z",), ("z", "mlp_out"), ()])
def test_the_last_mlps_only_path_is_the_direct_one(family: str, freeze: tuple[str, ...]) -> None:
    m = model(family)
    wanted = m.forward(BASE, edit=Edit("mlp_out.2", Swap(Source(SOURCE)))).logits
    found = path_patch(m, BASE, SOURCE, "mlp_out.2", metric=METRIC, freeze=freeze)
    assert found.dims == ("pair",) and found.attrs["direction"] == "noise"
    same(found, difference(wanted))
    same(found["clean"], difference(m.forward(BASE).logits))
    same(found["corrupted"], difference(m.forward(SOURCE).logits))


@every_family
@pytest.mark.parametrize("senders", ["z.0.h1", "mlp_out.1", "resid_post.0", ["z.0.h[0,2]", "mlp_out.1"]])
def test_with_nothing_held_it_is_ordinary_patching(family: str, senders: Any) -> None:
    m, source = model(family), Source(SOURCE)
    sites = [senders] if isinstance(senders, str) else senders
    edits = [Edit(site, Swap(source)) for site in sites]
    edit = edits[0] if len(edits) == 1 else edits[0] + edits[1]
    found = path_patch(m, BASE, SOURCE, senders, metric=METRIC, freeze=())
    same(found, difference(m.forward(BASE, edit=edit).logits))


@every_family
def test_a_stream_that_all_paths_cross_carries_everything(family: str) -> None:
    """Sender attn_out.1, receiver resid_mid's successor: nothing else leads on."""
    m = model(family)
    for receivers in ("resid_post.1", "resid_pre.2", ["resid_post.1", "resid_pre.2"]):
        found = path_patch(m, BASE, SOURCE, "attn_out.1", receivers, metric=METRIC)
        same(found, difference(m.forward(BASE, edit=Edit("attn_out.1", Swap(Source(SOURCE)))).logits))


@pytest.mark.parametrize("receivers", ["q.1", "resid_pre.1", ["k.0.h1", "mlp_in.1"], "z.1.h0"])
def test_receivers_below_the_sender_receive_nothing(receivers: Any) -> None:
    m = model()
    found = path_patch(m, BASE, SOURCE, "mlp_out.1", receivers, metric=METRIC)
    same(found, difference(m.forward(BASE).logits))


# -- a tree of copies -------------------------------------------------------------------------------------------------


class Tree:
    """A two-layer Llama taken apart: every path can be fed by hand. All tensors are of padded rows."""

    def __init__(self, hf: Any) -> None:
        self.hf, self.layers = hf, hf.model.layers
        self.base, self.source = (self.run(rows) for rows in (BASE, SOURCE))

    def run(self, rows: list[list[int]]) -> dict[str, Tensor]:
        kept: dict[str, Tensor] = {"embed": self.hf.model.embed_tokens(tiny.padded(rows)["input_ids"])}
        handles = [
            layer.self_attn.o_proj.register_forward_pre_hook(lambda _, args, i=i: kept.__setitem__(f"z{i}", args[0]))
            for i, layer in enumerate(self.layers)
        ]
        kept["logits"] = tiny.plain(self.hf, rows)
        for handle in handles:
            handle.remove()
        return kept

    def z(self, layer: int, head: int, tokens: Any = slice(None)) -> Tensor:
        """The base's z of a layer with one head at the source's values."""
        z, cols = self.base[f"z{layer}"].clone(), slice(head * tiny.HEAD_WIDTH, (head + 1) * tiny.HEAD_WIDTH)
        z[:, tokens, cols] = self.source[f"z{layer}"][:, tokens, cols]
        return z

    def attn(self, layer: int, z: Tensor) -> Tensor:
        return self.layers[layer].self_attn.o_proj(z)

    def mlp(self, layer: int, stream: Tensor) -> Tensor:
        return self.layers[layer].mlp(self.layers[layer].post_attention_layernorm(stream))

    def head(self, stream: Tensor) -> Tensor:
        return self.hf.lm_head(self.hf.model.norm(stream))

    def middle(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The stream behind layer 0 for its z, with its MLP computed, and that MLP's part."""
        stream = self.base["embed"] + self.attn(0, z)
        mlp = self.mlp(0, stream)
        return stream + mlp, mlp


@pytest.fixture(scope="module")
def two() -> inlay.Model:
    return model(num_hidden_layers=2)


@pytest.fixture
def tree(two: inlay.Model) -> Tree:
    return Tree(two.hf)


def test_the_tree_is_the_model(two: inlay.Model, tree: Tree) -> None:
    stream, _ = tree.middle(tree.base["z0"])
    stream = stream + tree.attn(1, tree.base["z1"])
    tiny.same_where_real(tree.head(stream + tree.mlp(1, stream)), tree.base["logits"], BASE)


@pytest.mark.parametrize("head", [0, 3])
def test_paths_to_the_logits_through_mlps(two: inlay.Model, tree: Tree, head: int) -> None:
    """Attention of layer 1 is held, its MLP and that of layer 0 see the change."""
    stream, _ = tree.middle(tree.z(0, head))
    stream = stream + tree.attn(1, tree.base["z1"])
    wanted = tree.head(stream + tree.mlp(1, stream))
    same(path_patch(two, BASE, SOURCE, f"z.0.h{head}", metric=METRIC), difference(wanted))


@pytest.mark.parametrize("head", [0, 3])
def test_the_residual_path_alone(two: inlay.Model, tree: Tree, head: int) -> None:
    """With the MLPs held too, what the head adds to the stream reaches the final norm as it is."""
    stream, _ = tree.middle(tree.base["z0"])
    stream = stream + tree.attn(1, tree.base["z1"])
    stream = stream + tree.mlp(1, stream) + tree.attn(0, tree.z(0, head) - tree.base["z0"])
    found = path_patch(two, BASE, SOURCE, f"z.0.h{head}", metric=METRIC, freeze=("z", "mlp_out"))
    same(found, difference(tree.head(stream)))


@pytest.mark.parametrize("freeze", [("z",), ("z", "mlp_out")])
@pytest.mark.parametrize("kind, head", [("q", 2), ("k", 1), ("v", 0)])
def test_paths_to_a_heads_input(two: inlay.Model, tree: Tree, kind: str, head: int, freeze: tuple[str, ...]) -> None:
    """The projection of the changed stream, for one head, goes into an otherwise unchanged run."""
    stream, _ = tree.middle(tree.z(0, 1))
    if "mlp_out" in freeze:
        whole, _ = tree.middle(tree.base["z0"])
        stream = whole + tree.attn(0, tree.z(0, 1) - tree.base["z0"])
    project = getattr(tree.layers[1].self_attn, f"{kind}_proj")
    arrived, cols = (
        project(tree.layers[1].input_layernorm(stream)),
        slice(head * tiny.HEAD_WIDTH, (head + 1) * tiny.HEAD_WIDTH),
    )

    def change(own: Tensor) -> Tensor:
        return torch.cat([own[..., : cols.start], arrived[..., cols], own[..., cols.stop :]], -1)

    with tiny.hook(project, change):
        wanted = tiny.plain(two.hf, BASE)
    found = path_patch(two, BASE, SOURCE, "z.0.h1", f"{kind}.1.h{head}", metric=METRIC, freeze=freeze)
    same(found, difference(wanted))


def test_paths_to_an_mlp(two: inlay.Model, tree: Tree) -> None:
    """What arrives at layer 1's MLP, past its held attention, and only there."""
    stream, _ = tree.middle(tree.z(0, 1))
    middle = stream + tree.attn(1, tree.base["z1"])
    arrived = tree.layers[1].post_attention_layernorm(middle)
    stream, _ = tree.middle(tree.base["z0"])
    stream = stream + tree.attn(1, tree.base["z1"])
    wanted = tree.head(stream + tree.layers[1].mlp(arrived))
    same(path_patch(two, BASE, SOURCE, "z.0.h1", "mlp_in.1", metric=METRIC), difference(wanted))


def test_a_held_kind_can_receive(two: inlay.Model, tree: Tree) -> None:
    """A receiving z is what its head computes from the changed stream, before it is held."""
    stream, _ = tree.middle(tree.z(0, 1))
    computed: list[Tensor] = []
    with tiny.input_hook(tree.layers[1].self_attn.o_proj, lambda z: (computed.append(z), z)[1]):
        two.forward(BASE[:1], edit=Edit("resid_pre.1", Swap(Source(stream[:1]))))
    z = tree.base["z1"][:1].clone()
    z[..., 8:16] = computed[0][..., 8:16]
    stream, _ = tree.middle(tree.base["z0"])
    stream = stream[:1] + tree.attn(1, z)
    logits = tree.head(stream + tree.mlp(1, stream))[0, LAST[0]]
    found = path_patch(two, BASE[:1], SOURCE[:1], "z.0.h1", "z.1.h1", metric=METRIC)
    assert found.dims == () and float(found) == pytest.approx(float(logits[5] - logits[9]), abs=1e-5)


def test_senders_and_receivers_at_some_tokens(two: inlay.Model, tree: Tree) -> None:
    """The sender at token 1 alone, the receiving MLP at the last token alone."""
    stream, _ = tree.middle(tree.z(0, 1, 1))
    changed = tree.layers[1].post_attention_layernorm(stream + tree.attn(1, tree.base["z1"]))
    stream, _ = tree.middle(tree.base["z0"])
    stream = stream + tree.attn(1, tree.base["z1"])
    arrived = tree.layers[1].post_attention_layernorm(stream)
    arrived[range(3), LAST] = changed[range(3), LAST]
    wanted = difference(tree.head(stream + tree.layers[1].mlp(arrived)))
    found = path_patch(two, BASE, SOURCE, "z.0.h1", "mlp_in.1", metric=METRIC, tokens=1, receiver_tokens="last")
    same(found, wanted)
    assert float(found[1]) != pytest.approx(float(found["clean"][1]), abs=1e-4), "where token 1 is the last one"
    for pair in (0, 2):
        assert float(found[pair]) == pytest.approx(float(found["clean"][pair]), abs=1e-5), "no path over one MLP"


# -- many senders -----------------------------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("receivers", ["logits", ["q.2.h1", "mlp_in.2"]])
@pytest.mark.parametrize("batch_tokens", [11, 8192])
def test_a_grid_of_senders_is_each_alone(family: str, receivers: Any, batch_tokens: int) -> None:
    m = model(family)
    options: dict[str, Any] = {"metric": METRIC, "batch_tokens": batch_tokens}
    heads = path_grid(m, BASE, SOURCE, receivers=receivers, **options)
    assert heads.dims == ("layer", "head", "pair") and heads.shape == (3, 4, 3)
    for layer, head in ((0, 0), (0, 3), (1, 2), (2, 1)):
        alone = path_patch(m, BASE, SOURCE, f"z.{layer}.h{head}", receivers, metric=METRIC)
        np.testing.assert_allclose(heads.sel(layer=layer, head=head), alone, atol=1e-5)
    mlps = path_grid(m, BASE, SOURCE, ["mlp_out.*", "attn_out.*"], receivers, **options)
    assert mlps.dims == ("component", "layer", "pair")
    alone = path_patch(m, BASE, SOURCE, "attn_out.1", receivers, metric=METRIC)
    np.testing.assert_allclose(mlps.sel(component="attn_out", layer=1), alone, atol=1e-5)


def test_grids_of_paths_and_of_patches_agree_on_the_last_layer() -> None:
    """From there the direct path is the only one, but for the layer's MLP, which is computed anew in both."""
    m = model()
    paths = path_grid(m, BASE, SOURCE, "z.2", metric=METRIC)
    patches = patch_grid(m, BASE, SOURCE, "z.2", {"all": "all"}, metric=METRIC, direction="noise")
    np.testing.assert_allclose(paths, patches.sel(token="all"), atol=1e-5)


def test_models_without_a_residual_stream_run_whole() -> None:
    hf = tiny.llama(dtype=torch.float64)
    places = {
        "mlp_out": "model.layers.{layer}.mlp:out",
        "mlp_in": "model.layers.{layer}.mlp:in",
        "z": ("model.layers.{layer}.self_attn.o_proj:in", 4),
    }
    for receivers in ("logits", "mlp_in.2"):
        found, wanted = (
            path_grid(m, BASE, SOURCE, receivers=receivers, metric=METRIC, batch_tokens=10)
            for m in (inlay.Model(hf, sites=places), inlay.load(hf))
        )
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_directions_of_paths() -> None:
    m = model()
    options: dict[str, Any] = {"metric": normalised(METRIC), "freeze": ()}
    assert path_patch(m, BASE, SOURCE, "resid_pre.0", **options).values == pytest.approx(0, abs=1e-4)
    found = path_patch(m, BASE, SOURCE, "resid_pre.0", direction="denoise", **options)
    assert found.values == pytest.approx(1, abs=1e-4)


def test_what_is_no_path() -> None:
    m = model()
    with pytest.raises(CausalError, match="3 base prompts and 1 source prompts"):
        path_patch(m, BASE, SOURCE[:1], "z.0.h1", metric=METRIC)
    with pytest.raises(CausalError, match="embed: cells are set at Sites of a layer"):
        path_patch(m, BASE, SOURCE, "embed", metric=METRIC)
    with pytest.raises(CausalError, match="logits: cells are set at Sites of a layer"):
        path_patch(m, BASE, SOURCE, "z.0.h1", ["q.1", "logits"], metric=METRIC)
    with pytest.raises(CausalError, match="are made of heads and some are not"):
        path_grid(m, BASE, SOURCE, ["z.0", "mlp_out.0"], metric=METRIC)
    with pytest.raises(SiteError, match="no Site is called"):
        path_patch(m, BASE, SOURCE, "z.0.h1", metric=METRIC, freeze=("heads",))
    with pytest.raises(TokensError, match="pair 0 selects 5 tokens of its base and 4 of its source"):
        path_patch(m, BASE, [[1, 2, 3, 4], *SOURCE[1:]], "z.0.h1", metric=METRIC)
