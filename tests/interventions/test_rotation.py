"""LowRank and Rotate: the algebra of an interchange in a subspace, its gradient, and what training must not break."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from tests.interventions import tiny
from tests.interventions.tiny import EVEN, OTHER, RAGGED, WIDTH
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import inlay
from inlay import Bank, Edit, LowRank, Rotate, Source, Swap
from inlay.errors import EditError, FolderError, SiteError
from inlay.interventions import families
from inlay.model.call import Call

SITE = "resid_post.1"


def _pair(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    h, source = torch.randn(2, 3, 4, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    return h, source


def _on(intervention: Any, h: Tensor, source: Tensor, **more: Any) -> Tensor:
    with torch.no_grad():
        return intervention(h, Call(source=source, **more))


def _exact(rank: int, seed: int = 0) -> LowRank:
    return LowRank(None, WIDTH, rank, seed=seed).double()


def _close(a: Tensor, b: Tensor, by: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=by)


# -- the basis ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 3), (8, 8), (5, 8, 3), (1, 1)])
def test_the_basis_is_the_unique_orthonormal_one(shape: tuple[int, ...]) -> None:
    raw = torch.randn(*shape, dtype=torch.float64)
    basis = families.orthonormal(raw)
    _close(basis.mT @ basis, torch.eye(shape[-1], dtype=torch.float64).expand(*shape[:-2], -1, -1))
    upper = basis.mT @ raw
    _close(basis @ upper, raw)
    _close(upper.tril(-1), torch.zeros_like(upper))
    assert bool((upper.diagonal(dim1=-2, dim2=-1) > 0).all())
    _close(families.orthonormal(basis), basis)
    _close(families.orthonormal(1e-3 * raw), basis)


def test_it_starts_orthonormal_and_holds_no_square_matrix() -> None:
    made = LowRank(None, 4096, 4)
    assert {name: tuple(t.shape) for name, t in made.state().items()} == {"raw": (4096, 4)}
    assert made.raw.dtype == torch.float32 and made.raw.requires_grad
    _close(made.raw.T @ made.raw, torch.eye(4), 1e-5)
    _close(made.basis(), made.raw.detach(), 1e-6)
    assert torch.equal(LowRank(None, 16, 4, seed=3).raw, LowRank(None, 16, 4, seed=3).raw)
    assert not torch.equal(LowRank(None, 16, 4, seed=3).raw, LowRank(None, 16, 4, seed=4).raw)


def test_a_given_basis_keeps_its_span() -> None:
    given = torch.randn(WIDTH, 3, dtype=torch.float64)
    basis = LowRank.of(given).basis()
    projector = given @ torch.linalg.inv(given.T @ given) @ given.T
    _close(basis @ basis.T, projector)
    orthonormal = torch.linalg.qr(given).Q
    _close(LowRank.of(orthonormal).basis(), orthonormal)
    assert LowRank.of(given.tolist()).basis().dtype == torch.float32


# -- algebra -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 4, WIDTH])
def test_what_a_low_rank_interchange_is(rank: int) -> None:
    made, (h, source) = _exact(rank), _pair()
    basis, new = made.basis(), _on(_exact(rank), h, source)
    _close(new @ basis, source @ basis)
    outside = (new - h) - (new - h) @ basis @ basis.T
    _close(outside, torch.zeros_like(h))
    _close(_on(made, new, source), new)
    if rank == WIDTH:
        _close(new, source)
    else:
        assert float((new - source).abs().max()) > 0.1


def test_groups_are_orthogonal_commute_and_add_up_to_the_whole() -> None:
    first = Rotate(None, WIDTH, [3, 4, 2]).double()
    parts, (h, source) = [first, first.part(1), first.part(2)], _pair()
    bases = [part.basis() for part in parts]
    assert [tuple(b.shape) for b in bases] == [(WIDTH, 3), (WIDTH, 4), (WIDTH, 2)]
    _close(bases[0].T @ bases[1], torch.zeros(3, 4, dtype=torch.float64))
    other = source.flip(0)
    one_way = _on(parts[1], _on(parts[0], h, source), other)
    _close(_on(parts[0], _on(parts[1], h, other), source), one_way)
    every = h
    for part in parts:
        every = _on(part, every, source)
    _close(every, _on(LowRank.of(torch.cat(bases, 1)), h, source))
    for part, basis in zip(parts, bases, strict=True):
        _close(_on(part, h, source), _on(LowRank.of(basis), h, source))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_in_a_model_it_equals_the_formula_in_a_hook(family: str) -> None:
    hf = tiny.FAMILIES[family]()
    made = LowRank(OTHER, WIDTH, 5, seed=1)
    basis, source = made.basis(), tiny.states(hf, OTHER, 1)
    with torch.no_grad():
        got = inlay.load(hf).forward(EVEN, edit=Edit(SITE, made)).logits
    want = tiny.hooked(hf, EVEN, 1, lambda h: h + (source - h) @ basis @ basis.T)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert float((got - tiny.plain(hf, EVEN)).abs().max()) > 0.1


def test_at_full_rank_in_a_model_it_gives_the_sources_logits() -> None:
    model = tiny.model(dtype=torch.float64)
    with torch.no_grad():
        got = model.forward(EVEN, edit=Edit(SITE, LowRank(OTHER, WIDTH, WIDTH).double())).logits
    torch.testing.assert_close(got, tiny.plain(model.hf, OTHER), rtol=0, atol=1e-6)


def test_joint_positions_are_one_state() -> None:
    model, made = tiny.model(), LowRank(OTHER, 2 * WIDTH, 3)
    basis, source = made.basis(), tiny.states(model.hf, OTHER, 1)[:, 1:3].flatten(1)

    def change(h: Tensor) -> Tensor:
        pair = h[:, 1:3].flatten(1)
        new = pair + (source - pair) @ basis @ basis.T
        return torch.cat([h[:, :1], new.unflatten(1, (2, -1)), h[:, 3:]], 1)

    with torch.no_grad():
        got = model.forward(EVEN, edit=Edit(SITE, made, tokens=[1, 2], joint=True)).logits
    torch.testing.assert_close(got, tiny.hooked(model.hf, EVEN, 1, change), rtol=1e-5, atol=1e-5)


# -- precision ---------------------------------------------------------------------------------------------------------


def test_half_precision_adds_a_difference_of_float32() -> None:
    made, (h, source) = LowRank(None, WIDTH, 3), _pair(torch.bfloat16)
    basis = made.basis()
    change = (source.float() - h.float()) @ basis @ basis.T
    assert torch.equal(_on(made, h, source), h + change.bfloat16())


def test_it_stays_in_float32_whatever_it_is_cast_to() -> None:
    made = LowRank(None, WIDTH, 3)
    assert made.bfloat16().raw.dtype == torch.float32
    assert Edit(SITE, Rotate(None, WIDTH, [2, 2])).half().parts[0].intervention.state()["group"].dtype == torch.float32
    assert made.double().raw.dtype == torch.float64
    h, source = _pair()
    _close(_on(made, h, source) @ made.basis(), source @ made.basis())


# -- training ----------------------------------------------------------------------------------------------------------


def test_the_gradient_is_that_of_the_formula() -> None:
    model = tiny.model(dtype=torch.float64)
    model.hf.requires_grad_(False)
    made = LowRank(OTHER, WIDTH, 3).double()
    model.forward(EVEN, edit=Edit(SITE, made)).logits[:, -1, 7].sum().backward()
    raw = made.raw.detach().clone().requires_grad_()
    source = tiny.states(model.hf, OTHER, 1)

    def change(h: Tensor) -> Tensor:  # Gram-Schmidt by hand: another way to the same R
        done: list[Tensor] = []
        for column in raw.unbind(1):
            for one in done:
                column = column - (column @ one) * one
            done.append(column / column.norm())
        basis = torch.stack(done, 1)
        return h + (source - h) @ basis @ basis.T

    with tiny.hook(tiny.block(model.hf, 1), change):
        model.hf(**tiny.padded(EVEN), use_cache=False).logits[:, -1, 7].sum().backward()
    assert float(raw.grad.abs().max()) > 1e-3
    torch.testing.assert_close(made.raw.grad, raw.grad, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("decay", [0.0, 0.01, 1.0])
def test_weight_decay_does_not_break_it(decay: float) -> None:
    made, (h, source) = LowRank(None, WIDTH, 4), _pair(torch.float32)
    optimiser = torch.optim.AdamW(made.parameters(), lr=9e-4, weight_decay=decay)
    target = torch.randn(WIDTH, generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in range(100):
        optimiser.zero_grad()
        loss = (made(h, Call(source=source)) @ target).square().mean()
        loss.backward()
        assert float(made.raw.grad.abs().max()) > 0
        optimiser.step()
        losses.append(loss.item())
    basis = made.basis()
    _close(basis.T @ basis, torch.eye(4), 1e-5)
    assert losses[-1] < 0.9 * losses[0]


def test_parts_share_one_parameter_that_is_counted_and_trained_once() -> None:
    model = tiny.model()
    model.hf.requires_grad_(False)
    first = Rotate(Source(OTHER), WIDTH, [2, 3])
    edit = Edit(SITE, first) + Edit(SITE, first.part(1, Source(EVEN[::-1])))
    assert [p.shape for p in edit.parameters()] == [(WIDTH, 5)]
    before = first.raw.detach().clone()
    model.forward(EVEN, edit=edit).logits[:, -1, 7].sum().backward()
    torch.optim.SGD(edit.parameters(), lr=1.0).step()
    assert torch.equal(first.raw, before - first.raw.grad)
    second = edit.parts[1].intervention
    _close(first.basis().T @ second.basis(), torch.zeros(2, 3), 1e-5)


def test_another_source_is_the_same_intervention() -> None:
    model, made = tiny.model(), LowRank(None, WIDTH, 3)
    sources = [Source(OTHER), Source(EVEN[::-1])]
    with torch.no_grad():
        for source in sources:
            other = made.with_source(source)
            assert other.raw is made.raw and other.source is source and made.source is None
            got = model.forward(EVEN, edit=Edit(SITE, other)).logits
            states, basis = tiny.states(model.hf, source.prompts, 1), made.basis()
            want = tiny.hooked(model.hf, EVEN, 1, lambda h, s=states, b=basis: h + (s - h) @ b @ b.T)
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert isinstance(made.with_source(OTHER).source, Source)


# -- once a forward, and kept ------------------------------------------------------------------------------------------


@pytest.fixture
def decompositions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes that were decomposed since."""
    seen: list[tuple[int, ...]] = []
    qr = torch.linalg.qr
    monkeypatch.setattr(
        torch.linalg, "qr", lambda a, *rest, **more: seen.append(tuple(a.shape)) or qr(a, *rest, **more)
    )
    return seen


