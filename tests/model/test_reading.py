"""model.read: every row as if read alone by a torch hook, whatever the batching, in memory and on disk."""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model import chat
from tests.model.by_hand import hooked, output_of
from tests.model.chat import HEADS, LAYERS, WIDTH, block, ids
from torch import Tensor, nn

import inlay
from inlay import Add, Bank, Edit, Function, KeepNorm, Project, Source, Swap, span
from inlay.errors import EditError, FolderError, InputError, ResumeError, SiteError, TokensError
from inlay.model import patch
from inlay.model import shards as disk

PROMPTS = [
    ids("the harbor light falls and"),
    ids("calm sea"),
    ids("the captain and crew sail the old ship east"),
    ids("gull fish net"),
    ids("night wind comes cold and"),
    ids("a star rises with the new moon"),
]
SITE = "resid_post.1"
budgets = pytest.mark.parametrize("budget", [1, 7, 12, 10**6])


@cache
def _model(family: str) -> inlay.Model:
    return chat.wrapped(family)


def model(family: str = "llama") -> inlay.Model:
    return _model(family)


@cache
def alone(layer: int = 1, family: str = "llama") -> list[Tensor]:
    """Each prompt's states [T, W] after a block, one by one, by a torch hook."""
    hf = model(family).hf
    return [output_of(hf, block(hf, layer), row) for row in PROMPTS]


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    assert patch.standing() == 0
    assert not any("forward" in m.__dict__ or m._forward_hooks for m in model().base.modules())


class Calls:
    """Counts the calls of a module, as a user's own hook would."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.count = module, 0

    def __enter__(self) -> Calls:
        self.handle = self.module.register_forward_hook(self._note)
        return self

    def _note(self, *_: Any) -> None:
        self.count += 1

    def __exit__(self, *_: Any) -> None:
        self.handle.remove()


# -- values and their order ------------------------------------------------------------------------------------------


@budgets
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "falcon", "mixtral", "bloom", "opt"])
def test_rows_come_back_in_order_whatever_the_batching(family: str, budget: int) -> None:
    acts = model(family).read(PROMPTS, SITE, batch_tokens=budget)
    longest = max(map(len, PROMPTS))
    assert acts[SITE].shape == (len(PROMPTS), longest, WIDTH)
    assert acts.mask is not None
    assert acts.mask.tolist() == [[i < len(row) for i in range(longest)] for row in PROMPTS]
    for found, wanted in zip(acts.rows(SITE), alone(1, family), strict=True):
        assert torch.equal(found, wanted) if budget == 1 else torch.allclose(found, wanted, rtol=1e-4, atol=1e-4)
    assert not acts[SITE][~acts.mask].any(), "zeros behind a row's own positions"


def expected(positions: Callable[[int], list[int]], states: list[Tensor] | None = None) -> list[Tensor]:
    states = alone() if states is None else states
    return [state[positions(len(state))] for state in states]


SPECS: dict[str, tuple[Any, Callable[[int], list[int]], bool]] = {
    "all": ("all", lambda n: list(range(n)), False),
    "prompt": ("prompt", lambda n: list(range(n)), False),
    "last": ("last", lambda n: [n - 1], True),
    "prompt_end": ("prompt_end", lambda n: [n - 1], True),
    "first": ("first", lambda n: [0], True),
    "1": (1, lambda n: [1], True),
    "-2": (-2, lambda n: [n - 2], True),
    "'-1'": ("-1", lambda n: [n - 1], True),
    "first4": ("first4", lambda n: list(range(min(4, n))), False),
    "last3": ("last3", lambda n: list(range(max(0, n - 3), n)), False),
    "first1+last2": ("first1+last2", lambda n: sorted({0, n - 2, n - 1}), False),
    "[1, 0]": ([1, 0], lambda n: [0, 1], False),
    "[0, -1]": ([0, -1], lambda n: [0, n - 1], False),
    "slice(1, 4)": (slice(1, 4), lambda n: list(range(1, min(4, n))), False),
    "slice(-3, -1)": (slice(-3, -1), lambda n: list(range(max(0, n - 3), n - 1)), False),
    "prompt[2:]": ("prompt[2:]", lambda n: list(range(2, n)), False),
}


@budgets
@pytest.mark.parametrize("spec", SPECS)
def test_tokens(spec: str, budget: int) -> None:
    tokens, positions, single = SPECS[spec]
    acts, wanted = model().read(PROMPTS, SITE, tokens, batch_tokens=budget), expected(positions)
    if single:
        assert acts.mask is None and acts[SITE].shape == (len(PROMPTS), WIDTH)
    else:
        assert acts.mask is not None and acts[SITE].shape == (len(PROMPTS), max(map(len, wanted)), WIDTH)
        assert acts.mask.sum(1).tolist() == [len(w) for w in wanted]
    for found, row in zip(acts.rows(SITE), wanted, strict=True):
        torch.testing.assert_close(found, row, rtol=1e-4, atol=1e-4)


@budgets
def test_positions_of_each_row_as_a_tensor(budget: int) -> None:
    one = torch.tensor([[3], [1], [-1], [0], [-2], [2]])
    two = torch.cat([one, torch.tensor([[0], [0], [4], [2], [1], [6]])], 1)
    wanted = [state[index] for state, index in zip(alone(), one, strict=True)]
    found = model().read(PROMPTS, SITE, one, batch_tokens=budget)
    assert found.mask is None
    torch.testing.assert_close(found[SITE], torch.cat(wanted), rtol=1e-4, atol=1e-4)
    both = model().read(PROMPTS, SITE, two, batch_tokens=budget)
    for row, state, index in zip(both.rows(SITE), alone(), two, strict=True):
        at = sorted(i % len(state) for i in index.tolist())
        torch.testing.assert_close(row, state[at], rtol=1e-4, atol=1e-4)


@budgets
def test_a_mask_over_the_prompt(budget: int) -> None:
    """A mask's columns are each row's own tokens from its first, whatever batch the row is read in."""
    mask = torch.rand(len(PROMPTS), max(map(len, PROMPTS))) < 0.5
    mask[:, 0] = True
    acts = model().read(PROMPTS, SITE, mask, batch_tokens=budget)
    for row, state, chosen in zip(acts.rows(SITE), alone(), mask, strict=True):
        torch.testing.assert_close(row, state[chosen[: len(state)]], rtol=1e-4, atol=1e-4)


@budgets
def test_span(budget: int) -> None:
    texts = ["the old harbor and the sea", "sea", "calm calm sea night"]
    rows = [ids(t) for t in texts]
    acts = model().read(texts, SITE, span("sea"), chat=False, batch_tokens=budget)
    hf = model().hf
    for row, words, found in zip(rows, texts, acts.rows(SITE), strict=True):
        at = words.split().index("sea")
        torch.testing.assert_close(found, output_of(hf, block(hf, 1), row)[at : at + 1], rtol=1e-4, atol=1e-4)


TURNS = {
    "a string": ("the deep sea", "<user> the deep sea <end> <assistant>", 3),
    "a chat": ([{"role": "user", "content": "calm"}], "<user> calm <end> <assistant>", 1),
    "the last of two turns": (
        [
            {"role": "user", "content": "calm sea"},
            {"role": "assistant", "content": "blue"},
            {"role": "user", "content": "and the moon"},
        ],
        "<user> calm sea <end> <assistant> blue <end> <user> and the moon <end> <assistant>",
        10,
    ),
}


@budgets
def test_the_end_of_the_instruction(budget: int) -> None:
    """`inst_end` is the last token of the last user's message, before the template closes the turn."""
    hf = model().hf
    acts = model().read([turn for turn, _, _ in TURNS.values()], SITE, "inst_end", batch_tokens=budget)
    assert acts.mask is None
    for found, (_, rendered, at) in zip(acts[SITE], TURNS.values(), strict=True):
        torch.testing.assert_close(found, output_of(hf, block(hf, 1), ids(rendered))[at], rtol=1e-4, atol=1e-4)
    with pytest.raises(TokensError, match="does not close a user turn"):
        model().read("the deep sea", SITE, "inst_end", chat=False)


