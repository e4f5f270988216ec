"""Function: any module or function as an intervention, with what it asks for, and what of it can be saved."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.interventions import tiny
from tests.interventions.tiny import EVEN, OTHER, RAGGED, WIDTH
from torch import Tensor, nn

from inlay import Bank, Edit, Function, Source
from inlay.errors import EditError, FolderError

SITE = "resid_post.1"


def doubled(h: Tensor) -> Tensor:
    return 2 * h


def from_source(h: Tensor, source: Tensor) -> Tensor:
    return h + 0.5 * source


def from_input(h: Tensor, input: Tensor) -> Tensor:
    return h - 0.25 * input


def from_positions(h: Tensor, positions: Tensor) -> Tensor:
    return h * (1 + positions[..., None])


def from_all(h: Tensor, *, positions: Tensor, input: Tensor, source: Tensor) -> Tensor:
    return h + 0.5 * source - 0.25 * input + positions[..., None]


class LowRankUpdate(nn.Module):
    """h + x A B with x the module's input."""

    def __init__(self, width: int, into: int, rank: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.sizes = {"width": width, "into": into, "rank": rank, "seed": seed}
        self.down = nn.Parameter(torch.randn(into, rank, generator=generator))
        self.up = nn.Parameter(torch.randn(rank, width, generator=generator))

    def config(self) -> dict[str, Any]:
        return self.sizes

    def forward(self, h: Tensor, input: Tensor) -> Tensor:
        return h + input @ self.down @ self.up


class Gate(nn.Module):
    """Without constructor arguments, with a parameter, a buffer and a buffer that is not in the state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))
        self.register_buffer("bias", torch.zeros(WIDTH))
        self.register_buffer("ones", torch.ones(WIDTH), persistent=False)

    def forward(self, h: Tensor) -> Tensor:
        return h * self.weight.to(h) + self.bias.to(h) * self.ones.to(h)


class Bent(nn.Module):
    """With a constructor argument and no `config()`."""

    def __init__(self, slope: float = 0.1) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, h: Tensor) -> Tensor:
        return F.leaky_relu(h, self.slope)


class Tied(nn.Module):
    """One parameter under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.ones(WIDTH))
        self.b = self.a

    def forward(self, h: Tensor) -> Tensor:
        return h * self.a + self.b


# -- in a forward ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompts", [EVEN, RAGGED], ids=["one length", "padded"])
def test_a_function_of_the_state(prompts: list[list[int]]) -> None:
    model = tiny.model()
    got = model.forward(prompts, edit=Edit(SITE, doubled)).logits
    tiny.same_where_real(got, tiny.hooked(model.hf, prompts, 1, doubled), prompts)


@pytest.mark.parametrize("f", [torch.tanh, F.relu, torch.relu, nn.Tanh(), partial(F.leaky_relu, negative_slope=0.3)])
def test_functions_that_torch_has_already(f: Any) -> None:
    model = tiny.model()
    got = model.forward(EVEN, edit=Edit(SITE, f)).logits
    torch.testing.assert_close(got, tiny.hooked(model.hf, EVEN, 1, f))


def test_a_callable_object() -> None:
    class Scaled:
        def __call__(self, h: Tensor) -> Tensor:
            return 3 * h

    model = tiny.model()
    got = model.forward(EVEN, edit=Edit(SITE, Scaled())).logits
    torch.testing.assert_close(got, tiny.hooked(model.hf, EVEN, 1, lambda h: 3 * h))


def _hand(model: Any, prompts: list[list[int]], f: Any, *, source: bool, input: bool, positions: bool) -> Tensor:
    """Logits with `f` in a hook that collects the arguments by hand."""
    states = tiny.states(model.hf, OTHER, 1) if source else None
    at = tiny.padded(prompts)["position_ids"]

    def act(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        more: dict[str, Tensor | None] = {}
        if source:
            more["source"] = states
        if input:
            more["input"] = args[0]
        if positions:
            more["positions"] = at
        return f(output, **more)

    handle = tiny.block(model.hf, 1).register_forward_hook(act)
    try:
        return tiny.plain(model.hf, prompts)
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("f", "asks"),
    [
        (from_source, ("source",)),
        (from_input, ("input",)),
        (from_positions, ("positions",)),
        (from_all, ("source", "input", "positions")),
        (lambda h, positions, input: h + input * positions[..., None], ("input", "positions")),
        (lambda h, source, positions: h + source * positions[..., None], ("source", "positions")),
        (lambda h, source, input: h + source * input, ("source", "input")),
    ],
    ids=["source", "input", "positions", "all", "input, positions", "source, positions", "source, input"],
)
def test_it_gets_the_arguments_that_it_names(f: Any, asks: tuple[str, ...]) -> None:
    model = tiny.model()
    made = Function(f, Source(OTHER) if "source" in asks else None)
    assert made.needs == frozenset(asks)
    got = model.forward(EVEN, edit=Edit(SITE, made)).logits
    want = _hand(model, EVEN, f, **{name: name in asks for name in ("source", "input", "positions")})
    torch.testing.assert_close(got, want)
    if "source" not in asks:
        got = model.forward(RAGGED, edit=Edit(SITE, made)).logits
        want = _hand(model, RAGGED, f, source=False, input="input" in asks, positions="positions" in asks)
        tiny.same_where_real(got, want, RAGGED)