def test_the_basis_is_made_once_a_forward_and_kept_while_nobody_trains(
    decompositions: list[tuple[int, ...]],
) -> None:
    model = tiny.model()
    model.hf.requires_grad_(False)
    made = LowRank(OTHER, WIDTH, 3)
    decompositions.clear()
    edit = Edit("resid_post.*", made)
    model.forward(EVEN, edit=edit).logits.sum().backward()
    assert decompositions == [(WIDTH, 3)], "three layers, one decomposition"
    with torch.no_grad():
        decompositions.clear()
        model.generate(EVEN, edit=Edit(SITE, made, tokens="prompt"), max_new_tokens=4)
        for source in (OTHER, EVEN):
            model.forward(EVEN, edit=Edit(SITE, made.with_source(source)))
        assert decompositions == [(WIDTH, 3)], "one for a generation and two forwards with other sources"
        first = model.forward(EVEN, edit=edit).logits
        torch.optim.SGD(made.parameters(), lr=1.0).step()
        assert not torch.equal(model.forward(EVEN, edit=edit).logits, first)


def test_a_bank_decomposes_the_rows_of_the_batch_once_a_generation(decompositions: list[tuple[int, ...]]) -> None:
    source = Source(OTHER)
    bank = Bank([LowRank(source, WIDTH, 3, seed=k) for k in range(5)])
    decompositions.clear()
    tiny.model().generate(EVEN, edit=Edit(SITE, bank, "prompt"), rows=[1, 5, 0, 2], max_new_tokens=4)
    assert decompositions == [(4, WIDTH, 3)]


