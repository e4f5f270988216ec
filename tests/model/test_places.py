"""Every Site of every family: a read is what a hand-written hook sees, a write is the same write coded by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.families import FAMILIES, LAYERS, WIDTH, Family, build
from tests.model.sites_by_hand import Heard, Key, batch, forward, listen
from torch import Tensor

import inlay
from inlay import Add, Edit, Replace, Scale, Source, Swap, Zero
from inlay.errors import SiteError
from inlay.model.places import Columns, Place, pick, put_back

PADDED, FULL = batch(9, 6), batch(8, 8, seed=1)  # both longer than the sliding windows
HEADED = ("q", "k", "v", "z", "q_rot", "k_rot", "pattern")
PAIRS = [(family, name) for family, row in FAMILIES.items() for name in row.sites]
every_family = pytest.mark.parametrize("family", FAMILIES)
every_site = pytest.mark.parametrize(("family", "name"), [p for p in PAIRS if p[1] != "resid_mid"])
every_headed = pytest.mark.parametrize(("family", "name"), [p for p in PAIRS if p[1] in HEADED])
every_middle = pytest.mark.parametrize("family", [f for f, name in PAIRS if name == "resid_mid"])


@cache
def model(family: str, attention: str | None = "eager") -> inlay.Model:
    return inlay.load(build(family, attention))


@cache
def clean(family: str) -> Heard:
    return listen(model(family).hf, FAMILIES[family], PADDED)


def spell(at: Key, heads: tuple[int, ...] = ()) -> str:
    if at[1] is None:
        return at[0]
    some = f".h{heads[0]}" if len(heads) == 1 else f".h[{','.join(map(str, heads))}]" if heads else ""
    return f"{at[0]}.{at[1]}{some}"


def every(family: Family) -> list[Key]:
    """Every Site of every layer, in an order of computation."""
    names = family.sites
    first, last = names.index("resid_pre"), names.index("resid_post") + 1
    order: list[Key] = [(n, None) for n in names[:first]]
    order += [(n, i) for i in range(LAYERS) for n in names[first:last] if i in family.layers_of(n)]
    return order + [(n, None) for n in names[last:]]


def middle(family: Family, name: str) -> int | None:
    """One layer that has the Site: the middle one where that has it."""
    layers = family.layers_of(name)
    return 1 if 1 in layers else layers[0]


def own(whole: Tensor, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Each row's own positions."""
    return [row[real.bool()] for row, real in zip(whole, inputs["attention_mask"], strict=True)]


def assert_read(acts: Any, at: str, whole: Tensor, inputs: dict[str, Tensor]) -> None:
    """What inlay read is, bit for bit, a tensor [R, T, W] at each row's own positions."""
    for mine, theirs in zip(acts.rows(at), own(whole, inputs), strict=True):
        assert mine.flatten(1).shape == theirs.shape, at
        assert torch.equal(mine.flatten(1), theirs), at


# -- reads -----------------------------------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("attention", ["eager", None])
@pytest.mark.parametrize("inputs", [PADDED, FULL], ids=["padded", "full"])
def test_a_read_of_each_site_is_what_a_hook_sees(family: str, attention: str | None, inputs: dict[str, Tensor]) -> None:
    m = model(family, attention)
    heard = listen(m.hf, FAMILIES[family], inputs)
    wanted = {spell(at): whole for at, whole in heard.sites.items()}  # under SDPA none inside the attention function
    for acts in (m.forward(inputs, read=list(wanted)).acts, m.read(inputs, list(wanted))):
        assert acts is not None
        assert list(acts) == list(wanted)
        for at, whole in wanted.items():
            assert_read(acts, at, whole, inputs)


@every_family
def test_a_site_alone_reads_as_it_does_among_all(family: str) -> None:
    m, row = model(family), FAMILIES[family]
    for name in row.sites:
        at = (name, middle(row, name))
        assert_read(m.read(PADDED, spell(at)), spell(at), clean(family).sites[at], PADDED)


@every_family
def test_the_last_token_reads_as_the_hook_sees_it(family: str) -> None:
    acts = model(family).read(PADDED, [spell(at) for at in every(FAMILIES[family])], tokens="last")
    for at, whole in clean(family).sites.items():
        last = torch.stack([row[-1] for row in own(whole, PADDED)])
        assert torch.equal(acts[spell(at)].flatten(1), last), at


