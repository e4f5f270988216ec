"""Source: which run, how often it runs, what it may be made of, and gradients through it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.interventions import tiny
from tests.interventions.tiny import EVEN, OTHER, RAGGED, WIDTH
from torch import Tensor, nn

import inlay
from inlay import Add, Edit, Function, Mean, Scale, Source, Swap
from inlay.errors import EditError, FolderError, InputError, ModelError, SiteError

THIRD = [[2, 4, 6, 8], [1, 3, 5, 7], [60, 61, 62, 63], [30, 20, 10, 5]]


def _copied(states: Tensor, here: int, there: int) -> object:
    def act(h: Tensor) -> Tensor:
        new = h.clone()
        new[:, here] = states[:, there]
        return new

    return act


# -- plans -------------------------------------------------------------------------------------------------------------


def test_serial_the_source_runs_under_its_own_edit() -> None:
    model = tiny.model()
    first = Edit("resid_post.0", Swap(Source(THIRD, tokens=2)), tokens=1)
    got = model.forward(EVEN, edit=Edit("resid_post.1", Swap(Source(OTHER, edit=first, tokens=3)), tokens=0)).logits
    # two steps by hand: source 0 -> source 1, then source 1 -> base
    third = tiny.states(model.hf, THIRD, 0)
    with tiny.hook(tiny.block(model.hf, 0), _copied(third, 1, 2)):
        other = tiny.states(model.hf, OTHER, 1)
    assert float((other - tiny.states(model.hf, OTHER, 1)).abs().max()) > 0.1
    torch.testing.assert_close(got, tiny.hooked(model.hf, EVEN, 1, _copied(other, 0, 3)))


def test_serial_with_a_constant_edit_below() -> None:
    model, v = tiny.model(), torch.randn(WIDTH)
    source = Source(OTHER, edit=Edit("resid_post.0", Add(v), tokens="all"))
    got = model.forward(EVEN, edit=Edit("resid_post.1", Swap(source))).logits
    want = tiny.hooked(model.hf, OTHER, 0, lambda h: h + v)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_three_runs_deep() -> None:
    model, v = tiny.model(), torch.randn(WIDTH)
    source = Source(THIRD, edit=Edit("resid_post.0", Add(v), tokens=0))
    for prompts in (OTHER, EVEN):
        source = Source(prompts, edit=Edit("resid_post.1", Swap(source)))
    got = model.forward(EVEN, edit=Edit("resid_post.1", Swap(source))).logits

    def first(h: Tensor) -> Tensor:
        return torch.cat([h[:, :1] + v, h[:, 1:]], 1)

    # at every step the whole stream at layer 1 is handed on
    torch.testing.assert_close(got, tiny.hooked(model.hf, THIRD, 0, first), rtol=1e-6, atol=1e-6)


def test_parallel_each_edit_has_its_own_source() -> None:
    model = tiny.model()
    edit = Edit("resid_post.0", Swap(Source(OTHER)), tokens=1) + Edit("resid_post.1", Swap(Source(THIRD)), tokens=2)
    got = model.forward(EVEN, edit=edit).logits
    other, third = tiny.states(model.hf, OTHER, 0), tiny.states(model.hf, THIRD, 1)
    with tiny.hook(tiny.block(model.hf, 0), _copied(other, 1, 1)):
        want = tiny.hooked(model.hf, EVEN, 1, _copied(third, 2, 2))
    torch.testing.assert_close(got, want)


def test_parallel_sources_at_one_site() -> None:
    model = tiny.model()
    edit = Edit("resid_post.1", Swap(Source(OTHER)), tokens=1) + Edit(
        "resid_post.1", Swap(Source(THIRD)), tokens=[1, 2]
    )
    got = model.read(EVEN, "resid_post.1", edit=edit)["resid_post.1"]
    want = tiny.states(model.hf, EVEN, 1)
    want[:, 1:3] = tiny.states(model.hf, THIRD, 1)[:, 1:3]  # the second part acts later and wins at token 1
    assert torch.equal(got, want)


# -- how often it runs -------------------------------------------------------------------------------------------------


def test_one_forward_for_all_sites_of_a_source() -> None:
    model = tiny.model()
    source = Source(OTHER)
    edit = Edit("resid_post.0", Swap(source), tokens=1) + Edit("z.2.h1", Swap(source), tokens="last")
    edit = edit + Edit("mlp_out.1", Swap(source), tokens=1)
    with tiny.forwards(model.hf) as count:
        model.forward(EVEN, edit=edit)
    assert count == [2]


def test_one_forward_for_a_source_at_every_layer() -> None:
    model = tiny.model()
    with tiny.forwards(model.hf) as count:
        got = model.forward(EVEN, edit=Edit("resid_post.*", Swap(OTHER), tokens="last")).logits
    assert count == [2]
    handles = []
    for layer in range(tiny.LAYERS):
        states = tiny.states(model.hf, OTHER, layer)
        handles.append(tiny.hook(tiny.block(model.hf, layer), _copied(states, 3, 3)))
    with handles[0], handles[1], handles[2]:
        torch.testing.assert_close(got, tiny.plain(model.hf, EVEN))


def test_two_sources_are_two_forwards_and_a_serial_one_two_more() -> None:
    model = tiny.model()
    serial = Source(OTHER, edit=Edit("resid_post.0", Swap(Source(THIRD)), tokens=1))
    edit = Edit("resid_post.1", Swap(serial), tokens=1) + Edit("resid_post.1", Swap(Source(EVEN)), tokens=2)
    with tiny.forwards(model.hf) as count:
        model.forward(EVEN, edit=edit)
    assert count == [4]


def test_a_generation_runs_its_source_once() -> None:
    model = tiny.model()
    with tiny.forwards(model.hf) as count:
        model.generate(EVEN, edit=Edit("resid_post.1", Swap(OTHER), tokens="last"), max_new_tokens=5, do_sample=False)
    assert count == [6]


def test_a_source_stops_at_its_last_site() -> None:
    model = tiny.model()
    layers = []
    handles = [
        tiny.block(model.hf, k).register_forward_pre_hook(lambda *_, k=k: layers.append(k)) for k in range(tiny.LAYERS)
    ]
    model.forward(EVEN, edit=Edit("resid_post.0", Swap(OTHER)))
    for handle in handles:
        handle.remove()
    assert layers == [0, 0, 1, 2]


def test_a_source_is_run_anew_for_every_call() -> None:
    """A call depends on its arguments only: nothing is cached in the Source."""
    model = tiny.model()
    edit = Edit("resid_post.1", Swap(OTHER))
    before = model.forward(EVEN, edit=edit).logits
    with torch.no_grad():
        model.hf.model.layers[0].mlp.down_proj.weight.mul_(1.5)
    assert not torch.equal(model.forward(EVEN, edit=edit).logits, before)
    torch.testing.assert_close(model.forward(EVEN, edit=edit).logits, tiny.plain(model.hf, OTHER), rtol=1e-6, atol=1e-6)


def test_users_hooks_see_the_source_run_too() -> None:
    model = tiny.model()
    seen = []
    handle = tiny.block(model.hf, 0).register_forward_hook(lambda *_: seen.append(1))
    model.forward(EVEN, edit=Edit("resid_post.1", Swap(OTHER)))
    handle.remove()
    assert len(seen) == 2


# -- reads in batches --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_tokens", [8192, 8, 1])
def test_a_read_in_batches_pairs_each_prompt_with_its_own_source_row(batch_tokens: int) -> None:
    """A read sorts prompts by length and cuts them into batches; a Source's rows must follow."""
    model = tiny.model()
    edit = Edit("resid_post.1", Swap(OTHER), tokens="last")
    want = model.forward(RAGGED, edit=edit, read="resid_post.1", tokens="last").acts["resid_post.1"]
    assert torch.equal(want, tiny.states(model.hf, OTHER, 1)[:, -1])
    got = model.read(RAGGED, "resid_post.1", "last", edit=edit, batch_tokens=batch_tokens)["resid_post.1"]
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("batch_tokens", [8192, 1])
def test_a_read_in_batches_under_a_source_of_one_row_and_under_a_mean(batch_tokens: int) -> None:
    model = tiny.model()
    for intervention in (Swap(Source([OTHER[0]], tokens="last")), Mean(Source(OTHER, tokens="last"))):
        edit = Edit("resid_post.1", intervention, tokens="last")
        want = model.forward(RAGGED, edit=edit, read="resid_post.2", tokens="last").acts["resid_post.2"]
        got = model.read(RAGGED, "resid_post.2", "last", edit=edit, batch_tokens=batch_tokens)["resid_post.2"]
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch_tokens", [8192, 8, 1])
def test_a_read_in_batches_pairs_the_rows_of_a_serial_source(batch_tokens: int) -> None:
    """What a Source runs under belongs to its rows too: its own Sources, and positions given as a tensor."""
    model = tiny.model()
    at = torch.tensor([[0], [1], [2], [3]])
    below = Edit("resid_post.0", Swap(Source(THIRD)), tokens="last") + Edit("resid_post.0", Scale(3.0), tokens=at)
    edit = Edit("resid_post.1", Swap(Source(OTHER, edit=below)), tokens="last")
    third = tiny.states(model.hf, THIRD, 0)

    def change(h: Tensor) -> Tensor:
        new = torch.cat([h[:, :-1], third[:, -1:]], 1)
        new[range(4), range(4)] *= 3
        return new

    with tiny.hook(tiny.block(model.hf, 0), change):
        want = tiny.states(model.hf, OTHER, 1)[:, -1]
    whole = model.forward(RAGGED, edit=edit, read="resid_post.1", tokens="last").acts["resid_post.1"]
    torch.testing.assert_close(whole, want)
    got = model.read(RAGGED, "resid_post.1", "last", edit=edit, batch_tokens=batch_tokens)["resid_post.1"]
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(("batch_tokens", "batches"), [(8192, 1), (1, 4)])
def test_a_read_in_batches_runs_a_source_once_a_batch(batch_tokens: int, batches: int) -> None:
    model = tiny.model()
    source = Source(OTHER)
    edit = Edit("resid_post.0", Swap(source), "last") + Edit("mlp_out.1", Swap(source), "last")
    with tiny.forwards(model.hf) as count:
        model.read(RAGGED, "resid_post.2", edit=edit, batch_tokens=batch_tokens)
    assert count == [2 * batches]