# -- banks, copies, folders --------------------------------------------------------------------------------------------


def _low_rank_items() -> list[Any]:
    source = Source(OTHER)
    return [LowRank(source, WIDTH, 3, seed=k) for k in range(3)]


def _part_items() -> list[Any]:
    first = Rotate(Source(OTHER), WIDTH, [2, 3, 1])
    return [first, first.part(1), first.part(2)]


BANKS: dict[str, Callable[[], list[Any]]] = {"low rank": _low_rank_items, "parts": _part_items}


@pytest.mark.parametrize("make", BANKS.values(), ids=BANKS)
def test_every_row_of_a_bank_equals_its_own_alone(make: Callable[[], list[Any]]) -> None:
    model, rows = tiny.model(), [3, 0, 1, 3]
    model.hf.requires_grad_(False)
    items = make()
    alone = copy.deepcopy(items)
    bank = Bank(items)
    got = model.forward(EVEN, edit=Edit(SITE, bank), rows=rows).logits
    got[:, -1, 7].sum().backward()
    assert torch.equal(got[1], tiny.plain(model.hf, EVEN)[1])
    for index, row in enumerate(rows):
        if row:
            one = alone[row - 1].with_source(OTHER[index : index + 1])
            want = model.forward(EVEN[index : index + 1], edit=Edit(SITE, one)).logits
            torch.testing.assert_close(got[index : index + 1], want, rtol=1e-5, atol=1e-5)
            want[:, -1, 7].sum().backward()
    for k, item in enumerate(alone):
        have = bank.state()["raw"].grad
        have = have if make is _part_items else have[k + 1]
        want = torch.zeros_like(item.raw) if item.raw.grad is None else item.raw.grad
        torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-5)


