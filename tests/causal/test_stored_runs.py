"""StoredRuns: an interchange from stored runs equals whole forwards, wherever it is, and runs no layer below it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tests.interventions import tiny
from tests.interventions.tiny import WIDTH
from torch import Tensor

import inlay
from inlay import Boundless, Edit, LowRank, Skip, Source, Swap, When
from inlay.causal import Counterfactual
from inlay.causal.stored_runs import StoredRuns, grouped
from inlay.errors import CausalError, ModelError, SiteError, TargetError, TokensError

BASES = [[5, 9, 17, 33, 2], [40, 3, 21], [8, 8, 60, 7, 11, 30, 4], [12, 50], [40, 3, 21], [5, 9, 17]]
ONE = [[31, 22, 13], [55, 6, 7, 18, 9], [19, 20], [3, 14, 15, 9], [19, 20], [55, 6, 7, 18, 9]]
OTHER = [[41, 2], [5, 16, 27, 8], [29, 2, 4], [13, 4, 5], [29, 2], [5, 6, 7]]
ROWS = [
    Counterfactual(base, (one, other)[: 1 + (i % 2)], ("x", "y")[: 1 + (i % 2)], i, i + 6)
    for i, (base, one, other) in enumerate(zip(BASES, ONE, OTHER, strict=True))
]
MINE = [5, 1, 3]  # rows that set x and y, in this order


def whole(model: inlay.Model, rows: Sequence[int], edit: Edit | None) -> Tensor:
    """The last token's logits of whole forwards."""
    with torch.no_grad():
        output = model.forward([BASES[row] for row in rows], edit=edit)
    return torch.stack([logits[len(BASES[row]) - 1] for logits, row in zip(output.logits, rows, strict=True)])