# -- what it is made of ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", ["rows", "tensor", "tokenised", "text"])
def test_prompts_of_every_kind(made: str) -> None:
    model = inlay.load(tiny.llama(), tokenizer=tiny.words())
    prompts = {
        "rows": OTHER,
        "tensor": torch.tensor(OTHER),
        "tokenised": {"input_ids": torch.tensor(OTHER), "attention_mask": torch.ones(4, 4)},
        "text": tiny.text(OTHER),
    }[made]
    got = model.forward(EVEN, edit=Edit("resid_post.1", Swap(Source(prompts)))).logits
    torch.testing.assert_close(got, tiny.plain(model.hf, OTHER), rtol=1e-6, atol=1e-6)


def test_tokens_of_a_source_are_found_in_its_own_text() -> None:
    model = inlay.load(tiny.llama(), tokenizer=tiny.words())
    base, other = ["w5 w9 w17", "w3 w2 w9"], ["w31 w22", "w4 w6 w31"]
    edit = Edit("resid_post.1", Swap(Source(other, tokens=inlay.span("w31"))), tokens=inlay.span("w9"))
    states = tiny.states(model.hf, [[31, 22], [4, 6, 31]], 1)

    def change(h: Tensor) -> Tensor:
        new = h.clone()
        new[0, 1], new[1, 2] = states[0, 0], states[1, 2]
        return new

    want = tiny.hooked(model.hf, [[5, 9, 17], [3, 2, 9]], 1, change)
    torch.testing.assert_close(model.forward(base, edit=edit).logits, want)


