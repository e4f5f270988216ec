"""Activations: a mapping of tensors, and a folder that gives them back."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from inlay import Activations
from inlay.errors import SiteError
from inlay.model.activations import merge
from inlay.model.sites import Site


def ragged(lengths: list[int], width: int = 3, sites: tuple[str, ...] = ("b.1", "a.0")) -> Activations:
    """Rows of unequal lengths, padded with zeros."""
    longest = max(lengths)
    mask = torch.arange(longest)[None] < torch.tensor(lengths)[:, None]
    return Activations(
        {site: torch.randn(len(lengths), longest, width).masked_fill(~mask[..., None], 0) for site in sites}, mask
    )


def same(one: Activations, other: Activations) -> None:
    assert list(one) == list(other)
    assert (one.mask is None) == (other.mask is None)
    assert one.mask is None or torch.equal(one.mask, other.mask)
    assert (one.gradients is None) == (other.gradients is None)
    for site in one:
        assert one[site].dtype == other[site].dtype and torch.equal(one[site], other[site])
        if one.gradients is not None and other.gradients is not None:
            assert torch.equal(one.gradients[site], other.gradients[site])


def test_it_is_a_mapping() -> None:
    acts = ragged([2, 3])
    assert list(acts) == ["b.1", "a.0"] and len(acts) == 2 and "a.0" in acts and "c.2" not in acts
    assert dict(acts.items())["a.0"] is acts["a.0"]
    assert acts.get("c.2") is None
    with pytest.raises(SiteError, match=r"'c\.2' was not read; these were: b\.1, a\.0"):
        acts["c.2"]


def test_a_site_is_found_however_it_was_spelled(tmp_path: Path) -> None:
    tensors = {"resid_post.2": torch.randn(4, 3), "k.0.h[1,2]": torch.randn(4, 2, 3), "z.1.h0": torch.randn(4, 3)}
    whole = Activations(tensors, None, {site: -t for site, t in tensors.items()}, layers=3)
    rows = torch.arange(4)
    merged = merge([(rows[2:], whole.pick([2, 3])), (rows[:2], whole.pick([0, 1]))])
    for acts in (whole, merged, Activations.load(whole.save(tmp_path))):
        assert acts.gradients is not None
        for site, name in [
            ("resid_post.-1", "resid_post.2"),
            (Site("resid_post", 2), "resid_post.2"),
            ("k.-3.h[ 1, 2 ]", "k.0.h[1,2]"),
            ("z.1.h[0]", "z.1.h0"),
        ]:
            assert site in acts and torch.equal(acts[site], tensors[name])
            assert torch.equal(acts.get(site), tensors[name]) and torch.equal(acts.gradients[site], -tensors[name])
        for site in ("resid_post.-2", "resid_post.-4", "resid_post", "k.0", 3):
            assert site not in acts and acts.get(site) is None  # type: ignore[arg-type]
        with pytest.raises(SiteError, match=r"'resid_post\.-2' was not read; these were: resid_post\.2"):
            acts["resid_post.-2"]
    assert "resid_post.-1" not in Activations(tensors)  # of no known model


def test_rows_are_each_rows_own_positions() -> None:
    acts = ragged([2, 4, 1])
    rows = acts.rows("a.0")
    assert [len(row) for row in rows] == [2, 4, 1]
    for row, whole, n in zip(rows, acts["a.0"], [2, 4, 1], strict=True):
        assert torch.equal(row, whole[:n])
    single = Activations({"a.0": torch.randn(3, 5)})
    assert [list(row.shape) for row in single.rows("a.0")] == [[1, 5]] * 3
    assert torch.equal(torch.cat(single.rows("a.0")), single["a.0"])


def test_stack() -> None:
    acts = ragged([2, 3])
    assert torch.equal(acts.stack(), torch.stack([acts["b.1"], acts["a.0"]]))
    with pytest.raises(SiteError, match=r"differ in shape.*\[2, 4\].*\[2, 5\]"):
        Activations({"a": torch.zeros(2, 4), "b": torch.zeros(2, 5)}).stack()


def test_repr_is_short() -> None:
    acts = Activations({f"resid_post.{i}": torch.zeros(5, 8) for i in range(40)})
    assert repr(acts) == ("Activations(resid_post.0, resid_post.1, resid_post.2, ... 40 Sites; [5, 8] float32)")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["one position", "ragged", "heads", "gradients", "twelve layers"])
def test_saved_and_loaded(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    acts = {
        "one position": Activations({"a.0": torch.randn(4, 3)}),
        "ragged": ragged([3, 1, 2]),
        "heads": Activations({"z.1": torch.randn(2, 3, 4, 5)}, torch.ones(2, 3, dtype=torch.bool)),
        "gradients": Activations({"a.0": torch.randn(4, 3)}, None, {"a.0": torch.randn(4, 3)}),
        "twelve layers": Activations({f"resid_post.{i}": torch.randn(2, 3) for i in range(12)}),
    }[kind]
    gradients = None if acts.gradients is None else {s: g.to(dtype) for s, g in acts.gradients.items()}
    acts = Activations({s: t.to(dtype) for s, t in acts.items()}, acts.mask, gradients)
    folder = acts.save(tmp_path / "deep" / "acts")
    assert folder == tmp_path / "deep" / "acts"
    same(Activations.load(folder), acts)
    same(Activations.load(str(folder)), acts)


def test_views_and_gradients_in_the_graph_can_be_saved(tmp_path: Path) -> None:
    whole = torch.randn(4, 6, requires_grad=True)
    acts = Activations({"a.0": (whole * 2)[:, ::2], "a.1": whole.t().contiguous().t()[:, :3]})
    acts.save(tmp_path)
    loaded = Activations.load(tmp_path)
    assert torch.equal(loaded["a.0"], acts["a.0"]) and torch.equal(loaded["a.1"], acts["a.1"])


def test_one_tensor_at_two_sites_can_be_saved(tmp_path: Path) -> None:
    one = torch.randn(2, 3)
    Activations({"resid_post.0": one, "resid_pre.1": one}).save(tmp_path)
    loaded = Activations.load(tmp_path)
    assert torch.equal(loaded["resid_post.0"], one) and torch.equal(loaded["resid_pre.1"], one)


def test_saving_over_a_longer_read_leaves_none_of_it(tmp_path: Path) -> None:
    first, second = ragged([2, 3]), ragged([1])
    first.save(tmp_path)
    second.save(tmp_path)
    same(Activations.load(tmp_path), second)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=8),
    cuts=st.lists(st.integers(0, 7), max_size=4),
    data=st.randoms(use_true_random=False),
)
def test_merged_pieces_are_the_whole(lengths: list[int], cuts: list[int], data: object) -> None:
    """Any partition of the rows, in any order, each piece padded to its own longest, merges to the whole."""
    whole = ragged(lengths)
    numbers = list(range(len(lengths)))
    data.shuffle(numbers)  # type: ignore[attr-defined]
    edges = [0, *sorted(c for c in cuts if 0 < c < len(numbers)), len(numbers)]
    pieces: list[tuple[Tensor, Activations]] = []
    for a, b in itertools.pairwise(edges):
        if a == b:
            continue
        here = torch.tensor(numbers[a:b])
        longest = max(lengths[i] for i in numbers[a:b])
        assert whole.mask is not None
        piece = Activations({s: t[here, :longest] for s, t in whole.items()}, whole.mask[here, :longest])
        pieces.append((here, piece))
    same(merge(pieces), whole)
