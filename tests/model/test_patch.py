"""Lifted without a trace: attributes, hooks, modes, configuration and weights are as before, whatever happened."""

from __future__ import annotations

import gc
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.model.tiny import FAMILIES, WIDTH, Record, block, frozen, padded, rows, tiny, words
from torch import Tensor, nn

import inlay
from inlay import Add, Bank, Edit, Mean, Noise, Scale, Source, Swap, Zero
from inlay.errors import EditError, InlayError, SiteError, TokensError
from inlay.model import patch

IDS = rows(5, 3)


@pytest.fixture(autouse=True)
def nothing_stands() -> Iterator[None]:
    yield
    assert patch.standing() == 0


def everywhere(model: inlay.Model) -> Edit:
    """An Edit with a part at every kind of Site that the model has."""
    names = [n for n in model.sites().places if n != "pattern"]
    parts = [Edit(f"{n}.1" if n not in ("embed", "final_norm", "logits") else n, Scale(0.9)) for n in names]
    if "pattern" in model.sites().places:
        parts.append(Edit("pattern.0", Scale(0.5)))
    return Edit.of(tuple(part for one in parts for part in one.parts))


class BoomError(Exception):
    pass


def fails(h: Tensor) -> Tensor:
    raise BoomError


def left(model: inlay.Model) -> None:
    with model.edited(everywhere(model)):
        model.hf(**padded(IDS))


def unused(model: inlay.Model) -> None:
    with pytest.warns(UserWarning, match="no forward of its model ran"), model.edited(everywhere(model)):
        pass


def nested(model: inlay.Model) -> None:
    with model.edited(everywhere(model)):
        with model.edited(everywhere(model)):
            model.hf(**padded(IDS))
        model.hf(**padded(IDS))


def raised_inside(model: inlay.Model) -> None:
    with pytest.raises(BoomError), model.edited(everywhere(model)):
        model.hf(**padded(IDS))
        raise BoomError


def raised_in_forward(model: inlay.Model) -> None:
    with pytest.raises(BoomError):
        model.forward(IDS, edit=everywhere(model) + Edit("resid_post.1", fails))


def raised_in_generate(model: inlay.Model) -> None:
    def late(h: Tensor, positions: Tensor) -> Tensor:
        if int(positions.max()) > 6:
            raise BoomError
        return h + 1

    with pytest.raises(BoomError):
        model.generate(IDS, edit=Edit("resid_post.1", late), max_new_tokens=8)


def raised_nested(model: inlay.Model) -> None:
    with model.edited(everywhere(model)):
        with pytest.raises(BoomError), model.edited(everywhere(model)):
            raise BoomError
        model.hf(**padded(IDS))


def refused(model: inlay.Model) -> None:
    with pytest.raises(TokensError):
        model.forward(IDS, edit=Edit("resid_post.1", Zero(), tokens=4))
    with pytest.raises(SiteError):
        model.forward(IDS, edit=Edit("resid_post.1", Add(torch.ones(WIDTH + 1))))
    with pytest.raises(EditError):
        model.forward(IDS, edit=Edit("resid_post.1", Zero(), tokens="response"))


def read_early(model: inlay.Model) -> None:
    model.read(IDS, "resid_pre.1", tokens="last", edit=Edit("embed", Scale(2.0)))


def read_everything(model: inlay.Model) -> None:
    model.read(IDS, [n if n in ("embed", "final_norm", "logits") else f"{n}.*" for n in model.sites().places])


def read_gradients(model: inlay.Model) -> None:
    model.read(IDS, ["resid_mid.*", "z.1"] if "resid_mid" in model.sites().places else "z.1", grads=True)


def sources(model: inlay.Model) -> None:
    source = Source(rows(5, 3, seed=1), edit=Edit("embed", Scale(2.0)))
    model.forward(IDS, edit=Edit("z.1", Swap(source)) + Edit("mlp_out.1", Mean(source)))


def resumed(model: inlay.Model) -> None:
    states = model.states(IDS, "resid_post.1", edit=Edit("embed", Scale(2.0)))
    model.resume(states, edit=Edit("resid_post.2", Noise(0.1)), read="logits")


def generated(model: inlay.Model) -> None:
    model.generate(IDS, edit=everywhere(model), max_new_tokens=3, do_sample=False)


def generated_by_beams(model: inlay.Model) -> None:
    bank = Bank([Add(torch.randn(WIDTH))])
    model.generate(IDS, edit=Edit("resid_post.1", bank), rows=[0, 1], max_new_tokens=3, num_beams=2)


def streamed(model: inlay.Model) -> None:
    list(model.generate(IDS[:1], edit=everywhere(model), max_new_tokens=3, stream=True))


def stream_closed(model: inlay.Model) -> None:
    pieces = model.generate(IDS[:1], edit=everywhere(model), max_new_tokens=30, stream=True)
    next(pieces)
    pieces.close()