RESPONSES = ["falls", "and the night", "goes", "with a cold wind", "sings", "waits and waits"]


@budgets
@pytest.mark.parametrize(
    ("tokens", "positions", "single"),
    [
        ("response", lambda p, n: range(p, n), False),
        ("response[0]", lambda p, n: [p], True),
        ("response[1:3]", lambda p, n: range(min(p + 1, n), min(p + 3, n)), False),
        ("prompt", lambda p, n: range(p), False),
        ("last", lambda p, n: [p - 1], True),
        ("last+response[0:2]", lambda p, n: range(p - 1, min(p + 2, n)), False),
        ("all", lambda p, n: range(n), False),
    ],
)
def test_responses(tokens: str, positions: Any, single: bool, budget: int) -> None:
    hf, whole = model().hf, [row + ids(r) for row, r in zip(PROMPTS, RESPONSES, strict=True)]
    acts = model().read(PROMPTS, SITE, tokens, responses=RESPONSES, batch_tokens=budget)
    assert (acts.mask is None) == single
    for prompt, row, found in zip(PROMPTS, whole, acts.rows(SITE), strict=True):
        wanted = output_of(hf, block(hf, 1), row)[list(positions(len(prompt), len(row)))]
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@budgets
def test_a_single_position_that_a_response_lacks(budget: int) -> None:
    """Row 0's response has one token: there is nothing to give for its second."""
    with pytest.raises(TokensError, match=r"response\[1\].*row"):
        model().read(PROMPTS, SITE, "response[1]", responses=RESPONSES, batch_tokens=budget)


def test_all_residuals_at_once() -> None:
    acts = model().read(PROMPTS, ["resid_post.*"], "last")
    assert list(acts) == [f"resid_post.{layer}" for layer in range(LAYERS)]
    wanted = torch.stack([torch.stack([state[-1] for state in alone(layer)]) for layer in range(LAYERS)])
    torch.testing.assert_close(acts.stack(), wanted, rtol=1e-4, atol=1e-4)


def test_sites_in_any_order_and_negative_layers() -> None:
    acts = model().read(PROMPTS, ["logits", "resid_post.-1", "resid_post.0", "final_norm", "embed"], "last")
    assert list(acts) == ["logits", f"resid_post.{LAYERS - 1}", "resid_post.0", "final_norm", "embed"]
    hf = model().hf
    for row, prompt in enumerate(PROMPTS):
        with torch.no_grad():
            logits = hf(torch.tensor([prompt]), use_cache=False).logits[0, -1]
        torch.testing.assert_close(acts["logits"][row], logits, rtol=1e-4, atol=1e-4)
        norm = output_of(hf, hf.model.norm, prompt)[-1]
        torch.testing.assert_close(acts["final_norm"][row], norm, rtol=1e-4, atol=1e-4)
        assert torch.equal(acts["embed"][row], hf.get_input_embeddings().weight[prompt[-1]])


@budgets
def test_raw_tensors_of_any_module(budget: int) -> None:
    hf, near = model().hf, {"rtol": 1e-4, "atol": 1e-4}
    names = ["module:model.layers.1.mlp.up_proj:out", "module:model.layers.1.mlp.down_proj:in"]
    acts = model().read(PROMPTS, names, "all", batch_tokens=budget)
    for row, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(acts.rows(names[0])[row], output_of(hf, block(hf, 1).mlp.up_proj, prompt), **near)
        torch.testing.assert_close(acts.rows(names[1])[row], input_of(hf, block(hf, 1).mlp.down_proj, prompt), **near)
    graded = model().read(PROMPTS, ["module:model.layers.1:out", SITE], "all", grads=True, batch_tokens=budget)
    assert torch.equal(graded["module:model.layers.1:out"], graded[SITE])
    assert torch.equal(graded.gradients["module:model.layers.1:out"], graded.gradients[SITE])
    assert graded.gradients[SITE].any()


