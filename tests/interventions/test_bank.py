"""Bank: every row of a batch as its own intervention alone, row 0 as no edit, training that stays within its rows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.interventions import tiny
from tests.interventions.tiny import WIDTH
from torch import Tensor, nn

import inlay
from inlay import (
    Ablate,
    Add,
    Bank,
    Clamp,
    Edit,
    Function,
    Intervention,
    LoReFT,
    Mean,
    Noise,
    Project,
    Replace,
    Scale,
    Skip,
    Source,
    Swap,
    Zero,
)
from inlay.errors import EditError, InputError, SiteError
from inlay.interventions import families


def _v(seed: int) -> Tensor:
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))


class Bend(nn.Module):
    """A small network with a bias vector, two matrices and a buffer."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed
        generator = torch.Generator().manual_seed(seed)
        self.down = nn.Parameter(torch.randn(WIDTH, 3, generator=generator))
        self.up = nn.Parameter(torch.randn(3, WIDTH, generator=generator))
        self.bias = nn.Parameter(torch.randn(WIDTH, generator=generator))
        self.register_buffer("gain", torch.rand((), generator=generator) + 0.5)

    def config(self) -> dict[str, Any]:
        return {"seed": self.seed}

    def forward(self, h: Tensor) -> Tensor:
        wide = h.to(self.up.dtype)
        return (wide + self.gain * torch.tanh(wide @ self.down) @ self.up + self.bias).to(h.dtype)