@every_headed
def test_heads_read_as_their_columns(family: str, name: str) -> None:
    m, row = model(family), FAMILIES[family]
    count = row.heads_of(name)
    several = (count - 1, 0) if count > 1 else (0,)
    layers = row.layers_of(name)
    split = {i: clean(family).sites[name, i].unflatten(-1, (count, -1)) for i in layers}
    wanted = {spell((name, i), (h,)): s[:, :, h] for i, s in split.items() for h in range(count)}
    wanted |= {spell((name, i), several): s[:, :, list(several)].flatten(2) for i, s in split.items()}
    acts = m.read(PADDED, list(wanted))
    for at, whole in wanted.items():
        assert_read(acts, at, whole, PADDED)
        size = whole.shape[-1] // (len(several) if "[" in at else 1)
        assert size == 9 if name == "pattern" else size == row.size
        assert acts[at].shape == ((2, 9, len(several), size) if "[" in at else (2, 9, size))


@every_family
def test_all_heads_of_a_site_come_split(family: str) -> None:
    row = FAMILIES[family]
    names = [n for n in row.sites if n in HEADED]
    acts = model(family).read(PADDED, [f"{n}.1" for n in names])
    for name in names:
        assert acts[f"{name}.1"].shape == (2, 9, row.heads_of(name), 9 if name == "pattern" else row.size)


FLAT = {("router", f) for f in FAMILIES} | {
    (n, f) for n in ("mlp_in", "mlp_act", "mlp_out", "resid_mid") for f in ("opt", "opt_post_norm")
}


@every_family
def test_a_raw_site_is_what_its_module_takes_and_gives(family: str) -> None:
    """Also of a module whose output the family overwrites in place."""
    m, row = model(family), FAMILIES[family]
    full = listen(m.hf, row, FULL)
    for name in row.sites:
        at = (name, middle(row, name))
        path, side = row.where(*at)
        if side not in ("in", "out") or name == "pattern" or (name, family) in FLAT or (row.fused and name in "qkv"):
            continue
        raw = f"module:{path}:{side}"
        for inputs, heard in ((PADDED, clean(family)), (FULL, full)):
            assert_read(m.read(inputs, raw), raw, heard.sites[at], inputs)


@pytest.mark.parametrize(
    ("family", "raw"),
    [
        ("opt", "module:model.decoder.layers.1.fc1:in"),
        ("mixtral", "module:model.layers.1.mlp.gate:out"),
        ("bloom", "module:transformer.h.1.self_attention.attention_dropout:out"),
    ],
)
@pytest.mark.parametrize("inputs", [PADDED, FULL], ids=["padded", "full"])
def test_a_raw_site_that_is_not_rows_tokens_width_is_refused(family: str, raw: str, inputs: dict[str, Tensor]) -> None:
    with pytest.raises(SiteError, match=r"\[rows, tokens, width\]"):
        model(family).read(inputs, raw)
    with pytest.raises(SiteError, match=r"\[rows, tokens, width\]"):
        model(family).forward(inputs, edit=Edit(raw, Scale(0.5)))


# -- writes ----------------------------------------------------------------------------------------------------------


def negated(width: int, tokens: str) -> tuple[Callable[[str], Edit], Callable[[Tensor], Tensor]]:
    """The same change as interventions and by hand: h -> c h + v at every token or at each row's last.

    c is negative, so that neither a norm nor a softmax can undo it; a pattern has no fixed width and is only scaled.
    """
    v = torch.randn(width, generator=torch.Generator().manual_seed(width)) if width else None

    def edit(at: str) -> Edit:
        scaled = Edit(at, Scale(-0.5), tokens=tokens)
        return scaled if v is None else scaled + Edit(at, Add(v), tokens=tokens)

    def by_hand(h: Tensor) -> Tensor:
        new = h * -0.5 if v is None else h * -0.5 + v
        if tokens == "all":
            return new
        out = h.clone()
        for row, length in enumerate(PADDED["attention_mask"].sum(1)):
            out[row, length - 1] = new[row, length - 1]
        return out

    return edit, by_hand