def test_stored_states() -> None:
    model = tiny.model()
    states = tiny.states(model.hf, OTHER, 1)
    with tiny.forwards(model.hf) as count:
        got = model.forward(EVEN, edit=Edit("resid_post.1", Swap(states))).logits
    assert count == [1]
    torch.testing.assert_close(got, tiny.plain(model.hf, OTHER), rtol=1e-6, atol=1e-6)
    got = model.forward(EVEN, edit=Edit("resid_post.1", Swap(states[:, 1:2]), tokens="last")).logits
    torch.testing.assert_close(got, tiny.hooked(model.hf, EVEN, 1, _copied(states, 3, 1)))


def test_an_earlier_read() -> None:
    model = tiny.model()
    acts = model.read(OTHER, ["resid_post.1", "resid_post.2"])
    want = tiny.plain(model.hf, OTHER)
    for prompts, site in ((Source(acts), "resid_post.1"), (Source(acts), "resid_post.2")):
        with tiny.forwards(model.hf) as count:
            got = model.forward(EVEN, edit=Edit(site, Swap(prompts))).logits
        assert count == [1]
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_an_earlier_read_of_one_token_a_row() -> None:
    model = tiny.model()
    acts = model.read(RAGGED, "resid_post.1", "last")
    got = model.read(EVEN, "resid_post.1", edit=Edit("resid_post.1", Swap(acts), tokens=2))["resid_post.1"]
    want = tiny.states(model.hf, EVEN, 1)
    for row, ids in enumerate(RAGGED):
        want[row, 2] = tiny.states(model.hf, RAGGED, 1)[row, len(ids) - 1]
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_an_earlier_read_of_unequal_rows() -> None:
    model = tiny.model()
    acts = model.read([[i + 1 for i in row] for row in RAGGED], "resid_post.1")
    source = [[i + 1 for i in row] for row in RAGGED]
    got = model.forward(RAGGED, edit=Edit("resid_post.1", Swap(acts))).logits
    tiny.same_where_real(got, tiny.plain(model.hf, source), RAGGED, rtol=1e-6, atol=1e-6)
    mean = torch.cat(acts.rows("resid_post.1")).mean(0)
    got = model.forward(EVEN, edit=Edit("resid_post.1", Mean(Source(acts)), tokens="last")).logits
    torch.testing.assert_close(
        got, tiny.hooked(model.hf, EVEN, 1, _copied(mean.expand(4, 1, -1), 3, 0)), rtol=1e-5, atol=1e-5
    )


