"""LoRA: its formula and gradients in float64, the input that it takes, its scale, Banks of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.interventions import tiny
from tests.interventions.tiny import EVEN, INNER, RAGGED, WIDTH
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import inlay
from inlay import Bank, Edit, LoRA
from inlay.errors import EditError, SiteError
from inlay.interventions.lora import widths
from inlay.model.call import Call

OUT = {"llama": "model.layers.1.mlp.down_proj", "gpt2": "transformer.h.1.attn.c_proj"}


def _trained(*args: Any, seed: int = 0, **options: Any) -> LoRA:
    made = LoRA(*args, seed=seed, **options)
    nn.init.normal_(made.up, std=0.3, generator=torch.Generator().manual_seed(seed + 100))
    return made


def _x(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_values_and_gradients_are_those_of_the_formula() -> None:
    made = _trained(7, 5, 2, alpha=6.0).double()
    down, up = (t.detach().clone().requires_grad_() for t in (made.down, made.up))
    strength = torch.tensor([1.0, -2.0], dtype=torch.float64).reshape(-1, 1, 1)
    mine, theirs = (_x(2, 3, 7, seed=1).requires_grad_() for _ in range(2))
    h = _x(2, 3, 5)
    got = made(h, Call(strength, input=mine))
    want = h + strength * torch.einsum("bti,ir,ro->bto", theirs, down, up) * 6.0 / 2
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    for one in (got, want):
        one.square().sum().backward()
    for a, b in ((mine.grad, theirs.grad), (made.down.grad, down.grad), (made.up.grad, up.grad)):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_it_starts_as_no_edit_and_as_peft_draws_it() -> None:
    made = LoRA(400, 300, 4)
    assert not bool(made.up.any()) and float(made.down.detach().abs().max()) <= 1 / 20
    assert abs(float(made.down.detach().std()) - 1 / 20 / 3**0.5) < 0.001, "uniform"
    assert torch.equal(made.down, LoRA(400, 300, 4).down) and not torch.equal(made.down, LoRA(400, 300, 4, seed=1).down)
    assert sum(p.numel() for p in made.parameters()) == 4 * 700


@pytest.mark.parametrize(
    ("options", "scale"),
    [({}, 1.0), ({"alpha": 32.0}, 8.0), ({"alpha": 32.0, "rslora": True}, 16.0), ({"alpha": 0.5}, 0.125)],
)
def test_the_scale(options: dict[str, Any], scale: float) -> None:
    made, plain = _trained(6, 5, 4, **options), _trained(6, 5, 4)
    given, h = _x(1, 2, 6).float(), torch.zeros(1, 2, 5)
    assert made.scale() == scale
    torch.testing.assert_close(made(h, Call(input=given)), scale * plain(h, Call(input=given)))


@pytest.mark.parametrize("family", OUT)
def test_in_a_model_it_takes_the_input_of_the_linear_module(family: str) -> None:
    hf = tiny.FAMILIES[family]()
    module = hf.get_submodule(OUT[family])
    made = _trained(*widths(module), 3)

    def act(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + 0.5 * args[0] @ made.down @ made.up

    with torch.no_grad():
        got = inlay.load(hf).forward(EVEN, edit=Edit(f"module:{OUT[family]}:out", made, strength=0.5)).logits
        handle = module.register_forward_hook(act)
        want = tiny.plain(hf, EVEN)
        handle.remove()
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert float((want - tiny.plain(hf, EVEN)).abs().max()) > 0.1


def test_named_sites_of_linear_modules_take_it_too() -> None:
    model, made = tiny.model(), _trained(WIDTH, WIDTH, 2)
    with torch.no_grad():
        got = model.forward(EVEN, edit=Edit("q.1", made)).logits
        want = model.forward(EVEN, edit=Edit("module:model.layers.1.self_attn.q_proj:out", made)).logits
    assert torch.equal(got, want)


def test_a_bank_of_loras_is_each_alone_in_value_and_gradient() -> None:
    model = tiny.model(dtype=torch.float64)
    site = f"module:{OUT['llama']}:out"
    items = [_trained(INNER, WIDTH, 2, alpha=4.0, seed=k).double() for k in range(3)]
    bank, rows = Bank(items), [2, 0, 3, 2]
    got = model.forward(RAGGED, edit=Edit(site, bank, tokens="prompt[1:]"), rows=rows).logits
    torch.stack([got[i, len(row) - 1].log_softmax(-1)[7] for i, row in enumerate(RAGGED)]).sum().backward()
    for index, row in enumerate(rows):
        edit = Edit(site, items[row - 1], tokens="prompt[1:]") if row else None
        logits = model.forward([RAGGED[index]], edit=edit).logits[0]
        torch.testing.assert_close(got[index, : len(logits)], logits, rtol=0, atol=1e-6)
        if row:
            logits[-1].log_softmax(-1)[7].backward()
    for name, table in bank.state().items():
        for row in (2, 3):
            torch.testing.assert_close(table.grad[row], items[row - 1].state()[name].grad, rtol=0, atol=1e-6)
        assert not bool(table.grad[:2].any())


def test_it_is_saved_with_its_scale(tmp_path: Path) -> None:
    edit = Edit(f"module:{OUT['llama']}:out", _trained(INNER, WIDTH, 4, alpha=8, rslora=True))
    again = Edit.from_pretrained(edit.save(tmp_path / "edit"))
    (part,) = again.parts
    assert part.intervention.scale() == 4.0 and part.intervention.down.dtype == torch.float32
    model = tiny.model(dtype=torch.bfloat16)
    assert torch.equal(model.forward(EVEN, edit=again).logits, model.forward(EVEN, edit=edit).logits)


@pytest.mark.parametrize(
    ("module", "want"),
    [(nn.Linear(3, 5, bias=False), (3, 5)), (Conv1D(5, 3), (3, 5)), (nn.Bilinear(3, 3, 5), None), (nn.ReLU(), None)],
)
def test_widths(module: nn.Module, want: tuple[int, int] | None) -> None:
    if want is None:
        with pytest.raises(EditError, match="linear modules"):
            widths(module)
    else:
        assert widths(module) == want


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: LoRA(4, 4, 0), "rank=0"),
        (lambda: LoRA(4, 4, 1, alpha=float("nan")), "alpha=nan"),
        (lambda: LoRA(4, 4, 1, rslora=True), "give alpha too"),
        (lambda: LoRA(4, 4, 1, dropout=2.0), "dropout=2.0"),
        (lambda: LoRA(4, 4, 1)(torch.zeros(1, 1, 4)), "has no input of its own"),
        (lambda: LoRA(4, 4, 1)(torch.zeros(1, 1, 4), Call(input=torch.zeros(1, 1, 3))), "input of width 3.*width 4"),
        (
            lambda: tiny.model().forward(EVEN, edit=Edit("resid_pre.1", LoRA(WIDTH, WIDTH, 1))),
            "resid_pre.1 has no input",
        ),
    ],
)
def test_arguments_and_places_that_do_not_fit_are_refused(make: Callable[[], Any], match: str) -> None:
    with pytest.raises(EditError, match=match):
        make()


def test_another_output_width_is_refused() -> None:
    with pytest.raises(SiteError, match=r"LoRA has width 48, and q\.1 has width 32"):
        tiny.model().forward(EVEN, edit=Edit("q.1", LoRA(WIDTH, INNER, 1)))