def on_heads(change: Callable[[Tensor], Tensor], count: int, heads: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    """A change of some heads' columns, side by side in the order given."""

    def by_hand(h: Tensor) -> Tensor:
        split = h.unflatten(-1, (count, -1)).clone()
        split[:, :, list(heads)] = change(split[:, :, list(heads)].flatten(2)).unflatten(-1, (len(heads), -1))
        return split.flatten(2)

    return by_hand if heads else change


def assert_written(family: str, at: Key, tokens: str, heads: tuple[int, ...] = (), everywhere: bool = True) -> None:
    """An Edit equals the same edit by hand, bit for bit, in the logits and at every Site; no Site before it changes."""
    m, row = model(family), FAMILIES[family]
    width = 0 if at[0] == "pattern" else row.size * len(heads) if heads else clean(family).sites[at].shape[-1]
    edit, by_hand = negated(width, tokens)
    order = every(row)
    wanted = order if everywhere else [at]
    heard = listen(m.hf, row, PADDED, at, on_heads(by_hand, row.heads_of(at[0]), heads), only=wanted)
    out = m.forward(PADDED, edit=edit(spell(at, heads)), read=[spell(one) for one in wanted])
    assert torch.equal(out.logits, heard.logits)
    assert set(out.touched or []) == {15 if tokens == "all" else 2}
    for one in wanted:
        upstream = order.index(one) < order.index(at)
        assert_read(out.acts, spell(one), (clean(family) if upstream else heard).sites[one], PADDED)
    for mine, unedited in zip(own(out.logits, PADDED), own(clean(family).logits, PADDED), strict=True):
        assert (mine[-1] - unedited[-1]).abs().max() > 1e-4


@every_site
def test_a_write_to_each_site_is_the_write_coded_by_hand(family: str, name: str) -> None:
    at = (name, middle(FAMILIES[family], name))
    assert_written(family, at, "all")
    assert_written(family, at, "last", everywhere=False)


@pytest.mark.slow
@every_site
def test_a_write_to_each_site_of_every_layer_is_the_write_coded_by_hand(family: str, name: str) -> None:
    for layer in FAMILIES[family].layers_of(name):
        assert_written(family, (name, layer), "all")
        assert_written(family, (name, layer), "last")


@every_headed
@pytest.mark.parametrize("heads", [(1,), (3, 0)], ids=str)
def test_a_write_to_heads_is_the_write_coded_by_hand(family: str, name: str, heads: tuple[int, ...]) -> None:
    count = FAMILIES[family].heads_of(name)
    heads = tuple(dict.fromkeys(h % count for h in heads))
    assert_written(family, (name, 1), "all", heads, everywhere=False)
    assert_written(family, (name, 1), "last", heads, everywhere=False)


def at_every_site(family: str, part: Callable[[str, int], Edit]) -> Edit:
    """The sum of a part at one layer of every Site but the pattern, whose width is not fixed."""
    row = FAMILIES[family]
    keys = [(name, middle(row, name)) for name in row.sites if name != "pattern"]
    parts = [part(spell(at), clean(family).sites[at].shape[-1]) for at in keys]
    return Edit.of(tuple(one for edit in parts for one in edit.parts))


@every_family
def test_an_edit_that_is_lifted_leaves_the_logits_as_they_were(family: str) -> None:
    m = model(family)
    out = m.forward(PADDED, edit=at_every_site(family, lambda at, width: Edit(at, Scale(2.0))))
    assert not torch.equal(out.logits, clean(family).logits)
    assert torch.equal(forward(m.hf, PADDED).logits, clean(family).logits)


@every_family
@pytest.mark.parametrize("inputs", [batch(1, seed=2), FULL], ids=["one token", "full"])
def test_what_is_set_at_a_site_is_read_there_and_not_written_into(family: str, inputs: dict[str, Tensor]) -> None:
    """A family that goes on to write into what a module gave must not write into the vector that was set there."""
    m, rows = model(family), inputs["input_ids"].shape
    vectors: dict[str, Tensor] = {}

    def replaced(at: str, width: int) -> Edit:
        vectors[at] = torch.randn(width)
        return Edit(at, Replace(vectors[at].clone()))

    edit = at_every_site(family, replaced)
    out = m.forward(inputs, edit=edit, read=list(vectors))
    assert out.acts is not None
    for part in edit.parts:
        at = str(part.site)
        assert torch.equal(part.intervention.state()["vector"], vectors[at]), at
        tolerance = 1e-5 if at.startswith("resid_mid") else 0.0
        found = out.acts[at].flatten(2)
        torch.testing.assert_close(found, vectors[at].expand(found.shape), rtol=0, atol=tolerance)

    stored = {at: v.expand(*rows, -1).clone() for at, v in vectors.items()}
    swapped = at_every_site(family, lambda at, width: Edit(at, Swap(Source(stored[at]))))
    assert torch.equal(m.forward(inputs, edit=swapped).logits, out.logits)
    for at, v in vectors.items():
        assert torch.equal(stored[at], v.expand(*rows, -1)), at


# -- resid_mid -------------------------------------------------------------------------------------------------------


@every_middle
@pytest.mark.parametrize("tokens", ["all", "last"])
def test_a_write_to_resid_mid_moves_branch_and_stream_alike(family: str, tokens: str) -> None:
    """By hand: the norm before the MLP takes the new state, and the block's output moves by the same amount."""
    m, row = model(family), FAMILIES[family]
    edit, by_hand = negated(clean(family).sites["resid_mid", 1].shape[-1], tokens)
    order = every(row)
    for layer in range(LAYERS):
        at: Key = ("resid_mid", layer)
        heard = listen(m.hf, row, PADDED, at, by_hand)
        out = m.forward(PADDED, edit=edit(spell(at)), read=[spell(one) for one in order])
        assert out.acts is not None
        for one in order[: order.index(at)]:
            assert_read(out.acts, spell(one), clean(family).sites[one], PADDED)
        for one in order[order.index(at) :]:
            for mine, theirs in zip(out.acts.rows(spell(one)), own(heard.sites[one], PADDED), strict=True):
                torch.testing.assert_close(
                    mine.flatten(1), theirs, rtol=1e-5, atol=1e-5, msg=lambda s, o=one: f"{o}: {s}"
                )
        torch.testing.assert_close(out.logits, heard.logits, rtol=1e-5, atol=1e-5)


def test_a_write_to_resid_mid_is_a_hand_written_llama_forward() -> None:
    m = model("llama")
    hf = m.hf
    v = torch.randn(WIDTH)
    ids = FULL["input_ids"]
    for layer in range(LAYERS):
        with torch.no_grad():
            h = hf.model.embed_tokens(ids)
            mask = torch.full((8, 8), torch.finfo(torch.float32).min).triu(1)[None, None]
            rope = hf.model.rotary_emb(h, FULL["position_ids"])
            for index, block in enumerate(hf.model.layers):
                h = h + block.self_attn(block.input_layernorm(h), position_embeddings=rope, attention_mask=mask)[0]
                h = h * -0.5 + v if index == layer else h
                h = h + block.mlp(block.post_attention_layernorm(h))
            by_hand = hf.lm_head(hf.model.norm(h))
        edit = Edit(f"resid_mid.{layer}", Scale(-0.5)) + Edit(f"resid_mid.{layer}", Add(v))
        torch.testing.assert_close(m.forward(ids, edit=edit).logits, by_hand, rtol=1e-6, atol=2e-6)


# -- the order of parts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma2", "olmo2", "gpt2", "bloom", "opt", "mpt", "granite", "gpt_oss"])
@pytest.mark.parametrize("other", ["resid_pre", "attn_in", "attn_out", "mlp_in", "mlp_out", "resid_post"])
def test_across_sites_the_forward_decides_the_order(family: str, other: str) -> None:
    """Two parts give the same whichever is written first, and both take hold."""
    m = model(family)
    width = clean(family).sites["resid_mid", 1].shape[-1]
    u, v = torch.randn(2, width)
    one, two = Edit("resid_mid.1", Replace(u)), Edit(f"{other}.1", Scale(-0.5)) + Edit(f"{other}.1", Add(v))
    reads = ["resid_mid.1", f"{other}.1", "resid_post.1"]
    first, second = m.forward(PADDED, edit=one + two, read=reads), m.forward(PADDED, edit=two + one, read=reads)
    assert first.acts is not None and second.acts is not None
    assert torch.equal(first.logits, second.logits)
    for name in reads:
        assert torch.equal(first.acts[name], second.acts[name])
    for mine in first.acts.rows("resid_mid.1"):
        torch.testing.assert_close(mine, u.expand(mine.shape), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama"] + [f for f, row in FAMILIES.items() if row.fused])
@pytest.mark.parametrize(("one", "two"), [("q", "v"), ("k", "v"), ("q", "k")])
def test_parts_of_one_projection_commute(family: str, one: str, two: str) -> None:
    m = model(family)
    a, b = Edit(f"{one}.1", Scale(-0.7)), Edit(f"{two}.1", Scale(1.3))
    reads = ["q.1", "k.1", "v.1"]
    first, second = m.forward(PADDED, edit=a + b, read=reads), m.forward(PADDED, edit=b + a, read=reads)
    assert first.acts is not None and second.acts is not None
    assert torch.equal(first.logits, second.logits)
    factors = {one: -0.7, two: 1.3}
    for name in "qkv":
        whole = clean(family).sites[name, 1] * factors.get(name, 1.0)
        assert_read(first.acts, f"{name}.1", whole, PADDED)
        assert_read(second.acts, f"{name}.1", whole, PADDED)


# -- real weights ----------------------------------------------------------------------------------------------------

REAL = {
    "stories260K": (FAMILIES["llama"], 5),
    "bitllama_3M": (FAMILIES["bitnet"], 8),
    "gpt-nano-sort": (FAMILIES["gpt2"], 3),
}


def real(shared: Path, name: str, **kwargs: Any) -> tuple[inlay.Model, Family, dict[str, Tensor]]:
    """A model of the shared folder, its row of the table with its own number of layers, and inputs."""
    row, layers = REAL[name]
    every_layer = {site: tuple(range(layers)) for site in row.sites if "{}" in row.places[site]}
    m = inlay.load(shared / "data/models" / name, **kwargs)
    assert m.layers == layers
    vocabulary = m.config.vocab_size
    inputs = batch(11, 7, seed=3)
    inputs["input_ids"] = inputs["input_ids"] % vocabulary
    return m, replace(row, layers=every_layer), inputs


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_read_of_real_weights_is_what_a_hook_sees(shared: Path, name: str, attention: str) -> None:
    m, row, inputs = real(shared, name, attn_implementation=attention)
    assert set(m.sites().places) == set(row.sites)
    heard = listen(m.hf, row, inputs)
    assert len(heard.sites) >= len(row.sites) - 3
    acts = m.read(inputs, [spell(at) for at in heard.sites])
    for at, whole in heard.sites.items():
        assert_read(acts, spell(at), whole, inputs)


@pytest.mark.parametrize("name", REAL)
def test_a_write_into_real_weights_is_the_write_coded_by_hand(shared: Path, name: str) -> None:
    m, row, inputs = real(shared, name, attn_implementation="eager")
    plain = listen(m.hf, row, inputs, only=[]).logits
    for site in row.sites:
        if site == "resid_mid":
            continue
        at: Key = (site, 1 if "{}" in row.places[site] else None)
        heard = listen(m.hf, row, inputs, at, lambda h: h * -0.5, only=[])
        found = own(m.forward(inputs, edit=Edit(spell(at), Scale(-0.5))).logits, inputs)
        for mine, theirs, unedited in zip(found, own(heard.logits, inputs), own(plain, inputs), strict=True):
            assert torch.equal(mine, theirs), site
            assert not torch.equal(mine, unedited), site


@cache
def sorting() -> tuple[Tensor, Tensor]:
    """All 729 rows of six letters with their sorted letters but the last behind them, and the sorted letters."""
    letters = torch.tensor(list(itertools.product(range(3), repeat=6)))
    ordered = letters.sort(1).values
    return torch.cat([letters, ordered[:, :-1]], 1), ordered


def sorted_share(m: inlay.Model, edit: Edit | None = None) -> float:
    """The share of rows whose six letters are all predicted, at positions 5 to 10."""
    ids, ordered = sorting()
    with torch.no_grad():
        predicted = m.forward(ids, edit=edit).logits[:, 5:].argmax(-1)
    return round(float((predicted == ordered).all(1).double().mean()), 4)


def test_ablations_of_a_sorter_have_their_known_accuracies(shared: Path) -> None:
    m = inlay.load(shared / "data/models/gpt-nano-sort")
    heads = [[0.9506, 0.9328, 0.9616], [0.9986, 0.9959, 1.0], [0.9986, 0.9945, 0.9959]]
    assert sorted_share(m) == 1.0
    assert [[sorted_share(m, Edit(f"z.{i}.h{h}", Zero())) for h in range(3)] for i in range(3)] == heads
    assert [sorted_share(m, Edit(f"mlp_out.{i}", Zero())) for i in range(3)] == [0.6529, 0.9053, 0.9973]
    assert sorted_share(m) == 1.0


def test_interchange_in_a_sorter_has_its_known_accuracies(shared: Path) -> None:
    """The source of row i is row (i - 364) mod 729; which first letter follows, where the two differ in it."""
    m = inlay.load(shared / "data/models/gpt-nano-sort")
    ids, ordered = sorting()
    other = (torch.arange(729) - 364) % 729
    differ = ordered[:, 0] != ordered[other, 0]
    assert int(differ.sum()) == 127

    def follows(layer: int, tokens: Any) -> float:
        edit = Edit(f"resid_post.{layer}", Swap(Source(ids[other])), tokens=tokens)
        with torch.no_grad():
            first = m.forward(ids, edit=edit).logits[:, 5].argmax(-1)
        return round(float((first == ordered[other, 0])[differ].double().mean()), 4)

    assert [follows(layer, 5) for layer in range(3)] == [0.5039, 0.6614, 1.0]
    assert [follows(layer, slice(0, 6)) for layer in range(3)] == [1.0, 1.0, 1.0]


# -- Columns and Place -----------------------------------------------------------------------------------------------

WHOLE = torch.arange(2 * 3 * 24, dtype=torch.float32).reshape(2, 3, 24)


@pytest.mark.parametrize(
    ("columns", "picked"),
    [
        (Columns((24,), (slice(0, 8),)), list(range(8))),
        (Columns((4, 6), ((2,),)), list(range(12, 18))),
        (Columns((4, 6), ((3, 0),)), [*range(18, 24), *range(6)]),
        (Columns((2, 3, 4), (slice(None), 1)), [4, 5, 6, 7, 16, 17, 18, 19]),
        (Columns((2, 3, 4), (slice(None), slice(0, 2))), [*range(8), *range(12, 20)]),
        (Columns((6, 4), (5,)), [20, 21, 22, 23]),
    ],
    ids=str,
)
def test_columns_are_cut_from_the_first_dimension_of_their_shape(columns: Columns, picked: list[int]) -> None:
    assert torch.equal(columns.get(WHOLE), WHOLE[..., picked])
    new = -torch.arange(2 * 3 * len(picked), dtype=torch.float32).reshape(2, 3, -1) - 1
    expected, before = WHOLE.clone(), WHOLE.clone()
    expected[..., picked] = new
    assert torch.equal(columns.put(WHOLE, new), expected)
    assert torch.equal(WHOLE, before)


def test_a_place_goes_through_flat_and_headed_tensors() -> None:
    flat = Place("m", "out", flat=True, width=24)
    assert torch.equal(flat.get(WHOLE.flatten(0, 1), 2), WHOLE)
    assert torch.equal(flat.put(WHOLE.flatten(0, 1), -WHOLE, 2), -WHOLE.flatten(0, 1))
    headed = Place("m", "query", headed=True, heads=4, width=24)
    heads = WHOLE.unflatten(-1, (4, 6)).transpose(1, 2)
    assert torch.equal(headed.get(heads, 2), WHOLE)
    assert torch.equal(headed.put(heads, -WHOLE, 2), -heads)
    third = headed.of_heads((2,), "q_rot.0.h2")
    assert (third.width, third.heads) == (6, 1)
    assert torch.equal(third.get(heads, 2), heads[:, 2])
    changed = third.put(heads, torch.zeros(2, 3, 6), 2)
    assert torch.equal(changed[:, 2], torch.zeros(2, 3, 6))
    assert torch.equal(changed[:, [0, 1, 3]], heads[:, [0, 1, 3]])


def test_heads_of_a_fused_projection_compose() -> None:
    keys = Place("m", "out", columns=(Columns((2, 3, 4), (slice(None), 1)),), heads=2, width=8)
    second = keys.of_heads((1,), "k.0.h1")
    assert torch.equal(second.get(WHOLE, 2), WHOLE[..., 16:20])
    expected = WHOLE.clone()
    expected[..., 16:20] = 0
    assert torch.equal(second.put(WHOLE, torch.zeros(2, 3, 4), 2), expected)


def test_heads_that_are_not_there() -> None:
    place = Place("m", "in", heads=4, width=24)
    assert place.of_heads((), "z.0") is place
    with pytest.raises(SiteError, match=r"'z\.0\.h4': head 4 is out of range; the Site has 4 heads \(0 to 3\)"):
        place.of_heads((4,), "z.0.h4")
    with pytest.raises(SiteError, match="how many heads"):
        Place("m", "in", width=24).of_heads((0,), "z.0.h0")


def test_pick_and_put_back_keep_the_container() -> None:
    a, b, c = torch.zeros(1), torch.ones(1), torch.ones(2)
    assert pick(a, None) is a
    assert pick((a, b), 1) is b
    assert put_back(a, None, c) is c
    for container in (tuple, list):
        given = container((a, b))
        made = put_back(given, 1, c)
        assert type(made) is container
        assert made[0] is a and made[1] is c and given[1] is b
