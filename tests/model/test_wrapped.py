"""Models inside wrappers: accelerate's hooks and offloading, half precision, LoRA, data-parallel modules."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from accelerate.hooks import AlignDevicesHook, remove_hook_from_submodules
from peft import LoraConfig, PeftModel, get_peft_model
from tests.model.tiny import FAMILIES, WIDTH, Record, block, changed, changed_input, frozen, padded, rows, tiny, words
from torch import Tensor, nn

import inlay
from inlay import Ablate, Add, Bank, Clamp, Edit, Noise, Project, Replace, Scale, Source, Swap, Zero
from inlay.model import patch

PROMPTS = rows(6, 4)
BATCH = {**padded(PROMPTS), "use_cache": False}
SITES = [
    "embed",
    "resid_pre.*",
    "resid_mid.1",
    "attn_out.1",
    "mlp_out.1",
    "z.1",
    "q.1",
    "pattern.1",
    "final_norm",
    "logits",
]


def edits() -> dict[str, Edit]:
    v = torch.randn(WIDTH, generator=torch.Generator().manual_seed(0))
    return {
        "every layer": Edit("resid_post.*", Add(v), tokens="last2"),
        "several sites": Edit("resid_mid.1", Ablate(v)) + Edit("z.1.h1", Zero()) + Edit("q.0", Scale(2.0), tokens=0),
        "attention": Edit("pattern.1", Scale(0.5)) + Edit("k_rot.0", Scale(0.5)),
        "source": Edit("mlp_out.1", Swap(Source(rows(6, 4, seed=1)))),
        "ends": Edit("embed", Add(v)) + Edit("final_norm", Clamp(v, 1.0)) + Edit("logits", Scale(2.0)),
    }


# -- accelerate --------------------------------------------------------------------------------------------------------


def _hooked(hf: nn.Module, folder: Path) -> nn.Module:
    return dispatch_model(hf, {"": "cpu"}, force_hooks=True)


def _split(hf: nn.Module, folder: Path) -> nn.Module:
    parts = [
        "model.embed_tokens",
        *(f"model.layers.{k}" for k in range(3)),
        "model.norm",
        "model.rotary_emb",
        "lm_head",
    ]
    return dispatch_model(hf, dict.fromkeys(parts, "cpu"), force_hooks=True)


def _in_memory(hf: nn.Module, folder: Path) -> nn.Module:
    return cpu_offload(hf, torch.device("cpu"))


def _on_disk(hf: nn.Module, folder: Path) -> nn.Module:
    parts = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "disk"}
    layers = {"model.layers.0": "disk", "model.layers.1": "cpu", "model.layers.2": "disk"}
    return dispatch_model(hf, parts | layers, main_device="cpu", offload_dir=str(folder), force_hooks=True)


DISPATCH: dict[str, Callable[[nn.Module, Path], nn.Module]] = {
    "hooked": _hooked, "split": _split, "in memory": _in_memory, "on disk": _on_disk,
}  # fmt: skip


@pytest.mark.parametrize("when", ["before loading", "after loading"])
@pytest.mark.parametrize("how", DISPATCH)
@torch.no_grad()
def test_a_dispatched_model_equals_the_same_model_undispatched(how: str, when: str, tmp_path: Path) -> None:
    twin, hf = frozen(), tiny().requires_grad_(False)
    if when == "before loading":
        hf = DISPATCH[how](hf, tmp_path)
        model = inlay.load(hf)
    else:
        model = inlay.load(hf)
        DISPATCH[how](hf, tmp_path)
    hooked = [m for m in hf.modules() if isinstance(getattr(m, "_hf_hook", None), AlignDevicesHook)]
    assert hooked and (how not in ("in memory", "on disk") or any(p.device.type == "meta" for p in hf.parameters()))
    assert torch.equal(model.forward(PROMPTS).logits, twin.forward(PROMPTS).logits)
    record, offloaded = Record(hf), how in ("in memory", "on disk")
    for name, edit in edits().items():
        got, want = (m.forward(PROMPTS, edit=edit, read=SITES) for m in (model, twin))
        assert torch.equal(got.logits, want.logits), name
        assert got.touched == want.touched
        assert all(torch.equal(got.acts[site], want.acts[site]) for site in want.acts), name
        options = {"edit": edit, "max_new_tokens": 3, "do_sample": False} if name != "source" else {"max_new_tokens": 3}
        assert model.generate(PROMPTS, **options) == twin.generate(PROMPTS, **options), name
        record.check(offloaded)
    read = model.read(PROMPTS, "resid_post.1", edit=edits()["every layer"], tokens="last")
    assert torch.equal(
        read["resid_post.1"],
        twin.read(PROMPTS, "resid_post.1", edit=edits()["every layer"], tokens="last")["resid_post.1"],
    )
    states = model.states(PROMPTS, "resid_post.0")
    assert torch.equal(model.resume(states).logits, twin.forward(PROMPTS).logits)
    on_disk = model.read(PROMPTS, "resid_post.-1", out=tmp_path / "acts")
    assert torch.equal(on_disk["resid_post.-1"], twin.read(PROMPTS, "resid_post.-1")["resid_post.-1"])
    record.check(offloaded)
    if not offloaded:
        remove_hook_from_submodules(hf)
        assert torch.equal(hf(**BATCH).logits, twin.hf(**BATCH).logits)


@torch.no_grad()
def test_a_forward_that_raises_under_accelerates_hooks_leaves_them(tmp_path: Path) -> None:
    hf = _split(tiny(), tmp_path)
    model = inlay.load(hf)
    record = Record(hf)

    def fails(h: Tensor) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        model.forward(PROMPTS, edit=Edit("resid_post.1", fails) + edits()["attention"])
    record.check()
    assert patch.standing() == 0


# -- half precision ----------------------------------------------------------------------------------------------------

HALF = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_half_precision_stays_and_equals_a_hand_written_hook(family: str, dtype: torch.dtype) -> None:
    model = inlay.load(tiny(family).requires_grad_(False).to(dtype))
    v = torch.randn(WIDTH)
    u = v / v.norm()
    basis = torch.linalg.qr(torch.randn(WIDTH, 3))[0]
    here = block(model.hf, 1)

    def along(h: Tensor) -> Tensor:
        return (h.float() * u).sum(-1, keepdim=True)

    hooks: list[tuple[Any, Callable[[Tensor], Tensor]]] = [
        (Add(v), lambda h: h + v.to(dtype)),
        (Scale(0.3), lambda h: h * torch.tensor(0.3, dtype=dtype)),
        (Replace(v), lambda h: v.to(dtype).expand(h.shape)),
        (Ablate(v), lambda h: h - (along(h) * u).to(dtype)),
        (Clamp(v, 1.0), lambda h: h + ((1.0 - along(h)) * u).to(dtype)),
        (Project(basis), lambda h: h - ((h.float() @ basis) @ basis.T).to(dtype)),
        (nn.Linear(WIDTH, WIDTH).to(dtype), None),
    ]
    for intervention, hook in hooks:
        with changed(here, hook or intervention):
            want = model.hf(**BATCH).logits
        out = model.forward(PROMPTS, edit=Edit("resid_post.1", intervention), read=["resid_post.1", "z.1", "logits"])
        tolerance = 0.0 if hook is None or isinstance(intervention, (Add, Scale, Replace)) else _step(want)
        torch.testing.assert_close(out.logits, want, rtol=0.0, atol=tolerance)
        assert out.logits.dtype == dtype and all(t.dtype == dtype for t in out.acts.values())


def _step(values: Tensor) -> float:
    """A few units in the last place of the largest value: another order of summation may round the other way."""
    return 4 * float(values.abs().max()) * torch.finfo(values.dtype).eps


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_a_trainable_float32_vector_on_a_half_precision_model(dtype: torch.dtype) -> None:
    model = inlay.load(tiny().requires_grad_(False).to(dtype))
    add = Add(nn.Parameter(torch.randn(WIDTH)))
    bank = Bank([Add(nn.Parameter(torch.randn(WIDTH))) for _ in range(2)])
    edit = Edit("resid_post.0", add, strength=0.5) + Edit("mlp_out.1", bank) + Edit("attn_out.1", Noise(0.1))
    out = model.forward(PROMPTS, edit=edit, rows=[2, 0], strength=[1.0, 2.0], loss=True)
    assert out.logits.dtype == dtype
    out.loss.float().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in edit.parameters())
    gradient = bank.state()["vector"].grad
    assert float(gradient[2].abs().max()) > 0 and float(gradient[:2].abs().max()) == 0


@pytest.mark.parametrize("dtype", HALF, ids=str)
@torch.no_grad()
def test_edits_inside_attention_in_half_precision(dtype: torch.dtype) -> None:
    model = inlay.load(tiny(attn_implementation="eager").requires_grad_(False).to(dtype))
    plain = model.forward(PROMPTS).logits
    one = model.forward(PROMPTS, edit=Edit("pattern.1", Scale(1.0)) + Edit("k_rot.1", Scale(1.0)))
    torch.testing.assert_close(one.logits, plain, rtol=0.0, atol=_step(plain))
    assert one.logits.dtype == dtype
    assert model.generate(PROMPTS, edit=Edit("pattern.1", Scale(0.5)), max_new_tokens=3)


# -- LoRA --------------------------------------------------------------------------------------------------------------

TARGETS = {"llama": ["q_proj", "o_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"]}


def adapted(family: str = "llama", **more: Any) -> PeftModel:
    config, hf = LoraConfig(r=4, target_modules=TARGETS[family], init_lora_weights=False, **more), tiny(family)
    torch.manual_seed(3)
    return get_peft_model(hf, config).eval()


def mlp(hf: Any, layer: int) -> nn.Module:
    return block(hf, layer).mlp


@pytest.mark.parametrize("family", TARGETS)
@torch.no_grad()
def test_lora_reads_and_writes_equal_hand_written_hooks(family: str) -> None:
    peft = adapted(family)
    base = peft.get_base_model()
    model, v = inlay.load(peft, tokenizer=words()), torch.randn(WIDTH)
    here = block(base, 1)
    attention = here.attn if family == "gpt2" else here.self_attn
    q, z = (attention.c_attn, attention.c_proj) if family == "gpt2" else (attention.q_proj, attention.o_proj)
    seen: dict[str, Tensor] = {}
    handles = [
        q.register_forward_hook(lambda m, a, o: seen.update(q=o[..., :WIDTH])),
        z.register_forward_pre_hook(lambda m, a: seen.update(z=a[0])),
        here.register_forward_hook(lambda m, a, o: seen.update(post=o[0] if isinstance(o, tuple) else o)),
    ]
    acts = model.forward(PROMPTS[:1], read=["q.1", "z.1", "resid_post.1"]).acts
    for handle in handles:
        handle.remove()
    assert torch.equal(acts["q.1"].flatten(2), seen["q"])
    assert torch.equal(acts["z.1"].flatten(2), seen["z"])
    assert torch.equal(acts["resid_post.1"], seen["post"])
    for edit, hook in (
        (Edit("resid_post.1", Add(v)), lambda: changed(here, lambda h: h + v)),
        (Edit("z.1", Scale(3.0)), lambda: changed_input(z, lambda h: h * 3)),
        (Edit("mlp_out.1", Zero()), lambda: changed(mlp(base, 1), torch.zeros_like)),
    ):
        with hook():
            want = peft(**BATCH).logits
        with model.edited(edit):
            assert torch.equal(peft(**BATCH).logits, want)
        with peft.disable_adapter():
            with hook():
                bare = peft(**BATCH).logits
            with model.edited(edit):
                assert torch.equal(peft(**BATCH).logits, bare)
        assert not torch.equal(bare, want)


@torch.no_grad()
def test_lora_generates_under_an_edit_as_its_merged_model_does() -> None:
    peft = adapted()
    merged = inlay.load(copy.deepcopy(peft).merge_and_unload())
    model = inlay.load(peft)
    for edit in (None, *edits().values()):
        if edit is not None and any(part.intervention.sources() for part in edit.parts):
            continue
        options = {"edit": edit, "max_new_tokens": 5, "do_sample": False}
        assert model.generate(PROMPTS, **options) == merged.generate(PROMPTS, **options)
        torch.testing.assert_close(
            model.forward(PROMPTS, edit=edit).logits, merged.forward(PROMPTS, edit=edit).logits, rtol=1e-4, atol=1e-4
        )


@torch.no_grad()
def test_lora_put_on_after_loading() -> None:
    model = inlay.load(tiny())
    v, before = torch.randn(WIDTH), model.forward(PROMPTS).logits
    torch.manual_seed(3)
    peft = get_peft_model(model.hf, LoraConfig(r=4, target_modules=TARGETS["llama"], init_lora_weights=False)).eval()
    twin = inlay.load(adapted())
    edit = Edit("resid_post.1", Add(v)) + Edit("q.1.h2", Zero()) + Edit("pattern.0", Scale(0.5))
    want = twin.forward(PROMPTS, edit=edit, read=["q.1", "resid_post.1"])
    got = model.forward(PROMPTS, edit=edit, read=["q.1", "resid_post.1"])
    assert torch.equal(got.logits, want.logits)
    assert all(torch.equal(got.acts[site], want.acts[site]) for site in want.acts)
    with model.edited(edit):
        assert torch.equal(peft(**padded(PROMPTS), use_cache=False).logits, want.logits)
    peft.unload()
    assert torch.equal(model.forward(PROMPTS).logits, before)


def test_gradients_of_adapters_with_an_edit_in_force() -> None:
    v = torch.randn(WIDTH)
    gradients: list[dict[str, Tensor | None]] = []
    for by_hand in (True, False):
        peft = adapted().train()
        model = inlay.load(peft)
        here = block(peft.get_base_model(), 0)
        context = changed(here, lambda h: h + v) if by_hand else model.edited(Edit("resid_post.0", Add(v)))
        with context:
            peft(**BATCH, labels=BATCH["input_ids"]).loss.backward()
        gradients.append({name: p.grad for name, p in peft.named_parameters()})
        assert any(p.requires_grad for p in peft.parameters())
    for name, want in gradients[0].items():
        got = gradients[1][name]
        assert (got is None) == (want is None) == ("lora" not in name)
        assert want is None or got is None or torch.equal(got, want)


@pytest.mark.parametrize("reentrant", [None, True, False])
def test_the_hook_of_enable_input_require_grads_survives(reentrant: bool | None) -> None:
    def gradients(edit: Edit | None) -> dict[str, Tensor]:
        peft = adapted().train()
        base = peft.get_base_model()
        base.enable_input_require_grads()
        if reentrant is not None:
            base.activation_checkpointing_enable({"use_reentrant": reentrant})
        hooks = dict(base.model.embed_tokens._forward_hooks)
        model = inlay.load(peft)
        record = Record(base)
        with model.edited(edit) if edit else nullcontext():
            loss = peft(**BATCH, labels=BATCH["input_ids"]).loss
        record.check()
        assert dict(base.model.embed_tokens._forward_hooks) == hooks and hooks
        loss.backward()
        return {name: p.grad for name, p in peft.named_parameters() if p.requires_grad}

    plain, one = gradients(None), gradients(Edit("resid_post.0", Scale(1.0)) + Edit("z.1", Scale(1.0)))
    assert plain and all(torch.equal(one[name], gradient) for name, gradient in plain.items())
    other = gradients(Edit("resid_post.0", Scale(2.0)))
    assert not all(torch.equal(other[name], gradient) for name, gradient in plain.items())


@torch.no_grad()
def test_modules_that_peft_saves_whole_keep_their_sites() -> None:
    peft = adapted(modules_to_save=["lm_head", "embed_tokens"])
    model = inlay.load(peft)
    plain = model.forward(PROMPTS, read=["embed", "logits"])
    assert torch.equal(plain.acts["logits"][plain.mask.bool()], plain.logits[plain.mask.bool()])
    out = model.forward(PROMPTS, edit=Edit("logits", Scale(2.0)))
    assert torch.equal(out.logits, plain.logits * 2)
    base = peft.get_base_model()
    with changed(base.model.embed_tokens, lambda h: h + 1):
        want = peft(**BATCH).logits
    with model.edited(Edit("embed", Add(torch.ones(WIDTH)))):
        assert torch.equal(peft(**BATCH).logits, want)


# -- data-parallel modules ---------------------------------------------------------------------------------------------


def _ddp(hf: nn.Module) -> nn.Module:
    from torch.distributed import init_process_group
    from torch.nn.parallel import DistributedDataParallel
    from torch.testing._internal.distributed.fake_pg import FakeStore

    init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    return DistributedDataParallel(hf)


@pytest.fixture(params=["DataParallel", "DistributedDataParallel"])
def parallel(request: pytest.FixtureRequest) -> Any:
    if request.param == "DataParallel":
        yield nn.DataParallel(tiny())
        return
    if not torch.distributed.is_available():
        pytest.skip("this torch is built without torch.distributed")
    yield _ddp(tiny())
    torch.distributed.destroy_process_group()


def test_data_parallel_wrappers(parallel: nn.Module) -> None:
    twin, model, edit = inlay.load(tiny()), inlay.load(parallel), edits()["several sites"]
    assert model.base is parallel.module
    got, want = (m.forward(PROMPTS, edit=edit, read="resid_post.1", loss=True) for m in (model, twin))
    assert torch.equal(got.logits, want.logits)
    assert torch.equal(got.acts["resid_post.1"], want.acts["resid_post.1"])
    if isinstance(parallel, nn.DataParallel):  # a fake process group reduces no gradients
        got.loss.backward()
        want.loss.backward()
    for one, other in zip(parallel.module.parameters(), twin.hf.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        if other.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=1e-7)
    with torch.no_grad():
        assert torch.equal(model.read(PROMPTS, "z.1")["z.1"], twin.read(PROMPTS, "z.1")["z.1"])
    assert patch.standing() == 0