def test_an_earlier_read_of_heads() -> None:
    model = tiny.model()
    acts = model.read(OTHER, ["z.1", "z.1.h2"])
    for site in ("z.1", "z.1.h2"):
        got = model.forward(EVEN, edit=Edit(site, Swap(Source(acts)))).logits
        torch.testing.assert_close(got, model.forward(EVEN, edit=Edit(site, Swap(Source(OTHER)))).logits)


def test_a_site_counted_from_the_end() -> None:
    model = tiny.model()
    edits = [Edit("resid_post.1", Swap(Source(OTHER, site=site))) for site in ("resid_post.-1", "resid_post.2")]
    got, want = (model.forward(EVEN, edit=edit).logits for edit in edits)
    assert torch.equal(got, want)
    stored = Source(model.read(OTHER, "resid_post.2"), site="resid_post.-1")
    assert torch.equal(model.forward(EVEN, edit=Edit("resid_post.1", Swap(stored))).logits, want)


def test_a_source_of_a_function() -> None:
    model = tiny.model()
    edit = Edit("resid_post.1", Function(lambda h, source: h + 0.5 * source, source=OTHER), tokens="last")
    source = tiny.states(model.hf, OTHER, 1)

    def change(h: Tensor) -> Tensor:
        return torch.cat([h[:, :-1], h[:, -1:] + 0.5 * source[:, -1:]], 1)

    torch.testing.assert_close(model.forward(EVEN, edit=edit).logits, tiny.hooked(model.hf, EVEN, 1, change))


# -- gradients ---------------------------------------------------------------------------------------------------------


def test_gradients_flow_through_the_source_where_asked() -> None:
    model = tiny.model()
    model.hf.requires_grad_(False)
    v = nn.Parameter(torch.randn(WIDTH))
    source = Source(OTHER, edit=Edit("resid_post.0", Add(v), tokens=1), grad=True)
    model.forward(EVEN, edit=Edit("resid_post.1", Swap(source), tokens="last")).logits[:, -1, 3].sum().backward()

    by_hand = v.detach().clone().requires_grad_()
    kept: list[Tensor] = []

    def shift(h: Tensor) -> Tensor:
        return torch.cat([h[:, :1], h[:, 1:2] + by_hand, h[:, 2:]], 1)

    with tiny.hook(tiny.block(model.hf, 0), shift), tiny.hook(tiny.block(model.hf, 1), lambda h: kept.append(h) or h):
        model.hf(**tiny.padded(OTHER), use_cache=False)
    with tiny.hook(tiny.block(model.hf, 1), lambda h: torch.cat([h[:, :-1], kept[0][:, -1:]], 1)):
        model.hf(**tiny.padded(EVEN), use_cache=False).logits[:, -1, 3].sum().backward()
    assert by_hand.grad is not None and bool(by_hand.grad.any())
    torch.testing.assert_close(v.grad, by_hand.grad)


