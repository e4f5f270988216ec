"""torch.compile: an edit is seen and lifted without a graph break, and its vector or strength may change for free."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch._dynamo
from tests.model.tiny import WIDTH, Record, frozen, padded, rows, tiny
from torch import Tensor, nn
from torch._dynamo.eval_frame import _stance as default_stance
from torch._dynamo.testing import CompileCounterWithBackend

import inlay
from inlay import Ablate, Add, Bank, Clamp, Edit, Mean, Noise, Project, Replace, Scale, Source, Swap, Zero
from inlay.model import patch

BATCH = {**padded(rows(6, 4), "left"), "use_cache": False}
WAYS = ("model", "forward", "blocks", "block forwards")


def ways(*fast: str, out_of: tuple[str, ...] = WAYS) -> pytest.MarkDecorator:
    """Ways to compile, of which those that are not `fast` are left to the slow tests."""
    return pytest.mark.parametrize("way", [w if w in fast else pytest.param(w, marks=pytest.mark.slow) for w in out_of])


LIMITS = {"recompile_limit": 64, "accumulated_recompile_limit": 512}  # blocks share their code


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch._dynamo.reset()
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)  # pytest would format all of it
    with torch._dynamo.config.patch(LIMITS):
        yield
    torch.compiler.set_stance("default")
    torch._dynamo.reset()


class Compiled:
    """A tiny Llama compiled in one way, a twin with the same weights that is not, and a count of compiled frames."""

    def __init__(self, way: str, backend: str = "eager", **changes: Any) -> None:
        self.counter = CompileCounterWithBackend(backend)
        self.twin = frozen(num_hidden_layers=2, **changes)
        hf = tiny(num_hidden_layers=2, **changes).requires_grad_(False)
        options: dict[str, Any] = {"backend": self.counter, "fullgraph": True}
        self.call = torch.compile(hf, **options) if way == "model" else hf
        if way == "forward":
            hf.forward = torch.compile(hf.forward, **options)
        for block in hf.model.layers:
            if way == "blocks":
                block.compile(**options)
            elif way == "block forwards":
                block.forward = torch.compile(block.forward, **options)
        self.hf, self.model = hf, inlay.load(self.call)

    @property
    def frames(self) -> int:
        return self.counter.frame_count

    def logits(self, batch: dict[str, Any] = BATCH) -> Tensor:
        with torch.no_grad():
            return self.call(**batch).logits

    def check(self, edit: Edit | None = None, batch: dict[str, Any] = BATCH, **more: Any) -> tuple[Tensor, int]:
        """The compiled model's logits, equal to the twin's, and how many frames were compiled for them."""
        before = self.frames
        if edit is None:
            got = self.logits(batch)
            with torch.no_grad():
                want = self.twin.hf(**batch).logits
        else:
            with self.model.edited(edit, **more):
                got = self.logits(batch)
            with self.twin.edited(edit, **more), torch.no_grad():
                want = self.twin.hf(**batch).logits
        assert torch.equal(got, want)
        return got, self.frames - before


def vector(seed: int = 0) -> Tensor:
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))


@ways("model", "blocks")
def test_an_edit_set_after_compiling_is_seen_and_lifted(way: str) -> None:
    one = Compiled(way)
    plain, first = one.check()
    assert first > 0
    edited, _ = one.check(Edit("resid_post.1", Add(vector())))
    assert not torch.equal(edited, plain)
    again, new = one.check()
    assert torch.equal(again, plain) and new == 0
    other, new = one.check(Edit("resid_post.1", Add(vector(1))))
    assert not torch.equal(other, edited) and new == 0
    assert one.check()[1] == 0
    assert patch.standing() == 0


@ways("model")
def test_vectors_strengths_and_rows_change_without_a_recompile(way: str) -> None:
    one = Compiled(way)
    one.check()
    changes: dict[str, list[tuple[Edit, dict[str, Any]]]] = {
        "part strength": [(Edit("resid_post.0", Add(vector(k)), strength=1.0 + k), {}) for k in range(3)],
        "call strength": [(Edit("resid_post.0", Add(vector(k))), {"strength": 1.0 + k}) for k in range(3)],
        "row strength": [(Edit("resid_post.0", Add(vector(k))), {"strength": [1.0 + k, 0.5]}) for k in range(3)],
        "bank rows": [
            (Edit("resid_post.0", Bank([Add(vector(k)), Add(vector(5 + k))])), {"rows": rows})
            for k, rows in enumerate([[1, 2], [0, 1], [2, 2]])
        ],
        "masked": [(Edit("resid_post.0", Add(vector(k)), tokens="first2+last1"), {}) for k in range(3)],
    }
    for name, variants in changes.items():
        seen = []
        for k, (edit, more) in enumerate(variants):
            got, new = one.check(edit, **more)
            assert new == 0 or k == 0, f"{name}: variant {k} compiled {new} frames"
            seen.append(got)
        assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])
        assert one.check()[1] == 0


@ways(out_of=("model", "blocks"))
def test_tokens(way: str) -> None:
    one = Compiled(way)
    plain, _ = one.check()
    right = {**padded(rows(6, 4)), "use_cache": False}
    prompt = torch.tensor([[0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0]]).bool()
    for tokens in ("all", "prompt", "last", "first2+last1", -2, [0, 1], slice(1, None), "prompt[1:]"):
        edit = Edit("z.1.h1", Zero(), tokens=tokens)
        edited, _ = one.check(edit)
        assert not torch.equal(edited, plain)
        one.check(edit, right)
        one.check(edit, prompt_mask=prompt)
    one.check(Edit("z.1.h1", Zero(), tokens="response[1:]"), prompt_mask=prompt)
    assert one.check()[1] == 0


KINDS: list[tuple[str, Callable[[], Any]]] = [
    ("resid_mid.1", lambda: Ablate(vector())),
    ("q_rot.0", lambda: Scale(0.3)),
    ("pattern.1", lambda: Scale(0.3)),
    ("resid_post.0", lambda: Swap(Source(rows(6, 4, seed=1)))),
    ("resid_pre.1", lambda: Clamp(vector(), 1.0)),
    ("resid_post.*", lambda: Project(torch.eye(WIDTH)[:, :3])),
    ("attn_out.0", lambda: Replace(vector())),
    ("mlp_out.1", lambda: Mean(vector())),
    ("q.1.h3", lambda: Scale(0.3)),
    ("k_rot.1.h1", lambda: Scale(0.3)),
    ("resid_post.0", lambda: Noise(0.5)),
    ("resid_post.0", lambda: nn.Linear(WIDTH, WIDTH)),
    ("resid_post.0", lambda: lambda h: h.tanh()),
    ("embed", lambda: Zero(dims=[1, 3])),
    ("final_norm", lambda: Add(vector())),
    ("logits", lambda: Scale(2.0)),
    ("module:model.layers.1.mlp.gate_proj:out", lambda: Scale(2.0)),
]


@pytest.mark.parametrize("kinds", [KINDS[:4], pytest.param(KINDS[4:], marks=pytest.mark.slow)], ids=["some", "others"])
@ways("model", out_of=("model", "blocks"))
def test_kinds_and_sites(way: str, kinds: list[tuple[str, Callable[[], Any]]]) -> None:
    one = Compiled(way)
    plain, _ = one.check()
    for site, intervention in kinds:
        edit = Edit(site, intervention())
        edited, _ = one.check(edit)
        assert not torch.equal(edited, plain), edit
        again, new = one.check(edit)
        assert torch.equal(again, edited) and new == 0, edit
        assert torch.equal(one.check()[0], plain), edit


@ways("model", out_of=("model", "blocks"))
def test_nested_edits(way: str) -> None:
    one = Compiled(way)
    outer, inner = Edit("resid_post.0", Scale(3.0)), Edit("resid_post.0", Add(vector())) + Edit("z.1", Zero())
    one.check(inner)
    with one.model.edited(outer), one.twin.edited(outer):
        nested, _ = one.check(inner)
        one.check()
    want, _ = one.check(outer + inner)
    assert torch.equal(nested, want)


@ways("model", out_of=("model", "forward", "blocks"))
def test_forward_read_and_resume_of_a_compiled_model(way: str) -> None:
    one, prompts, edit = Compiled(way), rows(6, 4), Edit("resid_post.0", Add(vector()))
    sites = ["resid_pre.*", "z.1", "logits"]
    with torch.no_grad():
        for model_edit in (None, edit):
            got = one.model.forward(prompts, edit=model_edit, read=sites)
            want = one.twin.forward(prompts, edit=model_edit, read=sites)
            assert torch.equal(got.logits, want.logits)
            assert all(torch.equal(got.acts[name], want.acts[name]) for name in want.acts)
            early = one.model.read(prompts, "resid_post.0", edit=model_edit)
            assert torch.equal(
                early["resid_post.0"], one.twin.read(prompts, "resid_post.0", edit=model_edit)["resid_post.0"]
            )
            states = one.model.states(prompts, "resid_post.0", edit=model_edit)
            assert torch.equal(one.model.resume(states).logits, want.logits)
    one.check()


@ways(out_of=("forward", "blocks"))
def test_generation_by_a_compiled_model(way: str) -> None:
    one = Compiled(way)
    for edit in (None, Edit("resid_post.0", Add(2 * vector()), tokens="response"), Edit("z.1", Zero(), tokens="last2")):
        options = {"edit": edit, "max_new_tokens": 5, "do_sample": False}
        record = Record(one.hf)
        assert one.model.generate(rows(6, 4), **options) == one.twin.generate(rows(6, 4), **options)
        record.check()


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
@ways("model", out_of=("model", "blocks"))
def test_gradients_through_a_compiled_model(way: str, backend: str) -> None:
    one = Compiled(way, backend)
    gradients = []
    for call, model in ((one.call, one.model), (one.twin.hf, one.twin)):
        add = Add(nn.Parameter(vector()))
        bank = Bank([Add(nn.Parameter(vector(k))) for k in range(2)])
        edit = Edit("attn_out.*", add, tokens="last2") + Edit("resid_mid.1", bank)
        for _ in range(2):
            with model.edited(edit, rows=[2, 1]):
                loss = call(**BATCH, labels=BATCH["input_ids"]).loss
            loss.backward()
        gradients.append([p.grad for p in edit.parameters()])
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@ways()
def test_a_compiled_model_in_several_threads(way: str) -> None:
    one = Compiled(way)
    edits = [None, Edit("resid_post.0", Add(vector())), Edit("resid_post.0", Add(vector(1))), Edit("z.1.h0", Zero())]
    serial = [one.check(edit)[0] for edit in edits]
    gate, got, failed = threading.Barrier(len(edits)), [[] for _ in edits], []

    def work(k: int) -> None:
        edit = edits[k]
        try:
            with torch._dynamo.config.patch(LIMITS), one.model.edited(edit) if edit else nullcontext():
                for turn in range(
                    len(edits)
                ):  # one after the other, with all edits in force, for what is compiled anew
                    gate.wait(300)
                    if turn == k:
                        got[k].append(one.logits())
                gate.wait(300)
                got[k] += [one.logits() for _ in range(5)]
                gate.wait(300)
        except BaseException as error:
            failed.append(error)
            gate.abort()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(edits))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed[0]
    for mine, want in zip(got, serial, strict=True):
        assert len(mine) == 6 and all(torch.equal(logits, want) for logits in mine)


@ways("model", "blocks")
def test_a_thread_that_enters_no_edit_stays_unedited_beside_one_that_does(way: str) -> None:
    one = Compiled(way)
    plain, _ = one.check()
    got: list[Tensor] = []
    with one.model.edited(Edit("resid_post.0", Add(vector()))):
        edited = one.logits()
        other = threading.Thread(target=lambda: got.append(one.logits()))
        other.start()
        other.join()
        assert torch.equal(one.logits(), edited)
    assert torch.equal(got[0], plain) and not torch.equal(edited, plain)


@ways("blocks")
def test_no_trace_on_a_compiled_model(way: str) -> None:
    one = Compiled(way)
    one.check()
    record = Record(one.hf)
    one.check(Edit("resid_post.0", Add(vector())) + Edit("pattern.1", Scale(0.5)))
    record.check()
    one.model.read(rows(6, 4), "resid_post.0")
    record.check()
    with pytest.raises(ZeroDivisionError), one.model.edited(Edit("resid_post.0", Add(vector()))):
        raise ZeroDivisionError
    record.check()


def test_reads_in_two_threads_leave_compiling_switched_on() -> None:
    model = frozen()
    inside, go = [threading.Event(), threading.Event()], [threading.Event(), threading.Event()]

    def hold(module: nn.Module, args: Any) -> None:
        k = threads.index(threading.current_thread())
        inside[k].set()
        assert go[k].wait(60)

    model.hf.model.embed_tokens.register_forward_pre_hook(hold)
    threads = [threading.Thread(target=lambda: model.read(rows(4), "resid_post.0")) for _ in range(2)]
    for thread, reached in zip(threads, inside, strict=True):
        thread.start()
        assert reached.wait(60)
    for thread, leave in zip(threads, go, strict=True):
        leave.set()
        thread.join()
    assert torch._dynamo.eval_frame._stance == default_stance


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("way", ["model", "blocks"])
def test_inductor(way: str) -> None:
    one = Compiled(way, "inductor")
    for edit in (None, *(Edit("resid_post.0", Add(vector(k)), tokens="last2") for k in range(2)), None):
        before = one.frames
        with torch.no_grad():
            if edit is None:
                got, want = one.logits(), one.twin.hf(**BATCH).logits
            else:
                with one.model.edited(edit), one.twin.edited(edit):
                    got, want = one.logits(), one.twin.hf(**BATCH).logits
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert one.frames == before
