"""How pyvene runs interventions, beside ours: several sources, serial runs, functions, reads, and generation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.interventions import tiny
from tests.interventions.tiny import EVEN, LAYERS, OTHER, RAGGED, WIDTH
from tests.peers.beside import HERE, THERE, TWO_HERE, TWO_THERE, Pair, at, numbers, only, pairs, source
from torch import Tensor

from inlay import Add, Edit, Function, Source, Swap
from inlay.causal.tracing import causal_trace
from inlay.interventions import families

THIRD = EVEN[::-1]


def _vanilla(pair: Pair, layer: int, component: str = "block_output", **more: Any) -> dict[str, Any]:
    made = pair.pyvene.VanillaIntervention(embed_dim=WIDTH)
    return {"layer": layer, "component": component, "intervention": made, **more}


# -- sources -----------------------------------------------------------------------------------------------------------


def test_two_sources_in_parallel(pair: Pair) -> None:
    parts = [_vanilla(pair, 0), _vanilla(pair, 2, "mlp_output")]
    where = {"sources->base": ([THERE, HERE], [HERE, THERE])}
    theirs = pair.theirs(parts, where, sources=[OTHER, THIRD])[1].logits
    low = Edit("resid_post.0", Swap(source()), at())
    pair.agree(low + Edit("mlp_out.2", Swap(source(HERE, THIRD)), at(THERE)), theirs)


def test_one_source_at_many_sites(pair: Pair) -> None:
    """Grouped there, so that the source runs once; here one `Source` object says it."""
    places = [(0, "attention_output", "attn_out"), (1, "block_output", "resid_post"), (2, "mlp_output", "mlp_out")]
    parts = [_vanilla(pair, layer, component, group_key=0) for layer, component, _ in places]
    theirs = pair.theirs(parts, {"sources->base": ([THERE] * 3, [HERE] * 3)}, sources=[OTHER])[1].logits
    shared = source()
    edits = [Edit(f"{site}.{layer}", Swap(shared), at()) for layer, _, site in places]
    pair.agree(edits[0] + edits[1] + edits[2], theirs)


def test_a_source_that_is_edited_itself(pair: Pair) -> None:
    where = {"source_0->source_1": ([THERE], [HERE]), "source_1->base": ([HERE], [THERE])}
    parts = [_vanilla(pair, 0), _vanilla(pair, 2)]
    theirs = pair.theirs(parts, where, sources=[OTHER, THIRD], mode="serial")[1].logits
    between = Source(THIRD, tokens=at(), edit=Edit("resid_post.0", Swap(source()), at()))
    pair.agree(Edit("resid_post.2", Swap(between), at(THERE)), theirs)


def test_rows_of_unequal_length(pair: Pair) -> None:
    """Padded on the right, where pyvene's slots are the tokens' own numbers."""
    here, there = [[4], [1], [6], [0]], [[6], [0], [2], [1]]
    others = [RAGGED[2], RAGGED[3], RAGGED[0], RAGGED[1]]
    theirs = pair.theirs([_vanilla(pair, 1)], pairs(here, there), base=RAGGED, sources=[others])[1].logits
    pair.agree(Edit("resid_post.1", Swap(source(there, others)), at(here)), theirs, RAGGED)


# -- functions ---------------------------------------------------------------------------------------------------------


def test_a_function_of_base_and_source(pair: Pair) -> None:
    part = {"layer": 1, "component": "block_output", "intervention": lambda base, source: base / 2 + source.tanh()}
    theirs = pair.theirs([part], pairs(TWO_HERE, TWO_THERE), sources=[OTHER])[1].logits
    ours = Function(lambda h, source: h / 2 + source.tanh(), source(TWO_THERE))
    pair.agree(Edit("resid_post.1", ours, at(TWO_HERE)), theirs)


def test_a_function_of_the_modules_input(pair: Pair) -> None:
    """A low-rank adapter of the MLP: h + x A B, pyvene's `as_adaptor`."""
    down, up = numbers(WIDTH, 3), numbers(3, WIDTH, seed=1)

    class Adapter(pair.pyvene.SourcelessIntervention):  # type: ignore[misc, name-defined]
        keep_last_dim = True

        def forward(self, base: Tensor, source: Any = None, subspaces: Any = None, args: Any = None) -> Tensor:
            return base + args @ down @ up

    part = {"layer": 1, "component": "mlp_output", "intervention": Adapter(keep_last_dim=True)}
    theirs = pair.theirs([part], only(TWO_HERE), options={"as_adaptor": True})[1].logits
    ours = Function(lambda h, input: h + input @ down @ up)
    pair.agree(Edit("mlp_out.1", ours, at(TWO_HERE)), theirs)


# -- reads -------------------------------------------------------------------------------------------------------------


