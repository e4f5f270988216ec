"""DAS finds what was planted; its steps are those of plain autograd; and the base is left as it was."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from tests.causal import planted
from tests.causal.planted import SITE, pairs
from tests.interventions import tiny
from tests.interventions.tiny import WIDTH
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import inlay
from inlay import Boundless, Edit, LowRank, Mask, Rotate, RotateMask
from inlay.causal import Alignment, Counterfactual, das
from inlay.causal.stored_runs import StoredRuns
from inlay.errors import CausalError, EditError, InlayError, SiteError
from inlay.interventions import Intervention
from inlay.model import patch
from inlay.model.call import Call, State

CHANCE = (0.10, 0.17)


@pytest.fixture(scope="module")
def llama() -> tuple[inlay.Model, Tensor, Tensor]:
    return planted.planted()


@pytest.fixture(scope="module")
def found(llama: tuple[inlay.Model, Tensor, Tensor]) -> Alignment:
    """300 steps of 64 rows."""
    data, test = pairs(6400, ["c"], seed=1), pairs(1200, ["c"], seed=2)
    return das(llama[0], data, SITE, 3, test=test, lr=1e-2)


def test_the_planted_subspace_is_found(found: Alignment, llama: tuple[inlay.Model, Tensor, Tensor]) -> None:
    one = found.accuracy["c"]
    assert one.iia == 1.0 and one.rows == 1200
    assert one.random is not None and CHANCE[0] < one.random < CHANCE[1] and CHANCE[0] < one.no_swap < CHANCE[1]
    assert found.principal_angles(llama[1]).cos().min() > 0.98
    assert found.principal_angles(llama[2]).cos().max() < 0.2, "and not where s lies"
    assert len(found.history["loss"]) == 300 and found.history["loss"][0] > 1.5
    planted_loss = _loss_in(llama[0], llama[1])
    assert abs(sum(found.history["loss"][-30:]) / 30 - planted_loss) < 0.05, "as little as in the planted subspace"


def _loss_in(model: inlay.Model, basis: Tensor) -> float:
    data = pairs(1200, ["c"], seed=2)
    runs, rows = StoredRuns(model, data, {"c": Edit(SITE, LowRank.of(basis), "last")}), list(range(1200))
    with torch.no_grad():
        return float(cross_entropy(runs.logits(rows, runs.edit(rows)), runs.labels))


@pytest.mark.slow
def test_a_rank_too_low_finds_a_part(llama: tuple[inlay.Model, Tensor, Tensor]) -> None:
    """Of 3 bits it exchanges what 2 dimensions hold: right for 3 of 4 rows in the best case."""
    data, test = pairs(6400, ["c"], seed=1), pairs(1200, ["c"], seed=2)
    assert 0.70 < das(llama[0], data, SITE, 2, test=test, lr=1e-2).accuracy.iia < 0.80


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_boundless_finds_the_rank_too(llama: tuple[inlay.Model, Tensor, Tensor], seed: int) -> None:
    """600 steps from all 32 columns."""
    data, test = pairs(6400, ["c"], seed=1), pairs(1200, ["c"], seed=2)
    start = Boundless(None, planted.WIDTH, seed=seed)
    found = das(llama[0], data, SITE, start, test=test, epochs=6, lr=1e-2, mask_lr=1e-2, seed=seed)
    made = found.intervention()
    assert isinstance(made, Boundless)
    kept = int(made.kept().sum())
    assert found.accuracy["c"].hard == 1.0 and 3 <= kept <= 7 and abs(made.rank() - kept) <= 0.5
    assert found.principal_angles(llama[1]).cos().min() > 0.99 and found.basis().shape == (32, kept)
    heats = found.history["temperature"]
    assert heats[0] == 50.0 and heats[-1] == pytest.approx(0.1) and len(heats) == 600
    assert found.history["share"][0] == 0.5 and found.history["share"][-1] * 32 == pytest.approx(made.rank(), abs=0.4)


def test_several_variables_in_one_rotation(llama: tuple[inlay.Model, Tensor, Tensor]) -> None:
    data, test = pairs(3000, ["c", "s", ("c", "s")], seed=3), pairs(600, ["c", "s", ("c", "s")], seed=4)
    found = das(llama[0], data, SITE, {"c": 3, "s": 2}, test=test, lr=2e-2, epochs=3)
    c, s = found.intervention("c"), found.intervention("s")
    assert isinstance(c, Rotate) and isinstance(s, Rotate) and c.raw is s.raw
    torch.testing.assert_close(found.basis("c").T @ found.basis("s"), torch.zeros(3, 2), rtol=0, atol=1e-5)
    assert min(one.iia for one in found.accuracy.groups) > 0.97
    assert found.accuracy["c"].other["s"] < 0.25, "c's source where s lies"
    assert found.principal_angles(llama[1], "c").cos().min() > 0.9
    with pytest.raises(CausalError, match="name one of c, s"):
        found.basis()


# -- a step, against plain autograd ------------------------------------------------------------------------------------

ROWS = [
    Counterfactual(base, (source,), ("x",), 3 + i, 0)
    for i, (base, source) in enumerate(zip(tiny.RAGGED * 2, [*tiny.OTHER, *tiny.EVEN], strict=True))
]


def by_hand(hf: Any, start: Tensor, order: list[list[int]], rates: list[float], layer: int) -> list[float]:
    """The losses of Adam on R's free parameter, with a torch hook on the block and whole forwards."""
    raw = nn.Parameter(start.clone())
    adam, losses = torch.optim.Adam([raw], lr=1.0), []
    with torch.no_grad():
        every = [tiny.states(hf, [row.sources[0]], layer)[0, -1] for row in ROWS]
    for rows, rate in zip(order, rates, strict=True):
        prompts, source = [ROWS[row].base for row in rows], torch.stack([every[row] for row in rows])
        last = torch.tensor([len(prompt) - 1 for prompt in prompts])
        found = torch.linalg.qr(raw)
        basis = found.Q * torch.where(found.R.diagonal() < 0, -1.0, 1.0)

        def change(h: Tensor, last: Tensor = last, source: Tensor = source, basis: Tensor = basis) -> Tensor:
            new = h.clone()
            at = torch.arange(len(last)), last
            new[at] = h[at] + (source - h[at]) @ basis @ basis.T
            return new

        with tiny.hook(tiny.block(hf, layer), change):
            logits = hf(**tiny.padded(prompts), use_cache=False).logits[torch.arange(len(rows)), last]
        loss = cross_entropy(logits, torch.tensor([ROWS[row].label for row in rows]))
        losses.append(float(loss.detach()))
        adam.zero_grad()
        loss.backward()
        adam.param_groups[0]["lr"] = rate
        adam.step()
    return losses


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_steps_are_those_of_plain_autograd(family: str) -> None:
    hf = tiny.FAMILIES[family](dtype=torch.float64).requires_grad_(False)
    start = LowRank(None, WIDTH, 3, seed=1).double()
    rates = [0.05 * (4 - step) / 4 for step in range(4)]
    whole = das(inlay.load(hf), ROWS, "resid_post.1", start, epochs=4, batch=8, lr=0.05, warmup=0.0)
    want = by_hand(hf, start.raw.detach(), [list(range(8))] * 4, rates, layer=1)
    assert whole.history["loss"] == pytest.approx(want, abs=1e-9) and abs(want[0] - want[-1]) > 0.1
    pieces = das(inlay.load(hf), ROWS, "resid_post.1", start, epochs=4, batch=8, lr=0.05, warmup=0.0, batch_tokens=12)
    assert pieces.history["loss"] == pytest.approx(want, abs=1e-9), "a step in several forwards is the same step"