# -- heads and patterns ----------------------------------------------------------------------------------------------


def input_of(hf: Any, module: nn.Module, row: list[int]) -> Tensor:
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with torch.no_grad():
        hf(torch.tensor([row]), use_cache=False)
    handle.remove()
    return seen[0][0]


@budgets
def test_heads_are_split(budget: int) -> None:
    hf, size = model().hf, WIDTH // HEADS
    attention = block(hf, 1).self_attn
    wanted = [input_of(hf, attention.o_proj, row).unflatten(-1, (HEADS, size)) for row in PROMPTS]
    keys = [output_of(hf, attention.k_proj, row).unflatten(-1, (2, size)) for row in PROMPTS]
    acts = model().read(PROMPTS, ["z.1", "z.1.h2", "z.1.h[0,3]", "k.1", "k.1.h1"], "last", batch_tokens=budget)
    shapes = {name: list(t.shape[1:]) for name, t in acts.items()}
    assert shapes == {
        "z.1": [HEADS, size], "z.1.h2": [size], "z.1.h[0,3]": [2, size], "k.1": [2, size], "k.1.h1": [size],
    }  # fmt: skip
    near = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(acts["z.1"], torch.stack([w[-1] for w in wanted]), **near)
    torch.testing.assert_close(acts["z.1.h2"], torch.stack([w[-1, 2] for w in wanted]), **near)
    torch.testing.assert_close(acts["z.1.h[0,3]"], torch.stack([w[-1, [0, 3]] for w in wanted]), **near)
    torch.testing.assert_close(acts["k.1"], torch.stack([k[-1] for k in keys]), **near)
    torch.testing.assert_close(acts["k.1.h1"], torch.stack([k[-1, 1] for k in keys]), **near)
    every = model().read(PROMPTS, "z.1", "all", batch_tokens=budget)
    assert every["z.1"].shape == (len(PROMPTS), max(map(len, PROMPTS)), HEADS, size)
    for row, w in zip(every.rows("z.1"), wanted, strict=True):
        torch.testing.assert_close(row, w, **near)


@budgets
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_patterns_of_unequal_lengths(family: str, budget: int) -> None:
    eager = chat.tiny(family, attn_implementation="eager")
    longest = max(map(len, PROMPTS))
    acts = model(family).read(PROMPTS, ["pattern.1", "pattern.1.h2"], "all", batch_tokens=budget)
    last = model(family).read(PROMPTS, "pattern.1", "last", batch_tokens=budget)
    assert acts["pattern.1"].shape == (len(PROMPTS), longest, HEADS, longest)
    assert acts["pattern.1.h2"].shape == (len(PROMPTS), longest, longest)
    assert last["pattern.1"].shape == (len(PROMPTS), HEADS, longest)
    for row, prompt in enumerate(PROMPTS):
        with torch.no_grad():
            wanted = eager(torch.tensor([prompt]), output_attentions=True, use_cache=False).attentions[1][0]
        n = len(prompt)
        found = acts["pattern.1"][row]
        torch.testing.assert_close(found[:n, :, :n], wanted.transpose(0, 1), rtol=1e-4, atol=1e-5)
        assert not found[n:].any() and not found[:, :, n:].any()
        assert torch.equal(acts["pattern.1.h2"][row], found[:, 2])
        torch.testing.assert_close(last["pattern.1"][row, :, :n], wanted[:, -1], rtol=1e-4, atol=1e-5)


# -- how it runs -----------------------------------------------------------------------------------------------------


def test_layers_above_the_last_site_do_not_run() -> None:
    hf = model().hf
    mlps = [block(hf, layer).mlp for layer in range(LAYERS)]
    with Calls(mlps[1]) as below, Calls(mlps[2]) as above, Calls(hf.lm_head) as head:
        model().read(PROMPTS, ["resid_post.1", "resid_post.0"], batch_tokens=10)
        assert below.count > 1 and above.count == head.count == 0
        model().read(PROMPTS, ["resid_pre.2", "z.2"], batch_tokens=10**6)
        assert above.count == head.count == 0
        model().read(PROMPTS, ["resid_post.0", "resid_post.2"], batch_tokens=10**6)
        assert above.count == 1 and head.count == 0