def test_a_read_below_an_edit(pair: Pair) -> None:
    """The collecting part is told how many positions it reads; else it keeps the first 1/n of each state's numbers."""
    collect = pair.pyvene.CollectIntervention(embed_dim=2 * WIDTH)
    part = {"layer": 2, "component": "block_output", "intervention": collect, "max_number_of_units": 2}
    where = {"sources->base": ([THERE, None], [HERE, TWO_HERE])}
    ((_, theirs), _) = pair.theirs([_vanilla(pair, 0), part], where, sources=[OTHER, None])
    edit = Edit("resid_post.0", Swap(source()), at())
    ours = pair.model.read(EVEN, "resid_post.2", tokens=at(TWO_HERE), edit=edit)["resid_post.2"]
    plain = pair.model.read(EVEN, "resid_post.2", tokens=at(TWO_HERE))["resid_post.2"]
    torch.testing.assert_close(ours, torch.cat(list(theirs)), rtol=0, atol=1e-5)
    assert (ours - plain).abs().max() > 0.05


# -- generation --------------------------------------------------------------------------------------------------------


def _generated(pair: Pair, part: dict[str, Any], at: Any, **call: Any) -> list[list[int]]:
    base = {name: tensor for name, tensor in tiny.padded(EVEN).items() if name != "position_ids"}
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    _, found = pair.wrap([part]).generate(base, unit_locations=at, **call, **options)
    ids: list[list[int]] = found[:, len(EVEN[0]) :].tolist()
    return ids


def _same(pair: Pair, edit: Edit, theirs: list[list[int]]) -> None:
    assert pair.model.generate(EVEN, edit=edit, max_new_tokens=8, do_sample=False) == theirs
    assert pair.model.generate(EVEN, max_new_tokens=8, do_sample=False) != theirs


@pytest.mark.parametrize("prompt", [True, False], ids=["at the prompt", "at every new token"])
def test_generation_with_a_constant(pair: Pair, prompt: bool) -> None:
    """Without locations pyvene edits what each decode step feeds in: our `response`."""
    v = 3 * numbers(WIDTH)
    part = {"layer": 1, "component": "block_output", "intervention_type": pair.pyvene.AdditionIntervention}
    where = only([[2]] * 4) if prompt else None
    theirs = _generated(pair, part, where, source_representations=v, intervene_on_prompt=prompt)
    _same(pair, Edit("resid_post.1", Add(v), 2 if prompt else "response"), theirs)


def test_generation_with_a_source_at_the_prompt(pair: Pair) -> None:
    there = {"sources": [tiny.padded(OTHER)], "intervene_on_prompt": True}
    theirs = _generated(pair, _vanilla(pair, 1), pairs(), **there)
    _same(pair, Edit("resid_post.1", Swap(source()), at()), theirs)


# -- causal tracing ----------------------------------------------------------------------------------------------------

PROMPT = [5, 9, 17, 33, 2]
KINDS = {"resid_post": "block_output", "mlp_out": "mlp_output", "attn_out": "attention_output"}


def _restored(pair: Pair, kind: str, layer: int, token: int, answer: int) -> float:
    """One cell as pyvene's tutorial does it: noise at the first four tokens, clean states set back at one token."""
    layers = range(layer, min(layer + 2, LAYERS)) if kind != "resid_post" else [layer]
    noise = pair.pyvene.NoiseIntervention(embed_dim=WIDTH)
    noise.noise = families.normal(torch.tensor(7), torch.arange(4)[None], WIDTH, torch.device("cpu"))
    noise.noise_level = torch.tensor(0.6)
    corrupt = {"layer": 0, "component": "block_input", "intervention": noise}
    parts = [corrupt, *(_vanilla(pair, at, KINDS[kind]) for at in layers)]
    where = {"sources->base": ([None, *[[[token]]] * len(layers)], [[[0, 1, 2, 3]], *[[[token]]] * len(layers)])}
    sources = [None, *[[PROMPT]] * len(layers)]
    logits = pair.theirs(parts, where, base=[PROMPT], sources=sources)[1].logits
    return float(logits[0, -1].softmax(-1)[answer])


def test_a_causal_trace(pair: Pair) -> None:
    """Every cell, with one draw of noise, the same numbers, and a window of two layers (l and l + 1)."""
    answer = int(tiny.plain(pair.hf, [PROMPT])[0, -1].argmax())
    options: dict[str, Any] = {"noise": 0.6, "draws": 1, "window": 2, "seed": 7}
    grid = causal_trace(pair.model, [PROMPT], [0, 1, 2, 3], answer, kinds=tuple(KINDS), **options)
    for kind in KINDS:
        mine = torch.tensor(grid.sel(component=kind).values) + float(grid["corrupted"])
        layers = [
            [_restored(pair, kind, layer, token, answer) for token in range(len(PROMPT))] for layer in range(LAYERS)
        ]
        torch.testing.assert_close(mine, torch.tensor(layers), rtol=0, atol=1e-5)
    assert float(abs(grid).max()) > 0.05