def test_positions_in_generation_count_from_the_first_real_token() -> None:
    model = tiny.model()
    new = model.generate(RAGGED, edit=Edit(SITE, from_positions), max_new_tokens=5, do_sample=False)
    for row, prompt in enumerate(RAGGED):
        ids = list(prompt)
        for _ in range(5):
            at = torch.arange(len(ids))[None, :, None]
            ids.append(int(tiny.hooked(model.hf, [ids], 1, lambda h, at=at: h * (1 + at))[0, -1].argmax()))
        assert new[row] == ids[len(prompt) :]


@pytest.mark.parametrize(
    ("site", "path", "into"),
    [
        ("attn_out.1", "model.layers.1.self_attn", 32),
        ("mlp_out.1", "model.layers.1.mlp", 32),
        ("module:model.layers.1.mlp.down_proj:out", "model.layers.1.mlp.down_proj", tiny.INNER),
        ("q.1", "model.layers.1.self_attn.q_proj", 32),
    ],
)
def test_a_low_rank_update_of_a_module(site: str, path: str, into: int) -> None:
    """h + x A B on a linear map equals the map with its weight changed."""
    hf = tiny.llama()
    model = inlay_of(hf)
    update = LowRankUpdate(WIDTH, into, 3)
    got = model.forward(EVEN, edit=Edit(site, update)).logits
    module = hf.get_submodule(path)

    def act(_: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        new = (output[0] if isinstance(output, tuple) else output) + x @ update.down @ update.up
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = module.register_forward_hook(act, with_kwargs=True)
    with torch.no_grad():
        want = tiny.plain(hf, EVEN)
    handle.remove()
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    if isinstance(module, nn.Linear):
        with torch.no_grad():
            module.weight += (update.down @ update.up).T
        torch.testing.assert_close(got, tiny.plain(hf, EVEN), rtol=1e-4, atol=1e-4)


def inlay_of(hf: Any) -> Any:
    import inlay

    return inlay.load(hf)


@pytest.mark.parametrize("banked", [False, True])
def test_the_input_of_a_module_on_flattened_tokens_has_rows(banked: bool) -> None:
    """OPT calls its fc2 on [rows x tokens, d]; the input comes as [rows, tokens, d] like the state."""
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    shape = {"vocab_size": tiny.VOCABULARY, "hidden_size": WIDTH, "ffn_dim": 48, "word_embed_proj_dim": WIDTH}
    hf = OPTForCausalLM(OPTConfig(**shape, num_hidden_layers=2, num_attention_heads=4, init_std=0.3)).eval()
    update = LowRankUpdate(WIDTH, 48, 3)
    made = Bank([Function(update)]) if banked else update
    rows = {"rows": [1, 0, 1, 1]} if banked else {}
    with torch.no_grad():
        got = inlay_of(hf).forward(EVEN, edit=Edit("mlp_out.1", made), **rows).logits
        base = hf(torch.tensor(EVEN)).logits
        hf.model.decoder.layers[1].fc2.weight += (update.down @ update.up).T
        want = hf(torch.tensor(EVEN)).logits
    if banked:
        assert torch.equal(got[1], base[1])
        want[1] = base[1]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0, [0.0, 1.0, -1.0, 0.5]])
def test_strength_scales_the_change(strength: Any) -> None:
    model = tiny.model()
    s = torch.tensor(strength).reshape(-1, 1, 1)
    got = model.forward(EVEN, edit=Edit(SITE, torch.nn.functional.relu), strength=strength).logits
    torch.testing.assert_close(got, tiny.hooked(model.hf, EVEN, 1, lambda h: h + s * (h.relu() - h)))


