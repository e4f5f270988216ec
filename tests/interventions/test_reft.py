"""ReFT's kinds: their formulas and gradients in float64, the algebra of the paper, and what training must not break."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.interventions import tiny
from tests.interventions.tiny import EVEN, RAGGED, WIDTH
from torch import Tensor, nn

import inlay
from inlay import Bank, ConsReFT, DiReFT, Edit, LobiReFT, LoReFT, NoReFT, OrthoDiReFT
from inlay.errors import EditError, FolderError
from inlay.interventions import families
from inlay.interventions.reft_base import ACTIVATIONS, ReFT
from inlay.interventions.trained_families import orthonormal_groups
from inlay.model.call import Call

SITE = "resid_post.1"
KINDS: dict[str, type[ReFT]] = {
    kind.__name__: kind for kind in (LoReFT, DiReFT, NoReFT, OrthoDiReFT, ConsReFT, LobiReFT)
}
each = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
State = dict[str, Tensor]


def _h(seed: int = 5, rows: int = 3) -> Tensor:
    return torch.randn(rows, 4, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _moved(made: Any, by: float = 0.1, seed: int = 3) -> Any:
    """Away from its start, so that X is not orthonormal and U = R^T must be made of it."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in made.parameters():
            tensor.add_(by * torch.randn(tensor.shape, generator=draws).to(tensor))
    return made


def _close(a: Tensor, b: Tensor, by: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=by)


def gram_schmidt(x: Tensor) -> Tensor:
    """Orthonormal columns by the schoolbook: what the QR with a positive diagonal is."""
    columns: list[Tensor] = []
    for one in x.unbind(1):
        for other in columns:
            one = one - (one @ other) * other
        columns.append(one / one.norm())
    return torch.stack(columns, 1)


