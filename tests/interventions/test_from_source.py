"""Swap, Mean, Add and Skip beside interchange written by hand: plain runs, stored states, bare hooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.interventions import tiny
from tests.interventions.tiny import EVEN, OTHER, RAGGED, WIDTH
from torch import Tensor, nn

import inlay
from inlay import Add, Edit, Mean, Skip, Source, Swap
from inlay.errors import EditError, FolderError, SiteError, TokensError
from inlay.model.call import Call

both = pytest.mark.parametrize("family", tiny.FAMILIES)
layers = pytest.mark.parametrize("layer", range(tiny.LAYERS))
Positions = Sequence[Sequence[int]]


def paired(states: Tensor, base_at: Positions, source_at: Positions) -> Callable[[Tensor], Tensor]:
    """Interchange by hand: row r's k-th base position gets row r's k-th source position."""

    def act(h: Tensor) -> Tensor:
        new = h.clone()
        for row, (here, there) in enumerate(zip(base_at, source_at, strict=True)):
            for mine, its in zip(here, there, strict=True):
                new[row, mine] = states[row, its]
        return new

    return act


# -- swap --------------------------------------------------------------------------------------------------------------


@both
@layers
@pytest.mark.parametrize("tokens", ["all", "last", "first2"])
def test_a_self_swap_changes_no_bit(family: str, layer: int, tokens: str) -> None:
    hf = tiny.FAMILIES[family]()
    got = inlay.load(hf).forward(RAGGED, edit=Edit(f"resid_post.{layer}", Swap(Source(RAGGED)), tokens)).logits
    base = tiny.plain(hf, RAGGED)
    for row, ids in enumerate(RAGGED):
        assert torch.equal(got[row, : len(ids)], base[row, : len(ids)])


@both
@layers
def test_the_whole_stream_of_a_source_gives_its_logits(family: str, layer: int) -> None:
    hf = tiny.FAMILIES[family]()
    got = inlay.load(hf).forward(EVEN, edit=Edit(f"resid_post.{layer}", Swap(OTHER))).logits
    torch.testing.assert_close(got, tiny.plain(hf, OTHER), rtol=1e-6, atol=1e-6)


def test_the_whole_stream_of_a_padded_source_gives_its_logits() -> None:
    model = tiny.model()
    source = [[i + 1 for i in row] for row in RAGGED]
    got = model.forward(RAGGED, edit=Edit("resid_post.1", Swap(Source(source)))).logits
    tiny.same_where_real(got, tiny.plain(model.hf, source), RAGGED, rtol=1e-6, atol=1e-6)


@both
def test_the_kth_source_token_goes_to_the_kth_base_token(family: str) -> None:
    hf = tiny.FAMILIES[family]()
    source = [[3, 4, 5], [6, 7, 8, 9, 10, 11], [12, 13], [14, 15, 16, 17]]
    edit = Edit("resid_post.1", Swap(Source(source, tokens="last2")), tokens=[0, -1])
    got = inlay.load(hf).forward(RAGGED, edit=edit).logits
    last_two = [[len(row) - 2, len(row) - 1] for row in source]
    change = paired(tiny.states(hf, source, 1), [[0, len(row) - 1] for row in RAGGED], last_two)
    tiny.same_where_real(got, tiny.hooked(hf, RAGGED, 1, change), RAGGED)


def test_each_row_may_have_its_own_positions() -> None:
    model = tiny.model()
    base_at, source_at = [[4, 1], [2, 0], [6, 3], [1, 0]], [[0, 1], [2, 3], [1, 3], [0, 3]]
    edit = Edit("resid_post.1", Swap(Source(OTHER, tokens=torch.tensor(source_at))), tokens=torch.tensor(base_at))
    got = model.forward(RAGGED, edit=edit).logits
    # positions count in the order of the row: the smaller source position goes to the smaller base position
    change = paired(tiny.states(model.hf, OTHER, 1), [sorted(p) for p in base_at], source_at)
    tiny.same_where_real(got, tiny.hooked(model.hf, RAGGED, 1, change), RAGGED)


def test_padding_on_the_left_of_the_base_changes_nothing() -> None:
    model = tiny.model()
    edit = Edit("resid_post.1", Swap(Source(OTHER, tokens="last2")), tokens="last2")
    want = model.forward(RAGGED, edit=edit).logits
    longest = max(map(len, RAGGED))
    ids = torch.tensor([[0] * (longest - len(r)) + r for r in RAGGED])
    mask = torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in RAGGED])
    with model.edited(edit), torch.no_grad():
        got = model.hf(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
    for row, r in enumerate(RAGGED):
        torch.testing.assert_close(got[row, longest - len(r) :], want[row, : len(r)], rtol=1e-5, atol=1e-5)


@settings(max_examples=15)
@given(data=st.data())
def test_any_lengths_and_positions(data: st.DataObject) -> None:
    model = _model()
    rows = data.draw(st.integers(1, 4))
    prompt = st.lists(st.integers(1, tiny.VOCABULARY - 1), min_size=3, max_size=8)
    base, source = ([data.draw(prompt) for _ in range(rows)] for _ in range(2))
    k = data.draw(st.integers(1, 3))

    def choose(ids: list[int]) -> list[int]:
        return sorted(data.draw(st.sets(st.integers(0, len(ids) - 1), min_size=k, max_size=k)))

    here, there = [choose(r) for r in base], [choose(r) for r in source]
    edit = Edit("resid_post.1", Swap(Source(source, tokens=torch.tensor(there))), tokens=torch.tensor(here))
    got = model.forward(base, edit=edit).logits
    want = tiny.hooked(model.hf, base, 1, paired(tiny.states(model.hf, source, 1), here, there))
    tiny.same_where_real(got, want, base, rtol=1e-5, atol=1e-5)


_MODELS: list[inlay.Model] = []


def _model() -> inlay.Model:
    """One model for all examples of a property."""
    if not _MODELS:
        _MODELS.append(tiny.model())
    return _MODELS[0]


def test_one_source_row_serves_every_base_row() -> None:
    model = tiny.model()
    source = [[9, 8, 7, 6, 5]]
    got = model.forward(RAGGED, edit=Edit("resid_post.1", Swap(Source(source)), tokens=[0, -1]))
    assert got.touched == [8]
    wrong = model.forward(RAGGED, edit=Edit("resid_post.1", Swap(Source(source, tokens=[1, 4])), tokens=[0, -1]))
    states = tiny.states(model.hf, source, 1).expand(4, -1, -1)
    ends = [[0, len(r) - 1] for r in RAGGED]
    change = paired(states, ends, [[1, 4]] * 4)
    tiny.same_where_real(wrong.logits, tiny.hooked(model.hf, RAGGED, 1, change), RAGGED)


def test_by_default_the_source_uses_the_edits_site_and_tokens() -> None:
    model = tiny.model()
    edit = Edit("mlp_out.1", Swap(OTHER), tokens=2)
    got = model.forward(EVEN, edit=edit).logits
    stored: list[Tensor] = []
    mlp = model.hf.model.layers[1].mlp
    with tiny.hook(mlp, lambda h: stored.append(h) or h):
        tiny.plain(model.hf, OTHER)
    with tiny.hook(mlp, paired(stored[0], [[2]] * 4, [[2]] * 4)):
        want = tiny.plain(model.hf, EVEN)
    torch.testing.assert_close(got, want)


def test_a_source_may_come_from_another_site() -> None:
    model = tiny.model()
    edit = Edit("resid_post.2", Swap(Source(OTHER, site="resid_post.0", tokens=1)), tokens="last")
    got = model.forward(EVEN, edit=edit).logits
    change = paired(tiny.states(model.hf, OTHER, 0), [[3]] * 4, [[1]] * 4)
    torch.testing.assert_close(got, tiny.hooked(model.hf, EVEN, 2, change))


def test_dimensions_are_swapped_alone() -> None:
    model, dims = tiny.model(), [0, 5, 31]
    got = model.read(EVEN, "resid_post.1", edit=Edit("resid_post.1", Swap(OTHER, dims=dims)))["resid_post.1"]
    others = [d for d in range(WIDTH) if d not in dims]
    assert torch.equal(got[..., others], tiny.states(model.hf, EVEN, 1)[..., others])
    assert torch.equal(got[..., dims], tiny.states(model.hf, OTHER, 1)[..., dims])


@both
def test_heads_are_swapped_alone(family: str) -> None:
    hf = tiny.FAMILIES[family]()
    attention = tiny.block(hf, 1)
    out = attention.self_attn.o_proj if family == "llama" else attention.attn.c_proj
    stored: list[Tensor] = []
    with tiny.input_hook(out, lambda z: stored.append(z.clone()) or z):
        tiny.plain(hf, OTHER)

    def heads(z: Tensor) -> Tensor:
        new = z.clone()
        for head in (0, 2):
            at = slice(head * tiny.HEAD_WIDTH, (head + 1) * tiny.HEAD_WIDTH)
            new[:, -1, at] = stored[0][:, -1, at]
        return new

    got = inlay.load(hf).forward(EVEN, edit=Edit("z.1.h[0,2]", Swap(OTHER), tokens="last")).logits
    with tiny.input_hook(out, heads):
        want = tiny.plain(hf, EVEN)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("strength", [0.0, 0.25, 1.0, 2.0])
def test_strength_blends_towards_the_source(strength: float) -> None:
    model = tiny.model()
    source = tiny.states(model.hf, OTHER, 1)
    got = model.forward(EVEN, edit=Edit("resid_post.1", Swap(OTHER), strength=strength)).logits
    torch.testing.assert_close(got, tiny.hooked(model.hf, EVEN, 1, lambda h: h + strength * (source - h)))
    if strength == 0:
        assert torch.equal(got, tiny.plain(model.hf, EVEN))


def test_half_precision_sources_are_copied_exactly() -> None:
    hf = tiny.llama(dtype=torch.bfloat16)
    got = inlay.load(hf).forward(EVEN, edit=Edit("resid_post.1", Swap(OTHER), tokens="last"), read="resid_post.1")
    want = tiny.states(hf, EVEN, 1)
    want[:, -1] = tiny.states(hf, OTHER, 1)[:, -1]
    assert got.acts["resid_post.1"].dtype == torch.bfloat16
    assert torch.equal(got.acts["resid_post.1"], want)


@both
def test_generation_from_a_swapped_prompt(family: str) -> None:
    hf = tiny.FAMILIES[family]()
    model = inlay.load(hf)
    edit = Edit("resid_post.1", Swap(Source(OTHER, tokens=[1, 2])), tokens=[0, -1])
    new = model.generate(RAGGED, edit=edit, max_new_tokens=6, do_sample=False)
    assert new != model.generate(RAGGED, max_new_tokens=6, do_sample=False)
    states = tiny.states(hf, OTHER, 1)
    for row, prompt in enumerate(RAGGED):
        ids = list(prompt)
        change = paired(states[row : row + 1], [[0, len(prompt) - 1]], [[1, 2]])
        for _ in range(6):  # the whole sequence again for every token: swapped prompt positions, untouched new ones
            ids.append(int(tiny.hooked(hf, [ids], 1, change)[0, -1].argmax()))
        assert new[row] == ids[len(prompt) :]


def test_all_tokens_of_a_swap_are_those_of_the_prompt() -> None:
    """A source has no states for tokens that are yet to come: generated ones are left as they are."""
    model = tiny.model()
    new = model.generate(EVEN, edit=Edit("resid_post.1", Swap(OTHER)), max_new_tokens=5, do_sample=False)
    states = tiny.states(model.hf, OTHER, 1)
    for row, prompt in enumerate(EVEN):
        ids = list(prompt)
        change = paired(states[row : row + 1], [range(4)], [range(4)])
        for _ in range(5):
            ids.append(int(tiny.hooked(model.hf, [ids], 1, change)[0, -1].argmax()))
        assert new[row] == ids[4:]


def test_beams_of_a_swapped_prompt_equal_each_alone() -> None:
    model = tiny.model()
    how: dict[str, Any] = {"max_new_tokens": 5, "num_beams": 3, "do_sample": False}
    together = model.generate(EVEN, edit=Edit("resid_post.1", Swap(OTHER), tokens="last"), **how)
    for row in range(4):
        edit = Edit("resid_post.1", Swap([OTHER[row]]), tokens="last")
        assert together[row] == model.generate([EVEN[row]], edit=edit, **how)[0]


# -- mean --------------------------------------------------------------------------------------------------------------


def test_a_given_mean_takes_the_place_of_every_selected_state() -> None:
    model, mean = tiny.model(), torch.randn(WIDTH)
    got = model.forward(EVEN, edit=Edit("resid_post.1", Mean(mean))).logits
    torch.testing.assert_close(got, tiny.hooked(model.hf, EVEN, 1, lambda h: mean.expand(h.shape)))


@pytest.mark.parametrize("tokens", ["all", "last", "last2", "first"])
def test_the_mean_of_a_source_is_over_its_attended_selected_tokens(tokens: str) -> None:
    model = tiny.model()
    edit = Edit("resid_post.1", Mean(Source(RAGGED, tokens=tokens)), tokens=[0, -1])
    got = model.forward(EVEN, edit=edit).logits
    states = tiny.states(model.hf, RAGGED, 1)
    cut = {"all": slice(None), "last": slice(-1, None), "last2": slice(-2, None), "first": slice(0, 1)}[tokens]
    mean = torch.cat([states[row, : len(ids)][cut] for row, ids in enumerate(RAGGED)]).double().mean(0).float()

    def change(h: Tensor) -> Tensor:
        new = h.clone()
        new[:, [0, -1]] = mean
        return new

    torch.testing.assert_close(got, tiny.hooked(model.hf, EVEN, 1, change), rtol=1e-5, atol=1e-5)


def test_a_mean_needs_neither_the_rows_nor_the_counts_of_the_batch() -> None:
    model = tiny.model()
    edit = Edit("resid_post.1", Mean(Source(OTHER[:3], tokens="all")), tokens="last")
    mean = tiny.states(model.hf, OTHER[:3], 1).mean((0, 1))

    def change(h: Tensor) -> Tensor:
        return torch.cat([h[:, :-1], mean.expand(len(h), 1, -1)], 1)

    for prompts in (EVEN, EVEN[:1]):
        got = model.forward(prompts, edit=edit).logits
        torch.testing.assert_close(got, tiny.hooked(model.hf, prompts, 1, change), rtol=1e-5, atol=1e-5)


def test_a_mean_over_some_dimensions_and_of_heads() -> None:
    model = tiny.model()
    got = model.read(EVEN, "resid_post.1", edit=Edit("resid_post.1", Mean(torch.ones(WIDTH), dims=[4])))["resid_post.1"]
    assert bool((got[..., 4] == 1).all())
    others = [d for d in range(WIDTH) if d != 4]
    assert torch.equal(got[..., others], tiny.states(model.hf, EVEN, 1)[..., others])
    z = model.read(EVEN, "z.1")["z.1"]  # [rows, tokens, heads, head width]
    got = model.read(EVEN, "z.1", edit=Edit("z.1.h3", Mean(Source(EVEN))))["z.1"]
    assert torch.equal(got[..., :3, :], z[..., :3, :])
    torch.testing.assert_close(got[..., 3, :], z[..., 3, :].mean((0, 1)).expand(4, 4, -1))


def test_a_mean_reaches_every_generated_token() -> None:
    model, mean = tiny.model(), 3 * torch.randn(WIDTH)
    new = model.generate([EVEN[0]], edit=Edit("resid_post.0", Mean(mean)), max_new_tokens=4, do_sample=False)[0]
    ids = list(EVEN[0])
    for _ in range(4):
        ids.append(int(tiny.hooked(model.hf, [ids], 0, lambda h: mean.expand(h.shape))[0, -1].argmax()))
    assert new == ids[4:]


def test_strength_of_a_mean() -> None:
    model, mean = tiny.model(), torch.randn(WIDTH)
    got = model.forward(EVEN, edit=Edit("resid_post.1", Mean(mean), strength=0.25)).logits
    torch.testing.assert_close(got, tiny.hooked(model.hf, EVEN, 1, lambda h: 0.75 * h + 0.25 * mean))


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_another_number_of_source_tokens_names_the_row() -> None:
    model = tiny.model()
    base = tiny.plain(model.hf, RAGGED)
    with pytest.raises(TokensError, match=r"resid_post\.1: row 0 selects 5 positions .*its source 4"):
        model.forward(RAGGED, edit=Edit("resid_post.1", Swap(OTHER)))
    source = [[1, 2, 3, 4, 5], [1, 2, 3], [1, 2, 3, 4, 5, 6, 7], [1, 2, 3]]  # the last row alone differs
    with pytest.raises(TokensError, match=r"row 3 selects 2 positions \(tokens='all'\), its source 3"):
        model.forward(RAGGED, edit=Edit("resid_post.1", Swap(source)))
    with pytest.raises(TokensError, match=r"row 0 selects 1 positions \(tokens='last'\), its source 2"):
        model.generate(EVEN, edit=Edit("resid_post.1", Swap(Source(OTHER, tokens="last2")), "last"), max_new_tokens=2)
    assert torch.equal(tiny.plain(model.hf, RAGGED), base)


@pytest.mark.parametrize("rows", [2, 3])
def test_another_number_of_source_rows(rows: int) -> None:
    with pytest.raises(TokensError, match=rf"resid_post\.1: the source has {rows} rows, the batch 4"):
        tiny.model().forward(EVEN, edit=Edit("resid_post.1", Swap(OTHER[:rows]), tokens="last"))


@pytest.mark.parametrize("make", [Swap, Mean])
@pytest.mark.parametrize("site", ["mlp_act.0", "z.0.h1"])
def test_a_source_of_another_width_names_both(make: Any, site: str) -> None:
    width = {"mlp_act.0": 48, "z.0.h1": 8}[site]
    with pytest.raises(SiteError, match=rf"\b{width}\b.*\b32\b"):
        tiny.model().forward(EVEN, edit=Edit("resid_post.1", make(Source(OTHER, site=site)), tokens="last"))


@pytest.mark.parametrize("make", [Swap, Mean])
@pytest.mark.parametrize("width", [8, 48])
def test_stored_states_of_another_width_name_both(make: Any, width: int) -> None:
    with pytest.raises(SiteError, match=rf"\b{width}\b.*\b32\b"):
        tiny.model().forward(EVEN, edit=Edit("resid_post.1", make(torch.randn(4, 1, width)), tokens="last"))


@pytest.mark.parametrize("make", [Swap, Mean])
@pytest.mark.parametrize("length", [3, 8])
def test_patterns_of_another_length_are_refused(make: Any, length: int) -> None:
    """The width of a pattern is heads times keys: of another length it does not line up, whatever its size."""
    source = Source([(row * 2)[:length] for row in EVEN], tokens="first2")
    with pytest.raises(SiteError, match=rf"{4 * length}\b.*\b16\b|{length} keys"):
        tiny.model().forward(EVEN, edit=Edit("pattern.0", make(source), tokens="first2"))


def test_patterns_of_one_length_are_swapped() -> None:
    model = tiny.model()
    got = model.read(EVEN, "pattern.1", edit=Edit("pattern.1", Swap(OTHER)))["pattern.1"]
    torch.testing.assert_close(got, model.read(OTHER, "pattern.1")["pattern.1"])


@pytest.mark.parametrize("make", [Swap, lambda s: Mean(s)], ids=["swap", "mean"])
def test_on_a_bare_tensor_they_say_where_they_run(make: Callable[[Any], Any]) -> None:
    with pytest.raises(EditError, match="inside a model's forward"):
        make(Source(OTHER))(torch.zeros(1, 1, WIDTH))


def test_what_is_no_source() -> None:
    with pytest.raises(EditError, match=r"a stored Source is \[rows, k, width\], not \[4, 32\]"):
        Swap(torch.randn(4, WIDTH))
    with pytest.raises(EditError, match="a constant vector is Replace"):
        Swap(torch.randn(WIDTH))
    with pytest.raises(EditError, match="NaN or infinite"):
        Mean(torch.tensor([1.0, float("nan")]))


def test_dimensions_of_a_swap_are_checked() -> None:
    with pytest.raises(SiteError, match=r"dimension 32 is out of range at resid_post\.1, of width 32"):
        tiny.model().forward(EVEN, edit=Edit("resid_post.1", Swap(OTHER, dims=[32])))


def test_bad_positions_of_a_source_say_so() -> None:
    edit = Edit("resid_post.1", Swap(Source(OTHER, tokens=7)), tokens="last")
    with pytest.raises(TokensError, match="out of range in row 0, whose prompt has 4 tokens"):
        tiny.model().forward(EVEN, edit=edit)


def test_nothing_is_left_behind_where_a_source_fails() -> None:
    model = tiny.model()
    base = tiny.plain(model.hf, EVEN)
    bad = Source(OTHER, edit=Edit("resid_post.0", Add(torch.ones(3))))
    with pytest.raises(SiteError, match="width 3"):
        model.forward(EVEN, edit=Edit("resid_post.1", Swap(bad)))
    assert all("forward" not in m.__dict__ for m in model.hf.modules())
    assert torch.equal(tiny.plain(model.hf, EVEN), base)


# -- added from a source -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [None, 1.0, -1.0, 0.25])
def test_the_state_of_a_source_is_added(strength: float | None) -> None:
    model = tiny.model()
    states = tiny.states(model.hf, OTHER, 1)
    with torch.no_grad():
        got = model.forward(EVEN, edit=Edit("resid_post.1", Add(Source(OTHER)), strength=strength)).logits
    factor = 1.0 if strength is None else strength
    torch.testing.assert_close(got, tiny.hooked(model.hf, EVEN, 1, lambda h: h + factor * states), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("of", ["vector", "source"])
def test_some_dimensions_are_added_to_and_the_others_keep_every_bit(of: str) -> None:
    model, vector = tiny.model(), torch.randn(WIDTH)
    states = vector if of == "vector" else tiny.states(model.hf, OTHER, 1)
    made = Add(vector if of == "vector" else Source(OTHER), dims=[3, 9])
    got = model.read(EVEN, "resid_post.1", edit=Edit("resid_post.1", made))["resid_post.1"]
    want = tiny.states(model.hf, EVEN, 1)
    added = (want + states)[..., [3, 9]]
    want[..., [3, 9]] = added
    assert torch.equal(got, want)


def test_an_added_source_is_stored(tmp_path: Path) -> None:
    edit = Edit("resid_post.1", Add(Source(OTHER, tokens="last"), dims=slice(0, 4)), tokens="last")
    again = Edit.from_pretrained(edit.save(tmp_path / "edit"))
    with torch.no_grad():
        assert torch.equal(tiny.model().forward(EVEN, edit=again).logits, tiny.model().forward(EVEN, edit=edit).logits)


def test_a_description_of_an_addition_that_has_neither_is_damaged(tmp_path: Path) -> None:
    folder = Edit("resid_post.1", Add(Source(OTHER))).save(tmp_path / "edit")
    (folder / "edit.json").write_text((folder / "edit.json").read_text().replace('"source": 0', '"source": null'))
    with pytest.raises(FolderError, match="Add holds a vector or has a source, and is stored with neither"):
        Edit.from_pretrained(folder)


# -- a module left out -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_block_that_is_skipped_passes_its_input_on(family: str, layer: int) -> None:
    hf = tiny.FAMILIES[family]()
    with torch.no_grad():
        got = inlay.load(hf).forward(EVEN, edit=Edit(f"resid_post.{layer}", Skip())).logits
    blocks = hf.model.layers if family == "llama" else hf.transformer.h
    rest = nn.ModuleList([block for index, block in enumerate(blocks) if index != layer])
    if family == "llama":
        hf.model.layers = rest
        hf.config.num_hidden_layers = 2
    else:
        hf.transformer.h = rest
    torch.testing.assert_close(got, tiny.plain(hf, EVEN))


@pytest.mark.parametrize("path", ["model.layers.1.mlp", "model.layers.1.self_attn.o_proj", "model.layers.2"])
def test_skipping_equals_a_hook_that_returns_the_input(path: str) -> None:
    model, kept = tiny.model(), []
    module = model.hf.get_submodule(path)
    with torch.no_grad():
        got = model.forward(EVEN, edit=Edit(f"module:{path}:out", Skip(), tokens="last2")).logits

    def keep(_: nn.Module, args: Any, kwargs: Any) -> None:
        kept.append(args[0] if args else kwargs["hidden_states"])

    def change(h: torch.Tensor) -> torch.Tensor:
        return torch.cat([h[:, :2], kept[-1][:, 2:]], 1)

    handle = module.register_forward_pre_hook(keep, with_kwargs=True)
    with tiny.hook(module, change):
        want = tiny.plain(model.hf, EVEN)
    handle.remove()
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(("site", "before"), [("resid_post.1", "resid_pre.1"), ("mlp_out.1", "mlp_in.1")])
def test_skipping_takes_the_input_of_a_source(site: str, before: str) -> None:
    model = tiny.model()
    states = model.read(OTHER, before)[before]
    with torch.no_grad():
        want = model.forward(EVEN, edit=Edit(site, Swap(Source(states)))).logits
        for made in (Skip(OTHER), Skip().with_source(Source(OTHER)), Skip(Source(OTHER, site=site))):
            assert torch.equal(model.forward(EVEN, edit=Edit(site, made)).logits, want)
        raw = f"module:{model.sites().place(inlay.Site.parse(site)).path}:out"
        assert torch.equal(model.forward(EVEN, edit=Edit(raw, Skip(OTHER))).logits, want)


def test_skipping_blends_with_its_strength() -> None:
    model = tiny.model()
    states = model.read(EVEN, ["resid_pre.1", "resid_post.1"])
    got = model.read(EVEN, "resid_post.1", edit=Edit("resid_post.1", Skip(), strength=0.25))["resid_post.1"]
    torch.testing.assert_close(got, 0.25 * states["resid_pre.1"] + 0.75 * states["resid_post.1"])


def test_what_is_skipped_may_be_written_into() -> None:
    """The output is no alias of the input, which the residual stream goes on with."""
    h, before = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)
    Skip()(h, Call(input=before)).add_(1)
    assert torch.equal(before, torch.ones(1, 2, 3))


@pytest.mark.parametrize("site", ["resid_pre.1", "resid_mid.1", "z.1", "module:model.layers.1:in"])
@pytest.mark.parametrize("source", [None, OTHER])
def test_where_there_is_no_module_to_skip(site: str, source: Any) -> None:
    with pytest.raises(SiteError, match=rf"{site} is not the output of a module that is given states"):
        tiny.model().forward(EVEN, edit=Edit(site, Skip(source)))


def test_a_module_that_is_given_ids() -> None:
    with pytest.raises(SiteError, match="embed is not the output of a module that is given states"):
        tiny.model().forward(EVEN, edit=Edit("embed", Skip()))
    with pytest.raises(SiteError, match="called without a float tensor"):
        tiny.model().forward(EVEN, edit=Edit("embed", Skip(OTHER)))


@pytest.mark.parametrize("site", ["q.1.h0", "k.1", "logits", "module:model.layers.1.mlp.gate_proj:out"])
def test_widths_of_input_and_output_that_differ(site: str) -> None:
    with pytest.raises(SiteError, match=rf"Skip at {site}: the module's input is \[4, 4, 32\], its output"):
        tiny.model().forward(EVEN, edit=Edit(site, Skip()))
    with pytest.raises(SiteError, match="width 32"):
        tiny.model().forward(EVEN, edit=Edit(site, Skip(OTHER)))


def test_a_skip_is_stored(tmp_path: Path) -> None:
    edit = Edit("resid_post.1", Skip()) + Edit("mlp_out.0", Skip(OTHER))
    again = Edit.from_pretrained(edit.save(tmp_path / "edit"))
    with torch.no_grad():
        assert torch.equal(tiny.model().forward(EVEN, edit=again).logits, tiny.model().forward(EVEN, edit=edit).logits)