def stream_dropped(model: inlay.Model) -> None:
    pieces = model.generate(IDS[:1], edit=everywhere(model), max_new_tokens=30, stream=True)
    next(pieces)
    del pieces
    gc.collect()


def stream_never_begun(model: inlay.Model) -> None:
    model.generate(IDS[:1], edit=everywhere(model), max_new_tokens=30, stream=True)


def stream_raised(model: inlay.Model) -> None:
    with pytest.raises(BoomError):
        list(model.generate(IDS[:1], edit=Edit("resid_post.1", fails), max_new_tokens=5, stream=True))


WAYS = [
    left, unused, nested, raised_inside, raised_in_forward, raised_in_generate, raised_nested, refused, read_early,
    read_everything, read_gradients, sources, resumed, generated, generated_by_beams, streamed, stream_closed,
    stream_dropped, stream_never_begun, stream_raised,
]  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> inlay.Model:
    made = frozen(request.param, tokenizer=words())
    made.hf(**padded(IDS), use_cache=False)  # whatever transformers sets up by itself at the first call
    made.generate(IDS, max_new_tokens=2)
    return made


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@torch.no_grad()
def test_no_trace(model: inlay.Model, way: Callable[[inlay.Model], None]) -> None:
    record = Record(model.hf)
    before = model.hf(**padded(IDS)).logits
    way(model)
    record.check()
    assert patch.standing() == 0
    assert torch.equal(model.hf(**padded(IDS)).logits, before)


@torch.no_grad()
def test_loading_leaves_no_trace() -> None:
    hf = tiny().train()
    hf.model.layers[0].eval()
    hf.model.embed_tokens.weight.requires_grad_(False)
    hf(**padded(IDS))
    record = Record(hf)
    inlay.load(hf).sites()
    record.check()


@torch.no_grad()
def test_no_trace_when_entering_fails_at_any_point(monkeypatch: pytest.MonkeyPatch) -> None:
    model = frozen()
    edit = everywhere(model)
    model.forward(IDS, edit=edit)
    record, put = Record(model.hf), patch.put
    counted: list[str] = []
    monkeypatch.setattr(patch, "put", lambda m, name, layer: (counted.append(name), put(m, name, layer)))
    model.forward(IDS, edit=edit)
    assert len(counted) > 10
    for fatal in range(len(counted)):
        left = [fatal]

        def failing(module: nn.Module, name: str, layer: Any, left: list[int] = left) -> None:
            if not left[0]:
                raise BoomError
            left[0] -= 1
            put(module, name, layer)

        monkeypatch.setattr(patch, "put", failing)
        run = model.edited(edit)
        with pytest.raises(BoomError), run:
            pass
        assert patch.standing() == 0
        record.check()


@torch.no_grad()
def test_inside_an_edit_only_forward_and_generate_are_shadowed() -> None:
    model = frozen()
    record = Record(model.hf)
    with model.edited(Edit("resid_post.1", Scale(2.0)) + Edit("z.0.h1", Zero())):
        for module in model.hf.modules():
            assert not module._forward_hooks and not module._forward_pre_hooks and not module._backward_hooks
        assert model.hf.state_dict().keys() == record.weights.keys()
        assert inspect.signature(model.hf.forward) == inspect.signature(type(model.hf).forward.__get__(model.hf))
        model.hf(**padded(IDS))
    record.check()


# -- the user's own hooks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "inside"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_user_hooks_fire_once_and_see_the_edited_value(family: str, when: str) -> None:
    model = frozen(family)
    hf, v = model.hf, torch.randn(WIDTH)
    batch = {**padded(IDS), "use_cache": False}
    with torch.no_grad():
        plain = model.forward(IDS, read="resid_post.0").acts["resid_post.0"]
    seen: dict[str, list[Tensor]] = {"pre": [], "out": [], "back": []}

    def first(value: Any) -> Tensor:
        return value[0] if isinstance(value, tuple) else value

    def register() -> list[Any]:
        here, above = block(hf, 0), block(hf, 1)
        return [
            here.register_forward_hook(lambda m, a, o: seen["out"].append(first(o).detach())),
            above.register_forward_pre_hook(lambda m, a: seen["pre"].append(a[0].detach())),
            above.register_full_backward_hook(lambda m, i, o: seen["back"].append(first(i))),
        ]

    vector = nn.Parameter(v)
    handles = register() if when == "before" else []
    with model.edited(Edit("resid_post.0", Add(vector))):
        handles = handles or register()
        for _ in range(2):
            hf(**batch).logits.sum().backward()
    real = batch["attention_mask"].bool()
    assert [len(values) for values in seen.values()] == [2, 2, 2]
    for name in ("pre", "out"):
        assert torch.equal(seen[name][0][real], (plain + v)[real])
    assert torch.allclose(vector.grad, sum(g.sum((0, 1)) for g in seen["back"]), atol=1e-4)
    for handle in handles:
        handle.remove()