def test_the_budget_bounds_every_forward() -> None:
    sizes: list[int] = []
    hf = model().hf
    handle = block(hf, 0).register_forward_hook(lambda m, args, out: sizes.append(out.shape[0] * out.shape[1]))
    model().read(PROMPTS, SITE, batch_tokens=14)
    handle.remove()
    assert max(sizes) <= 14 and len(sizes) > 1
    assert len(sizes) <= -(-sum(map(len, PROMPTS)) // 14) + 1


def test_dtype_and_device() -> None:
    exact = model().read(PROMPTS, SITE, "last")
    half = model().read(PROMPTS, SITE, "last", dtype=torch.float16)
    assert exact[SITE].dtype == torch.float32 and exact[SITE].device.type == "cpu"
    assert torch.equal(half[SITE], exact[SITE].to(torch.float16))
    elsewhere = model().read(PROMPTS, SITE, "all", device="meta")
    assert elsewhere[SITE].device.type == elsewhere.mask.device.type == "meta"
    brain = inlay.load(chat.tiny("llama").to(torch.bfloat16))
    assert brain.read(PROMPTS, SITE, "last")[SITE].dtype == torch.bfloat16
    assert brain.read(PROMPTS, SITE, "last", dtype=torch.float32)[SITE].dtype == torch.float32


def test_the_progress_bar_changes_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    quiet = model().read(PROMPTS, SITE, batch_tokens=7)
    assert "reading" not in "".join(capsys.readouterr())
    assert torch.equal(model().read(PROMPTS, SITE, batch_tokens=7, progress=True)[SITE], quiet[SITE])
    assert "reading" in "".join(capsys.readouterr())
    for _ in range(2):
        model().read(PROMPTS, SITE, batch_tokens=7, progress=True, out=tmp_path / "acts")


def test_reading_leaves_gradients_and_modes_alone() -> None:
    hf = chat.tiny("llama").train()
    acts = inlay.load(hf).read(PROMPTS, SITE)
    assert not acts[SITE].requires_grad
    assert hf.training and all(p.requires_grad and p.grad is None for p in hf.parameters())


# -- under an edit ---------------------------------------------------------------------------------------------------


def edited(per_row: list[Tensor], at: Callable[[int], list[int]], layer: int = 2) -> list[Tensor]:
    """Each prompt's states after a block, alone, with a vector of its own added after block 1 by hand."""
    hf = model().hf
    found = []
    for prompt, v in zip(PROMPTS, per_row, strict=True):
        with hooked(block(hf, 1), lambda h, row, _, v=v: h + v, lambda row, length: at(length)):
            found.append(output_of(hf, block(hf, layer), prompt))
    return found


@budgets
def test_bank_rows_and_strengths_follow_their_prompt(budget: int) -> None:
    a, b = torch.randn(WIDTH), torch.randn(WIDTH)
    rows, strength = [0, 2, 1, 1, 0, 2], [1.0, 0.5, -2.0, 0.0, 3.0, 1.0]
    table = [torch.zeros(WIDTH), a, b]
    bank = Edit(SITE, Bank([Add(a), Add(b)]), tokens="last2")
    last2 = lambda n: [n - 2, n - 1]  # noqa: E731
    for layer in (1, 2):
        wanted = edited([table[r] for r in rows], last2, layer)
        found = model().read(PROMPTS, f"resid_post.{layer}", edit=bank, rows=rows, batch_tokens=budget)
        for one, other in zip(found.rows(f"resid_post.{layer}"), wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        wanted = edited([table[r] * s for r, s in zip(rows, strength, strict=True)], last2, layer)
        found = model().read(
            PROMPTS, f"resid_post.{layer}", edit=bank, rows=rows, strength=strength, batch_tokens=budget
        )
        for one, other in zip(found.rows(f"resid_post.{layer}"), wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@budgets
def test_before_reads_what_the_edit_finds(budget: int) -> None:
    v = torch.randn(WIDTH)
    edit = Edit(SITE, Add(v)) + Edit("resid_post.2", Add(v))
    before = model().read(PROMPTS, [SITE, "resid_post.2"], edit=edit, before=True, batch_tokens=budget)
    after = model().read(PROMPTS, [SITE, "resid_post.2"], edit=edit, batch_tokens=budget)
    lower = edited([v] * len(PROMPTS), lambda n: list(range(n)), 2)
    for row in range(len(PROMPTS)):
        torch.testing.assert_close(before.rows(SITE)[row], alone()[row], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(after.rows(SITE)[row], alone()[row] + v, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(before.rows("resid_post.2")[row], lower[row], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(after.rows("resid_post.2")[row], lower[row] + v, rtol=1e-4, atol=1e-4)


@budgets
def test_an_edit_at_positions_of_each_row(budget: int) -> None:
    """The Edit's own per-row positions belong to the prompts, not to the batches they are read in."""
    v, at = torch.randn(WIDTH), torch.tensor([[3], [1], [-1], [0], [-2], [2]])
    hf = model().hf
    found = model().read(PROMPTS, "resid_post.2", edit=Edit(SITE, Add(v), tokens=at), batch_tokens=budget)
    for row, (prompt, index) in enumerate(zip(PROMPTS, at.flatten().tolist(), strict=True)):
        with hooked(block(hf, 1), lambda h, *_: h + v, lambda r, n, index=index: [index % n]):
            wanted = output_of(hf, block(hf, 2), prompt)
        torch.testing.assert_close(found.rows("resid_post.2")[row], wanted, rtol=1e-4, atol=1e-4)


@budgets
def test_a_source_of_one_prompt_each(budget: int) -> None:
    """Source row i belongs to prompt i, whatever batch the prompt is read in."""
    hf = model().hf
    donors = [row[::-1] for row in PROMPTS]
    swap = Edit(SITE, Swap(Source(donors, tokens="last")), tokens="last")
    found = model().read(PROMPTS, "resid_post.2", "last", edit=swap, batch_tokens=budget)
    for row, (prompt, donor) in enumerate(zip(PROMPTS, donors, strict=True)):
        state = output_of(hf, block(hf, 1), donor)[-1:]
        with hooked(block(hf, 1), lambda h, *_, state=state: state, lambda r, n: [n - 1]):
            wanted = output_of(hf, block(hf, 2), prompt)[-1]
        torch.testing.assert_close(found["resid_post.2"][row], wanted, rtol=1e-4, atol=1e-4)


@budgets
def test_a_source_under_an_edit_with_a_source(budget: int) -> None:
    """Serial interchange: the first source goes into the second, and the second into the base, row by row."""
    hf = model().hf
    firsts, seconds = [row[::-1] for row in PROMPTS], [row[1:] + row[:1] for row in PROMPTS]
    inner = Edit("resid_post.0", Swap(Source(firsts, tokens="last")), tokens=0)
    swap = Edit(SITE, Swap(Source(seconds, tokens="last", edit=inner)), tokens="last")
    found = model().read(PROMPTS, "resid_post.2", "last", edit=swap, batch_tokens=budget)
    for row, (prompt, first, second) in enumerate(zip(PROMPTS, firsts, seconds, strict=True)):
        state = output_of(hf, block(hf, 0), first)[-1:]
        with hooked(block(hf, 0), lambda h, *_, state=state: state, lambda r, n: [0]):
            state = output_of(hf, block(hf, 1), second)[-1:]
        with hooked(block(hf, 1), lambda h, *_, state=state: state, lambda r, n: [n - 1]):
            wanted = output_of(hf, block(hf, 2), prompt)[-1]
        torch.testing.assert_close(found["resid_post.2"][row], wanted, rtol=1e-4, atol=1e-4)


@budgets
def test_a_source_of_one_prompt_for_all(budget: int) -> None:
    hf, donor = model().hf, ids("deep blue wave")
    state = output_of(hf, block(hf, 1), donor)[-1:]
    swap = Edit(SITE, Swap(Source([donor], tokens="last")), tokens="last")
    found = model().read(PROMPTS, "resid_post.2", "last", edit=swap, batch_tokens=budget)
    for row, prompt in enumerate(PROMPTS):
        with hooked(block(hf, 1), lambda h, *_: state, lambda r, n: [n - 1]):
            wanted = output_of(hf, block(hf, 2), prompt)[-1]
        torch.testing.assert_close(found["resid_post.2"][row], wanted, rtol=1e-4, atol=1e-4)


def test_a_read_inside_of_a_context_sees_its_edit() -> None:
    v = torch.randn(WIDTH)
    wanted = edited([v] * len(PROMPTS), lambda n: [n - 1])
    with model().edited(Edit(SITE, Add(v), tokens="last")) as run:
        found = model().read(PROMPTS, "resid_post.2", batch_tokens=10)
    assert run.touched == [len(PROMPTS)]
    for one, other in zip(found.rows("resid_post.2"), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_source_runs_once_for_all_its_sites_and_batches() -> None:
    hf, n = model().hf, len(PROMPTS)
    for donors, runs in (([ids("deep blue wave")], 1), ([row[::-1] for row in PROMPTS], n)):
        source = Source(donors, tokens="last")
        swap = Edit(SITE, Swap(source), tokens="last") + Edit("resid_post.0", Swap(source), tokens="last")
        with Calls(block(hf, 0).mlp) as forwards:
            model().read(PROMPTS, "resid_post.2", "last", edit=swap, batch_tokens=1)
        assert forwards.count == n + runs


def test_an_edit_that_some_batches_do_not_reach() -> None:
    """Only the last prompts have a fifth response token; the read as a whole reaches it."""
    v = torch.randn(WIDTH)
    edit = Edit(SITE, Add(v), tokens="response[3:]")
    found = model().read(PROMPTS, SITE, "all", responses=RESPONSES, edit=edit, batch_tokens=1)
    plain = model().read(PROMPTS, SITE, "all", responses=RESPONSES, batch_tokens=1)
    changed = (found[SITE] != plain[SITE]).any(-1).sum(1).tolist()
    assert changed == [max(0, len(r.split()) - 3) for r in RESPONSES]


# -- gradients -------------------------------------------------------------------------------------------------------


def gradients_alone(
    prompt: list[int], layer: int, loss_of: Callable[[Tensor], Tensor], family: str = "llama"
) -> tuple[Tensor, Tensor]:
    """State and gradient [T, W] after a block, for a loss of the logits [T, V], by plain autograd."""
    hf = model(family).hf
    kept: list[Tensor] = []

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        h = (output[0] if isinstance(output, tuple) else output).detach().requires_grad_(True)
        kept.append(h)
        return (h, *output[1:]) if isinstance(output, tuple) else h

    handle = block(hf, layer).register_forward_hook(hook)
    logits = hf(torch.tensor([prompt]), use_cache=False).logits[0]
    handle.remove()
    [gradient] = torch.autograd.grad(loss_of(logits), kept)
    return kept[0][0].detach(), gradient[0]


def next_token_loss(row: list[int], start: int = 1) -> Callable[[Tensor], Tensor]:
    return lambda logits: -logits.log_softmax(-1)[range(start - 1, len(row) - 1), row[start:]].sum()


@budgets
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "falcon"])
def test_gradients_of_the_next_token_loss(family: str, budget: int) -> None:
    acts = model(family).read(PROMPTS, ["resid_post.0", "resid_post.1"], grads=True, batch_tokens=budget)
    assert acts.gradients is not None
    for layer in (0, 1):
        site = f"resid_post.{layer}"
        assert acts.gradients[site].shape == acts[site].shape and not acts[site].requires_grad
        for row, prompt in enumerate(PROMPTS):
            state, gradient = gradients_alone(prompt, layer, next_token_loss(prompt), family)
            n = len(prompt)
            torch.testing.assert_close(acts[site][row, :n], state, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(acts.gradients[site][row, :n], gradient, rtol=1e-3, atol=1e-4)
            assert not acts.gradients[site][row, n:].any()


@budgets
def test_gradients_on_responses_and_at_one_token(budget: int) -> None:
    acts = model().read(PROMPTS, SITE, "last", responses=RESPONSES, grads=True, batch_tokens=budget)
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        whole = prompt + ids(response)
        _, gradient = gradients_alone(whole, 1, next_token_loss(whole, len(prompt)))
        torch.testing.assert_close(acts.gradients[SITE][row], gradient[len(prompt) - 1], rtol=1e-3, atol=1e-4)


@budgets
def test_gradients_of_the_users_own_loss(budget: int) -> None:
    """The logit of "sea" at the last token."""
    sea = ids("sea")[0]

    def logit(output: Any) -> Tensor:
        last = output.mask.sum(1) - 1
        return output.logits[torch.arange(len(last)), last, sea].sum()

    with torch.no_grad():  # the ambient mode does not matter
        acts = model().read(PROMPTS, ["z.1", "resid_pre.0", SITE], "all", grads=logit, batch_tokens=budget)
    assert acts.gradients["z.1"].shape == acts["z.1"].shape == (len(PROMPTS), 9, HEADS, WIDTH // HEADS)
    for row, prompt in enumerate(PROMPTS):
        _, gradient = gradients_alone(prompt, 1, lambda logits: logits[-1, sea])
        torch.testing.assert_close(acts.gradients[SITE][row, : len(prompt)], gradient, rtol=1e-3, atol=1e-4)
    embeds = model().hf.get_input_embeddings()(torch.tensor([PROMPTS[0]])).detach().requires_grad_(True)
    logits = model().hf(inputs_embeds=embeds, use_cache=False).logits
    [wanted] = torch.autograd.grad(logits[0, -1, sea], embeds)
    torch.testing.assert_close(acts.gradients["resid_pre.0"][0, : len(PROMPTS[0])], wanted[0], rtol=1e-3, atol=1e-4)


def test_gradients_under_an_edit() -> None:
    v = torch.randn(WIDTH)
    acts = model().read(PROMPTS, "resid_post.2", grads=True, edit=Edit(SITE, Add(v)))
    hf = model().hf
    for row, prompt in enumerate(PROMPTS):
        with hooked(block(hf, 1), lambda h, *_: h + v, lambda r, n: range(n)):
            _, gradient = gradients_alone(prompt, 2, next_token_loss(prompt))
        torch.testing.assert_close(acts.gradients["resid_post.2"][row, : len(prompt)], gradient, rtol=1e-3, atol=1e-4)


def test_gradients_are_read_only() -> None:
    hf = chat.tiny("llama")
    inlay.load(hf).read(PROMPTS, SITE, grads=True)
    assert all(p.requires_grad and p.grad is None for p in hf.parameters())
    hf.requires_grad_(False)
    acts = inlay.load(hf).read(PROMPTS, SITE, grads=True)
    assert acts.gradients[SITE].any() and not any(p.requires_grad for p in hf.parameters())


# -- streamed to disk ------------------------------------------------------------------------------------------------

STREAMED = {
    "one token": {"tokens": "last"},
    "all tokens": {"tokens": "all"},
    "heads and patterns": {"sites": ["z.1", "pattern.1"], "tokens": "all"},
    "gradients": {"grads": True, "tokens": "last2"},
    "half": {"dtype": torch.bfloat16, "tokens": "all"},
    "every residual": {"sites": ["resid_post.*", "resid_pre.*", "embed"], "tokens": "all"},
}


def read(folder: Path | None, who: inlay.Model | None = None, **more: Any) -> inlay.Activations:
    more = {"sites": [SITE, "resid_post.0"], "batch_tokens": 10, "shard_rows": 2, **more}
    return (who or model()).read(more.pop("prompts", PROMPTS), more.pop("sites"), out=folder, **more)


@pytest.mark.parametrize("kind", STREAMED)
def test_on_disk_as_in_memory(kind: str, tmp_path: Path) -> None:
    more = STREAMED[kind]
    wanted, folder = read(None, **more), tmp_path / "deep" / "acts"
    for found in (read(folder, **more), inlay.Activations.load(folder), inlay.Activations.load(str(folder))):
        assert list(found) == list(wanted)
        assert (found.mask is None) == (wanted.mask is None)
        assert found.mask is None or torch.equal(found.mask, wanted.mask)
        for site in wanted:
            assert torch.equal(found[site], wanted[site])
            if wanted.gradients is not None:
                assert torch.equal(found.gradients[site], wanted.gradients[site])
    assert len(list(folder.glob("shard-*.safetensors"))) > 1
    assert not list(folder.glob("*.part"))


@pytest.mark.parametrize(("shard_rows", "shards"), [(1, 6), (3, 2), (100, 1)])
def test_rows_a_shard(shard_rows: int, shards: int, tmp_path: Path) -> None:
    wanted = read(None, batch_tokens=1)
    found = read(tmp_path, batch_tokens=1, shard_rows=shard_rows)
    assert len(list(tmp_path.glob("shard-*.safetensors"))) == shards
    assert torch.equal(found[SITE], wanted[SITE])


def kill_after(monkeypatch: pytest.MonkeyPatch, shards: int) -> None:
    """Let `shards` shards be written, then die in the write of the next."""
    write, done = disk.save_file, []

    def save(*args: Any, **kwargs: Any) -> None:
        if len(done) == shards:
            raise KeyboardInterrupt
        done.append(1)
        write(*args, **kwargs)

    monkeypatch.setattr(disk, "save_file", save)


@pytest.mark.parametrize("done", [0, 1, 2])
def test_a_killed_read_goes_on_where_it_stopped(done: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = read(None, batch_tokens=1)
    with monkeypatch.context() as patched:
        kill_after(patched, done)
        with pytest.raises(KeyboardInterrupt):
            read(tmp_path, batch_tokens=1)
    assert len(list(tmp_path.glob("shard-*.safetensors"))) == done
    with pytest.raises(FolderError, match="has not finished; run it again"):
        inlay.Activations.load(tmp_path)
    with Calls(block(model().hf, 0)) as forwards:
        found = read(tmp_path, batch_tokens=1)
    assert forwards.count == len(PROMPTS) - 2 * done, "finished shards are not computed again"
    assert torch.equal(found[SITE], wanted[SITE])
    with Calls(block(model().hf, 0)) as forwards:
        again = read(tmp_path, batch_tokens=1)
    assert forwards.count == 0 and torch.equal(again[SITE], wanted[SITE])


def test_a_model_that_fails_in_the_middle(tmp_path: Path) -> None:
    hf, wanted = model().hf, read(None, batch_tokens=1)

    def fail(module: nn.Module, args: Any, output: Any) -> None:
        if output.shape[1] == len(PROMPTS[3]):
            raise RuntimeError("out of memory")

    handle = block(hf, 0).register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        read(tmp_path, batch_tokens=1)
    handle.remove()
    assert patch.standing() == 0
    assert torch.equal(read(tmp_path, batch_tokens=1)[SITE], wanted[SITE])


OTHER: dict[str, dict[str, Any]] = {
    "prompts": {"prompts": [*PROMPTS[:-1], ids("a star rises with the new sun")]},
    "fewer prompts": {"prompts": PROMPTS[:-1]},
    "order of prompts": {"prompts": PROMPTS[::-1]},
    "responses": {"responses": RESPONSES},
    "sites": {"sites": [SITE]},
    "tokens": {"tokens": "first"},
    "edit": {"edit": Edit("resid_post.0", Add(torch.ones(WIDTH)))},
    "grads": {"grads": True},
    "dtype": {"dtype": torch.float16},
    "before": {"before": True},
    "shard_rows": {"shard_rows": 3},
}


@pytest.mark.parametrize("what", OTHER)
def test_another_configuration_is_refused(what: str, tmp_path: Path) -> None:
    wanted = read(tmp_path, tokens="last")
    with pytest.raises(ResumeError, match="holds a read of other prompts, Sites, Edit or model"):
        read(tmp_path, **{"tokens": "last", **OTHER[what]})
    assert torch.equal(inlay.Activations.load(tmp_path)[SITE], wanted[SITE]), "what is there stays"


def one_donor(word: str) -> Edit:
    return Edit("resid_post.0", Swap(Source([ids(word)], tokens="last")), tokens="last")


def first_half(h: Tensor) -> Tensor:
    return h * 0.5


def first_double(h: Tensor) -> Tensor:
    return h * 2.0


PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "vector": ({"edit": Edit(SITE, Add(torch.ones(WIDTH)))}, {"edit": Edit(SITE, Add(2 * torch.ones(WIDTH)))}),
    "edit's strength": (
        {"edit": Edit(SITE, Add(torch.ones(WIDTH)), strength=1.0)},
        {"edit": Edit(SITE, Add(torch.ones(WIDTH)), strength=2.0)},
    ),
    "edit's tokens": (
        {"edit": Edit(SITE, Add(torch.ones(WIDTH)), tokens=0)},
        {"edit": Edit(SITE, Add(torch.ones(WIDTH)), tokens=1)},
    ),
    "strength": (
        {"edit": Edit(SITE, Add(torch.ones(WIDTH))), "strength": 1.0},
        {"edit": Edit(SITE, Add(torch.ones(WIDTH))), "strength": [1.0, 1.0, 1.0, 1.0, 1.0, 2.0]},
    ),
    "rows": (
        {"edit": Edit(SITE, Bank([Add(torch.ones(WIDTH))])), "rows": [0, 0, 0, 0, 0, 1]},
        {"edit": Edit(SITE, Bank([Add(torch.ones(WIDTH))])), "rows": [0, 0, 0, 0, 1, 1]},
    ),
    "source": ({"edit": one_donor("sea")}, {"edit": one_donor("moon")}),
    "function": ({"edit": Edit(SITE, first_half)}, {"edit": Edit(SITE, first_double)}),
    "what is kept": (
        {"edit": Edit(SITE, Project(torch.ones(WIDTH, 1)))},
        {"edit": Edit(SITE, Project(torch.ones(WIDTH, 1), keep=True))},
    ),
    "lambda inside": (
        {"edit": Edit(SITE, KeepNorm(Function(lambda h: h + 1)))},
        {"edit": Edit(SITE, KeepNorm(Function(lambda h: h + 2)))},
    ),
    "positions as a tensor": (
        {"tokens": torch.tensor([[0], [0], [0], [0], [0], [0]])},
        {"tokens": torch.tensor([[0], [0], [0], [0], [0], [1]])},
    ),
    "edit's positions as a tensor": (
        {"edit": Edit(SITE, Add(torch.ones(WIDTH)), tokens=torch.tensor([[0]]))},
        {"edit": Edit(SITE, Add(torch.ones(WIDTH)), tokens=torch.tensor([[1]]))},
    ),
}


@pytest.mark.parametrize("what", PAIRS)
def test_another_edit_is_refused(what: str, tmp_path: Path) -> None:
    one, other = PAIRS[what]
    first = read(tmp_path, **one)
    with Calls(block(model().hf, 0)) as forwards:
        again = read(tmp_path, **one)
    assert torch.equal(again[SITE], first[SITE]) and forwards.count <= 1  # a Source may run; the prompts do not
    with pytest.raises(ResumeError, match="other prompts, Sites, Edit or model"):
        read(tmp_path, **other)


def test_another_model_is_refused(tmp_path: Path) -> None:
    read(tmp_path)
    with pytest.raises(ResumeError, match="or model"):
        read(tmp_path, who=chat.wrapped("llama", num_hidden_layers=2))
    with pytest.raises(ResumeError, match="or model"):  # the same shape with other weights
        read(tmp_path, who=chat.wrapped("llama", seed=1))


def loss_in_a_new_process(scale: float) -> Callable[[Any], Tensor]:
    """As when a script is run again: another object, made by the same lines."""

    def loss(output: Any) -> Tensor:
        return scale * output.logits.sum()

    return loss


def another_loss(output: Any) -> Tensor:
    return output.logits.max()


def test_a_loss_of_the_same_lines_resumes_and_another_is_refused(tmp_path: Path) -> None:
    before, after = loss_in_a_new_process(1.0), loss_in_a_new_process(1.0)
    first = read(tmp_path, grads=before)
    with Calls(block(model().hf, 0)) as forwards:
        again = read(tmp_path, grads=after)
    assert forwards.count == 0 and torch.equal(again.gradients[SITE], first.gradients[SITE])
    with pytest.raises(ResumeError):
        read(tmp_path, grads=another_loss)


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    read(tmp_path)
    shard = tmp_path / "shard-00001.safetensors"
    whole = shard.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:4], b"", b"\xff" * len(whole)):
        shard.write_bytes(damaged)
        with pytest.raises(FolderError, match=r"shard-00001\.safetensors cannot be read .* delete it and run"):
            inlay.Activations.load(tmp_path)
        with pytest.raises(FolderError, match=r"shard-00001\.safetensors cannot be read"):
            read(tmp_path)
    shard.unlink()
    with pytest.raises(FolderError, match=r"shard-00001\.safetensors"):
        inlay.Activations.load(tmp_path)
    wanted = read(None)
    assert torch.equal(read(tmp_path)[SITE], wanted[SITE]), "the remedy works"


def test_a_full_disk_leaves_no_half_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, done = disk.save_file, []

    def save(tensors: Any, path: Any, *rest: Any) -> None:
        if done:
            Path(path).write_bytes(b"half a shard")
            raise OSError(28, "No space left on device")
        done.append(1)
        write(tensors, path, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(disk, "save_file", save)
        with pytest.raises(FolderError, match=r"shard 1 could not be written .*No space left.* run again"):
            read(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manifest.json", "shard-00000.safetensors"]
    assert torch.equal(read(tmp_path)[SITE], read(None)[SITE])


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes while inside: every write to a full disk then fails as it would."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("size", "what", "left"), [(10, "manifest", []), (2048, "shard 0", ["manifest.json"])])
def test_a_disk_that_is_really_full(size: int, what: str, left: list[str], tmp_path: Path) -> None:
    """Safetensors reports a failed write by an error of its own, which is no OSError."""
    with room_for(size), pytest.raises(FolderError, match=rf"{what}.* could not be written .*too large.* run again"):
        read(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == left
    assert torch.equal(read(tmp_path)[SITE], read(None)[SITE])


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(FolderError, match="file"):
        read(tmp_path / "file")
    (tmp_path / "manifest.json").write_text('{"config": ')
    with pytest.raises(FolderError, match=r"manifest\.json is damaged"):
        read(tmp_path)


def test_a_folder_with_other_files_is_not_taken_over(tmp_path: Path) -> None:
    """Shards without a manifest are someone else's, or of an unknown configuration: they are not counted as done."""
    read(tmp_path / "one")
    (tmp_path / "one" / "manifest.json").unlink()
    other = [row[::-1] for row in PROMPTS]
    try:
        found = read(tmp_path / "one", prompts=other)
    except FolderError:  # to refuse is as good as to start anew
        return
    assert torch.equal(found[SITE], read(None, prompts=other)[SITE])


# -- bad input -------------------------------------------------------------------------------------------------------


def test_bad_arguments() -> None:
    m = model()
    with pytest.raises(InputError, match=r"batch_tokens=0 .* at least 1"):
        m.read(PROMPTS, SITE, batch_tokens=0)
    with pytest.raises(InputError, match=r"shard_rows=0 must be at least 1"):
        m.read(PROMPTS, SITE, shard_rows=0)
    with pytest.raises(InputError, match="list of prompts is empty"):
        m.read([], SITE)
    with pytest.raises(InputError, match="strength names 2 rows for 6 prompts"):
        m.read(PROMPTS, SITE, edit=Edit(SITE, Add(torch.ones(WIDTH))), strength=[1.0, 2.0])
    with pytest.raises(InputError, match="rows names 1 rows for 6 prompts"):
        m.read(PROMPTS, SITE, edit=Edit(SITE, Bank([Add(torch.ones(WIDTH))])), rows=[1])
    with pytest.raises(EditError, match="rows="):
        m.read(PROMPTS, SITE, edit=Edit(SITE, Bank([Add(torch.ones(WIDTH))])))
    with pytest.raises(SiteError, match=r"no Site is called 'residual\.1'"):
        m.read(PROMPTS, "residual.1")
    with pytest.raises(SiteError, match="layer 9 is out of range"):
        m.read(PROMPTS, "resid_post.9")
    with pytest.raises(SiteError, match="no Site was asked for"):
        m.read(PROMPTS, [])
    with pytest.raises(TokensError, match="position 2 is out of range in row 1, whose prompt has 2 tokens"):
        m.read(PROMPTS, SITE, 2, batch_tokens=10**6)


@budgets
def test_positions_out_of_range_name_the_prompt(budget: int) -> None:
    """The row in the message is the prompt's own number, not its place in a batch."""
    with pytest.raises(TokensError, match="row 1, whose prompt has 2 tokens"):
        model().read(PROMPTS, SITE, 2, batch_tokens=budget)
    texts = ["sea and sea", "night", "sea with a sea"]
    with pytest.raises(TokensError, match="row 1 holds the text 0 times"):
        model().read(texts, SITE, span("sea"), chat=False, batch_tokens=budget)


def test_as_many_rows_of_positions_as_prompts() -> None:
    with pytest.raises(TokensError, match="2 rows"):
        model().read(PROMPTS, SITE, torch.tensor([[0], [1]]))
    with pytest.raises(TokensError, match="7 rows"):
        model().read(PROMPTS, SITE, torch.zeros(7, 1, dtype=torch.long))
    with pytest.raises(TokensError, match="covers"):
        model().read(PROMPTS, SITE, torch.ones(6, 3, dtype=torch.bool))


def test_an_edit_that_reached_no_prompt() -> None:
    with pytest.raises(EditError, match="changed nothing"):
        model().read(PROMPTS, SITE, edit=Edit(SITE, Add(torch.ones(WIDTH)), tokens="response"))


def test_an_edit_above_the_last_site_changes_nothing_that_is_read() -> None:
    plain = model().read(PROMPTS, SITE)
    found = model().read(PROMPTS, SITE, edit=Edit("resid_post.2", Add(torch.ones(WIDTH))))
    assert torch.equal(found[SITE], plain[SITE])