@pytest.mark.parametrize("strength", [None, 0.5])
def test_a_function_may_compute_in_another_dtype(strength: float | None) -> None:
    """What is computed in float32 or float64 is rounded to the state's dtype once."""
    for dtype in (torch.bfloat16, torch.float32):
        model = tiny.model(dtype=dtype)
        h = tiny.states(model.hf, EVEN, 1)
        edit = Edit(SITE, lambda h: 2 * h.double(), strength=strength)
        got = model.read(EVEN, SITE, edit=edit)[SITE]
        want = h.double() * (2.0 if strength is None else 1.5)
        assert got.dtype == dtype
        torch.testing.assert_close(got, want.to(dtype))


# -- modules -----------------------------------------------------------------------------------------------------------


def test_a_modules_parameters_train() -> None:
    model = tiny.model()
    model.hf.requires_grad_(False)
    update = LowRankUpdate(WIDTH, WIDTH, 2)
    edit = Edit("mlp_out.1", update)
    assert {id(p) for p in edit.parameters()} == {id(update.down), id(update.up)}
    model.forward(EVEN, edit=edit).logits[:, -1, 4].sum().backward()
    again = copy.deepcopy(update)
    again.zero_grad()
    module = model.hf.model.layers[1].mlp
    handle = module.register_forward_hook(lambda _, args, output: again(output, args[0]))
    model.hf(**tiny.padded(EVEN), use_cache=False).logits[:, -1, 4].sum().backward()
    handle.remove()
    assert bool(update.down.grad.any())
    torch.testing.assert_close(update.down.grad, again.down.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(update.up.grad, again.up.grad, rtol=1e-4, atol=1e-4)


def test_train_and_eval_reach_the_module() -> None:
    model, drop = tiny.model(), nn.Dropout(0.5)
    edit = Edit(SITE, drop)
    edit.eval()
    assert torch.equal(model.forward(EVEN, edit=edit).logits, tiny.plain(model.hf, EVEN))
    edit.train()
    assert not torch.equal(model.forward(EVEN, edit=edit).logits, model.forward(EVEN, edit=edit).logits)
    assert not model.hf.training


def test_what_the_module_becomes_later_counts() -> None:
    gate = Gate()
    model, edit = tiny.model(), Edit(SITE, gate)
    assert torch.equal(model.forward(EVEN, edit=edit).logits, tiny.plain(model.hf, EVEN))
    with torch.no_grad():
        gate.weight.fill_(2.0)
    torch.testing.assert_close(model.forward(EVEN, edit=edit).logits, tiny.hooked(model.hf, EVEN, 1, lambda h: 2 * h))


# -- on disk -----------------------------------------------------------------------------------------------------------


def _again(edit: Edit, tmp_path: Path) -> Edit:
    return Edit.from_pretrained(edit.save(tmp_path / "edit"))


@pytest.mark.parametrize("f", [doubled, from_input, from_positions, F.relu], ids=lambda f: f.__name__)
def test_a_function_at_the_top_of_a_module_is_found_again(f: Any, tmp_path: Path) -> None:
    model, edit = tiny.model(), Edit(SITE, f, "last", strength=0.5)
    again = _again(edit, tmp_path)
    assert again.parts[0].intervention.f is f
    assert torch.equal(model.forward(RAGGED, edit=again).logits, model.forward(RAGGED, edit=edit).logits)


def test_a_function_with_a_source_is_found_again(tmp_path: Path) -> None:
    model, edit = tiny.model(), Edit(SITE, Function(from_source, Source(OTHER, tokens="first")), "last")
    again = _again(edit, tmp_path)
    assert torch.equal(model.forward(RAGGED, edit=again).logits, model.forward(RAGGED, edit=edit).logits)


def test_a_module_with_arguments_is_found_again(tmp_path: Path) -> None:
    model, edit = tiny.model(), Edit("mlp_out.1", LowRankUpdate(WIDTH, WIDTH, 2, seed=9))
    again = _again(edit, tmp_path)
    assert type(again.parts[0].intervention.f) is LowRankUpdate
    assert torch.equal(model.forward(EVEN, edit=again).logits, model.forward(EVEN, edit=edit).logits)


def test_a_module_keeps_its_buffers_dtype_and_what_is_frozen(tmp_path: Path) -> None:
    gate = Gate()
    with torch.no_grad():
        gate.weight.copy_(torch.randn(WIDTH))
        gate.bias.copy_(torch.randn(WIDTH))
        gate.ones.fill_(3.0)
    gate = gate.to(torch.bfloat16)
    gate.weight.requires_grad_(False)
    again = _again(Edit(SITE, gate), tmp_path).parts[0].intervention.f
    assert again.weight.dtype == again.bias.dtype == torch.bfloat16
    assert not again.weight.requires_grad
    for name in ("weight", "bias", "ones"):
        assert torch.equal(getattr(again, name), getattr(gate, name))


def test_a_module_with_tied_parameters_is_found_again(tmp_path: Path) -> None:
    tied = Tied()
    with torch.no_grad():
        tied.a.mul_(3)
    again = _again(Edit(SITE, tied), tmp_path).parts[0].intervention.f
    assert again.a is again.b
    assert torch.equal(again.a, tied.a)


def test_modules_that_share_a_parameter_still_do(tmp_path: Path) -> None:
    one, two = Tied(), Tied()
    two.a = two.b = one.a
    edit = Edit("resid_post.0", one) + Edit("resid_post.1", two)
    again = Edit.from_pretrained(edit.save(tmp_path / "edit"))
    first, second = (part.intervention.f for part in again.parts)
    assert first is not second and first.a is first.b is second.a is second.b
    assert len(list(again.parameters())) == len(list(edit.parameters())) == 1


@pytest.mark.parametrize(
    "f",
    [lambda h: h, partial(doubled), nn.Linear(WIDTH, WIDTH), Bent(0.5)],
    ids=["lambda", "partial", "linear", "bent"],
)
def test_what_could_not_be_loaded_fails_at_save(f: Any, tmp_path: Path) -> None:
    """A module whose constructor takes arguments that it does not tell in `config()` could not be made again."""
    folder = tmp_path / "edit"
    with pytest.raises(EditError, match="cannot be saved"):
        Edit(SITE, f).save(folder)
    assert not folder.exists()


def test_a_local_function_and_a_local_class_fail_at_save(tmp_path: Path) -> None:
    def local(h: Tensor) -> Tensor:
        return h

    class Local(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return h

    for f in (local, Local()):
        with pytest.raises(EditError, match="cannot be saved: define it at the top level of an importable module"):
            Edit(SITE, f).save(tmp_path / "edit")


def test_a_function_that_is_gone_says_which(tmp_path: Path) -> None:
    folder = Edit(SITE, doubled).save(tmp_path / "edit")
    text = (folder / "edit.json").read_text()
    (folder / "edit.json").write_text(text.replace(":doubled", ":tripled"))
    with pytest.raises(FolderError, match=r":tripled' cannot be imported here; install the package that has it"):
        Edit.from_pretrained(folder)


def test_a_state_that_does_not_fit_the_module_says_so(tmp_path: Path) -> None:
    folder = Edit(SITE, LowRankUpdate(WIDTH, WIDTH, 2)).save(tmp_path / "edit")
    text = (folder / "edit.json").read_text()
    (folder / "edit.json").write_text(text.replace('"rank": 2', '"rank": 3'))
    with pytest.raises(FolderError, match="does not take the stored state"):
        Edit.from_pretrained(folder)


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("f", [3, "relu", None, [1.0]])
def test_what_cannot_be_called(f: Any) -> None:
    with pytest.raises(EditError, match="Function needs a function or a module, not"):
        Edit(SITE, f)


def test_a_source_for_a_function_that_takes_none() -> None:
    with pytest.raises(EditError, match="is given a source and has no parameter called 'source'"):
        Function(doubled, OTHER)


def test_a_function_of_a_source_that_is_given_none() -> None:
    with pytest.raises(EditError, match="source"):
        tiny.model().forward(EVEN, edit=Edit(SITE, from_source))


@pytest.mark.parametrize("strength", [None, 0.5])
@pytest.mark.parametrize("f", [lambda h: None, lambda h: (h, h), lambda h: 3.0], ids=["None", "tuple", "number"])
def test_what_returns_no_tensor(f: Any, strength: float | None) -> None:
    with pytest.raises(EditError, match=r"resid_post\.1.*returned"):
        tiny.model().forward(EVEN, edit=Edit(SITE, f, strength=strength))


@pytest.mark.parametrize("strength", [None, 0.5])
@pytest.mark.parametrize("f", [lambda h: h[:, :2], lambda h: h.mean(), lambda h: h[None]], ids=["cut", "mean", "more"])
def test_what_returns_another_shape(f: Any, strength: float | None) -> None:
    with pytest.raises(EditError, match=r"resid_post\.1.*returned \[.*\] for \[4, 4, 32\]"):
        tiny.model().forward(EVEN, edit=Edit(SITE, f, strength=strength))


def test_an_error_inside_comes_out_as_it_is_and_leaves_nothing() -> None:
    model = tiny.model()
    base = tiny.plain(model.hf, EVEN)

    def broken(h: Tensor) -> Tensor:
        raise ZeroDivisionError("inside")

    with pytest.raises(ZeroDivisionError, match="inside"):
        model.forward(EVEN, edit=Edit(SITE, broken))
    assert all("forward" not in m.__dict__ for m in model.hf.modules())
    assert torch.equal(tiny.plain(model.hf, EVEN), base)