def test_a_bank_of_parts_keeps_their_one_parameter(tmp_path: Path) -> None:
    items = _part_items()
    bank = Bank(items)
    assert bank.state()["raw"] is items[0].raw and list(bank.parameters()) == [items[0].raw]
    assert bank.item(2).raw is items[0].raw
    _close(bank.item(2).basis(), items[1].basis(), 0)
    twin = copy.deepcopy(bank)
    assert twin.state()["raw"] is not items[0].raw and twin.item(1).raw is twin.state()["raw"]
    edit = Edit(SITE, bank) + Edit("resid_post.0", items[0])
    again = Edit.from_pretrained(edit.save(tmp_path / "edit"))
    assert [p.shape for p in again.parameters()] == [(WIDTH, 6)]
    with torch.no_grad():
        want = tiny.model().forward(EVEN, edit=edit, rows=[1, 2, 3, 0]).logits
        assert torch.equal(tiny.model().forward(EVEN, edit=again, rows=[1, 2, 3, 0]).logits, want)


def test_parts_are_stored_once_and_stay_shared(tmp_path: Path) -> None:
    first = Rotate(Source(OTHER), WIDTH, [2, 3])
    lone = LowRank(OTHER, WIDTH, 2)
    edit = Edit(SITE, first, tokens=1) + Edit(SITE, lone) + Edit(SITE, first.part(1), tokens=2)
    folder = edit.save(tmp_path / "edit")
    from safetensors.torch import load_file

    stored = load_file(folder / "edit.safetensors")
    assert [name for name, t in stored.items() if t.ndim == 2] == ["part0.raw", "part1.raw"]
    again = Edit.from_pretrained(folder)
    one, two, three = (part.intervention for part in again.parts)
    assert one.raw is three.raw and one.raw is not two.raw and one.raw.requires_grad
    assert one.source is three.source and torch.equal(one.raw, first.raw)
    assert (one.basis().shape, three.basis().shape) == ((WIDTH, 2), (WIDTH, 3))
    with torch.no_grad():
        want = tiny.model().forward(EVEN, edit=edit).logits
        assert torch.equal(tiny.model().forward(EVEN, edit=again).logits, want)


def test_a_description_that_ties_to_nothing_is_a_folder_error(tmp_path: Path) -> None:
    first = Rotate(Source(OTHER), WIDTH, [2, 3])
    folder = (Edit(SITE, first) + Edit(SITE, first.part(1))).save(tmp_path / "edit")
    text = (folder / "edit.json").read_text()
    (folder / "edit.json").write_text(text.replace('"raw": "part0.raw"', '"raw": "part7.raw"'))
    with pytest.raises(FolderError, match="part 1: the tensor 'raw'"):
        Edit.from_pretrained(folder)


def test_copies_are_their_own() -> None:
    first = Rotate(Source(OTHER), WIDTH, [2, 3])
    edit = Edit(SITE, first) + Edit(SITE, first.part(1))
    twin = copy.deepcopy(edit)
    one, two = (part.intervention for part in twin.parts)
    assert one.raw is two.raw and one.raw is not first.raw
    with torch.no_grad():
        one.raw.zero_()[:5] = torch.eye(5)
    _close(two.basis()[:5], torch.eye(5)[:, 2:], 1e-6)
    assert not torch.equal(first.basis(), one.basis())


def test_repr() -> None:
    assert repr(LowRank(None, 8, 2)) == "LowRank(width=8, rank=2, source=None)"
    assert repr(Rotate("a", 8, [2, 3]).part(1)) == "Rotate(width=8, parts=[2, 3], part=1, source=Source('a'))"