@torch.no_grad()
def test_a_user_hook_that_changes_an_output_acts_after_the_edit_and_is_read_downstream() -> None:
    model = frozen()
    plain = model.forward(IDS[:1], read="resid_post.0").acts["resid_post.0"]
    handle = block(model.hf, 0).register_forward_hook(lambda m, a, o: o * 3)
    out = model.forward(IDS[:1], edit=Edit("resid_post.0", Scale(2.0)), read=["resid_post.0", "resid_pre.1"])
    assert torch.equal(out.acts["resid_post.0"], plain * 2)
    assert torch.equal(out.acts["resid_pre.1"], plain * 2 * 3)
    handle.remove()


@torch.no_grad()
def test_hooks_on_one_module_keep_their_count_through_every_way_of_leaving() -> None:
    model = frozen(tokenizer=words())
    calls: list[int] = []
    handle = block(model.hf, 0).register_forward_hook(lambda *_: calls.append(1))
    for way in (left, nested, raised_inside, read_early, resumed):
        way(model)
    calls.clear()
    model.hf(**padded(IDS))
    assert len(calls) == 1
    handle.remove()


# -- a forward of the user's own -------------------------------------------------------------------------------------


@torch.no_grad()
def test_an_instance_forward_of_the_users_runs_inside_and_is_restored() -> None:
    model = frozen()
    target = block(model.hf, 1).mlp
    original, calls = target.forward, []

    def own(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        return original(*args, **kwargs) * 2

    want = model.forward(IDS, read="mlp_out.1").acts["mlp_out.1"] * 2
    target.forward = own
    got = model.forward(IDS, edit=Edit("mlp_out.1", Scale(3.0)), read="mlp_out.1").acts["mlp_out.1"]
    assert torch.equal(got, want * 3)
    assert calls == [1] and target.__dict__["forward"] is own


@torch.no_grad()
def test_a_forward_that_the_user_sets_while_an_edit_stands_stays() -> None:
    model = frozen()
    target = block(model.hf, 1).mlp
    with model.edited(Edit("mlp_out.1", Scale(3.0))):
        model.hf(**padded(IDS))
        own = type(target).forward.__get__(target)
        target.forward = own
    assert target.__dict__["forward"] is own
    assert patch.standing() == 0


# -- layers by themselves --------------------------------------------------------------------------------------------


class Plus(patch.Layer):
    """Adds a number before and multiplies after, so that the order shows."""

    def __init__(self, here: patch.Here, number: int) -> None:
        super().__init__(here)
        self.number = self.order = number

    def before(self, args: patch.Args, kwargs: patch.Kwargs) -> tuple[patch.Args, patch.Kwargs]:
        return (args[0] * 10 + self.number, *args[1:]), kwargs

    def after(self, args: patch.Args, kwargs: patch.Kwargs, output: Any) -> Any:
        return output * 10 + self.number


def _here() -> patch.Here:
    made = patch.Here()
    made.on = True
    return made


def test_layers_act_in_the_order_of_their_runs() -> None:
    module = nn.Identity()
    layers = [Plus(_here(), k) for k in (1, 2, 3)]
    for k in (1, 0, 2):
        patch.put(module, "forward", layers[k])
    assert module(0) == 123123
    patch.lift(module, "forward", layers[1])
    assert module(0) == 1313
    for layer in (layers[0], layers[2]):
        patch.lift(module, "forward", layer)
    assert module(7) == 7 and "forward" not in module.__dict__


def test_a_layer_acts_only_in_its_own_thread() -> None:
    module, here = nn.Identity(), patch.Here()
    layer = Plus(here, 5)
    patch.put(module, "forward", layer)
    here.on = True
    got: list[int] = []
    other = threading.Thread(target=lambda: got.append(module(0)))
    other.start()
    other.join()
    assert module(0) == 55 and got == [0]
    patch.lift(module, "forward", layer)


@given(st.permutations(range(4)), st.booleans(), st.permutations(range(4)))
def test_layers_may_leave_in_any_order(order: list[int], had: bool, again: list[int]) -> None:
    module = nn.Identity()
    if had:
        module.forward = own = lambda x: x + 0.5
    layers = [Plus(_here(), k) for k in range(4)]
    for leaving in (order, again):
        for layer in layers:
            patch.put(module, "forward", layer)
        there = [0, 1, 2, 3]
        for k in leaving:
            patch.lift(module, "forward", layers[k])
            there.remove(k)
            digits = int("".join(map(str, there)) or "0")
            assert module(0) == (digits + (0.5 if had else 0)) * 10 ** len(there) + digits * bool(there)
        assert module.__dict__.get("forward") is (own if had else None)
    assert patch.standing() == 0


def test_every_error_of_ours_inside_a_context_is_an_inlay_error_and_leaves_nothing() -> None:
    model = frozen()
    record = Record(model.hf)
    with pytest.raises(InlayError, match="already in force"), model.edited(Edit("resid_post.1", Zero())) as run:
        run.__enter__()
    record.check()