def test_gradients_stop_at_a_source_by_default_and_flow_above_it() -> None:
    model = tiny.model()
    model.hf.requires_grad_(False)
    v, w = nn.Parameter(torch.randn(WIDTH)), nn.Parameter(torch.randn(WIDTH))
    source = Source(OTHER, edit=Edit("resid_post.0", Add(v)))
    edit = Edit("resid_post.1", Swap(source), tokens="last") + Edit("resid_post.1", Add(w), tokens="last")
    model.forward(EVEN, edit=edit).logits[:, -1, 3].sum().backward()
    assert v.grad is None
    assert bool(w.grad.any())


def test_no_graph_where_gradients_are_off() -> None:
    model = tiny.model()
    source = Source(OTHER, edit=Edit("resid_post.0", Add(nn.Parameter(torch.ones(WIDTH)))), grad=True)
    with torch.no_grad():
        out = model.forward(EVEN, edit=Edit("resid_post.1", Swap(source)))
    assert not out.logits.requires_grad


# -- as an object ------------------------------------------------------------------------------------------------------


def test_deepcopy_and_repr() -> None:
    source = Source(OTHER, tokens="last")
    edit = Edit("resid_post.0", Swap(source), tokens="last") + Edit("resid_post.1", Swap(source), tokens="last")
    again = copy.deepcopy(edit)
    model = tiny.model()
    with tiny.forwards(model.hf) as count:
        got = model.forward(EVEN, edit=again).logits
    assert count == [2]  # the copy's two parts share one Source as the original's do
    assert torch.equal(got, model.forward(EVEN, edit=edit).logits)
    assert repr(source).startswith("Source([[31, 22, 13, 44]") and "tokens='last'" in repr(source)
    assert repr(Source(torch.zeros(1, 2, 3))) == "Source(stored activations)"


def test_a_source_of_prompts_is_described_and_made_again() -> None:
    source = Source(OTHER, tokens="last2", site="mlp_out.1", grad=True)
    state: dict[str, torch.Tensor] = {}
    said = json.loads(json.dumps(source.describe(state, "source0")))
    again = Source.described(said, state, "source0")
    assert not state
    assert again.prompts == OTHER and str(again.tokens) == "last2" and str(again.site) == "mlp_out.1" and again.grad
    one = Source("one prompt")
    assert Source.described(one.describe(state, ""), state, "").prompts == ["one prompt"]


SAVED = {
    "prompts": lambda model: Source(OTHER),
    "ids tensor": lambda model: Source(torch.tensor(EVEN)),
    "tensor": lambda model: Source(model.read(EVEN, "resid_post.1", "last")["resid_post.1"][:, None]),
    "activations": lambda model: Source(model.read(EVEN, "resid_post.*", "last")),
    "activations of several tokens": lambda model: Source(model.read(OTHER, "resid_post.*", "last2")),
    "its own Edit": lambda model: Source(OTHER, edit=Edit("resid_post.0", Scale(2.0), "last")),
    "its own Edit, with a Source of its own": lambda model: Source(
        OTHER, edit=Edit("resid_post.0", Swap(Source(EVEN, edit=Edit("embed", Scale(3.0)))), "last")
    ),
}