# -- compiled ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grad", [False, True])
def test_compiled_it_breaks_no_graph_and_is_compiled_once(grad: bool) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    hf = tiny.llama(num_hidden_layers=2).requires_grad_(False)
    call = torch.compile(hf, backend=counter, fullgraph=True)
    model, twin = inlay.load(call), inlay.load(tiny.llama(num_hidden_layers=2).requires_grad_(False))
    batch = {**tiny.padded(EVEN), "use_cache": False}
    for seed in range(2):
        made = LowRank(OTHER, WIDTH, 3, seed=seed)
        edit, frames = Edit("resid_post.0", made), counter.frame_count
        with torch.set_grad_enabled(grad):
            with model.edited(edit):
                got = call(**batch).logits
            with twin.edited(edit):
                want = twin.hf(**batch).logits
            torch.testing.assert_close(got, want)
            if grad:
                mine = torch.autograd.grad(got[:, -1, 3].sum(), made.raw)[0]
                torch.testing.assert_close(mine, torch.autograd.grad(want[:, -1, 3].sum(), made.raw)[0])
        assert (counter.frame_count > frames) is (seed == 0)
    torch._dynamo.reset()


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, -1, 9])
def test_a_rank_that_does_not_fit(rank: int) -> None:
    with pytest.raises(EditError, match=rf"LowRank\(width=8\): {rank} orthonormal columns do not fit"):
        LowRank(None, 8, rank)


@pytest.mark.parametrize(("parts", "says"), [([], "number of columns"), ([2, 0], "number of columns"), ([5, 4], "9 ")])
def test_groups_that_do_not_fit(parts: list[int], says: str) -> None:
    with pytest.raises(EditError, match=says):
        Rotate(None, 8, parts)


@pytest.mark.parametrize("part", [2, -1])
def test_a_group_that_is_not_there(part: int) -> None:
    with pytest.raises(EditError, match=rf"groups 0 to 1, and no group {part}"):
        Rotate(None, 8, [2, 3]).part(part)


def test_a_basis_that_is_none() -> None:
    with pytest.raises(EditError, match="the columns are not independent"):
        LowRank.of(torch.ones(8, 2))
    with pytest.raises(EditError, match="NaN or infinite"):
        LowRank.of(torch.full((8, 1), float("nan")))
    with pytest.raises(EditError, match=r"LowRank.of\(basis\) is \[width, r\]"):
        LowRank.of(torch.ones(8))


@pytest.mark.parametrize("make", [lambda: LowRank(None, WIDTH, 2), lambda: Bank([Rotate(None, WIDTH, [2])])])
def test_without_a_source_it_says_how_to_give_one(make: Callable[[], Any]) -> None:
    made = make()
    rows = {"rows": [1] * 4} if made.banked else {}
    with pytest.raises(EditError, match=r"has no source yet: \w+.with_source\(Source\(prompts\)\)"):
        tiny.model().forward(EVEN, edit=Edit(SITE, made), **rows)


def test_outside_of_a_model_it_says_where_it_runs() -> None:
    with pytest.raises(EditError, match="LowRank runs inside a model's forward"):
        LowRank(OTHER, WIDTH, 2)(torch.zeros(1, 1, WIDTH))


def test_another_width_names_both() -> None:
    with pytest.raises(SiteError, match=r"LowRank has width 16, and resid_post\.1 has width 32"):
        tiny.model().forward(EVEN, edit=Edit(SITE, LowRank(OTHER, 16, 2)))


def test_what_takes_no_source_is_given_none() -> None:
    from inlay import Add, Zero

    for made in (Zero(), Add(torch.ones(4)), Bank([Zero()])):
        with pytest.raises(EditError, match=r"(Zero|Add) takes no source"):
            made.with_source(OTHER)


def test_rotations_of_their_own_are_no_bank_of_parts() -> None:
    with pytest.raises(EditError, match="item 1 has a 'raw' of its own; the items of a Bank of Rotate share one"):
        Bank([Rotate(None, 8, [2, 3]), Rotate(None, 8, [2, 3], part=1)])


def test_ragged_rows_and_padding_change_nothing() -> None:
    model, made = tiny.model(), LowRank(RAGGED[::-1], WIDTH, 3)
    with torch.no_grad():
        together = model.forward(RAGGED, edit=Edit(SITE, made, tokens="last")).logits
        for index, row in enumerate(RAGGED):
            one = made.with_source([RAGGED[::-1][index]])
            alone = model.forward([row], edit=Edit(SITE, one, tokens="last")).logits[0]
            torch.testing.assert_close(together[index, : len(row)], alone, rtol=1e-5, atol=1e-5)


def test_a_swap_of_another_source_too() -> None:
    made = Swap(Source(OTHER), dims=[1])
    again = made.with_source(EVEN)
    assert again.source.prompts is EVEN and again.dims is made.dims and made.source.prompts is OTHER