def test_every_row_is_seen_once_an_epoch_and_a_step_sets_the_same_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Counterfactual([i], ([i + 20],) * (1 + i % 2), ("x", "y")[: 1 + i % 2], 0, 0) for i in range(11)]
    steps: list[list[int]] = []
    whole = StoredRuns.logits

    def logits(self: StoredRuns, some: list[int], edit: Any = None) -> Tensor:
        if torch.is_grad_enabled():
            steps.append(some)
        return whole(self, some, edit)

    monkeypatch.setattr(StoredRuns, "logits", logits)
    das(tiny.model(), rows, "resid_post.2", {"x": 1, "y": 1}, epochs=2, batch=4)
    assert [sorted(map(len, steps[:4])), sorted(map(len, steps[4:]))] == [[1, 2, 4, 4]] * 2, "5 rows, and 6"
    assert all(len({i % 2 for i in step}) == 1 for step in steps)
    for epoch in (steps[:4], steps[4:]):
        assert sorted(i for step in epoch for i in step) == list(range(11))
    assert steps[:4] != steps[4:]


# -- what it leaves behind, and what it takes --------------------------------------------------------------------------


class Broken(Intervention):
    """Fails in its third forward."""

    needs = frozenset({"source"})

    def __init__(self) -> None:
        super().__init__()
        self.source = None
        self.weight = nn.Parameter(torch.zeros(WIDTH))
        self.calls = [0]

    def transform(self, h: Tensor, state: State, call: Call) -> Tensor:
        self.calls[0] += 1
        if self.calls[0] == 3:
            raise RuntimeError("the third forward")
        return h + state["weight"] * self.paired(call)