@pytest.mark.parametrize("name", SAVED)
def test_a_source_comes_back_from_disk_as_it_was(name: str, tmp_path: Path) -> None:
    model = tiny.model()
    tokens = "last2" if "several" in name else "last"
    shared = SAVED[name](model)
    edit = Edit("resid_post.1", Swap(shared), tokens) + Edit("resid_post.1", Mean(shared), tokens)
    again = Edit.from_pretrained(edit.save(tmp_path / "edit", model), model)
    first, second = (part.intervention.source for part in again.parts)
    assert first is second and first is not shared
    assert torch.equal(model.forward(EVEN, edit=again).logits, model.forward(EVEN, edit=edit).logits)
    assert not torch.equal(model.forward(EVEN, edit=again).logits, model.forward(EVEN).logits)


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        (lambda card: card["sources"][0].update(parts=card["parts"]), "source 0 needs itself"),
        (lambda card: card["sources"].clear(), "there is no source 0"),
        (lambda card: card["sources"][0].update(prompts=None), "source0.tensor"),
        (lambda card: card["sources"][0].update(read={"sites": ["embed"], "layers": 2}), "source0.embed"),
        (lambda card: card["sources"][0].pop("read"), "read"),
        (lambda card: card.update(sources=[3]), "part 0 is not readable"),
    ],
)
def test_a_damaged_source_is_refused(sources: Any, said: str, tmp_path: Path) -> None:
    folder = Edit("resid_post.1", Swap(Source(OTHER)), "last").save(tmp_path / "edit")
    card = json.loads((folder / "edit.json").read_text())
    sources(card)
    (folder / "edit.json").write_text(json.dumps(card))
    with pytest.raises(FolderError, match=said):
        Edit.from_pretrained(folder)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (lambda: Source(OTHER, tokens=torch.tensor([[0]])), r"Source\(tokens=.*\) belongs to one batch"),
        (lambda: Source({"input_ids": torch.tensor(OTHER)}), "cannot be saved"),
        (lambda: Source(OTHER, edit=Edit("embed", lambda h: h)), "cannot be saved"),
        (lambda: Source(OTHER, edit=Edit("embed", Scale(2.0), torch.tensor([[0]]))), "belongs to one batch"),
    ],
    ids=["positions", "a batch", "a lambda of its Edit", "positions of its Edit"],
)
def test_what_cannot_be_saved_says_so(source: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(EditError, match=said):
        Edit("resid_post.1", Swap(source()), "last").save(tmp_path / "edit")


def test_a_stored_swap_is_found_again(tmp_path: Path) -> None:
    model = tiny.model()
    edit = Edit("resid_post.1", Swap(Source(OTHER, tokens=1), dims=[3, 4]), tokens="last")
    again = Edit.from_pretrained(edit.save(tmp_path / "edit"), model)
    assert torch.equal(model.forward(EVEN, edit=again).logits, model.forward(EVEN, edit=edit).logits)


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_stored_states_take_no_edit() -> None:
    with pytest.raises(EditError, match="a Source of stored activations is not run again"):
        Source(torch.zeros(1, 1, 4), edit=Edit("resid_post.0", Scale(2.0)))


def test_a_site_that_was_not_read_is_named() -> None:
    acts = tiny.model().read(OTHER, ["resid_post.0", "resid_post.2"])
    with pytest.raises(EditError, match=r"hold resid_post\.0, resid_post\.2, not resid_post\.1"):
        tiny.model().forward(EVEN, edit=Edit("resid_post.1", Swap(Source(acts))))


def test_prompts_that_are_none() -> None:
    model = tiny.model()
    with pytest.raises(InputError, match="the list of prompts is empty"):
        model.forward(EVEN, edit=Edit("resid_post.1", Swap([])))
    with pytest.raises(ModelError, match="no tokenizer"):
        model.forward(EVEN, edit=Edit("resid_post.1", Swap("text for a model without a tokenizer")))


def test_a_site_that_the_model_lacks() -> None:
    with pytest.raises(SiteError, match="llama has no Site 'router'"):
        tiny.model().forward(EVEN, edit=Edit("resid_post.1", Swap(Source(OTHER, site="router.0"))))
    with pytest.raises(SiteError, match="no Site is called 'residual'"):
        Source(OTHER, site="residual")


def test_a_site_of_every_layer_is_no_source_site() -> None:
    with pytest.raises((SiteError, EditError), match=r"resid_post\.\*"):
        tiny.model().forward(EVEN, edit=Edit("resid_post.1", Swap(Source(OTHER, site="resid_post.*"))))


def test_a_damaged_source_in_a_folder_is_a_folder_error(tmp_path: Path) -> None:
    import json

    folder = Edit("resid_post.1", Swap(OTHER)).save(tmp_path / "edit")
    card = json.loads((folder / "edit.json").read_text())
    card["parts"][0]["config"]["source"] = {"prompts": OTHER, "colour": "blue"}
    (folder / "edit.json").write_text(json.dumps(card))
    with pytest.raises(FolderError, match="part 0 is not readable"):
        Edit.from_pretrained(folder)


@pytest.mark.parametrize("site", ["z.1", "z.1.h2", "resid_post.1"])
def test_activations_of_one_position_are_a_source(site: str) -> None:
    model = tiny.model()
    stored = Source(model.read(OTHER, site, tokens="last"))
    found = model.forward(EVEN, edit=Edit(site, Swap(stored), tokens="last")).logits
    want = model.forward(EVEN, edit=Edit(site, Swap(Source(OTHER)), tokens="last")).logits
    torch.testing.assert_close(found, want)