def paper(kind: str, s: State, h: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
    """The change of one state h [d], as in the table of formulas, written with W [r, d] and R [r, d] of the paper."""
    rotation = gram_schmidt(s["raw"]).T if "raw" in s else None
    weight = s["down"].T if "down" in s else None
    up = s.get("up")
    if kind == "LoReFT":
        return rotation.T @ (f(weight @ h + s["bias"]) - rotation @ h)
    if kind == "DiReFT":
        return up.T @ f(weight @ h + s["bias"])
    if kind == "NoReFT":
        return up.T @ (f(weight @ h + s["bias"]) - up @ h)
    if kind == "OrthoDiReFT":
        return rotation.T @ f(weight @ h + s["bias"])
    if kind == "ConsReFT":
        return rotation.T @ (s["bias"] - rotation @ h)
    return rotation.T @ s["bias"]


def _twins(kind: type[ReFT], activation: str) -> tuple[ReFT, State]:
    more = {"activation": activation} if "down" in kind.holds else {}
    made = _moved(kind(WIDTH, 4, **more)).double()
    return made, {name: t.detach().clone().requires_grad_() for name, t in made.state().items()}


# -- formulas ----------------------------------------------------------------------------------------------------------


PAIRS = [(kind, f) for kind in KINDS.values() for f in ACTIVATIONS if f == "identity" or "down" in kind.holds]


@pytest.mark.parametrize(("kind", "activation"), PAIRS)
def test_values_and_gradients_are_those_of_the_papers_formula(kind: type[ReFT], activation: str) -> None:
    made, state = _twins(kind, activation)
    mine, theirs = (_h().requires_grad_() for _ in range(2))
    strength = torch.tensor([1.0, -0.5, 3.0], dtype=torch.float64).reshape(-1, 1, 1)
    f = ACTIVATIONS[activation] or (lambda x: x)
    got = made(mine, Call(strength))
    change = torch.stack([torch.stack([paper(kind.__name__, state, x, f) for x in row]) for row in theirs])
    want = theirs + strength * change
    _close(got, want)
    weights = torch.randn(got.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (got * weights).sum().backward()
    (want * weights).sum().backward()
    _close(mine.grad, theirs.grad)
    for name, tensor in made.named_parameters():
        _close(tensor.grad, state[name].grad, 1e-11)


def test_what_loreft_sets_along_its_directions() -> None:
    made, h = _moved(LoReFT(WIDTH, 4, activation="tanh")).double(), _h()
    with torch.no_grad():
        new, basis = made(h), made.basis()
        inside = (h @ made.down + made.bias).tanh()
    _close(basis.T @ basis, torch.eye(4, dtype=torch.float64))
    _close(new @ basis, inside)
    _close((new - h) - (new - h) @ basis @ basis.T, torch.zeros_like(h))


def test_it_is_affine_in_the_state_and_at_rank_1_without_w_and_b_repes_projection() -> None:
    made, h = _moved(LoReFT(WIDTH, 4)).double(), _h()
    basis = made.basis()
    with torch.no_grad():
        by = torch.eye(WIDTH, dtype=torch.float64) - basis @ basis.T + made.down @ basis.T
        _close(made(h), h @ by + made.bias @ basis.T)
        one = LoReFT(WIDTH, 1).double()
        one.down.zero_()
        one.bias.zero_()
        a = 3 * one.raw[:, 0]
        _close(one(h), h - (h @ a)[..., None] / (a @ a) * a)


def test_consreft_twice_is_consreft_once_and_lobireft_twice_is_twice() -> None:
    h = _h()
    with torch.no_grad():
        cons, lobi = _moved(ConsReFT(WIDTH, 4)).double(), _moved(LobiReFT(WIDTH, 4)).double()
        _close(cons(cons(h)), cons(h))
        _close(lobi(lobi(h)) - h, 2 * (lobi(h) - h))


@pytest.mark.parametrize("groups", [None, {"de": 3, "instr": 2}])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_started_as_the_identity_it_is_no_edit_bit_for_bit(family: str, groups: Any) -> None:
    hf, rank = tiny.FAMILIES[family](), None if groups else 5
    model, plain = inlay.load(hf), tiny.plain(hf, EVEN)
    for made in (
        LoReFT(WIDTH, rank, init="identity", groups=groups),
        DiReFT(WIDTH, rank, init="identity", groups=groups),
    ):
        assert torch.equal(model.forward(EVEN, edit=Edit(SITE, made)).logits, plain)
        model.forward(EVEN, edit=Edit(SITE, made)).logits[:, -1, 3].sum().backward()
        assert any(float(p.grad.abs().max()) > 0 for p in made.parameters()), "it can leave where it starts"
    assert not torch.equal(model.forward(EVEN, edit=Edit(SITE, LoReFT(WIDTH, 5))).logits, plain)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_in_a_model_it_equals_the_formula_in_a_hook(family: str) -> None:
    hf, made = tiny.FAMILIES[family](), _moved(LoReFT(WIDTH, 4))
    state = {name: t.detach() for name, t in made.state().items()}

    def change(h: Tensor) -> Tensor:
        return h + torch.stack([torch.stack([paper("LoReFT", state, x, lambda y: y) for x in row]) for row in h])

    with torch.no_grad():
        got = inlay.load(hf).forward(EVEN, edit=Edit(SITE, made)).logits
    torch.testing.assert_close(got, tiny.hooked(hf, EVEN, 1, change), rtol=1e-5, atol=1e-5)


# -- size --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "width", "rank", "copies", "count"),
    [
        (LoReFT, 4096, 8, 32, 2_097_408),
        (LoReFT, 5120, 8, 40, 3_277_120),
        (LoReFT, 4096, 4, 4 * 2, 262_176),
        (LoReFT, 768, 1, 12, 18_444),
        (LoReFT, 1024, 1, 24, 49_176),
        (LoReFT, 4096, 4, 1, 32_772),
        (ConsReFT, 4096, 1, 1, 4_097),
        (DiReFT, 4096, 4, 1, 32_772),
        (NoReFT, 4096, 4, 1, 32_772),
        (OrthoDiReFT, 4096, 4, 1, 32_772),
        (LobiReFT, 4096, 1, 1, 4_097),
    ],
)
def test_parameters_are_as_many_as_the_papers(kind: Any, width: int, rank: int, copies: int, count: int) -> None:
    assert copies * sum(p.numel() for p in kind(width, rank).parameters()) == count


@pytest.mark.parametrize("banked", [False, True])
@each
def test_nothing_of_width_x_width_exists(kind: type[ReFT], banked: bool) -> None:
    width, sizes = 300, []
    made: Any = kind(width, 4)
    call, state = Call(), made.state()
    if banked:
        made = Bank([made, kind(width, 4, seed=1)])
        rows = torch.tensor([1, 2])
        gathered = {name: t[rows] for name, t in made.state().items()}
        state = {"rows": rows, **{n: t[:, None] if t.ndim == 2 else t for n, t in gathered.items()}}

    def note(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        new = made.transform(torch.randn(2, 5, width), made.prepare(state), call)
    new.sum().backward()
    most = max(sizes + [t.numel() for t in made.state().values()])
    assert most <= 3 * 4 * width < width * width, "three rows of a table [K + 1, width, rank]"


# -- precision and training --------------------------------------------------------------------------------------------


@each
def test_parameters_stay_in_float32_beside_a_half_precision_model(kind: type[ReFT]) -> None:
    made = _moved(kind(WIDTH, 4))
    before = copy.deepcopy(made.state())
    made.to(torch.bfloat16).half()
    assert all(torch.equal(t, before[name]) and t.dtype == torch.float32 for name, t in made.state().items())
    h = _h().to(torch.bfloat16)
    with torch.no_grad():
        change = made(h.float()) - h.float()
        _close((made(h) - (h + change.to(torch.bfloat16))).float(), torch.zeros(h.shape), 0.07)
        tiny_change = 1e-3 * change
        assert torch.equal(families.moved(h, tiny_change), h + tiny_change.to(torch.bfloat16))
    model = tiny.model(dtype=torch.bfloat16)
    model.forward(EVEN, edit=Edit(SITE, made)).logits.float()[:, -1, 3].sum().backward()
    assert all(p.grad.dtype == torch.float32 and float(p.grad.abs().max()) > 0 for p in made.parameters())


@pytest.mark.parametrize("decay", [0.0, 0.01, 0.1])
@pytest.mark.parametrize("groups", [None, {"a": 2, "b": 2}])
def test_directions_stay_orthonormal_in_training_whatever_the_weight_decay(decay: float, groups: Any) -> None:
    made = LoReFT(64, None if groups else 4, groups=groups)
    optimiser = torch.optim.AdamW(made.parameters(), lr=1e-2, weight_decay=decay)
    h, start = torch.randn(8, 4, 64), made.basis()
    target = torch.randn(8, 4, 64)
    for _ in range(100):
        optimiser.zero_grad()
        (made(h) - target).square().mean().backward()
        optimiser.step()
    basis = made.basis()
    _close(basis.T @ basis, torch.eye(4), 1e-5)
    assert float((basis - start).abs().max()) > 0.05
    longer = copy.deepcopy(made)
    longer.raw.data *= 7
    _close(longer.basis(), basis, 1e-6)


def test_the_basis_is_made_once_a_forward_and_kept_while_nobody_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = families.orthonormal
    monkeypatch.setattr(families, "orthonormal", lambda raw: calls.append(raw.shape) or real(raw))
    model, made = tiny.model(), LoReFT(WIDTH, 4)
    calls.clear()
    edit = Edit("resid_post.*", made, tokens="prompt")
    with torch.no_grad():
        for _ in range(3):
            model.forward(EVEN, edit=edit)
    assert calls == [(WIDTH, 4)]
    model.forward(EVEN, edit=edit)
    assert len(calls) == 2, "three layers, one basis"


# -- groups ------------------------------------------------------------------------------------------------------------

GROUPS = {"de": 3, "instr": 2, "style": 1}


def _grouped(kind: type[ReFT] = LoReFT) -> Any:
    return _moved(kind(WIDTH, groups=GROUPS)).double()


@each
def test_groups_read_one_state_and_add_up_to_the_whole(kind: type[ReFT]) -> None:
    whole, h = _grouped(kind), _h()
    with torch.no_grad():
        parts = [whole.part(name)(h) - h for name in GROUPS]
        _close(sum(parts), whole(h) - h)
        _close(whole.part("de", "style")(h) - h, parts[0] + parts[2])
        _close(whole.part(*GROUPS)(h), whole(h))
    assert all(float(part.abs().max()) > 1e-3 for part in parts)


def test_the_directions_of_all_groups_are_orthonormal() -> None:
    whole = _grouped()
    bases = torch.cat([whole.part(name).basis() for name in GROUPS], 1)
    _close(bases.T @ bases, torch.eye(6, dtype=torch.float64))
    _close(bases, whole.basis())
    _close(bases, gram_schmidt(whole.raw.detach()))
    raw = torch.randn(2, WIDTH, 6, dtype=torch.float64)
    raw[..., 3] = raw[..., 0] + 1e-7 * raw[..., 3]
    near = orthonormal_groups(raw, [3, 2, 1])
    _close(near.mT @ near, torch.eye(6, dtype=torch.float64).expand(2, -1, -1))


@each
def test_a_groups_loss_has_no_gradient_in_the_others(kind: type[ReFT]) -> None:
    whole, h = _grouped(kind), _h()
    start = 0
    for name, size in GROUPS.items():
        whole.zero_grad()
        (whole.part(name)(h).tanh() * h).sum().backward()
        mine = torch.zeros(6, dtype=torch.bool)
        mine[start : start + size] = True
        start += size
        for key, tensor in whole.named_parameters():
            columns = tensor.grad if key == "up" else tensor.grad.movedim(-1, 0)
            assert not bool(columns[~mine].any()), f"{name}: {key}"
            assert bool(columns[mine].any())


def test_training_a_group_moves_no_earlier_one() -> None:
    whole, h = _grouped(), _h()
    before = {name: whole.part(name).basis() for name in GROUPS}
    first = whole.part("de")(h).detach()
    optimiser = torch.optim.SGD(whole.parameters(), lr=0.1)
    for _ in range(5):
        optimiser.zero_grad()
        whole.part("instr")(h).square().sum().backward()
        optimiser.step()
    assert torch.equal(whole.part("de").basis(), before["de"]) and torch.equal(whole.part("de")(h), first)
    assert float((whole.part("instr").basis() - before["instr"]).abs().max()) > 1e-3


def test_rows_of_a_bank_name_their_groups() -> None:
    whole = _moved(LoReFT(WIDTH, groups=GROUPS))
    parts = [whole.part("de"), whole.part("instr", "style"), whole.part(*GROUPS)]
    bank, model = Bank(parts), tiny.model()
    assert sum(p.numel() for p in bank.parameters()) == sum(p.numel() for p in whole.parameters())
    edit = Edit(SITE, bank, tokens="prompt")
    with torch.no_grad():
        got = model.forward(EVEN, edit=edit, rows=[3, 1, 0, 2]).logits
        want = [model.forward(EVEN, edit=Edit(SITE, parts[k])).logits for k in (2, 0, 1)]
        assert torch.equal(got[2], model.forward(EVEN).logits[2])
    for row, each in ((0, want[0]), (1, want[1]), (3, want[2])):
        torch.testing.assert_close(got[row], each[row], rtol=1e-5, atol=1e-5)
    model.forward(EVEN[:1], edit=edit, rows=[2]).logits[:, -1, 5].sum().backward()
    (raw,) = [p for p in bank.parameters() if p is whole.raw]
    assert not bool(raw.grad[:, :3].any()) and bool(raw.grad[:, 3:].any())


def test_groups_survive_a_folder_and_keep_sharing(tmp_path: Path) -> None:
    whole = _moved(DiReFT(WIDTH, groups=GROUPS, activation="gelu", dropout=0.25))
    edit = Edit(SITE, whole.part("de"), tokens="prompt") + Edit(SITE, whole.part("style"), tokens="last")
    again = Edit.from_pretrained(edit.save(tmp_path / "edit"))
    first, second = (part.intervention for part in again.parts)
    assert repr(first) == repr(edit.parts[0].intervention) and "part=['de']" in repr(first)
    assert first.groups == GROUPS and second.down is first.down and len(list(again.parameters())) == 3
    assert (first.activation, first.dropout, first.training) == ("gelu", 0.25, False)
    edit.eval()
    model = tiny.model()
    assert torch.equal(model.forward(EVEN, edit=again).logits, model.forward(EVEN, edit=edit).logits)


# -- banks -------------------------------------------------------------------------------------------------------------


@each
def test_a_bank_of_eight_is_each_alone_in_value_and_gradient(kind: type[ReFT]) -> None:
    model = tiny.model(dtype=torch.float64)
    items = [_moved(kind(WIDTH, 3, seed=k), seed=k).double() for k in range(8)]
    bank, rows = Bank(items), [5, 8, 1, 4]
    edit = Edit(SITE, bank, tokens="ends(2, 1)")
    got = model.forward(RAGGED, edit=edit, rows=rows).logits
    losses = [got[i, len(row) - 1].log_softmax(-1)[7] for i, row in enumerate(RAGGED)]
    torch.stack(losses).sum().backward()
    for index, row in enumerate(rows):
        alone = items[row - 1]
        logits = model.forward([RAGGED[index]], edit=Edit(SITE, alone, tokens="ends(2, 1)")).logits[0]
        _close(got[index, : len(logits)], logits, 1e-6)  # the model's norms are computed in float32
        logits[-1].log_softmax(-1)[7].backward()
        for name, table in bank.state().items():
            _close(table.grad[row], alone.state()[name].grad, 1e-6)
    unused = [k for k in range(9) if k not in rows]
    assert all(not bool(table.grad[unused].any()) for table in bank.parameters())


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: LoReFT(WIDTH, 0), "0 columns do not fit"),
        (lambda: DiReFT(WIDTH, WIDTH + 1), "33 columns do not fit"),
        (lambda: LoReFT(WIDTH), r"rank=None, groups=None"),
        (lambda: LoReFT(WIDTH, 5, groups={"a": 4}), r"rank=5, groups=\{'a': 4\}"),
        (lambda: LoReFT(WIDTH, groups={}), r"groups=\{\}.*number of columns"),
        (lambda: LoReFT(WIDTH, groups={"a": 0}), "number of columns"),
        (lambda: LoReFT(WIDTH, 4, activation="swish"), "activation='swish'.*one of identity, relu"),
        (lambda: LoReFT(WIDTH, 4, init="zero"), "init='zero'.*'random' or 'identity'"),
        (lambda: LoReFT(WIDTH, 4, "relu", init="identity"), "needs activation='identity', not 'relu'"),
        (lambda: LoReFT(WIDTH, 4, dropout=1.0), "dropout=1.0"),
        (lambda: LoReFT(WIDTH, 4).part("de"), "has the groups of none"),
        (lambda: LoReFT(WIDTH, groups={"de": 4}).part("nl"), r"\('nl',\).*has the groups de"),
        (lambda: LoReFT(WIDTH, groups={"de": 4}).part(), "has the groups de"),
        (lambda: Bank([LoReFT(WIDTH, groups={"de": 4}), LoReFT(WIDTH, groups={"de": 4})]), "share one"),
        (lambda: Bank([LoReFT(WIDTH, 4), LoReFT(WIDTH, 3)]), "item 1 has tensors"),
        (lambda: Bank([LoReFT(WIDTH, 4), LoReFT(WIDTH, 4, activation="relu")]), "configured unlike"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(make: Callable[[], Any], match: str) -> None:
    with pytest.raises(EditError, match=match):
        make()


def test_a_damaged_folder_is_refused(tmp_path: Path) -> None:
    folder = Edit(SITE, LoReFT(WIDTH, groups={"de": 4})).save(tmp_path / "edit")
    card = (folder / "edit.json").read_text()
    (folder / "edit.json").write_text(card.replace('"groups": {\n          "de": 4\n        }', '"groups": null'))
    assert (folder / "edit.json").read_text() != card
    with pytest.raises(FolderError, match="has groups None and holds"):
        Edit.from_pretrained(folder)


def test_it_starts_from_its_seed() -> None:
    for kind in KINDS.values():
        a, b, c = kind(WIDTH, 4, seed=1), kind(WIDTH, 4, seed=1), kind(WIDTH, 4, seed=2)
        assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
        assert not any(torch.equal(x, y) for x, y in zip(a.parameters(), c.parameters(), strict=True))
        assert all(isinstance(p, nn.Parameter) and p.dtype == torch.float32 for p in a.parameters())
    linear = LoReFT(4096, 8)
    assert float(linear.down.detach().abs().max()) <= 1 / 64 and float(linear.down.detach().std()) * 64 > 0.5
    bias = ConsReFT(WIDTH, 16).bias.detach()
    assert bool(((bias >= 0) & (bias < 1)).all())


# -- what the paper shows ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "rank", "count"), [(ConsReFT, 1, 65), (LoReFT, 4, 516), (DiReFT, 4, 516)])
def test_one_position_memorises_a_text(kind: Any, rank: int, count: int, shared: Path) -> None:
    """The paper's memorisation (appendix F.1) on a small model: the last prompt token alone is edited, at one layer."""
    model = inlay.load(str(shared / "data/models/stories260K"))
    model.hf.requires_grad_(False)
    prompt = model.tokenizer("Once upon a time, there was a little girl named").input_ids
    text = "Once upon a time, there was a big bear."
    target = model.tokenizer(text, add_special_tokens=False).input_ids[:8]
    ids, made, steps = torch.tensor([prompt + target]), kind(64, rank), 400
    edit, prompted = Edit("resid_post.1", made, tokens="last"), torch.arange(ids.shape[1])[None] < len(prompt)
    optimiser = torch.optim.AdamW(made.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, steps)
    for _ in range(steps):
        with model.edited(edit, prompt_mask=prompted):
            logits = model.hf(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        loss = nn.functional.cross_entropy(logits, torch.tensor(target))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    options = {"max_new_tokens": 8, "do_sample": False}
    want = model.tokenizer.decode(target)
    assert model.generate([prompt], edit=edit, **options) == [want] != model.generate([prompt], **options)
    assert float(loss.detach()) < 0.1 and sum(p.numel() for p in made.parameters()) == count