@pytest.mark.parametrize("fails", [False, True])
def test_the_base_is_as_it_was(fails: bool) -> None:
    hf = tiny.llama(attention_dropout=0.5).train()
    hf.model.layers[1].eval()
    hf.lm_head.weight.requires_grad_(False)
    hf.model.norm.weight.grad = torch.ones(WIDTH)
    weights = {name: p.clone() for name, p in hf.named_parameters()}
    modes = [m.training for m in hf.modules()]
    flags = [p.requires_grad for p in hf.parameters()]
    model = inlay.load(hf)
    if fails:
        with pytest.raises(RuntimeError, match="the third forward"):
            das(model, ROWS, "resid_post.0", Broken(), batch=4)
    else:
        first = das(model, ROWS, "resid_post.0", 2, batch=4, seed=3)
        assert das(model, ROWS, "resid_post.0", 2, batch=4, seed=3).history == first.history, "eval mode: no dropout"
        assert das(model, ROWS, "resid_post.0", 2, batch=4, seed=4).history != first.history
    assert [m.training for m in hf.modules()] == modes and [p.requires_grad for p in hf.parameters()] == flags
    assert all(torch.equal(p, weights[name]) for name, p in hf.named_parameters())
    assert all((p.grad is None) == (name != "model.norm.weight") for name, p in hf.named_parameters())
    assert patch.standing() == 0


def test_it_trains_a_copy_and_also_without_gradients_around() -> None:
    model, given = tiny.model(), LowRank(None, WIDTH, 2)
    before = given.raw.clone()
    with torch.no_grad():
        found = das(model, ROWS, "resid_post.1", given, lr=0.1)
    made = found.intervention()
    assert torch.equal(given.raw, before) and given.training
    assert isinstance(made, LowRank) and not torch.equal(made.raw, before) and made.raw.grad is None
    assert not made.training and made.source is None


