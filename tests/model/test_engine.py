"""What an edited forward computes: each row as if alone, parts in their order, threads apart, gradients as by hand."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.model.tiny import (
    FAMILIES,
    HEADS,
    MLP,
    VOCAB,
    WIDTH,
    block,
    changed,
    changed_input,
    frozen,
    padded,
    rows,
    tiny,
    words,
)
from torch import Tensor, nn

import inlay
from inlay import Ablate, Add, Bank, Clamp, Edit, Function, Mean, Noise, Replace, Scale, Source, Swap, Zero
from inlay.errors import EditError, ModelError, TokensError
from inlay.model.sites import Site

MODELS = {family: frozen(family) for family in FAMILIES}
every_family = pytest.mark.parametrize("family", FAMILIES)
SITES = ["resid_pre.1", "resid_post.0", "attn_in.1", "attn_out.1", "mlp_in.1", "mlp_out.1", "q.1", "k.1", "v.0.h0",
         "z.1.h1", "embed", "final_norm", "logits"]  # fmt: skip
SOME = ["resid_mid.1", "mlp_act.1", "q_rot.1.h2", "k_rot.1", "pattern.1", "router.1"]  # not in every family


def has(model: inlay.Model, site: str) -> bool:
    return Site.parse(site).name in model.sites().places


def changes(model: inlay.Model, site: str, tokens: Any = "all", seed: int = 0) -> Edit:
    """An Edit that changes every selected position of a Site a lot."""
    width = model.sites().place(Site.parse(site)).width
    if width < 0:
        return Edit(site, Scale(-0.5), tokens=tokens)
    return Edit(site, Add(torch.randn(width, generator=torch.Generator().manual_seed(seed))), tokens=tokens)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# -- each row as if alone ----------------------------------------------------------------------------------------------

shapes = st.lists(st.integers(3, 7), min_size=1, max_size=4)
specs = st.sampled_from(["all", "last", "first", "prompt", "first2+last1", -2, [0, 1], slice(1, -1), "prompt[1]"])


@every_family
@given(st.data())
@torch.no_grad()
def test_batched_and_padded_on_either_side_equal_each_row_alone(family: str, data: st.DataObject) -> None:
    model = MODELS[family]
    site = data.draw(st.sampled_from([s for s in SITES + SOME if has(model, s)]))
    edit = changes(model, site, data.draw(specs))
    prompts = rows(*data.draw(shapes))
    batched = model.forward(prompts, edit=edit).logits
    left = padded(prompts, "left")
    with model.edited(edit):
        shifted = model.hf(**left, use_cache=False).logits
    for r, prompt in enumerate(prompts):
        alone = model.forward([prompt], edit=edit).logits[0]
        close(batched[r, : len(prompt)], alone)
        close(shifted[r, -len(prompt) :], alone)


BIT_FOR_BIT = [f for f in FAMILIES if f != "mixtral"]  # experts batch their tokens, so that one token's sums shift


@pytest.mark.parametrize("family", BIT_FOR_BIT)
@given(st.data())
@torch.no_grad()
def test_what_is_not_selected_and_not_downstream_is_bit_identical(family: str, data: st.DataObject) -> None:
    model = MODELS[family]
    site = data.draw(st.sampled_from([s for s in SITES + SOME if has(model, s)]))
    prompts = rows(*data.draw(shapes))
    own = [data.draw(st.integers(0, len(prompt) - 1)) for prompt in prompts]
    skipped = data.draw(st.integers(0, len(prompts) - 1)) if len(prompts) > 1 else None
    mask = torch.zeros(len(prompts), max(map(len, prompts)), dtype=torch.bool)
    for r, position in enumerate(own):
        mask[r, position] = r != skipped
    whole = str(Site.parse(site).name) if site.count(".") == 0 else ".".join(site.split(".")[:2])
    read = [whole, "resid_pre.*", "resid_post.*", "logits"]
    plain = model.forward(prompts, read=read).acts
    edited = model.forward(prompts, edit=changes(model, site, mask), read=read).acts
    before = model.forward(prompts, edit=changes(model, site, mask), read=read, before=True).acts
    assert plain is not None and edited is not None and before is not None
    assert torch.equal(before[whole], plain[whole])
    at_site = (edited[whole] != plain[whole]).flatten(2).any(-1)
    assert torch.equal(at_site, mask)
    if ".h" in site:
        head = int(site.rpartition("h")[2])
        others = [h for h in range(plain[whole].shape[2]) if h != head]
        assert torch.equal(edited[whole][:, :, others], plain[whole][:, :, others])
    layer = Site.parse(site).layer
    for name in edited:
        below = layer is not None and (Site.parse(name).layer or 0) < layer and name != "logits"
        for r, position in enumerate(own):
            if r == skipped or below:
                assert torch.equal(edited[name][r], plain[name][r]), name
            else:
                assert torch.equal(edited[name][r, :position], plain[name][r, :position]), name


@given(shapes, st.data())
@torch.no_grad()
def test_a_bank_gives_every_row_its_own_and_row_0_nothing(lengths: list[int], data: st.DataObject) -> None:
    model = MODELS["llama"]
    kind = data.draw(st.sampled_from([Add, Ablate, lambda v: Clamp(v, 1.0), lambda v: Noise(0.5, int(v[0] * 1e6))]))
    items = [kind(torch.randn(WIDTH)) for _ in range(3)]
    prompts = rows(*lengths)
    chosen = [data.draw(st.integers(0, 3)) for _ in prompts]
    strength = [data.draw(st.sampled_from([0.5, 1.0, -2.0])) for _ in prompts]
    tokens = data.draw(specs)
    out = model.forward(prompts, edit=Edit("attn_out.*", Bank(items), tokens), rows=chosen, strength=strength).logits
    plain = model.forward(prompts).logits
    for r, prompt in enumerate(prompts):
        edit = Edit("attn_out.*", items[chosen[r] - 1], tokens, strength=strength[r]) if chosen[r] else None
        close(out[r, : len(prompt)], model.forward([prompt], edit=edit).logits[0])
        if not chosen[r]:
            assert torch.equal(out[r], plain[r])


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon"])
@torch.no_grad()
def test_embeddings_in_place_of_ids(family: str) -> None:
    model = MODELS[family]
    batch = padded(rows(5, 3), "left")
    embeds = model.hf.get_input_embeddings()(batch["input_ids"])
    rest = {k: v for k, v in batch.items() if k != "input_ids"}
    with model.edited(changes(model, "z.1", "first2+last1")):
        want = model.hf(**batch, use_cache=False).logits
        assert torch.equal(model.hf(inputs_embeds=embeds, **rest, use_cache=False).logits, want)


# -- against hooks written by hand -------------------------------------------------------------------------------------


@torch.no_grad()
def test_writes_equal_hand_written_hooks() -> None:
    model, v = MODELS["llama"], torch.randn(WIDTH)
    hf, prompts = model.hf, padded(rows(6))
    here = block(hf, 1)

    def z(x: Tensor) -> Tensor:
        x = x.clone()
        x[..., 8:16] *= 3
        return x

    for edit, hook in [
        (Edit("resid_post.1", Add(v)), changed(here, lambda h: h + v)),
        (Edit("mlp_out.1", Scale(3.0)), changed(here.mlp, lambda h: h * 3)),
        (Edit("q.1", Zero()), changed(here.self_attn.q_proj, torch.zeros_like)),
        (Edit("attn_out.1", Scale(3.0)), changed(here.self_attn, lambda h: h * 3)),
        (Edit("z.1.h1", Scale(3.0)), changed_input(here.self_attn.o_proj, z)),
        (Edit("mlp_act.1", Zero()), changed_input(here.mlp.down_proj, torch.zeros_like)),
        (Edit("embed", Add(v)), changed(hf.model.embed_tokens, lambda h: h + v)),
        (Edit("final_norm", Add(v)), changed(hf.model.norm, lambda h: h + v)),
    ]:
        with hook:
            want = hf(**prompts, use_cache=False).logits
        with model.edited(edit):
            assert torch.equal(hf(**prompts, use_cache=False).logits, want), edit


@pytest.mark.parametrize("intervention", [lambda v: Replace(v), lambda v: Mean(v), lambda v: Function(lambda h: v)])
@pytest.mark.parametrize("length", [1, 4])
@torch.no_grad()
def test_a_family_that_adds_in_place_does_not_write_into_the_intervention(intervention: Any, length: int) -> None:
    model, kept = MODELS["falcon"], torch.randn(1, length, WIDTH)
    v = kept.clone() if isinstance(intervention(kept[0, 0]), Function) else kept[0, 0].clone()
    edit = Edit("mlp_out.1", intervention(v))
    first = model.forward(rows(length), edit=edit, read=["mlp_out.1", "resid_post.1"])
    second = model.forward(rows(length), edit=edit, read=["mlp_out.1", "resid_post.1"])
    assert torch.equal(v, kept if v.ndim == 3 else kept[0, 0])
    assert all(torch.equal(first.acts[s], second.acts[s]) for s in first.acts)
    assert torch.equal(first.acts["mlp_out.1"][0], v.reshape(-1, WIDTH).expand(length, -1))


# -- order -------------------------------------------------------------------------------------------------------------


def order_sites(model: inlay.Model) -> list[str]:
    return [s for s in [*SITES, *SOME] if has(model, s)]


@every_family
@torch.no_grad()
def test_parts_on_one_site_act_in_written_order_and_outer_contexts_first(family: str) -> None:
    model = MODELS[family]
    prompts = rows(5, 4)
    for site in order_sites(model):
        a, b = Edit(site, Scale(3.0), tokens="last2"), changes(model, site, "first3")
        sums = [model.forward(prompts, edit=edit, read=site) for edit in (a + b, b + a)]
        plain = model.forward(prompts, read=site).acts[site].flatten(2)
        one = model.forward(prompts, edit=changes(model, site), read=site).acts[site].flatten(2)
        for r, prompt in enumerate(prompts):
            both = range(len(prompt) - 2, 3)
            if not site.startswith("pattern"):
                for (first, *_), factor in ((sums, 1.0), (sums[::-1], 3.0)):
                    want = 3 * plain[r, both] + factor * (one[r, both] - plain[r, both])
                    close(first.acts[site].flatten(2)[r, both], want, 1e-4)
        for outer, inner, want in ((a, b, sums[0]), (b, a, sums[1])):
            with model.edited(outer):
                got = model.forward(prompts, edit=inner, read=site)
            if site.startswith("resid_mid"):  # a sum, rounded once for each context
                close(got.acts[site], want.acts[site], 1e-5)
                continue
            if site.startswith("resid_mid"):  # written as a difference, once a context
                close(got.acts[site], want.acts[site])
                close(got.logits, want.logits)
            else:
                assert torch.equal(got.acts[site], want.acts[site]), site
                assert torch.equal(got.logits, want.logits), site


@torch.no_grad()
def test_contexts_act_in_the_order_in_which_they_are_entered_not_made() -> None:
    model, a, b = MODELS["llama"], Edit("resid_post.1", Scale(3.0)), changes(MODELS["llama"], "resid_post.1")
    second, first = model.edited(b), model.edited(a)
    with first, second:
        got = model.hf(**padded(rows(5))).logits
    assert torch.equal(got, model.forward(rows(5), edit=a + b).logits)
    with second, first:
        got = model.hf(**padded(rows(5))).logits
    assert torch.equal(got, model.forward(rows(5), edit=b + a).logits)


@pytest.mark.parametrize("nested", ["one", "outer", "inner"])
@pytest.mark.parametrize("below", ["resid_pre.1", "attn_out.1", "z.1", "v.1"])
@torch.no_grad()
def test_across_sites_the_order_of_the_forward_decides(below: str, nested: str) -> None:
    for family in ("llama", "gpt2", "gemma2"):
        model = MODELS[family]
        zero, add = Edit("resid_mid.1", Replace(torch.full((WIDTH,), 2.0))), changes(model, below)
        prompts = rows(5, 4)
        if nested == "one":
            out = model.forward(prompts, edit=zero + add, read=["resid_mid.1", "resid_pre.1"])
        else:
            outer, inner = (zero, add) if nested == "outer" else (add, zero)
            with model.edited(outer):
                out = model.forward(prompts, edit=inner, read=["resid_mid.1", "resid_pre.1"])
        real = out.mask.bool()
        close(out.acts["resid_mid.1"][real], torch.full_like(out.acts["resid_mid.1"][real], 2.0))
        want = model.forward(prompts, edit=add + zero)
        assert torch.equal(out.logits, want.logits)


# -- reads -------------------------------------------------------------------------------------------------------------


@every_family
@torch.no_grad()
def test_a_read_sees_edits_below_and_at_its_site_and_none_above(family: str) -> None:
    model = MODELS[family]
    for site in order_sites(model):
        edit = changes(model, site)
        plain = model.forward(rows(5), read=site).acts[site]
        after = model.forward(rows(5), edit=edit, read=site).acts[site]
        before = model.forward(rows(5), edit=edit, read=site, before=True).acts[site]
        assert torch.equal(before, plain) and not torch.equal(after, plain), site
        assert torch.equal(model.read(rows(5), site, edit=edit)[site][..., :], after), site
        assert torch.equal(model.read(rows(5), site, edit=edit, before=True)[site], plain), site
        below = changes(model, "resid_pre.0")
        first = model.forward(rows(5), edit=below, read=site).acts[site]
        both = model.forward(rows(5), edit=below + edit, read=site, before=True).acts[site]
        if site != "embed":
            assert torch.equal(both, first) and not torch.equal(first, plain), site


@torch.no_grad()
def test_a_read_that_stops_early_takes_an_edit_whose_upper_parts_it_does_not_reach() -> None:
    model, edit = MODELS["llama"], Edit("resid_post.*", Scale(2.0))
    want = model.forward(rows(5), edit=edit, read="resid_post.1").acts["resid_post.1"]
    assert torch.equal(model.read(rows(5), "resid_post.1", edit=edit)["resid_post.1"], want)
    assert torch.equal(model.states(rows(5), "resid_post.1", edit=edit).hidden, want)
    swap = Edit("resid_post.1", Swap(Source(rows(5), edit=edit)))
    assert torch.equal(model.forward(rows(5), edit=swap, read="resid_post.1").acts["resid_post.1"], want)
    above = model.read(rows(5), "resid_post.1", edit=Edit("resid_post.2", Scale(2.0)))
    assert torch.equal(above["resid_post.1"], model.read(rows(5), "resid_post.1")["resid_post.1"])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@torch.no_grad()
def test_an_edit_of_resid_mid_does_not_show_in_attn_out(family: str) -> None:
    model = MODELS[family]
    sites = ["resid_pre.1", "attn_in.1", "z.1", "attn_out.1"]
    plain = model.forward(rows(5), read=sites).acts
    edited = model.forward(rows(5), edit=changes(model, "resid_mid.1"), read=sites).acts
    for site in sites:
        assert torch.equal(edited[site], plain[site]), site


@torch.no_grad()
def test_transformers_own_outputs_show_the_edit() -> None:
    model, batch = MODELS["llama"], padded(rows(6))
    edit = Edit("resid_post.0", Scale(2.0))
    with model.edited(edit):
        states = model.hf(**batch, use_cache=False, output_hidden_states=True).hidden_states
    acts = model.forward(rows(6), edit=edit, read=["resid_pre.*", "final_norm"]).acts
    for layer in range(3):
        assert torch.equal(states[layer], acts[f"resid_pre.{layer}"])
    assert torch.equal(states[3], acts["final_norm"])


# -- generation with the Sites inside attention ------------------------------------------------------------------------


SPANS = {"all": 0, "prompt": 0, "first2+last1": 0, "first+response": 0, "response[1:3]": 2}  # acts from this step on


@pytest.mark.parametrize("tokens", SPANS)
@pytest.mark.parametrize("site", ["q_rot.1", "k_rot.1", "k_rot.0.h1", "pattern.1", "pattern.0.h2", "k.1", "v.1"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
@torch.no_grad()
def test_cached_generation_equals_recomputing_every_step(family: str, site: str, tokens: str) -> None:
    model, edit, prompts, new = MODELS[family], Edit(site, Scale(-0.7), tokens=tokens), rows(6, 3), 5
    batch = padded(prompts, "left")
    batch.pop("position_ids")
    with model.edited(edit):
        got = model.hf.generate(
            **batch, max_new_tokens=new, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
    chosen = [list(prompt) for prompt in prompts]
    for step in range(new):
        whole = padded(chosen, "left")
        marked = torch.zeros_like(whole["input_ids"], dtype=torch.bool)
        for r, row in enumerate(chosen):
            start = marked.shape[1] - len(row)
            marked[r, start : start + len(prompts[r])] = True
        with model.edited(edit, prompt_mask=marked) if step >= SPANS[tokens] else nullcontext():
            logits = model.hf(**whole, use_cache=False).logits[:, -1]
        close(got.logits[step], logits)
        for r, row in enumerate(chosen):
            row.append(int(logits[r].argmax()))
    assert [row[-new:] for row in chosen] == got.sequences[:, -new:].tolist()


# -- threads -----------------------------------------------------------------------------------------------------------


def at_once(jobs: list[Callable[[], Any]], times: int) -> list[list[Any]]:
    """Every job in a thread of its own, all begun together, `times` times over; what each one gave."""
    gate, results, failed = threading.Barrier(len(jobs)), [[] for _ in jobs], []

    def work(k: int) -> None:
        try:
            with torch.no_grad():
                for _ in range(times):
                    gate.wait(60)
                    results[k].append(jobs[k]())
        except BaseException as error:
            failed.append(error)
            gate.abort()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return results


def thread_jobs(model: inlay.Model, inside: bool) -> list[Callable[[], Tensor]]:
    """Different edits on one model, and none; `inside`: some of them inside the attention function."""
    v, prompts = torch.randn(WIDTH), rows(6, 4)
    batch = padded(prompts)
    edits: list[tuple[Edit, dict[str, Any]]] = [
        (Edit("resid_post.*", Add(v), tokens="last2"), {}),
        (Edit("resid_mid.1", Ablate(v)) + Edit("z.1.h1", Zero(), tokens=0), {}),
        (Edit("mlp_out.1", Bank([Add(v), Add(-v)])), {"rows": [2, 1]}),
        (Edit("resid_post.1", Swap(Source(rows(6, 4, seed=1)))), {"strength": [0.5, 2.0]}),
    ]
    if inside:
        edits[1:3] = [(Edit("pattern.1", Scale(0.5)), {}), (Edit("k_rot.*", Scale(0.5), tokens="first2"), {})]

    def job(edit: Edit, more: dict[str, Any]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with model.edited(edit, **more):
                return model.hf(**batch, use_cache=False).logits

        return run

    return [lambda: model.hf(**batch, use_cache=False).logits, *(job(*one) for one in edits)]


@pytest.mark.parametrize("inside", [False, True], ids=["at modules", "inside attention"])
@torch.no_grad()
def test_threads_with_different_edits_on_one_model(inside: bool) -> None:
    model = frozen()
    jobs = thread_jobs(model, inside)
    serial = [job() for job in jobs]
    assert not any(torch.equal(serial[0], other) for other in serial[1:])
    for got, want in zip(at_once(jobs, 25), serial, strict=True):
        assert all(torch.equal(one, want) for one in got)


@torch.no_grad()
def test_threads_that_generate_read_and_resume_at_once() -> None:
    model = frozen(tokenizer=words())
    v = torch.randn(WIDTH)
    jobs: list[Callable[[], Any]] = [
        lambda: model.generate(rows(5, 3), max_new_tokens=4, do_sample=False),
        lambda: model.generate(rows(5, 3), edit=Edit("resid_post.1", Add(v)), max_new_tokens=4, do_sample=False),
        lambda: model.read(rows(5, 3), "resid_post.1", edit=Edit("z.0", Scale(2.0))).stack().tolist(),
        lambda: model.resume(model.states(rows(5, 3), "resid_post.0"), edit=Edit("mlp_out.2", Add(v))).logits.tolist(),
        lambda: list(model.generate(rows(5), edit=Edit("q.*", Zero()), max_new_tokens=4, do_sample=False, stream=True)),
    ]
    serial = [job() for job in jobs]
    for got, want in zip(at_once(jobs, 6), serial, strict=True):
        assert all(one == want for one in got)


@pytest.mark.parametrize(("enter", "leave"), [(0, 3), (1, 2), (0, 1)])
@pytest.mark.parametrize("site", ["pattern.1", "k_rot.2", "resid_post.1"])
@torch.no_grad()
def test_an_edit_entered_and_left_while_another_threads_forward_is_under_way(site: str, enter: int, leave: int) -> None:
    model, batch, got = frozen(), padded(rows(6, 4)), []
    want = model.hf(**batch, use_cache=False).logits
    reached, go = [threading.Event() for _ in range(4)], [threading.Event() for _ in range(4)]

    def work() -> None:
        with torch.no_grad():
            got.append(model.hf(**batch, use_cache=False).logits)

    other = threading.Thread(target=work)

    def wait(k: int) -> None:
        if threading.current_thread() is other:
            reached[k].set()
            assert go[k].wait(60)

    for k, module in enumerate([*model.hf.model.layers, model.hf.model.norm]):
        module.register_forward_pre_hook(lambda m, a, k=k: wait(k))
    other.start()
    run = model.edited(Edit(site, Scale(0.5)))
    for k in range(4):
        assert reached[k].wait(60)
        if k == enter:
            run.__enter__()
            model.hf(**batch, use_cache=False)
        if k == leave:
            run.__exit__(None, None, None)
        go[k].set()
    other.join()
    assert torch.equal(got[0], want)


@torch.no_grad()
def test_a_thread_started_inside_a_context_is_not_edited() -> None:
    model, batch = frozen(), padded(rows(6, 4))
    plain = model.hf(**batch, use_cache=False).logits
    with model.edited(Edit("resid_post.1", Zero())):
        ((got,),) = at_once([lambda: model.hf(**batch, use_cache=False).logits], 1)
        assert torch.equal(got, plain)
        assert not torch.equal(model.hf(**batch, use_cache=False).logits, plain)


# -- what was touched --------------------------------------------------------------------------------------------------

COUNTS: list[tuple[Any, list[int]]] = [  # rows of 6, 3 and 4 tokens
    ("all", [6, 3, 4]), ("prompt", [6, 3, 4]), ("last", [1, 1, 1]), ("first4", [4, 3, 4]), ("first2+last2", [4, 3, 4]),
    ([0, 2], [2, 2, 2]), (slice(2, None), [4, 1, 2]), ("prompt[3:]", [3, 0, 1]),
    (torch.tensor([[0], [0], [3]]), [1] * 3),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(COUNTS)))
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_touched_counts_attended_positions(side: str, case: int) -> None:
    tokens, counts = COUNTS[case]
    model, batch = MODELS["llama"], padded(rows(6, 3, 4), side)
    edit = Edit("resid_post.1", Zero(), tokens=tokens) + Edit("z.0.h1", Zero()) + Edit("attn_out.*", Zero(), tokens=-1)
    with model.edited(edit) as run:
        model.hf(**batch, use_cache=False)
        assert run.touched == [sum(counts), 13, 3, 3, 3]
        model.hf(**batch, use_cache=False)
    assert run.touched == [2 * n for n in (sum(counts), 13, 3, 3, 3)]


@pytest.mark.parametrize(
    ("tokens", "count"),
    [("all", 9 + 2 * 3), ("prompt", 9), ("response", 2 * 3), ("response[1:]", 2 * 2), ("last+response[0]", 4)],
)
@pytest.mark.parametrize("copies", [1, 2])
@torch.no_grad()
def test_touched_in_a_generation(tokens: str, count: int, copies: int) -> None:
    model, batch = MODELS["llama"], padded(rows(6, 3), "left")
    with model.edited(Edit("resid_post.1", Scale(1.1), tokens=tokens)) as run:
        model.hf.generate(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=4, do_sample=True,
            num_return_sequences=copies,
        )  # fmt: skip
    assert run.touched == [count * copies]


@torch.no_grad()
def test_touched_of_rows_that_use_no_edit() -> None:
    model = MODELS["llama"]
    out = model.forward(rows(6, 3), edit=Edit("resid_post.1", Add(torch.ones(WIDTH))) + Edit("z.1", Zero()))
    assert out.touched == [9, 9]


@torch.no_grad()
def test_an_edit_that_changes_nothing_raises() -> None:
    model = MODELS["llama"]
    with pytest.raises(EditError, match=r"part 0 .*tokens='response'.* no position was selected"):
        model.forward(rows(4), edit=Edit("resid_post.1", Zero(), tokens="response"))
    with pytest.raises(EditError, match="part 1 of the Edit"):
        model.forward(rows(4), edit=Edit("embed", Zero()) + Edit("resid_post.1", Zero(), tokens="response[1:]"))
    with pytest.raises(EditError, match="no position was selected"):
        model.generate(rows(4), edit=Edit("resid_post.1", Zero(), tokens="response[7:]"), max_new_tokens=5)
    with pytest.raises(EditError, match="no position was selected"):
        model.forward(rows(4, 3), edit=Edit("resid_post.1", Zero(), tokens=torch.zeros(2, 4, dtype=torch.bool)))


@torch.no_grad()
def test_an_edit_on_a_module_that_never_runs_raises() -> None:
    hf = tiny()
    hf.model.unused = nn.Linear(4, 4)
    model = inlay.load(hf)
    with pytest.raises(EditError, match=r"module:model\.unused:out.* its module did not run"):
        model.forward(rows(4), edit=Edit("module:model.unused:out", Zero()))
    states = model.states(rows(4), "resid_post.1")
    with pytest.raises(EditError, match="its module did not run"):
        model.resume(states, edit=Edit("mlp_out.0", Zero()))


@torch.no_grad()
def test_a_module_that_is_called_by_itself_under_an_edit_raises() -> None:
    model = MODELS["llama"]
    with model.edited(Edit("logits", Scale(2.0)) + Edit("mlp_out.1", Zero())):
        model.hf(**padded(rows(4)))
        with pytest.raises(ModelError, match="outside of the model's forward"):
            model.hf.lm_head(torch.randn(1, 2, WIDTH))


@torch.no_grad()
def test_rows_and_strengths_of_another_number_are_refused() -> None:
    model, bank = MODELS["llama"], Edit("resid_post.1", Bank([Add(torch.ones(WIDTH))]))
    with pytest.raises(EditError, match="names 1 rows, and the batch has 2"):
        model.forward(rows(4, 3), edit=bank, rows=[1])
    with pytest.raises(EditError, match="names 3 rows, and the batch has 2"):
        model.forward(rows(4, 3), edit=Edit("embed", Zero()), strength=[1.0, 1.0, 1.0])
    with pytest.raises(EditError, match="the Edit holds none"):
        model.forward(rows(4), edit=Edit("embed", Zero()), rows=[1])
    with pytest.raises(EditError, match="is a Bank"):
        model.forward(rows(4), edit=bank)
    with pytest.raises(EditError, match=r"rows\[0\] = 2"):
        model.forward(rows(4), edit=bank, rows=[2])
    with (
        pytest.raises(TokensError, match="prompt_mask covers 9 slots"),
        model.edited(bank, rows=[1], prompt_mask=torch.ones(1, 9).bool()),
    ):
        model.hf(**padded(rows(4)))


# -- gradients of Sites ------------------------------------------------------------------------------------------------


def by_hand(model: inlay.Model, batch: dict[str, Tensor], site: str, loss: Callable[[Any], Tensor]) -> Tensor:
    """The gradient at a Site [R, T, ...] by plain autograd: a hook keeps the tensor and its gradient."""
    hf, kept = model.hf, []

    def keep(tensor: Tensor) -> None:
        tensor.retain_grad()
        kept.append(tensor)

    def output(m: nn.Module, a: Any, o: Any) -> None:
        keep(o[0] if isinstance(o, tuple) else o)

    name, _, layer = site.partition(".")
    here = block(hf, int(layer.split(".")[0] or 0))
    gpt2 = hf.config.model_type == "gpt2"
    attention, norm = (here.attn, here.ln_2) if gpt2 else (here.self_attn, here.post_attention_layernorm)
    inputs = {
        "resid_pre": here, "resid_mid": norm, "z": attention.c_proj if gpt2 else attention.o_proj,
        "mlp_act": here.mlp.c_proj if gpt2 else here.mlp.down_proj,
    }  # fmt: skip
    outputs = {
        "resid_post": here, "attn_out": attention, "mlp_out": here.mlp, "logits": hf.lm_head,
        "q": attention.c_attn if gpt2 else attention.q_proj, "embed": hf.get_input_embeddings(),
    }  # fmt: skip
    if name in inputs:
        handle = inputs[name].register_forward_pre_hook(lambda m, args: keep(args[0]))
    else:
        handle = outputs[name].register_forward_hook(output)
    root = hf.get_input_embeddings().register_forward_hook(lambda m, a, o: o.requires_grad_(True), prepend=True)
    try:
        loss(hf(**batch, use_cache=False)).backward()
    finally:
        handle.remove()
        root.remove()
    gradient = kept[0].grad
    assert gradient is not None
    if name == "q" and gpt2:
        gradient = gradient[..., :WIDTH]
    if name in ("z", "q"):
        gradient = gradient.unflatten(-1, (HEADS, -1))
    return gradient[:, :, int(site.rpartition("h")[2])] if ".h" in site else gradient


def next_token(batch: dict[str, Tensor]) -> Callable[[Any], Tensor]:
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)

    def loss(out: Any) -> Tensor:
        total = torch.zeros(())
        for r, row in enumerate(labels):
            for t in range(1, len(row)):
                if row[t] >= 0:
                    total = total - out.logits[r, t - 1].log_softmax(-1)[row[t]]
        return total

    return loss


GRADIENT_SITES = ["resid_pre.1", "resid_mid.1", "resid_post.1", "attn_out.0", "mlp_out.2", "z.1", "z.1.h2", "q.1",
                  "q.1.h3", "mlp_act.1", "embed", "resid_pre.0", "logits"]  # fmt: skip


@pytest.mark.parametrize("tokens", ["all", "last", "first2"])
@pytest.mark.parametrize("site", GRADIENT_SITES)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_gradients_of_sites_equal_plain_autograd(family: str, site: str, tokens: str) -> None:
    model, prompts = MODELS[family], rows(6, 4)
    batch = padded(prompts)
    for grads, loss in (
        (True, next_token(batch)),
        (lambda out: out.logits[:, 2, 5].sum() ** 2, lambda out: out.logits[:, 2, 5].sum() ** 2),
    ):
        acts = model.read(prompts, site, tokens, grads=grads)
        assert acts.gradients is not None and acts.gradients[site].shape == acts[site].shape
        want = by_hand(model, batch, site, loss)
        for r, prompt in enumerate(prompts):
            n = len(prompt)
            own = {"all": list(range(n)), "last": [n - 1], "first2": [0, 1]}[tokens]
            got = acts.gradients[site][r][None] if acts.mask is None else acts.gradients[site][r, : len(own)]
            close(got, want[r, own])
    assert all(p.grad is None for p in model.hf.parameters())


def test_gradients_in_the_presence_of_an_edit_are_those_of_the_edited_model() -> None:
    model, prompts, v = MODELS["llama"], rows(5), torch.randn(WIDTH)
    sites = ["resid_post.1", "resid_pre.0", "z.2"]
    acts = model.read(prompts, sites, edit=Edit("resid_post.1", Scale(2.0)) + Edit("mlp_out.1", Add(v)), grads=True)
    batch = padded(prompts)
    for site in sites:
        with changed(block(model.hf, 1).mlp, lambda h: h + v), changed(block(model.hf, 1), lambda h: h * 2):
            close(acts.gradients[site], by_hand(model, batch, site, next_token(batch)))


def test_gradients_on_the_response_alone_and_in_several_batches() -> None:
    model = frozen(tokenizer=words())
    prompts, responses = ["the old dog", "a boat"], ["sees the sea", "is here"]
    whole = model.read(prompts, ["resid_post.0", "z.1"], responses=responses, grads=True)
    parts = model.read(prompts, ["resid_post.0", "z.1"], responses=responses, grads=True, batch_tokens=1)
    batch = model.encoder.rows(prompts, responses)
    for site in whole:
        close(whole.gradients[site], parts.gradients[site])
        for r, row in enumerate(batch):
            n, p = len(row.ids), row.prompt
            one = padded([row.ids])

            def loss(out: Any, row: Any = row, n: int = n, p: int = p) -> Tensor:
                logps = out.logits[0].log_softmax(-1)
                return -sum(logps[t - 1, row.ids[t]] for t in range(p, n))

            close(whole.gradients[site][r, :n], by_hand(model, one, site, loss)[0])


def test_gradients_of_a_raw_site_and_of_a_trainable_base() -> None:
    model = frozen()
    raw, named = "module:model.layers.1.mlp:out", "mlp_out.1"
    acts = model.read(rows(5), [raw, named], grads=True)
    assert torch.equal(acts.gradients[raw], acts.gradients[named])
    trainable = inlay.load(tiny())
    got = trainable.read(rows(5), ["embed", "resid_mid.1"], grads=True)
    want = model.read(rows(5), ["embed", "resid_mid.1"], grads=True)
    assert all(torch.equal(got.gradients[s], want.gradients[s]) for s in want)
    assert all(p.grad is None and p.requires_grad for p in trainable.hf.parameters())


# -- an Edit is a module -----------------------------------------------------------------------------------------------


def test_an_edits_parameters_are_those_of_its_interventions_once_each() -> None:
    v = nn.Parameter(torch.randn(WIDTH))
    shared = Add(v)
    edit = (
        Edit("resid_post.*", shared)
        + Edit("z.1", shared)
        + Edit("mlp_act.1", nn.Linear(MLP, MLP))
        + Edit("embed", Zero())
    )
    assert [tuple(p.shape) for p in edit.parameters()] == [(WIDTH,), (MLP, MLP), (MLP,)]
    assert next(edit.parameters()) is v
    model = MODELS["llama"]
    model.forward(rows(5), edit=edit, loss=True).loss.backward()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in edit.parameters())
    assert all(p.grad is None for p in model.hf.parameters())
    edit.zero_grad()
    assert all(p.grad is None for p in edit.parameters())


@torch.no_grad()
def test_a_copy_of_an_edit_is_its_own() -> None:
    shared = Add(nn.Parameter(torch.randn(WIDTH)))
    edit = Edit("resid_post.0", shared) + Edit("resid_post.1", shared, tokens="last", strength=2.0)
    twin = copy.deepcopy(edit)
    assert repr(twin) == repr(edit)
    assert twin.parts[0].intervention is twin.parts[1].intervention is not shared
    model = MODELS["llama"]
    want = model.forward(rows(5), edit=edit).logits
    assert torch.equal(model.forward(rows(5), edit=twin).logits, want)
    next(twin.parameters()).add_(1.0)
    assert torch.equal(model.forward(rows(5), edit=edit).logits, want)
    assert not torch.equal(model.forward(rows(5), edit=twin).logits, want)


@pytest.mark.parametrize("base_training", [False, True])
@torch.no_grad()
def test_dropout_follows_the_edits_own_mode(base_training: bool) -> None:
    model = frozen()
    model.hf.train(base_training)
    edit = Edit("resid_post.1", nn.Dropout(0.5))
    plain = model.forward(rows(5), read="resid_post.1").acts["resid_post.1"]
    edit.eval()
    assert torch.equal(model.forward(rows(5), edit=edit, read="resid_post.1").acts["resid_post.1"], plain)
    edit.train()
    got = model.forward(rows(5), edit=edit, read="resid_post.1").acts["resid_post.1"]
    zeros = got == 0
    assert 0.2 < float(zeros.float().mean()) < 0.8
    close(got[~zeros], 2 * plain[~zeros], 1e-6)
    assert model.hf.training is base_training and edit.interventions[0].f.training


@pytest.mark.parametrize(
    "module",
    [nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.LayerNorm(WIDTH), nn.Sequential(nn.Linear(WIDTH, 4), nn.Linear(4, WIDTH))],
    ids=lambda m: type(m).__name__,
)
@torch.no_grad()
def test_any_module_is_an_intervention(module: nn.Module) -> None:
    model = MODELS["llama"]
    with changed(block(model.hf, 1), module):
        want = model.forward(rows(5)).logits
    assert torch.equal(model.forward(rows(5), edit=Edit("resid_post.1", module)).logits, want)


@torch.no_grad()
def test_a_function_gets_what_it_names() -> None:
    model, seen = MODELS["llama"], {}

    def f(h: Tensor, input: Tensor, positions: Tensor, source: Tensor) -> Tensor:
        seen.update(input=input, positions=positions)
        return h + input + source

    prompts = rows(5, 3)
    source = Source(rows(5, 3, seed=1))
    out = model.forward(prompts, edit=Edit("mlp_out.1", Function(f, source)), read=["mlp_out.1", "mlp_in.1"])
    plain = model.forward(prompts, read=["mlp_out.1"]).acts["mlp_out.1"]
    other = model.forward(rows(5, 3, seed=1), read="mlp_out.1").acts["mlp_out.1"]
    real = out.mask.bool()
    assert torch.equal(seen["input"][real], out.acts["mlp_in.1"][real])
    assert seen["positions"][0].tolist() == [0, 1, 2, 3, 4] and seen["positions"][1, :3].tolist() == [0, 1, 2]
    assert torch.equal(out.acts["mlp_out.1"][real], (plain + out.acts["mlp_in.1"] + other)[real])


@settings(max_examples=8)
@given(st.integers(1, 7), st.integers(0, 2**31))
@torch.no_grad()
def test_an_edit_lifted_is_an_edit_never_set(length: int, seed: int) -> None:
    model = MODELS["llama"]
    prompts = rows(length, seed=seed)
    before = model.forward(prompts).logits
    assert before.shape[-1] == VOCAB
    model.forward(prompts, edit=changes(model, "resid_mid.1") + changes(model, "pattern.0"))
    assert torch.equal(model.forward(prompts).logits, before)