def same(have: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(have, want, rtol=0, atol=1e-10)


def loaded(family: str) -> inlay.Model:
    return inlay.load(tiny.FAMILIES[family](dtype=torch.float64))


def placed(edit: Edit, prompts: list[list[int]], tokens: Any = None) -> Edit:
    """An Edit with its source written out."""
    return Edit.of(
        tuple(
            Edit(
                part.site,
                part.intervention.with_source(Source(prompts, tokens=tokens)),
                part.tokens,
                part.strength,
                when=part.when,
                joint=part.joint,
            ).parts[0]
            for part in edit.parts
        )
    )


def low_rank(width: int, seed: int = 0) -> LowRank:
    return LowRank(None, width, 3, seed).double()


SITES: dict[str, tuple[Any, Any]] = {
    "resid_pre.0": (low_rank(WIDTH), "last"),
    "resid_pre.2": (low_rank(WIDTH), "last2"),
    "resid_post.1": (Swap(None, slice(3, 20)), -2),
    "resid_post.2": (low_rank(WIDTH), "last"),
    "mlp_out.1": (Boundless(None, WIDTH, temperature=5.0).double(), "last"),
    "z.1.h[1,2]": (low_rank(2 * tiny.HEAD_WIDTH), "last"),
    "attn_out.2": (Skip(None), "last"),
    "embed": (low_rank(WIDTH), "last"),
    "final_norm": (low_rank(WIDTH), "last"),
}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("site", SITES)
def test_interchanges_equal_whole_forwards(family: str, site: str) -> None:
    model = loaded(family)
    intervention, tokens = SITES[site]
    edits = {"x": Edit(site, intervention, tokens=tokens), "y": Edit("resid_post.0", low_rank(WIDTH, 7), "last")}
    runs = StoredRuns(model, ROWS, edits, batch_tokens=9)
    assert runs.groups == {("x",): [0, 2, 4], ("x", "y"): [1, 3, 5]}
    for rows in ([0, 2, 4], [4], MINE):
        edit = placed(edits["x"], [ONE[row] for row in rows])
        if rows == MINE:
            edit += placed(edits["y"], [OTHER[row] for row in rows])
        with torch.no_grad():
            same(runs.logits(rows, runs.edit(rows)), whole(model, rows, edit))
            same(runs.logits(rows), whole(model, rows, None))
        assert (whole(model, rows, edit) - whole(model, rows, None)).abs().max() > 1e-3, "the edit does something"


def test_a_raw_site_of_a_block_and_every_layer_of_a_site() -> None:
    model = loaded("llama")
    for site in ("module:model.layers.1.mlp:out", "resid_post.*"):
        edits = {"x": Edit(site, low_rank(WIDTH), "last"), "y": Edit("resid_post.2", low_rank(WIDTH), "last")}
        runs = StoredRuns(model, ROWS, edits)
        edit = placed(edits["x"], [ONE[0], ONE[2]])
        with torch.no_grad():
            same(runs.logits([0, 2], runs.edit([0, 2])), whole(model, [0, 2], edit))


def test_other_interventions_sources_and_parts() -> None:
    model = loaded("llama")
    edits = {
        "x": Edit("resid_post.1", low_rank(WIDTH), "last"),
        "y": Edit("resid_post.1", low_rank(WIDTH, 2), "last2", joint=False),
    }
    runs = StoredRuns(model, ROWS, edits)
    swapped = Edit("resid_post.1", Swap([ONE[row] for row in MINE]), "last")
    with torch.no_grad():
        got = runs.edit(MINE, change=lambda part: None if part in runs.parts["y"] else Swap(None))
        same(runs.logits(MINE, got), whole(model, MINE, swapped))
        crossed = runs.edit(MINE, take={"y": "x"})
        same(runs.logits(MINE, crossed), whole(model, MINE, placed(edits["y"], [ONE[row] for row in MINE])))
    assert runs.edit(MINE, change=lambda part: None) is None


def test_source_tokens_conditions_and_joint_positions() -> None:
    model = loaded("llama")
    when = When("resid_pre.0", torch.randn(WIDTH), above=0.0, tokens="last")
    edits = {"x": Edit("resid_post.1", low_rank(WIDTH), -1, when=when, strength=0.5)}
    edits["y"] = Edit("resid_post.1", low_rank(2 * WIDTH), "last2", joint=True)
    runs = StoredRuns(model, ROWS, edits)
    assert [runs.width(runs.parts[name][0]) for name in "xy"] == [WIDTH, 2 * WIDTH]
    edit = placed(edits["x"], [ONE[row] for row in MINE]) + placed(edits["y"], [OTHER[row] for row in MINE])
    with torch.no_grad():
        same(runs.logits(MINE, runs.edit(MINE)), whole(model, MINE, edit))
    rows = [row for row in ROWS if row.variables == ("x",)]
    runs = StoredRuns(model, rows, {"x": edits["x"]}, source_tokens=0)
    with torch.no_grad():
        edit = placed(edits["x"], [ONE[0], ONE[2], ONE[4]], tokens=0)
        same(runs.logits([0, 1, 2], runs.edit([0, 1, 2])), whole(model, [0, 2, 4], edit))


def test_positions_of_each_row() -> None:
    model = loaded("llama")
    where = torch.tensor([[1], [2], [0], [1], [0], [2]])
    edits = {"x": Edit("resid_post.1", low_rank(WIDTH), where), "y": Edit("resid_post.2", low_rank(WIDTH), "last")}
    there = torch.tensor([[2], [0], [1], [1], [1], [0]])
    runs = StoredRuns(model, ROWS, edits, source_tokens=there)
    with torch.no_grad():
        for rows in ([0], [2, 4], [4, 0]):
            cut = Edit("resid_post.1", edits["x"].parts[0].intervention, where[rows])
            same(
                runs.logits(rows, runs.edit(rows)),
                whole(model, rows, placed(cut, [ONE[row] for row in rows], tokens=there[rows])),
            )


@contextmanager
def counted(model: inlay.Model) -> Iterator[list[int]]:
    """How many rows the MLP of each block saw: a block that is skipped is called, and what is in it is not."""
    seen = [0] * tiny.LAYERS

    def hook(layer: int) -> Any:
        def act(_: Any, args: Any) -> None:
            seen[layer] += len(args[0])

        return act

    handles = [tiny.block(model.hf, i).mlp.register_forward_pre_hook(hook(i)) for i in range(tiny.LAYERS)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def test_what_lies_below_runs_once_for_each_distinct_prompt() -> None:
    model = loaded("llama")
    edits = {name: Edit("resid_post.1", low_rank(WIDTH), "last") for name in "xy"}
    with counted(model) as seen:
        runs = StoredRuns(model, ROWS, edits)
        sources = {tuple(source) for row in ROWS for source in row.sources}
        assert seen == [5 + len(sources)] * 2 + [0], "5 distinct bases"
        for rows in ([0, 2, 4], MINE):
            runs.logits(rows, runs.edit(rows))
        assert seen == [5 + len(sources)] * 2 + [6]


def test_gradients_reach_the_intervention_and_stop_there() -> None:
    model = loaded("llama")
    model.hf.requires_grad_(False)
    edit = Edit("resid_post.1", low_rank(WIDTH), "last")
    runs = StoredRuns(model, ROWS, {"x": edit, "y": edit})
    logits = runs.logits([0, 2], runs.edit([0, 2]))
    logits.square().sum().backward()
    (raw,) = edit.parameters()
    mine = raw.grad
    raw.grad = None
    with torch.enable_grad():
        output = model.forward([BASES[0], BASES[2]], edit=placed(edit, [ONE[0], ONE[2]]))
        (output.logits[0, 4].square().sum() + output.logits[1, 6].square().sum()).backward()
    assert mine is not None and raw.grad is not None and mine.abs().max() > 1e-3
    torch.testing.assert_close(mine, raw.grad, rtol=1e-9, atol=1e-9)


def test_where_it_is_stored_can_be_said_and_padding_is_cut_off() -> None:
    model = loaded("gpt2")
    edit = Edit("resid_post.1", Swap(None), "last")
    runs = StoredRuns(model, ROWS, {"x": edit, "y": edit}, device="cpu")
    seen = []
    handle = tiny.block(model.hf, 2).register_forward_hook(lambda _, args, __: seen.append(tuple(args[0].shape)))
    with torch.no_grad():
        runs.logits([4], runs.edit([4]))
    handle.remove()
    assert seen == [(1, 3, WIDTH)], "row 4 has 3 tokens, the longest base 7"


def test_batches_stay_within_the_budget() -> None:
    model = loaded("llama")
    runs = StoredRuns(model, ROWS, dict.fromkeys("xy", Edit("resid_post.1", Swap(None), "last")), batch_tokens=8)
    batches = list(runs.batches([0, 2, 4]))
    assert sorted(row for some in batches for row in some) == [0, 2, 4]
    assert all(len(some) == 1 or len(some) * max(len(BASES[row]) for row in some) <= 8 for some in batches)


def test_what_does_not_fit() -> None:
    model, edit = loaded("llama"), Edit("resid_post.1", Swap(None), "last")
    with pytest.raises(CausalError, match="no rows of counterfactual data"):
        grouped([], ["x"])
    with pytest.raises(CausalError, match="row 1 sets 'y', and only x has a place"):
        StoredRuns(model, ROWS, {"x": edit})
    with pytest.raises(TargetError, match="64 is no token"):
        StoredRuns(model, [Counterfactual([1], ([2],), ("x",), 64, 0)], {"x": edit})
    with pytest.raises(ModelError, match="text, and the model has no tokenizer"):
        StoredRuns(model, [Counterfactual([1], ([2],), ("x",), "yes", 0)], {"x": edit})
    with pytest.raises(SiteError, match="width 16"):
        runs = StoredRuns(model, ROWS[:1], {"x": Edit("resid_post.1", low_rank(16), "last")})
        runs.logits([0], runs.edit([0]))
    with pytest.raises(TokensError):
        StoredRuns(model, ROWS, dict.fromkeys("xy", Edit("resid_post.1", Swap(None), 6)))


def test_text_prompts_and_labels() -> None:
    model = inlay.load(tiny.llama(dtype=torch.float64), tokenizer=tiny.words())
    rows = [Counterfactual("w5 w9 w17", ("w31 w22",), ("x",), "w7", "w2")]
    edit = Edit("resid_post.1", low_rank(WIDTH), "last")
    runs = StoredRuns(model, rows, {"x": edit})
    assert runs.labels.tolist() == [7]
    with torch.no_grad():
        got = runs.logits([0], runs.edit([0]))
        want = model.forward([[5, 9, 17]], edit=placed(edit, [[31, 22]])).logits[:, -1]
    same(got, want)