class Drift(nn.Module):
    """Uses the module's input and the positions."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.slope = nn.Parameter(torch.randn(WIDTH, generator=generator))
        self.mix = nn.Parameter(torch.randn(WIDTH, WIDTH, generator=generator) / 6)

    def forward(self, h: Tensor, input: Tensor, positions: Tensor) -> Tensor:
        return h + input @ self.mix + self.slope * positions[..., None]


def double(h: Tensor) -> Tensor:
    return 2 * h


KINDS: dict[str, Callable[[int], Intervention]] = {
    "add": lambda k: Add(_v(k)),
    "trainable add": lambda k: Add(nn.Parameter(_v(k))),
    "clamp": lambda k: Clamp(_v(k), 4.0 + k, 5.0 + k),
    "ablate": lambda k: Ablate(_v(k)),
    "project": lambda k: Project(torch.stack([_v(k), _v(k + 90)], 1)),
    "project keep": lambda k: Project(torch.stack([_v(k), _v(k + 90)], 1), keep=True),
    "replace": lambda k: Replace(_v(k)),
    "replace dims": lambda k: Replace(_v(k), dims=[k, k + 5, 20]),
    "mean": lambda k: Mean(_v(k)),
    "zero": lambda k: Zero(),
    "zero dims": lambda k: Zero(dims=[k, k + 1, k + 2]),
    "scale": lambda k: Scale(1.5 + k),
    "scale dims": lambda k: Scale(-2.0 - k, dims=[3 * k, 3 * k + 1]),
    "noise": lambda k: Noise(0.5 + k, seed=k),
    "noise dims": lambda k: Noise(1.0, seed=k, dims=[k, 9]),
    "function": lambda k: Function(double),
    "module": lambda k: Function(Bend(k)),
}
each = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
SITE = "resid_post.1"


@each
@pytest.mark.parametrize("tokens", ["all", "last"])
def test_every_row_equals_its_own_intervention_alone(make: Callable[[int], Intervention], tokens: str) -> None:
    model, rows = tiny.model(), [3, 0, 1, 3]
    items = [make(k) for k in range(3)]
    base = tiny.plain(model.hf, tiny.RAGGED)
    with torch.no_grad():
        got = model.forward(tiny.RAGGED, edit=Edit(SITE, Bank(items), tokens), rows=rows).logits
    assert torch.equal(got[1], base[1])
    for index, row in enumerate(rows):
        prompt = tiny.RAGGED[index]
        if row == 0:
            continue
        with torch.no_grad():
            alone = model.forward([prompt], edit=Edit(SITE, items[row - 1], tokens)).logits[0]
        torch.testing.assert_close(got[index, : len(prompt)], alone, rtol=1e-5, atol=1e-5)
        assert float((alone - base[index, : len(prompt)]).abs().max()) > 1e-2


@each
def test_row_zero_is_bit_identical(make: Callable[[int], Intervention]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny.model(dtype=dtype)
        base = tiny.plain(model.hf, tiny.RAGGED)
        edit = Edit(SITE, Bank([make(0), make(1)]))
        with torch.no_grad():
            assert torch.equal(model.forward(tiny.RAGGED, edit=edit, rows=[0, 0, 0, 0]).logits, base)
            mixed = model.forward(tiny.RAGGED, edit=edit, rows=[0, 2, 0, 1], strength=[3.0, 1.0, 1.0, 1.0]).logits
        assert torch.equal(mixed[[0, 2]], base[[0, 2]])
        assert not torch.equal(mixed[[1, 3]], base[[1, 3]])


@each
def test_in_generation_every_row_equals_its_own_intervention_alone(make: Callable[[int], Intervention]) -> None:
    model, rows = tiny.model(), [2, 0, 1, 2]
    items = [make(k) for k in range(2)]
    how: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
    together = model.generate(tiny.RAGGED, edit=Edit(SITE, Bank(items)), rows=rows, **how)
    for index, row in enumerate(rows):
        edit = Edit(SITE, items[row - 1]) if row else None
        assert together[index] == model.generate([tiny.RAGGED[index]], edit=edit, **how)[0]


def test_beams_and_several_sequences_keep_their_prompts_row() -> None:
    model = tiny.model()
    items = [Add(3 * _v(1)), Add(3 * _v(2))]
    for how in ({"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 3}):
        given: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, **how}
        together = model.generate(tiny.EVEN[:3], edit=Edit(SITE, Bank(items)), rows=[2, 0, 1], **given)
        for index, item in enumerate((items[1], None, items[0])):
            edit = None if item is None else Edit(SITE, item)
            assert together[index] == model.generate([tiny.EVEN[index]], edit=edit, **given)[0]


@settings(max_examples=15)
@given(
    rows=st.lists(st.integers(0, 5), min_size=1, max_size=6),
    kind=st.sampled_from(["add", "clamp", "project", "replace dims", "module"]),
)
def test_any_choice_of_rows(rows: list[int], kind: str) -> None:
    model = _shared_model()
    items = [KINDS[kind](k) for k in range(5)]
    prompts = [tiny.RAGGED[i % 4] for i in range(len(rows))]
    with torch.no_grad():
        got = model.forward(prompts, edit=Edit(SITE, Bank(items)), rows=rows).logits
        base = tiny.plain(model.hf, prompts)
        for index, row in enumerate(rows):
            if row == 0:
                assert torch.equal(got[index], base[index])
            else:
                alone = model.forward([prompts[index]], edit=Edit(SITE, items[row - 1])).logits[0]
                torch.testing.assert_close(got[index, : len(alone)], alone, rtol=1e-5, atol=1e-5)


_MODELS: list[inlay.Model] = []


def _shared_model() -> inlay.Model:
    """One model for all examples of a property."""
    if not _MODELS:
        _MODELS.append(tiny.model())
    return _MODELS[0]


def test_a_bank_of_64_in_one_batch() -> None:
    model, items = tiny.model(), [Add(_v(k)) for k in range(64)]
    prompts = [tiny.EVEN[k % 4] for k in range(65)]
    with tiny.forwards(model.hf) as count:
        got = model.forward(prompts, edit=Edit(SITE, Bank(items)), rows=list(range(65))).logits
    assert count == [1]
    assert torch.equal(got[0], tiny.plain(model.hf, prompts)[0])
    table = torch.stack([torch.zeros(WIDTH), *(_v(k) for k in range(64))])
    want = tiny.hooked(model.hf, prompts, 1, lambda h: h + table[:, None])
    torch.testing.assert_close(got, want)


def test_strengths_of_rows_multiply_their_own_item() -> None:
    model = tiny.model()
    items = [Add(_v(k)) for k in range(3)]
    strengths = torch.tensor([0.5, 2.0, -1.0, 0.0])
    edit = Edit(SITE, Bank(items), strength=2.0)
    got = model.forward(tiny.EVEN, edit=edit, rows=[1, 3, 0, 2], strength=strengths).logits
    change = torch.stack([1.0 * _v(0), 4.0 * _v(2), 0 * _v(0), 0 * _v(1)])[:, None]
    torch.testing.assert_close(got, tiny.hooked(model.hf, tiny.EVEN, 1, lambda h: h + change))
    assert torch.equal(got[2:], tiny.plain(model.hf, tiny.EVEN)[2:])


def test_rows_as_a_tensor_and_in_a_context() -> None:
    model = tiny.model()
    edit = Edit(SITE, Bank([Add(_v(k)) for k in range(3)]))
    rows = [1, 0, 3, 2]
    want = model.forward(tiny.EVEN, edit=edit, rows=rows).logits
    assert torch.equal(model.forward(tiny.EVEN, edit=edit, rows=torch.tensor(rows)).logits, want)
    with model.edited(edit, rows=rows), torch.no_grad():
        assert torch.equal(model.hf(**tiny.padded(tiny.EVEN), use_cache=False).logits, want)
    read = model.read(tiny.EVEN, SITE, edit=edit, rows=rows, batch_tokens=4)[SITE]  # one row in each forward
    torch.testing.assert_close(read, model.forward(tiny.EVEN, edit=edit, rows=rows, read=SITE).acts[SITE])


def test_two_banks_at_two_sites_share_the_rows() -> None:
    model = tiny.model()
    edit = Edit("resid_post.0", Bank([Add(_v(0)), Add(_v(1))])) + Edit(SITE, Bank([Scale(2.0), Scale(3.0)]))
    got = model.forward(tiny.EVEN, edit=edit, rows=[0, 1, 2, 1]).logits
    added = torch.stack([0 * _v(0), _v(0), _v(1), _v(0)])[:, None]
    scaled = torch.tensor([1.0, 2.0, 3.0, 2.0]).reshape(-1, 1, 1)
    with tiny.hook(tiny.block(model.hf, 0), lambda h: h + added):
        want = tiny.hooked(model.hf, tiny.EVEN, 1, lambda h: h * scaled)
    torch.testing.assert_close(got, want)
    with pytest.raises(EditError, match=r"rows\[1\] = 3: a Bank of 2 has rows 0 \(no edit\) to 2"):
        model.forward(tiny.EVEN, edit=edit, rows=[0, 3, 2, 1])


def test_a_bank_beside_a_plain_edit() -> None:
    model = tiny.model()
    edit = Edit(SITE, Add(_v(7))) + Edit(SITE, Bank([Scale(2.0)]), "last")

    def by_hand(h: Tensor) -> Tensor:
        h = h + _v(7)
        return torch.cat([h[:, :-1], h[:, -1:] * torch.tensor([1.0, 2.0, 2.0, 1.0]).reshape(-1, 1, 1)], 1)

    got = model.forward(tiny.EVEN, edit=edit, rows=[0, 1, 1, 0]).logits
    torch.testing.assert_close(got, tiny.hooked(model.hf, tiny.EVEN, 1, by_hand))


# -- modules of the user's own -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompts", [tiny.EVEN, tiny.RAGGED], ids=["one length", "padded"])
def test_modules_that_use_input_and_positions(prompts: list[list[int]]) -> None:
    model, rows = tiny.model(), [2, 0, 1, 2]
    items = [Function(Drift(k)) for k in range(2)]
    with torch.no_grad():
        got = model.forward(prompts, edit=Edit(SITE, Bank(items)), rows=rows).logits
        for index, row in enumerate(rows):
            edit = Edit(SITE, items[row - 1]) if row else None
            alone = model.forward([prompts[index]], edit=edit).logits[0]
            torch.testing.assert_close(got[index, : len(alone)], alone, rtol=1e-5, atol=1e-4)


def test_modules_in_a_bank_see_one_row_at_a_time() -> None:
    seen: list[tuple[int, ...]] = []

    class Look(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(WIDTH))

        def forward(self, h: Tensor, input: Tensor, positions: Tensor) -> Tensor:
            seen.append((tuple(h.shape), tuple(input.shape), tuple(positions.shape)))
            return h * self.w

    edit = Edit(SITE, Bank([Function(Look())]))
    tiny.model().forward(tiny.EVEN, edit=edit, rows=[1, 1, 0, 1])
    tiny.model().forward(tiny.RAGGED, edit=edit, rows=[1, 1, 0, 1])
    assert seen == [((4, WIDTH), (4, WIDTH), (4,)), ((7, WIDTH), (7, WIDTH), (7,))]


def test_parameters_whose_names_hold_underscores() -> None:
    class Named(nn.Module):
        def __init__(self, k: int) -> None:
            super().__init__()
            self.a__b = nn.Parameter(_v(k))
            self.inner = nn.Linear(WIDTH, WIDTH)

        def forward(self, h: Tensor) -> Tensor:
            return self.inner(h) + self.a__b

    items = [Function(Named(k)) for k in range(2)]
    bank = Bank(items)
    assert set(bank.state()) == {"a__b", "inner.weight", "inner.bias"}
    model = tiny.model()
    got = model.forward(tiny.EVEN, edit=Edit(SITE, bank), rows=[1, 2, 2, 1]).logits
    for index, row in enumerate([1, 2, 2, 1]):
        alone = model.forward([tiny.EVEN[index]], edit=Edit(SITE, items[row - 1])).logits[0]
        torch.testing.assert_close(got[index], alone, rtol=1e-5, atol=1e-5)


def test_eval_and_train_reach_the_modules_of_a_bank() -> None:
    class Drop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(WIDTH))
            self.drop = nn.Dropout(0.5)

        def forward(self, h: Tensor) -> Tensor:
            return self.drop(h) * self.w

    edit = Edit(SITE, Bank([Function(Drop()), Function(Drop())])).eval()
    model = tiny.model()
    got = model.forward(tiny.EVEN, edit=edit, rows=[1, 2, 1, 2]).logits
    torch.testing.assert_close(got, tiny.plain(model.hf, tiny.EVEN))


def test_items_made_differently_are_not_taken_for_one() -> None:
    with pytest.raises(EditError, match="item 1 is configured unlike item 0"):
        Bank([Function(nn.LeakyReLU(0.1)), Function(nn.LeakyReLU(0.5))])


# -- one source, and dimensions of every row ---------------------------------------------------------------------------


def _blend(h: Tensor, source: Tensor) -> Tensor:
    return h + 0.3 * (source - h).tanh()


WITH_SOURCE: dict[str, Callable[[Source, int], Intervention]] = {
    "swap": lambda source, k: Swap(source, dims=[[0, 1], [5], [7, 2, 30]][k]),
    "add": lambda source, k: Add(source, dims=[[0, 1], [5], [7, 2, 30]][k]),
    "mean": lambda source, k: Mean(source, dims=[[0, 1], [5], [7, 2, 30]][k]),
    "function": lambda source, k: Function(_blend, source),
    "skip": lambda source, k: Skip(source),
}
with_source = pytest.mark.parametrize("make", WITH_SOURCE.values(), ids=WITH_SOURCE)


@with_source
@pytest.mark.parametrize("tokens", ["all", "last"])
def test_every_row_picks_its_own_dimensions_of_one_source(make: Callable[..., Intervention], tokens: str) -> None:
    model, rows, source = tiny.model(), [3, 0, 1, 2], Source(tiny.OTHER)
    items = [make(source, k) for k in range(3)]
    bank = Bank(items)
    assert bank.source is source
    with torch.no_grad(), tiny.forwards(model.hf) as count:
        got = model.forward(tiny.EVEN, edit=Edit(SITE, bank, tokens), rows=rows).logits
        assert count == [2], "the source is run once"
    assert torch.equal(got[1], tiny.plain(model.hf, tiny.EVEN)[1])
    for index, row in enumerate(rows):
        if row:
            with torch.no_grad():
                alone = model.forward(tiny.EVEN, edit=Edit(SITE, items[row - 1], tokens)).logits[index]
            torch.testing.assert_close(got[index], alone, rtol=1e-5, atol=1e-5)


def test_no_row_gets_the_dimensions_of_another() -> None:
    model, source = tiny.model(), Source(tiny.OTHER)
    bank = Bank([Swap(source, dims=[k]) for k in range(3)])
    got = model.read(tiny.EVEN, SITE, edit=Edit(SITE, bank), rows=[1, 2, 3, 0])[SITE]
    want = tiny.states(model.hf, tiny.EVEN, 1)
    for k in range(3):
        want[k, :, k] = tiny.states(model.hf, tiny.OTHER, 1)[k, :, k]
    assert torch.equal(got, want)


def test_a_list_made_longer_doubles_no_gradient() -> None:
    items = [Replace(nn.Parameter(_v(k)), dims=dims) for k, dims in enumerate([[4], [1, 2, 3]])]
    bank, model = Bank(items), tiny.model()
    model.hf.requires_grad_(False)
    model.forward(tiny.EVEN[:2], edit=Edit(SITE, bank), rows=[1, 2]).logits[:, -1, 7].sum().backward()
    for k, item in enumerate(items):
        model.forward(tiny.EVEN[k : k + 1], edit=Edit(SITE, item)).logits[:, -1, 7].sum().backward()
        torch.testing.assert_close(bank.state()["vector"].grad[k + 1], item.vector.grad, rtol=1e-4, atol=1e-6)
        assert int((item.vector.grad != 0).sum()) == len(item.dims)


@with_source
def test_a_bank_with_a_source_is_saved_copied_and_taken_apart(
    make: Callable[..., Intervention], tmp_path: Path
) -> None:
    model, source = tiny.model(), Source(tiny.OTHER)
    edit = Edit(SITE, Bank([make(source, k) for k in range(3)])) + Edit("resid_post.0", make(source, 1))
    again = Edit.from_pretrained(edit.save(tmp_path / "edit"))
    assert again.parts[0].intervention.source is again.parts[1].intervention.source
    with torch.no_grad():
        want = model.forward(tiny.EVEN, edit=edit, rows=[1, 2, 3, 0]).logits
        for other in (again, copy.deepcopy(edit)):
            assert torch.equal(model.forward(tiny.EVEN, edit=other, rows=[1, 2, 3, 0]).logits, want)
        bank = edit.parts[0].intervention
        item = bank.item(2)
        assert item.source is source
        one, two = (Edit(SITE, which) for which in (item, make(source, 1)))
        assert torch.equal(model.forward(tiny.EVEN, edit=one).logits, model.forward(tiny.EVEN, edit=two).logits)


def test_a_bank_is_given_another_source() -> None:
    model, first, second = tiny.model(), Source(tiny.OTHER), Source(tiny.EVEN[::-1])
    bank = Bank([Swap(first, dims=[1, 2]), Swap(first, dims=[3])])
    other = bank.with_source(second)
    assert bank.source is first and other.source is other.item(1).source is second
    with torch.no_grad():
        want = model.forward(tiny.EVEN, edit=Edit(SITE, Bank([Swap(second, dims=[1, 2])])), rows=[1] * 4).logits
        assert torch.equal(model.forward(tiny.EVEN, edit=Edit(SITE, other), rows=[1] * 4).logits, want)


def test_a_bank_with_a_source_is_read_in_batches() -> None:
    model, source = tiny.model(), Source(tiny.OTHER)
    edit = Edit(SITE, Bank([Swap(source, dims=[1, 2]), Swap(source, dims=[3])]))
    whole = model.read(tiny.EVEN, SITE, edit=edit, rows=[1, 2, 0, 2])[SITE]
    assert torch.equal(model.read(tiny.EVEN, SITE, edit=edit, rows=[1, 2, 0, 2], batch_tokens=4)[SITE], whole)


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["trainable add", "module"])
def test_gradients_reach_the_rows_in_use_and_equal_each_alone(kind: str) -> None:
    model = tiny.model()
    model.hf.requires_grad_(False)
    items = [KINDS[kind](k) for k in range(4)]
    bank = Bank(items)
    rows = [3, 0, 1, 3]
    model.forward(tiny.EVEN, edit=Edit(SITE, bank), rows=rows).logits[:, -1, 5].sum().backward()
    used: dict[int, list[int]] = {3: [0, 3], 1: [2]}
    for row, batch in used.items():
        alone = copy.deepcopy(items[row - 1])
        prompts = [tiny.EVEN[i] for i in batch]
        model.forward(prompts, edit=Edit(SITE, alone)).logits[:, -1, 5].sum().backward()
        grads = {name: p.grad for name, p in alone.state().items() if isinstance(p, nn.Parameter)}
        for name, table in bank.state().items():
            if name in grads:
                torch.testing.assert_close(table.grad[row], grads[name], rtol=1e-4, atol=1e-5)
    for table in bank.parameters():
        assert table.grad is not None
        for row in (0, 2, 4):
            assert not bool(table.grad[row].any()), row


@pytest.mark.parametrize("kind", ["trainable add", "module"])
@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.AdamW])
def test_row_zero_of_the_table_is_never_trained(kind: str, optimiser: Any) -> None:
    model = tiny.model()
    model.hf.requires_grad_(False)
    bank = Bank([KINDS[kind](k) for k in range(2)])
    before = [p.detach().clone() for p in bank.parameters()]
    base = tiny.plain(model.hf, tiny.EVEN)
    steps = optimiser(bank.parameters(), lr=0.1)
    for _ in range(3):
        steps.zero_grad()
        model.forward(tiny.EVEN, edit=Edit(SITE, bank), rows=[0, 1, 0, 1]).logits.square().sum().backward()
        for p in bank.parameters():
            assert not bool(p.grad[0].any())
        steps.step()
    for p, was in zip(bank.parameters(), before, strict=True):
        if optimiser is torch.optim.SGD:  # AdamW decays every row, and row 0 of Add is 0
            assert torch.equal(p[0], was[0]) and torch.equal(p[2], was[2])
        assert not torch.equal(p[1], was[1])
    got = model.forward(tiny.EVEN, edit=Edit(SITE, bank), rows=[0, 0, 0, 2]).logits
    assert torch.equal(got[:3], base[:3])


def test_training_a_bank_equals_training_each_item_alone() -> None:
    model = tiny.model()
    model.hf.requires_grad_(False)
    starts = [_v(k) for k in range(3)]
    bank = Bank([Add(nn.Parameter(v.clone())) for v in starts])
    steps = torch.optim.Adam(bank.parameters(), lr=0.05)
    for _ in range(4):
        steps.zero_grad()
        out = model.forward(tiny.EVEN[:3], edit=Edit(SITE, bank), rows=[1, 2, 3])
        out.logits[:, -1].log_softmax(-1)[:, 9].sum().backward()
        steps.step()
    for k, start in enumerate(starts):
        alone = nn.Parameter(start.clone())
        optimiser = torch.optim.Adam([alone], lr=0.05)
        for _ in range(4):
            optimiser.zero_grad()
            out = model.forward([tiny.EVEN[k]], edit=Edit(SITE, Add(alone)))
            out.logits[:, -1].log_softmax(-1)[:, 9].sum().backward()
            optimiser.step()
        torch.testing.assert_close(bank.state()["vector"][k + 1].detach(), alone.detach(), rtol=1e-4, atol=1e-4)


def test_what_was_trainable_stays_so_and_what_was_frozen_too() -> None:
    assert [p.requires_grad for p in Bank([Add(nn.Parameter(_v(0)))]).parameters()] == [True]
    assert [p.requires_grad for p in Bank([Add(nn.Parameter(_v(0), requires_grad=False))]).parameters()] == [False]
    assert list(Bank([Add(_v(0))]).parameters()) == []


def test_the_items_own_tensors_are_copied() -> None:
    v = nn.Parameter(_v(0))
    bank = Bank([Add(v), Add(_v(1))])
    with torch.no_grad():
        v.zero_()
    assert torch.equal(bank.state()["vector"][1], _v(0))


# -- items and folders -------------------------------------------------------------------------------------------------


@each
def test_item_gives_back_what_was_put_in(make: Callable[[int], Intervention]) -> None:
    bank = Bank([make(k) for k in range(3)])
    assert len(bank) == 3
    h = torch.randn(2, 4, WIDTH)
    for k in range(3):
        again = bank.item(k + 1)
        assert type(again) is type(make(k))
        assert torch.equal(again(h), make(k)(h))


def test_item_of_a_local_module() -> None:
    class Local(nn.Module):
        def __init__(self, k: int) -> None:
            super().__init__()
            self.w = nn.Parameter(_v(k))

        def forward(self, h: Tensor) -> Tensor:
            return h * self.w

    again = Bank([Function(Local(0)), Function(Local(1))]).item(2)
    h = torch.randn(1, 2, WIDTH)
    assert torch.equal(again(h), h * _v(1))


def test_item_is_what_training_left_in_the_table() -> None:
    bank = Bank([Add(nn.Parameter(_v(0))), Add(nn.Parameter(_v(1)))])
    with torch.no_grad():
        next(bank.parameters())[2] += 1
    assert torch.equal(bank.item(2).state()["vector"], _v(1) + 1)
    assert torch.equal(bank.item(1).state()["vector"], _v(0))


@pytest.mark.parametrize("row", [0, 4, -1])
def test_rows_without_an_item(row: int) -> None:
    with pytest.raises(EditError, match="row 0 of a Bank is no edit" if row == 0 else "a Bank of 3 has rows 0"):
        Bank([Add(_v(k)) for k in range(3)]).item(row)


@each
def test_saved_and_loaded_it_is_the_same(make: Callable[[int], Intervention], tmp_path: Path) -> None:
    model, rows = tiny.model(), [2, 0, 1, 3]
    edit = Edit(SITE, Bank([make(k) for k in range(3)]), "last2")
    again = Edit.from_pretrained(edit.save(tmp_path / "edit"))
    with torch.no_grad():
        want = model.forward(tiny.RAGGED, edit=edit, rows=rows).logits
        assert torch.equal(model.forward(tiny.RAGGED, edit=again, rows=rows).logits, want)
    assert len(again.parts[0].intervention) == 3
    before, after = edit.parts[0].intervention, again.parts[0].intervention
    for name, table in before.state().items():
        assert after.state()[name].dtype == table.dtype
        assert torch.equal(after.state()[name], table)
    assert {n: p.requires_grad for n, p in before.named_parameters()} == {
        n: p.requires_grad for n, p in after.named_parameters()
    }


# -- bad input ---------------------------------------------------------------------------------------------------------


def _edit(size: int = 3) -> Edit:
    return Edit(SITE, Bank([Add(_v(k)) for k in range(size)]))


def test_an_empty_bank() -> None:
    with pytest.raises(EditError, match=r"Bank\(\[\]\) is empty: give at least one"):
        Bank([])


def test_kinds_shapes_and_configurations_are_not_mixed() -> None:
    with pytest.raises(EditError, match="item 1 is a Scale, item 0 a Add"):
        Bank([Add(_v(0)), Scale(2.0)])
    with pytest.raises(EditError, match=r"item 2 has tensors .*\(7,\).*item 0 .*\(32,\)"):
        Bank([Add(_v(0)), Add(_v(1)), Add(torch.ones(7))])
    with pytest.raises(EditError, match="item 1 is configured unlike item 0"):
        Bank([Project(_v(0)[:, None]), Project(_v(0)[:, None], keep=True)])
    with pytest.raises(EditError, match="item 1 has tensors"):
        Bank([Replace(_v(0)), Replace(_v(0), dims=[1])])
    with pytest.raises(EditError, match="item 1 is configured unlike item 0"):
        Bank([Function(double), Function(torch.nn.functional.relu)])


def test_what_a_bank_does_not_hold() -> None:
    with pytest.raises(EditError, match=r"item 0 is .*a Bank holds interventions"):
        Bank([Bank([Add(_v(0))])])
    with pytest.raises(EditError, match="a Bank holds interventions"):
        Bank([_v(0)])  # type: ignore[list-item]
    with pytest.raises(EditError, match="item 1 has another Source than item 0; give one Source to all"):
        Bank([Swap([[1, 2]]), Swap([[3, 4]])])
    with pytest.raises(EditError, match="item 1 has another Source than item 0"):
        Bank([Add(Source([[1, 2]])), Add(_v(0))])


@pytest.mark.parametrize("rows", [[0, 1, 2, 4], [0, -1, 0, 0], [99, 0, 0, 0]])
def test_rows_out_of_range(rows: list[int]) -> None:
    with pytest.raises(EditError, match=r"rows\[\d\] = -?\d+: a Bank of 3 has rows 0 \(no edit\) to 3"):
        tiny.model().forward(tiny.EVEN, edit=_edit(), rows=rows)


@pytest.mark.parametrize("rows", [[1], [1, 2], [1, 2, 3], [1, 2, 3, 1, 2]])
def test_another_number_of_rows_than_prompts(rows: list[int]) -> None:
    model = tiny.model()
    with pytest.raises(EditError, match=rf"{len(rows)} rows, and the batch has 4"):
        model.forward(tiny.EVEN, edit=_edit(), rows=rows)
    with pytest.raises(EditError, match=rf"{len(rows)} rows, and the batch has 4"):
        model.generate(tiny.EVEN, edit=_edit(), rows=rows, max_new_tokens=2)
    with pytest.raises(InputError, match=rf"rows names {len(rows)} rows for 4 prompts"):
        model.read(tiny.EVEN, SITE, edit=_edit(), rows=rows)


@pytest.mark.parametrize("rows", [[], 2, [[1, 2, 3, 0]], [0.5, 1.5, 1.0, 0.0]])
def test_what_are_no_rows(rows: Any) -> None:
    with pytest.raises(EditError, match="rows"):
        tiny.model().forward(tiny.EVEN, edit=_edit(), rows=rows)


def test_a_bank_without_rows() -> None:
    with pytest.raises(EditError, match=r"part 1 of the Edit \(resid_post\.1\) is a Bank: say which row"):
        tiny.model().forward(tiny.EVEN, edit=Edit("resid_post.0", Add(_v(0))) + _edit())


def test_rows_without_a_bank() -> None:
    with pytest.raises(EditError, match="rows= picks rows of a Bank, and the Edit holds none"):
        tiny.model().forward(tiny.EVEN, edit=Edit(SITE, Add(_v(0))), rows=[1, 1, 1, 1])


def test_a_bank_on_a_bare_tensor() -> None:
    with pytest.raises(EditError, match="a Bank runs inside a model's forward"):
        Bank([Add(_v(0))])(torch.zeros(1, 1, WIDTH))


def test_widths_and_dimensions_of_every_item_are_checked() -> None:
    model = tiny.model()
    with pytest.raises(SiteError, match=r"width 32, and mlp_act\.0 has width 48"):
        model.forward(tiny.EVEN, edit=Edit("mlp_act.0", Bank([Add(_v(0))])), rows=[1] * 4)
    bank = Bank([Replace(_v(0), dims=[1, 2]), Replace(_v(0), dims=[1, 32])])
    with pytest.raises(SiteError, match=r"dimension 32 is out of range at resid_post\.1, of width 32"):
        model.forward(tiny.EVEN, edit=Edit(SITE, bank), rows=[1, 1, 0, 2])


@pytest.mark.parametrize("names", [[1, 2], [2, 1, 0, 1, 2, 2, 1], [3, 3, 1, 2]])
def test_a_basis_is_made_for_each_row_or_for_each_item_whichever_is_fewer(
    names: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    real = families.orthonormal
    items = [LoReFT(WIDTH, 3, seed=k).double() for k in range(3)]
    bank, model = Bank(items), tiny.model(dtype=torch.float64)
    edit, prompts = Edit("resid_post.1", bank), [[5, 9, 17, 33 + i] for i in range(len(names))]
    monkeypatch.setattr(families, "orthonormal", lambda raw: made.append(len(raw)) or real(raw))
    got = model.forward(prompts, edit=edit, rows=names).logits
    got[:, -1].log_softmax(-1)[:, 7].sum().backward()
    assert made == [min(4, len(names))]
    for index, row in enumerate(names):
        one = Edit("resid_post.1", items[row - 1]) if row else None
        logits = model.forward(prompts[index : index + 1], edit=one).logits
        torch.testing.assert_close(got[index], logits[0], rtol=0, atol=1e-6)
        if row:
            logits[0, -1].log_softmax(-1)[7].backward()
    for row, item in enumerate(items, 1):
        for name, table in bank.state().items():
            want = item.state()[name].grad
            torch.testing.assert_close(
                table.grad[row], torch.zeros_like(table[row]) if want is None else want, rtol=0, atol=1e-6
            )
