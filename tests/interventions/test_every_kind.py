"""What holds for every kind of intervention alike.

Nothing beside what was selected changes, a swap with itself changes nothing, and copies, folders and Banks do the same
as the original.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from tests.interventions import tiny
from tests.interventions.tiny import EVEN, OTHER, RAGGED, WIDTH
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import inlay
from inlay import (
    RED,
    SAE,
    Ablate,
    Add,
    Affine,
    Angular,
    Bank,
    BasisSwap,
    Boundless,
    Clamp,
    Conceptor,
    ConsReFT,
    DiReFT,
    Edit,
    Function,
    Intervention,
    KeepNorm,
    LatentSet,
    LatentSwap,
    LobiReFT,
    LoRA,
    LoReFT,
    LowRank,
    Mask,
    Mean,
    Noise,
    NoReFT,
    NullOut,
    OrthoDiReFT,
    Project,
    ReluGate,
    Replace,
    Rotate,
    RotateMask,
    Scale,
    SetAlong,
    Skip,
    Source,
    Steer,
    Swap,
    TopKAdd,
    Zero,
)
from inlay.errors import EditError, SiteError
from inlay.model.call import Call

SITE = "resid_post.1"


def _v(seed: int = 0) -> Tensor:
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))


def _m(rank: int, seed: int = 0) -> Tensor:
    return torch.randn(WIDTH, rank, generator=torch.Generator().manual_seed(seed))


def bent(h: Tensor) -> Tensor:
    return h.tanh()


def between(h: Tensor, source: Tensor) -> Tensor:
    return h + 0.5 * (source - h).tanh()


_SAE = SAE(_m(50), _v()[:1].expand(50), _m(50, 1).T, _v(2), threshold=torch.rand(50))
_FIRST = Rotate(None, WIDTH, [2, 3])
_GROUPS = LoReFT(WIDTH, groups={"de": 2, "instr": 3})


def _trained(made: Any) -> Any:
    """With what starts as no edit moved away from there."""
    with torch.no_grad():
        for seed, name in enumerate(("scale", "up")):
            if name in made.state():
                tensor = made.state()[name]
                tensor.add_(0.3 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed)))
    return made


PLAIN: dict[str, Callable[[], Intervention]] = {
    "add": lambda: Add(_v()),
    "add dims": lambda: Add(_v(), dims=[1, 7]),
    "clamp": lambda: Clamp(_v(), 5.0, 6.0),
    "ablate": lambda: Ablate(_v()),
    "project": lambda: Project(_m(3)),
    "replace": lambda: Replace(_v()),
    "zero": lambda: Zero(dims=[3, 4]),
    "scale": lambda: Scale(2.0),
    "noise": lambda: Noise(0.5, seed=1),
    "mean": lambda: Mean(_v()),
    "function": lambda: Function(bent),
    "skip": lambda: Skip(),
    "latent set": lambda: LatentSet(_SAE, [3, 40], 4.0),
    "keep norm": lambda: KeepNorm(Add(_v())),
    "angular": lambda: Angular(_v(), _v(1), 100.0),
    "affine": lambda: Affine(torch.eye(WIDTH) + 0.1 * _m(WIDTH), _v()),
    "affine scale": lambda: Affine(1 + 0.3 * _v(), _v(1)),
    "loreft": lambda: LoReFT(WIDTH, 4, activation="tanh"),
    "loreft group": lambda: _GROUPS.part("instr"),
    "direft": lambda: DiReFT(WIDTH, 4),
    "noreft": lambda: NoReFT(WIDTH, 4, activation="relu"),
    "ortho direft": lambda: OrthoDiReFT(WIDTH, 4),
    "consreft": lambda: ConsReFT(WIDTH, 4),
    "lobireft": lambda: LobiReFT(WIDTH, 4),
    "red": lambda: _trained(RED(WIDTH)),
    "lora": lambda: _trained(LoRA(WIDTH, WIDTH, 3, alpha=8, rslora=True)),
    "steer": lambda: Steer(_v()),
    "null out": lambda: NullOut(_v(), 4.0),
    "top k add": lambda: TopKAdd(_v(), k=2),
    "set along": lambda: SetAlong(_v()),
    "relu gate": lambda: ReluGate(_v(), 2.0, _v(1)),
    "conceptor": lambda: Conceptor.fit(_m(WIDTH), aperture=0.5),
}
FROM: dict[str, Callable[[Any], Intervention]] = {
    "swap": lambda source: Swap(source),
    "swap dims": lambda source: Swap(source, dims=[1, 7]),
    "add": lambda source: Add(source, dims=[1, 7]),
    "mean": lambda source: Mean(source),
    "function": lambda source: Function(between, source),
    "skip": lambda source: Skip(source),
    "low rank": lambda source: LowRank(source, WIDTH, 4),
    "rotate": lambda source: _FIRST.part(1, source),
    "boundless": lambda source: Boundless(source, WIDTH, temperature=1.0),
    "rotate mask": lambda source: RotateMask(source, WIDTH, max_rank=20),
    "mask": lambda source: Mask(source, WIDTH),
    "basis swap": lambda source: BasisSwap(source, torch.linalg.qr(_m(5)).Q, [0, 3], 1 + torch.rand(WIDTH)),
    "latent swap": lambda source: LatentSwap(source, _SAE, [3, 40, 7]),
    "keep norm": lambda source: KeepNorm(LowRank(source, WIDTH, 4)),
}
ALL = PLAIN | {f"{name} of a source": lambda make=make: make(Source(OTHER)) for name, make in FROM.items()}
each = pytest.mark.parametrize("make", ALL.values(), ids=ALL)


_model = functools.cache(tiny.model)  # an edit leaves no trace on it
_plain = functools.cache(lambda: tiny.states(tiny.llama(), EVEN, 1))


def _read(intervention: Intervention, tokens: Any = "all", **more: Any) -> Tensor:
    with torch.no_grad():
        return _model().read(EVEN, SITE, edit=Edit(SITE, intervention, tokens=tokens), **more)[SITE]


def test_every_kind_is_here() -> None:
    ours = {kind for kind in Intervention.kinds.values() if kind.__module__.startswith("inlay.")}
    assert {type(make()) for make in ALL.values()} == ours - {Bank}


# -- what must not change ----------------------------------------------------------------------------------------------

INTERCHANGES = {name: make for name, make in FROM.items() if name not in ("add", "mean", "skip")}


@pytest.mark.parametrize("name", INTERCHANGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_swap_with_itself_changes_nothing(name: str, dtype: torch.dtype) -> None:
    model = _model(dtype=dtype)
    with torch.no_grad():
        got = model.forward(EVEN, edit=Edit(SITE, INTERCHANGES[name](EVEN))).logits
    want = tiny.plain(model.hf, EVEN)
    if name.startswith("swap"):
        assert torch.equal(got, want)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("make", [make for name, make in ALL.items() if name != "set along"])  # whose 0 is a target
def test_it_changes_something_and_at_strength_zero_no_bit(make: Callable[[], Intervention]) -> None:
    plain = _plain()
    assert float((_read(make()) - plain).abs().max()) > 1e-2
    assert torch.equal(_read(make(), strength=0.0), plain)
    mixed = _read(make(), strength=[0.0, 1.0, 0.0, 1.0])
    assert torch.equal(mixed[[0, 2]], plain[[0, 2]]) and not torch.equal(mixed[[1, 3]], plain[[1, 3]])


@each
def test_positions_that_are_not_selected_keep_every_bit(make: Callable[[], Intervention]) -> None:
    plain, got = _plain(), _read(make(), tokens=2)
    others = [0, 1, 3]
    assert torch.equal(got[:, others], plain[:, others])
    assert not torch.equal(got[:, 2], plain[:, 2])


@pytest.mark.parametrize("name", [name for name in ALL if " dims" in name or name in ("zero", "add of a source")])
def test_dimensions_that_are_not_selected_keep_every_bit(name: str) -> None:
    made = ALL[name]()
    mine = made.state()["dims"].tolist()
    others = [d for d in range(WIDTH) if d not in mine]
    plain, got = _plain(), _read(made)
    assert torch.equal(got[..., others], plain[..., others])
    assert not torch.equal(got[..., mine], plain[..., mine])


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_nothing_that_it_is_given_is_written_to(make: Callable[[], Intervention], dtype: torch.dtype) -> None:
    made, (h, source, before) = make(), [torch.randn(2, 4, WIDTH).to(dtype) for _ in range(3)]
    state = {name: tensor.clone() for name, tensor in made.state().items()}
    kept = [tensor.clone() for tensor in (h, source, before)]
    with torch.no_grad():
        new = made(h, Call(source=source if made.source else None, input=before))
    assert new.dtype == dtype and new.shape == h.shape
    assert all(torch.equal(a, b) for a, b in zip((h, source, before), kept, strict=True))
    assert all(torch.equal(tensor, state[name]) for name, tensor in made.state().items())
    alias = {t.untyped_storage().data_ptr() for t in (h, before)}
    assert new.untyped_storage().data_ptr() not in alias, "the model may write into what it gets"


@each
def test_padding_changes_nothing(make: Callable[[], Intervention]) -> None:
    made = make()
    rows = RAGGED if made.source is None else RAGGED[:3]
    if made.source is not None:
        made = made.with_source([*RAGGED[1:3], RAGGED[0]])
    model = _model()
    got = model.read(rows, SITE, tokens="last", edit=Edit(SITE, made, tokens="last"))[SITE]
    for index, row in enumerate(rows):
        one = made
        if made.source is not None and not made.pooled:
            one = made.with_source([made.source.prompts[index]])
        alone = model.read([row], SITE, tokens="last", edit=Edit(SITE, one, tokens="last"))[SITE][0]
        torch.testing.assert_close(got[index], alone, rtol=1e-4, atol=1e-5)


# -- copies, folders, Banks --------------------------------------------------------------------------------------------


@each
def test_copied_and_stored_it_does_the_same_bit_for_bit(make: Callable[[], Intervention], tmp_path: Path) -> None:
    made = make()
    edit = Edit(SITE, made)
    want, twin = _read(made), copy.deepcopy(edit)
    again = Edit.from_pretrained(edit.save(tmp_path / "edit"))
    for other in (twin, again):
        (part,) = other.parts
        assert type(part.intervention) is type(made) and repr(part.intervention) == repr(made)
        assert torch.equal(_read(part.intervention), want)
        assert [(n, p.requires_grad, p.dtype) for n, p in other.named_parameters()] == [
            (n, p.requires_grad, p.dtype) for n, p in edit.named_parameters()
        ]
        shared = {p.data_ptr() for p in edit.parameters()} & {p.data_ptr() for p in other.parameters()}
        assert not shared


@each
def test_a_row_of_a_bank_does_the_same(make: Callable[[], Intervention]) -> None:
    made = make()
    twin = made if made.shares else copy.deepcopy(made)
    if made.source is not None and twin is not made:
        twin = twin.with_source(made.source)
    got, plain = _read(Bank([made, twin]), rows=[1, 0, 2, 1]), _plain()
    torch.testing.assert_close(got[[0, 2, 3]], _read(made)[[0, 2, 3]], rtol=1e-5, atol=1e-5)
    assert torch.equal(got[1], plain[1])


@pytest.mark.parametrize(
    "name", [name for name, make in ALL.items() if any(p.requires_grad for p in make().parameters())]
)
def test_what_trains_gets_gradients_and_gives_them_back(name: str) -> None:
    model, made = tiny.model(), copy.deepcopy(ALL[name]())
    model.hf.requires_grad_(False)
    model.forward(EVEN, edit=Edit(SITE, made)).logits[:, -1, 7].sum().backward()
    parameters = list(made.parameters())
    assert parameters and all(float(p.grad.abs().max()) > 0 for p in parameters)
    made.zero_grad()
    assert all(p.grad is None for p in parameters)
    assert all(p.grad is None for p in model.hf.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["latent set", "keep norm", "boundless of a source", "skip of a source", "loreft group", "top k add", "lora"],
)
def test_compiled_it_breaks_no_graph_alone_or_in_a_bank(name: str) -> None:
    torch._dynamo.reset()
    hf = tiny.llama(num_hidden_layers=2)
    call = torch.compile(hf, backend=CompileCounterWithBackend("eager"), fullgraph=True)
    model, twin = inlay.load(call), inlay.load(tiny.llama(num_hidden_layers=2))
    batch, made = {**tiny.padded(EVEN), "use_cache": False}, ALL[name]()
    for edit, more in ((Edit(SITE, made), {}), (Edit(SITE, Bank([made])), {"rows": [1, 0, 1, 1]})):
        with torch.no_grad():
            with model.edited(edit, **more):
                got = call(**batch).logits
            with twin.edited(edit, **more):
                assert torch.equal(got, twin.hf(**batch).logits)
    torch._dynamo.reset()


# -- bad input ---------------------------------------------------------------------------------------------------------


@each
def test_another_width_is_refused(make: Callable[[], Intervention]) -> None:
    made = make()
    if made.width() is not None:
        with pytest.raises(SiteError, match=r"width 32.*mlp_act\.0.*width 48"):
            _model().forward(EVEN, edit=Edit("mlp_act.0", made))


NAN = torch.full((WIDTH,), float("nan"))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Add(NAN),
        lambda: Affine(NAN),
        lambda: Angular(NAN, _v(), 1.0),
        lambda: BasisSwap(None, NAN[:, None]),
        lambda: LowRank.of(NAN[:, None]),
        lambda: Conceptor(NAN[:, None] * torch.eye(WIDTH)),
        lambda: LatentSet(_SAE, [1], float("nan")),
        lambda: Affine(nn.Parameter(NAN)),
        lambda: Steer(NAN),
        lambda: NullOut(_v(), float("nan")),
        lambda: TopKAdd(NAN),
        lambda: ReluGate(_v(), 0.0, NAN),
        lambda: LoRA(2, 2, 1, alpha=float("inf")),
    ],
)
def test_values_that_are_not_finite_are_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(EditError, match=r"NaN|finite"):
        make()


@pytest.mark.parametrize("name", [name for name in FROM if name != "function"])
def test_on_a_bare_tensor_it_says_where_it_runs(name: str) -> None:
    with pytest.raises(EditError, match="inside a model's forward"):
        FROM[name](Source(OTHER))(torch.zeros(1, 1, WIDTH))
