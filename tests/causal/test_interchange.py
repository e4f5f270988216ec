"""Interchange accuracy in networks whose inside is known, and against counting by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.causal import planted
from tests.causal.planted import SITE, pairs
from tests.interventions import tiny
from tests.interventions.tiny import WIDTH
from torch import Tensor

import inlay
from inlay import Boundless, Edit, Function, LowRank, Mask, Source, Swap
from inlay.causal import Counterfactual, InterchangeAccuracy, interchange_accuracy
from inlay.errors import CausalError, EditError

CHANCE = (0.10, 0.17)  # of 8 values, over 1200 rows: 1/8, give or take 3 standard errors


@pytest.fixture(scope="module")
def llama() -> tuple[inlay.Model, Tensor, Tensor]:
    return planted.planted()


def test_the_planted_subspace_and_others(llama: tuple[inlay.Model, Tensor, Tensor]) -> None:
    model, u, w = llama
    data = pairs(1200, ["c"], seed=1)
    found = {
        name: interchange_accuracy(model, data, Edit(SITE, LowRank.of(basis), "last"))["c"]
        for name, basis in {"u": u, "w": w, "two": u[:, :2]}.items()
    }
    assert found["u"].iia == 1.0 and found["u"].rows == 1200 and found["u"].hard is None and found["u"].other == {}
    for one in found.values():
        assert one.full_swap == 1.0, "the last block's whole state is the source's"
        assert CHANCE[0] < one.no_swap < CHANCE[1] and one.random is not None and CHANCE[0] < one.random < CHANCE[1]
        assert one.no_swap == sum(row.label == row.base_label for row in data) / 1200
    assert CHANCE[0] < found["w"].iia < CHANCE[1]
    expected = sum((row.label ^ row.base_label) & 4 == 0 for row in data) / 1200  # type: ignore[operator]
    assert found["two"].iia == expected, "two of three bits are exchanged: right where the third is the same"


def test_several_variables_and_the_place_of_the_other(llama: tuple[inlay.Model, Tensor, Tensor]) -> None:
    model, u, w = llama
    edits = {"c": Edit(SITE, LowRank.of(u), "last"), "s": Edit("resid_post.1", LowRank.of(w), "last")}
    data = pairs(1200, ["c", "s", ("c", "s")], seed=2)
    found = interchange_accuracy(model, data, edits)
    c, s, both = found["c"], found["s"], found["c", "s"]
    assert (c.iia, s.iia, both.iia) == (1.0, 1.0, 1.0) and found.iia == 1.0
    assert s.no_swap == 1.0, "the answer is c"
    assert c.other.keys() == {"s"} and CHANCE[0] < c.other["s"] < 0.2
    put = {name: [_c_of(row.sources[-1]) == row.label for row in data if row.variables == name] for name in _SETS}
    assert s.other == {"c": sum(put["s",]) / 400}, "put where c lies, s's source makes its own c the answer"
    assert both.full_swap == sum(put["c", "s"]) / 400 and both.other == {}, "the whole state that is set last stays"


_SETS = [("c",), ("s",), ("c", "s")]


def _c_of(prompt: list[int]) -> int:
    return prompt[-1] // (planted.VALUES * planted.COPIES)


def test_the_equality_network() -> None:
    model, data = planted.equality(), planted.quadruples(2048)
    edits = {
        "WX": Edit("resid_post.0", Swap(None, slice(0, 4)), "last"),
        "YZ": Edit("resid_post.0", Swap(None, slice(4, 8)), "last"),
    }
    found = interchange_accuracy(model, data, edits)
    assert [one.iia for one in found.groups] == [1.0, 1.0, 1.0] and len(found.groups) == 3
    assert sum(one.rows for one in found.groups) == 2048
    for name in ("WX", "YZ"):
        one = found[name]
        changes = [row.label != row.base_label for row in data if row.variables == (name,)]
        assert one.no_swap == 1 - sum(changes) / len(changes)
        assert max(one.no_swap, one.full_swap, *one.other.values()) < 0.7
        assert one.random is not None and one.random < 0.8


def test_shares_are_counted_by_hand() -> None:
    """On a random Llama, against one whole forward a row."""
    model = tiny.model(0, torch.float64)
    bases, sources = tiny.RAGGED * 5, (tiny.OTHER + tiny.EVEN)[:5] * 4
    data = [
        Counterfactual(b, (s,), ("x",), (7 * i) % 5, 0) for i, (b, s) in enumerate(zip(bases, sources, strict=True))
    ]
    candidates = [0, 1, 2, 3, 4]
    intervention = LowRank(None, WIDTH, 8).double()
    edit = Edit("resid_post.1", intervention, "last")

    def share(edit_of: Any, among: list[int]) -> float:
        right = 0
        for row in data:
            with torch.no_grad():
                logits = model.forward([row.base], edit=edit_of(row)).logits[0, -1]
            right += among[int(logits[among].argmax())] == row.label
        return right / len(data)

    def swapped(row: Counterfactual) -> Edit:
        return Edit("resid_post.1", intervention.with_source(Source([row.sources[0]])), "last")

    found = interchange_accuracy(model, data, edit, candidates=candidates, batch_tokens=20)["x"]
    assert found.iia == share(swapped, candidates)
    assert found.no_swap == share(lambda row: None, candidates)
    assert found.full_swap == share(lambda row: Edit("resid_post.1", Swap([row.sources[0]]), "last"), candidates)
    plain = interchange_accuracy(model, data, edit)["x"]
    assert plain.iia == share(swapped, list(range(64))) and 0 < found.iia < 1


def test_masks_are_also_measured_at_their_limit(llama: tuple[inlay.Model, Tensor, Tensor]) -> None:
    model, u, _ = llama
    soft = Boundless(None, planted.WIDTH, temperature=0.1)
    soft.raw.data[:, :3] = u
    soft.boundary.data.fill_(3.3 / 32)
    data = pairs(200, ["c"], seed=3)
    found = interchange_accuracy(model, data, Edit(SITE, soft, "last"))["c"]
    assert found.hard == 1.0 and found.random is not None and found.random < 0.3
    soft.boundary.data.fill_(1e-3)
    empty = interchange_accuracy(model, data, Edit(SITE, soft, "last"))["c"]
    assert empty.hard == empty.no_swap and empty.random is None, "a mask that keeps nothing exchanges nothing"
    dims = Mask(None, planted.WIDTH)
    dims.theta.data.fill_(9.0)
    assert interchange_accuracy(model, data, Edit(SITE, dims, "last"))["c"].hard == 1.0


def test_what_has_no_subspace_has_no_random_one(llama: tuple[inlay.Model, Tensor, Tensor]) -> None:
    data = pairs(50, ["c"], seed=3)
    for made in (Swap(None), Function(_half, source=Source([[1]]))):
        assert interchange_accuracy(llama[0], data, Edit(SITE, made, "last"))["c"].random is None


def _half(h: Tensor, source: Tensor) -> Tensor:
    return (h + source) / 2


def test_the_random_subspace_is_drawn_by_seed(llama: tuple[inlay.Model, Tensor, Tensor]) -> None:
    data = pairs(300, ["c"], seed=4)
    edit = Edit(SITE, LowRank(None, planted.WIDTH, 16), "last")
    figures = [interchange_accuracy(llama[0], data, edit, seed=seed)["c"].random for seed in (0, 0, 1)]
    assert figures[0] == figures[1] != figures[2]


def test_a_readable_table_and_json() -> None:
    found = interchange_accuracy(
        planted.equality(),
        planted.quadruples(96),
        {
            "WX": Edit("resid_post.0", Swap(None, slice(0, 4)), "last"),
            "YZ": Edit("resid_post.0", Swap(None, slice(4, 8)), "last"),
        },
    )
    head, *lines = repr(found).splitlines()
    assert head.split("  ")[0] == "set" and "hard" not in head and "full swap" in head
    assert len(lines) == 3 and lines[2].startswith("WX, YZ  32    1.000") and "YZ 0." in lines[0]
    again = InterchangeAccuracy.from_json(found.to_json())
    assert again == found and again["WX"] == found["WX"]


def test_what_does_not_fit(llama: tuple[inlay.Model, Tensor, Tensor]) -> None:
    model = llama[0]
    edit = Edit(SITE, LowRank(None, planted.WIDTH, 3), "last")
    with pytest.raises(CausalError, match="sets c, s: give an Edit for each"):
        interchange_accuracy(model, pairs(4, ["c", "s"], seed=0), edit)
    data = pairs(30, ["c"], seed=0)
    with pytest.raises(CausalError, match="not among the candidates"):
        interchange_accuracy(model, data, edit, candidates=[0, 1])
    with pytest.raises(CausalError, match="no rows"):
        interchange_accuracy(model, [], {"c": edit})
    with pytest.raises(CausalError, match="no rows set just s; these are set: c"):
        _ = interchange_accuracy(model, data, edit)["s"]
    with pytest.raises(EditError, match="takes no source"):
        interchange_accuracy(model, data, Edit(SITE, inlay.Scale(0.5), "last"))
