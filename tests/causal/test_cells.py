"""Patched runs as rows of batches: what is set where, what is run again, and what is not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.interventions import tiny
from torch import Tensor

import inlay
from inlay import Edit
from inlay.causal.cells import WHOLE, Base, Cells, Writes, by_head, run_cells, start_of
from inlay.causal.columns import Columns, Rows, columns
from inlay.model import Site, patch

ROWS = [[5, 9, 17, 33], [40, 3], [8, 8, 60]]


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    with torch.no_grad():
        yield
    assert patch.standing() == 0


def model(**changes: Any) -> inlay.Model:
    return tiny.model(dtype=torch.float64, **changes)


def test_where_runs_go_on() -> None:
    m = model()
    starts = {"resid_pre.0": 0, "resid_pre.2": 2, "z.1": 1, "mlp_out.2": 2, "resid_post.0": 1, "resid_post.2": 3}
    for site, cut in starts.items():
        assert start_of(m, Site.parse(site)) == cut
    part = inlay.Model(tiny.llama(), sites={"mlp_out": "model.layers.{layer}.mlp:out"})
    assert start_of(part, Site.parse("mlp_out.1")) == WHOLE, "its residual stream is not known"


@pytest.mark.parametrize("starts", [[], [0, 2], [1, 3]])
def test_base_runs(starts: list[int]) -> None:
    m = model()
    base, acts = Base.run(m, Rows.of(m, ROWS, None), starts, m.sites().expand("z.1"))
    whole = m.forward(ROWS, read=["z.1", "resid_pre.*", "resid_post.*"])
    assert acts is not None and whole.acts is not None
    assert base.logits.dtype == torch.float32
    torch.testing.assert_close(
        base.logits, torch.stack([whole.logits[i, len(r) - 1] for i, r in enumerate(ROWS)]).float()
    )
    torch.testing.assert_close(acts["z.1"], whole.acts["z.1"])
    assert set(base.starts) == set(starts)
    for cut, states in base.starts.items():
        site = f"resid_post.{cut - 1}" if cut else "resid_pre.0"
        torch.testing.assert_close(states.hidden, whole.acts[site])


def test_going_on_is_the_whole_run() -> None:
    m = model()
    base, _ = Base.run(m, Rows.of(m, ROWS, None), [0, 1, 3, WHOLE])
    for cut in (WHOLE, 0, 1, 3):
        edit = Edit("resid_post.2", inlay.Scale(1.0))
        logits, _ = base.go_on(m, cut, torch.tensor([2, 0, 0, 1]), edit)
        torch.testing.assert_close(logits, base.logits[[2, 0, 0, 1]])


def scattered(m: inlay.Model) -> tuple[Base, Columns, Cells, dict[str, Tensor]]:
    """Cells 0 and 2 set a head at layer 1 (2 also another), 1 sets mlp_out.0; on columns 1, 0 and 1."""
    rows = Rows.of(m, ROWS, None)
    source = [[(i + 7) % 64 for i in row] for row in ROWS]
    acts = m.forward(source, read=["z.1", "mlp_out.0"]).acts
    assert acts is not None
    where = columns(m, rows, rows, {"first": 0, "all": "all"})
    every, slot = torch.arange(3), where.source
    z, mlp = (by_head(acts, Site.parse(name)) for name in ("z.1", "mlp_out.0"))
    writes = [
        Writes(Site("z", 1), torch.tensor([0, 2, 2]), torch.tensor([3, 0, 2]), z, every, slot),
        Writes(Site("mlp_out", 0), torch.tensor([1]), torch.tensor([0]), mlp, every, slot),
    ]
    base, _ = Base.run(m, rows, [0, 1])
    cells = Cells(torch.tensor([1, 0, 1]), torch.tensor([1, 0, 1]), writes)
    return base, where, cells, {"z": z, "mlp": mlp}


def test_each_row_is_its_own_cells_run() -> None:
    m = model()
    base, where, cells, _ = scattered(m)
    source = [[(i + 7) % 64 for i in row] for row in ROWS]
    edits = [
        Edit("z.1.h3", inlay.Swap(source)),
        Edit("mlp_out.0", inlay.Swap(source), tokens=0),
        Edit("z.1.h[0,2]", inlay.Swap(source)),
    ]
    last = [len(row) - 1 for row in ROWS]
    wanted = [m.forward(ROWS, edit=edit).logits[[0, 1, 2], last].float() for edit in edits]
    for batch_tokens in (1, 9, 8192):
        seen = []
        for ran in run_cells(m, base, where, cells, batch_tokens):
            assert len(ran.runs) == 1 or len(ran.runs) * 4 <= batch_tokens
            for cell, run, logits in zip(ran.cells.tolist(), ran.runs.tolist(), ran.logits, strict=True):
                torch.testing.assert_close(logits, wanted[cell][run], rtol=0, atol=1e-5)
                seen.append((cell, run))
        assert sorted(seen) == [(cell, run) for cell in range(3) for run in range(3)]


def test_columns_that_a_run_lacks_make_no_row() -> None:
    m = model()
    base, where, cells, _ = scattered(m)
    reach = where.base.clone()
    reach[1, 1] = False
    done = [
        (c, r)
        for ran in run_cells(m, base, Columns(reach, where.source), cells, 99)
        for c, r in zip(ran.cells.tolist(), ran.runs.tolist(), strict=True)
    ]
    assert sorted(done) == [(0, 0), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 2)]


def test_held_sites_are_set_first_and_reads_come_before() -> None:
    """Held at zero, a head that its cell sets is still what the cell sets; what is read is what the layer computed."""
    m = model()
    base, where, cells, values = scattered(m)
    one = Cells(
        cells.column[:1],
        cells.start[:1],
        [Writes(Site("z", 1), torch.tensor([0]), torch.tensor([3]), values["z"], torch.arange(3), where.source)],
    )
    held = {Site("z", 1): torch.zeros(3, 4, tiny.WIDTH, dtype=torch.float64)}
    (ran,) = run_cells(m, base, where, one, 8192, held, [Site("z", 1), Site("z", 0)])
    source = [[(i + 7) % 64 for i in row] for row in ROWS]
    edit = Edit("z.1", inlay.Zero()) + Edit("z.1.h3", inlay.Swap(source))
    wanted = m.forward(ROWS, edit=edit).logits[[0, 1, 2], [len(row) - 1 for row in ROWS]].float()
    torch.testing.assert_close(ran.logits[ran.runs.argsort()], wanted, rtol=0, atol=1e-5)
    plain = m.forward(ROWS, read="z.1").acts
    assert plain is not None and list(ran.acts) == ["z.1"], "what lies below the start is not read"
    torch.testing.assert_close(ran.acts["z.1"][ran.runs.argsort()], plain["z.1"])


def test_layers_below_are_not_run_again_and_logits_are_few() -> None:
    m = model()
    base, where, cells, _ = scattered(m)
    counts, seen = [0, 0, 0], []
    handles = [
        tiny.block(m.hf, i).input_layernorm.register_forward_pre_hook(
            lambda *_, i=i: counts.__setitem__(i, counts[i] + 1)
        )
        for i in range(3)
    ]
    handles.append(m.hf.lm_head.register_forward_hook(lambda _, __, out: seen.append(out.shape[1])))
    z = cells.writes[0]
    head = Writes(z.site, torch.tensor([0]), torch.tensor([3]), z.values, z.run, z.slot)
    for _ in run_cells(m, base, where, Cells(cells.column[:1], cells.start[:1], [head]), 8192):
        pass
    for handle in handles:
        handle.remove()
    assert counts == [0, 1, 1] and seen == [3], "logits at slots 1, 2 and 3, where the rows end, of 4"