@pytest.mark.parametrize("made", [RotateMask(None, WIDTH, max_rank=6), Mask(None, WIDTH), Boundless(None, WIDTH, 5)])
def test_masks_are_penalised_and_cool(made: Any) -> None:
    start = float(made.temperature)
    held = das(tiny.model(), ROWS, "resid_post.1", made, batch=8, epochs=6, penalty=1e3, cool_to=start)
    shares = held.history["share"]
    assert shares[0] == pytest.approx(made.share().item()) and all(b < a for a, b in pairwise(shares))
    free = das(tiny.model(), ROWS, "resid_post.1", made, batch=8, epochs=6, penalty=0.0)
    assert free.history["temperature"] == pytest.approx([start + (start / 500 - start) * i / 5 for i in range(6)])
    assert all(one.hard is not None for one in held.accuracy.groups)
    warm = das(tiny.model(), ROWS, "resid_post.1", made, batch=8, epochs=2, cool_to=2 * start)
    assert warm.history["temperature"] == pytest.approx([start, 2 * start])


@pytest.mark.parametrize(
    ("site", "tokens", "joint", "width"),
    [
        ("z.1.h[0,3]", "last", False, 2 * tiny.HEAD_WIDTH),
        ("mlp_out.0", "last", False, WIDTH),
        ("resid_pre.0", -1, False, WIDTH),
        ("resid_post.1", "last2", True, 2 * WIDTH),
        ("module:model.layers.1.mlp:out", "last", False, WIDTH),
    ],
)
def test_any_site_and_joint_positions(site: str, tokens: Any, joint: bool, width: int) -> None:
    found = das(tiny.model(), ROWS, site, 2, tokens, joint=joint, epochs=4, batch=8, lr=0.05)
    assert found.basis().shape == (width, 2)
    assert found.history["loss"][-1] < found.history["loss"][0]
    (row,) = found.edit([ROWS[0].sources[0]]).parts
    assert (str(row.site), row.joint) == (site, joint)


def test_the_accuracy_is_that_of_the_test_rows() -> None:
    model = tiny.model()
    found = das(model, ROWS, "resid_post.1", 2, test=ROWS[:3], candidates=range(16))
    assert found.accuracy["x"].rows == 3 and found.facts["test"] == 3 and found.facts["rows"] == 8
    assert das(model, ROWS, "resid_post.1", 2).facts["test"] is None


def test_progress_is_shown_where_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    das(tiny.model(), ROWS, "resid_post.1", 1, epochs=1)
    assert capsys.readouterr().err == ""
    das(tiny.model(), ROWS, "resid_post.1", 1, epochs=1, progress=True)
    assert "aligning" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (([], "resid_post.1", 2), CausalError, "no rows"),
        ((ROWS, "resid_post.*", 2), CausalError, "names 3 Sites"),
        ((ROWS, "resid_post.9", 2), SiteError, "out of range"),
        ((ROWS, "resid_post.1", {"y": 2}), CausalError, "ranks are given for y, and the data sets x"),
        ((ROWS, "resid_post.1", 0), EditError, "rank is 1 to the width"),
        ((ROWS, "resid_post.1", WIDTH + 1), EditError, "rank is 1 to the width"),
        ((ROWS, "resid_post.1", inlay.Scale(0.5)), EditError, "takes no source"),
        ((ROWS, "resid_post.1", LowRank(None, 16, 2)), SiteError, "width 16"),
    ],
)
def test_what_cannot_be_aligned(arguments: Any, kind: type[InlayError], message: str) -> None:
    with pytest.raises(kind, match=message):
        das(tiny.model(), *arguments)


def test_two_variables_need_two_ranks_and_bad_answers_are_told_before_the_training() -> None:
    rows = [*ROWS, Counterfactual([1], ([2],), ("y",), 0, 0)]
    with pytest.raises(CausalError, match="the data sets x, y: give a rank for each"):
        das(tiny.model(), rows, "resid_post.1", 2)
    made = Broken()
    with pytest.raises(CausalError, match="not among the candidates"):
        das(tiny.model(), ROWS, "resid_post.1", made, candidates=[0])
    with pytest.raises(CausalError, match="sets 'y'"):
        das(tiny.model(), ROWS, "resid_post.1", made, test=rows)
    assert made.calls == [0]
