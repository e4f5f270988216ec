"""What pyvene gets wrong by measurement, one test each, showing that it comes out right here.

Numbers in the section comments are the points of the list of what must hold. Every expectation is a bare torch hook, a
plain Hugging Face run or algebra; pyvene itself is not needed.
"""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.interventions import tiny
from tests.interventions.tiny import EVEN, OTHER, RAGGED, WIDTH
from torch import Tensor, nn
from transformers import AutoModelForCausalLM as Auto
from transformers import (
    BloomConfig,
    FalconConfig,
    GemmaConfig,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaForCausalLM,
    Phi3Config,
    Qwen3Config,
)

import inlay
from inlay import Add, Bank, Clamp, Edit, Function, Noise, Project, Replace, Scale, Source, Swap, Zero
from inlay.errors import EditError, SiteError, TokensError
from inlay.model import patch

SITE = "resid_post.1"


def _v(seed: int, width: int = WIDTH) -> Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


def _greedy_by_hand(
    hf: Any, prompt: list[int], steps: int, layer: int, change: Callable[[Tensor], Tensor]
) -> list[int]:
    """New ids without a cache: the whole sequence again for every token, a bare hook on one block."""
    ids = list(prompt)
    for _ in range(steps):
        ids.append(int(tiny.hooked(hf, [ids], layer, change)[0, -1].argmax()))
    return ids[len(prompt) :]


# -- 1: a call depends on its arguments only ---------------------------------------------------------------------------


def test_an_int_location_flips_no_fast_path_for_later_calls() -> None:
    """There, an int location once made all later calls wrong (logits off by .38 to .47)."""
    model = tiny.model()
    calls: list[dict[str, Any]] = [
        {},
        {"edit": Edit(SITE, Add(_v(0)), tokens=1)},
        {"edit": Edit(SITE, Add(_v(0)), tokens=[0, 1])},
        {"edit": Edit(SITE, Add(_v(0)), tokens=torch.tensor([[0], [1], [2], [0]]))},
        {"edit": Edit(SITE, Swap(OTHER), tokens="last")},
        {"edit": Edit("pattern.0", Scale(0.5))},
        {"edit": Edit(SITE, Bank([Add(_v(1)), Add(_v(2))])), "rows": [1, 0, 2, 1]},
    ]
    fresh = [tiny.model().forward(EVEN, **call).logits for call in calls]
    for _ in range(2):
        for call, want in zip(calls, fresh, strict=True):
            assert torch.equal(model.forward(EVEN, **call).logits, want)
        for call, want in zip(reversed(calls), reversed(fresh), strict=True):
            assert torch.equal(model.forward(EVEN, **call).logits, want)


# -- 2: tokens and dims are each row's own -----------------------------------------------------------------------------


def test_each_row_is_edited_at_its_own_tokens_and_not_at_their_union() -> None:
    """There, [[0], [1], [2]] edited {0, 1, 2} in every row."""
    model, v = tiny.model(), _v(0)

    def change(h: Tensor) -> Tensor:
        new = h.clone()
        for row, at in enumerate([0, 1, 2, 3]):
            new[row, at] += v
        return new

    out = model.forward(EVEN, edit=Edit(SITE, Add(v), tokens=torch.tensor([[0], [1], [2], [3]])))
    assert out.touched == [4]
    torch.testing.assert_close(out.logits, tiny.hooked(model.hf, EVEN, 1, change))


def test_each_row_is_edited_in_its_own_dims_and_not_in_their_union() -> None:
    model, v = tiny.model(), _v(0)
    dims = [[0, 1], [5, 9], [31, 2]]
    edit = Edit(SITE, Bank([Replace(v, dims=d) for d in dims]))

    def change(h: Tensor) -> Tensor:
        new = h.clone()
        for row, d in enumerate(dims):
            new[row][:, d] = v[d]
        return new

    got = model.forward(EVEN, edit=edit, rows=[1, 2, 3, 0]).logits
    torch.testing.assert_close(got, tiny.hooked(model.hf, EVEN, 1, change))


# -- 3: one meaning per spelling ---------------------------------------------------------------------------------------


def test_a_list_of_two_tokens_means_two_tokens_as_a_list_of_three_means_three() -> None:
    """There, [0, 1] was "source token 0 to base token 1", and [0, 1, 2] was three positions."""
    model, v = tiny.model(), _v(0)
    for tokens in ([0, 1], [0, 1, 2], [2], [3, 0]):

        def change(h: Tensor, tokens: Sequence[int] = tokens) -> Tensor:
            new = h.clone()
            new[:, tokens] += v
            return new

        out = model.forward(EVEN, edit=Edit(SITE, Add(v), tokens=tokens))
        assert out.touched == [4 * len(tokens)]
        torch.testing.assert_close(out.logits, tiny.hooked(model.hf, EVEN, 1, change))


def test_source_and_base_tokens_are_spelled_apart() -> None:
    model = tiny.model()
    source = tiny.states(model.hf, OTHER, 1)

    def change(h: Tensor) -> Tensor:
        new = h.clone()
        new[:, 1] = source[:, 0]
        return new

    got = model.forward(EVEN, edit=Edit(SITE, Swap(Source(OTHER, tokens=0)), tokens=1)).logits
    torch.testing.assert_close(got, tiny.hooked(model.hf, EVEN, 1, change))


# -- 4: own handles only -----------------------------------------------------------------------------------------------


def test_edit_does_not_wipe_user_hooks() -> None:
    """There, every call removed all hooks of the model: users' hooks fired 0 times."""
    model = tiny.model()
    fired: dict[str, int] = dict.fromkeys(("pre", "forward", "always", "base"), 0)

    def count(name: str) -> Callable[..., None]:
        def act(*_: Any, **__: Any) -> None:
            fired[name] += 1

        return act

    block = tiny.block(model.hf, 1)
    handles = [
        block.register_forward_pre_hook(count("pre")),
        block.register_forward_hook(count("forward")),
        block.register_forward_hook(count("always"), always_call=True),
        model.hf.register_forward_hook(count("base")),
    ]
    for edit in (Edit(SITE, Add(_v(0))), Edit("resid_pre.1", Add(_v(0))), Edit("resid_post.*", Scale(1.1))):
        model.forward(EVEN, edit=edit)
    model.read(EVEN, "final_norm")
    assert fired == {"pre": 4, "forward": 4, "always": 4, "base": 3}  # a read stops below the base's own end
    tiny.plain(model.hf, EVEN)
    assert fired == {"pre": 5, "forward": 5, "always": 5, "base": 4}
    assert len(block._forward_hooks) == 2 and len(block._forward_pre_hooks) == 1
    for handle in handles:
        handle.remove()
    assert not block._forward_hooks


def test_output_hidden_states_survive_an_edit() -> None:
    """There, `output_hidden_states` gave `()` for ever after one call."""
    model = tiny.model()
    want = model.hf(torch.tensor(EVEN), output_hidden_states=True).hidden_states
    v = _v(0)
    inside = model.forward(EVEN, edit=Edit("resid_post.0", Add(v)), output_hidden_states=True).hf.hidden_states
    after = model.hf(torch.tensor(EVEN), output_hidden_states=True).hidden_states
    assert len(after) == len(want) == len(inside) == tiny.LAYERS + 1
    assert all(torch.equal(a, b) for a, b in zip(after, want, strict=True))
    assert torch.equal(inside[0], want[0])
    torch.testing.assert_close(inside[1], want[1] + v)


def test_pefts_input_gradient_hook_survives_an_edit() -> None:
    hf = tiny.llama()
    hf.requires_grad_(False)
    hf.enable_input_require_grads()
    model = inlay.load(hf)
    for edit in (None, Edit(SITE, Add(_v(0))), None):
        assert model.forward(EVEN, edit=edit).logits.requires_grad
    hf.disable_input_require_grads()
    assert not model.forward(EVEN, edit=Edit(SITE, Add(_v(0)))).logits.requires_grad


# -- 5: edits live through backward ------------------------------------------------------------------------------------


def _checkpoint(hf: Any, use_reentrant: bool, what: str = "enable") -> None:
    """By transformers' newer name for it where there is one."""
    switch = getattr(hf, f"activation_checkpointing_{what}", None) or getattr(hf, f"gradient_checkpointing_{what}")
    switch(*[{"use_reentrant": use_reentrant}] * (what == "enable"))


@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "non-reentrant"])
def test_gradients_are_equal_under_gradient_checkpointing(use_reentrant: bool) -> None:
    """There, the hooks were gone when backward recomputed: None silently, or a CheckpointError."""

    def gradient(checkpointed: bool) -> tuple[Tensor, Tensor]:
        hf = tiny.llama()
        hf.requires_grad_(False)
        hf.enable_input_require_grads()
        if checkpointed:
            _checkpoint(hf, use_reentrant)
        hf.train()
        low, high = nn.Parameter(_v(0)), nn.Parameter(_v(1))
        edit = Edit("resid_post.0", Add(low), "last2") + Edit("mlp_out.1", Add(high))
        inlay.load(hf).forward(RAGGED, edit=edit).logits[..., 3].sum().backward()
        assert low.grad is not None and high.grad is not None
        return low.grad, high.grad

    for got, want in zip(gradient(True), gradient(False), strict=True):
        assert bool(want.any())
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "non-reentrant"])
def test_banks_sources_and_inputs_live_through_checkpointing(use_reentrant: bool) -> None:
    def gradient(checkpointed: bool) -> list[Tensor]:
        hf = tiny.llama()
        hf.requires_grad_(False)
        hf.enable_input_require_grads()
        if checkpointed:
            _checkpoint(hf, use_reentrant)
        hf.train()
        torch.manual_seed(1)
        a, b = nn.Parameter(_v(3)), nn.Parameter(_v(4))
        below = Edit("resid_post.0", Add(b), tokens=0)
        edit = (
            Edit("resid_post.0", Bank([Add(nn.Parameter(_v(0))), Add(nn.Parameter(_v(1)))]), "last2")
            + Edit("mlp_out.1", Fed(a))
            + Edit("resid_post.2", Swap(Source(OTHER, edit=below, grad=True)), tokens=1)
        )
        inlay.load(hf).forward(EVEN, edit=edit, rows=[1, 2, 0, 1]).logits[..., 3].sum().backward()
        table = next(iter(edit.interventions[0].parameters()))
        assert a.grad is not None and b.grad is not None and table.grad is not None
        return [a.grad, b.grad, table.grad]

    for got, want in zip(gradient(True), gradient(False), strict=True):
        assert bool(want.any())
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


class Fed(nn.Module):
    """Uses the input of the module and the positions."""

    def __init__(self, scale: nn.Parameter) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, h: Tensor, input: Tensor, positions: Tensor) -> Tensor:
        return h + self.scale * input * positions[..., None]


def test_backward_outside_of_the_context_sees_the_edit() -> None:
    hf = tiny.llama()
    hf.requires_grad_(False)
    hf.enable_input_require_grads()
    _checkpoint(hf, False)
    hf.train()
    model, v = inlay.load(hf), nn.Parameter(_v(0))
    with model.edited(Edit(SITE, Add(v))):
        loss = hf(torch.tensor(EVEN)).logits[..., 3].sum()
    assert patch.standing() == 0
    loss.backward()
    assert patch.standing() == 0
    _checkpoint(hf, False, "disable")
    want = nn.Parameter(_v(0))
    model.forward(EVEN, edit=Edit(SITE, Add(want))).logits[..., 3].sum().backward()
    torch.testing.assert_close(v.grad, want.grad, rtol=1e-5, atol=1e-5)


# -- 6: modes and requires_grad ----------------------------------------------------------------------------------------


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.shift = nn.Parameter(torch.ones(WIDTH))

    def forward(self, h: Tensor) -> Tensor:
        return self.drop(h) + self.shift


def test_an_edits_dropout_is_off_in_eval_mode() -> None:
    """There, two calls in eval mode differed by .3."""
    model, edit = tiny.model(), Edit(SITE, Dropping()).eval()
    got = model.forward(EVEN, edit=edit).logits
    assert torch.equal(model.forward(EVEN, edit=edit).logits, got)
    torch.testing.assert_close(got, tiny.hooked(model.hf, EVEN, 1, lambda h: h + 1))
    edit.train()
    assert not torch.equal(model.forward(EVEN, edit=edit).logits, model.forward(EVEN, edit=edit).logits)


def test_the_bases_mode_and_requires_grad_are_the_users() -> None:
    """There, wrapping a model froze all of it."""
    hf = tiny.llama()
    hf.train()
    hf.model.layers[0].eval()
    hf.model.layers[1].requires_grad_(False)
    modes = [m.training for m in hf.modules()]
    flags = [p.requires_grad for p in hf.parameters()]
    model = inlay.load(hf)
    with model.edited(Edit(SITE, Dropping())):
        hf(torch.tensor(EVEN))
        assert [m.training for m in hf.modules()] == modes
    model.read(EVEN, "resid_post.*", grads=True)
    model.generate(EVEN, edit=Edit(SITE, Add(_v(0))), max_new_tokens=2)
    model.forward(EVEN, edit=Edit(SITE, Swap(OTHER)))
    assert [m.training for m in hf.modules()] == modes
    assert [p.requires_grad for p in hf.parameters()] == flags


# -- 7: out of place ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["resid_post.1", "resid_pre.1", "mlp_out.1", "attn_out.1", "z.1.h2", "mlp_act.1"])
def test_tensors_of_the_modules_are_not_written_to(site: str) -> None:
    model = tiny.model()
    kept: list[tuple[Tensor, Tensor]] = []

    def keep(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        tensors = [a for a in (*args, *kwargs.values(), *(output if isinstance(output, tuple) else (output,)))]
        kept.extend((t, t.clone()) for t in tensors if isinstance(t, Tensor) and t.is_floating_point())

    handles = [m.register_forward_hook(keep, with_kwargs=True) for m in model.hf.modules()]
    width = {"z.1.h2": tiny.HEAD_WIDTH, "mlp_act.1": tiny.INNER}.get(site, WIDTH)
    with torch.no_grad():
        model.forward(EVEN, edit=Edit(site, Replace(_v(0, width), dims=[1, 2])) + Edit(site, Scale(2.0), tokens=[1]))
    for handle in handles:
        handle.remove()
    assert len(kept) > 50
    assert all(torch.equal(tensor, copied) for tensor, copied in kept)


def test_the_callers_lists_and_dicts_are_not_written_to() -> None:
    """There, the caller's lists were sorted and padded in place."""
    model = tiny.model()
    prompts, tokens, rows, strength, sites = copy.deepcopy(RAGGED), [1, 0], [2, 0, 1, 2], [1.0, 0.5, 2.0, 0.0], [SITE]
    batch = {"input_ids": torch.tensor(EVEN), "attention_mask": torch.ones(4, 4, dtype=torch.long)}
    given = (prompts, tokens, rows, strength, sites, batch)
    before = copy.deepcopy(given)
    edit = Edit(SITE, Bank([Add(_v(0)), Add(_v(1))]), tokens=tokens)
    model.forward(prompts, edit=edit, rows=rows, strength=strength, read=sites)
    model.read(prompts, sites, edit=edit, rows=rows, strength=strength)
    model.generate(prompts, edit=edit, rows=rows, strength=strength, max_new_tokens=2)
    model.forward(batch, edit=edit, rows=rows)
    assert given[:5] == before[:5]
    assert all(torch.equal(given[5][key], before[5][key]) for key in batch)


# -- 8: nothing is skipped silently ------------------------------------------------------------------------------------


def test_touched_counts_the_positions_that_were_edited() -> None:
    model = tiny.model()
    edit = Edit(SITE, Add(_v(0)), "last2") + Edit("z.0.h1", Zero()) + Edit(SITE, Add(_v(0)), [0, -1])
    assert model.forward(RAGGED, edit=edit).touched == [8, sum(map(len, RAGGED)), 8]
    with model.edited(Edit(SITE, Add(_v(0)), "prompt") + Edit(SITE, Add(_v(0)), "response")) as run:
        model.hf.generate(torch.tensor(EVEN), max_new_tokens=4, do_sample=False)
    assert run.touched == [16, 4 * 3]  # the last new token is never an input


def test_an_edit_that_reached_nothing_raises() -> None:
    model = tiny.model()
    with pytest.raises(EditError, match=r"part 1 of the Edit .* changed nothing"):
        model.forward(EVEN, edit=Edit(SITE, Add(_v(0))) + Edit(SITE, Add(_v(0)), "response"))
    with pytest.raises(EditError, match="changed nothing"):
        model.generate(EVEN, edit=Edit(SITE, Add(_v(0)), "response[9:]"), max_new_tokens=3)
    with pytest.raises(EditError, match="changed nothing"), model.edited(Edit(SITE, Add(_v(0)), "response")):
        model.hf(torch.tensor(EVEN))


def test_an_unselected_row_is_bit_identical() -> None:
    model = tiny.model()
    base = tiny.plain(model.hf, EVEN)
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[2, 1] = True
    out = model.forward(EVEN, edit=Edit(SITE, Add(_v(0)), tokens=mask))
    assert out.touched == [1]
    assert torch.equal(out.logits[[0, 1, 3]], base[[0, 1, 3]])
    assert torch.equal(out.logits[2, 0], base[2, 0]) and not torch.equal(out.logits[2, 1], base[2, 1])


# -- 9: positions ------------------------------------------------------------------------------------------------------


def test_negative_positions_count_from_each_rows_own_end() -> None:
    model, v = tiny.model(), _v(0)
    for tokens in (-1, [-1], [-2, -1], slice(-2, None), "prompt[-2]", torch.tensor([[-1], [-2], [-1], [-2]])):
        got = model.forward(RAGGED, edit=Edit(SITE, Add(v), tokens=tokens)).logits
        per_row = tokens.tolist() if isinstance(tokens, Tensor) else [_from_end(tokens)] * 4

        def change(h: Tensor, per_row: list[list[int]] = per_row) -> Tensor:
            new = h.clone()
            for row, ids in enumerate(RAGGED):
                for at in per_row[row]:
                    new[row, len(ids) + at] += v
            return new

        tiny.same_where_real(got, tiny.hooked(model.hf, RAGGED, 1, change), RAGGED)


def _from_end(tokens: Any) -> list[int]:
    if isinstance(tokens, slice):
        return [-2, -1]
    return [-2] if tokens == "prompt[-2]" else tokens if isinstance(tokens, list) else [tokens]


@pytest.mark.parametrize("tokens", [2, -3, [0, 2], "prompt[2]", torch.tensor([[0], [0], [0], [2]])])
def test_positions_out_of_range_name_the_row(tokens: Any) -> None:
    with pytest.raises(TokensError, match="out of range in row 3, whose prompt has 2 tokens"):
        tiny.model().forward(RAGGED, edit=Edit(SITE, Add(_v(0)), tokens=tokens))


# -- 10: widths come from tensors --------------------------------------------------------------------------------------

SHAPE = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
WIDE_HEADS: dict[str, Callable[[], Any]] = {
    "qwen3": lambda: Qwen3Config(**SHAPE, head_dim=16),
    "gemma": lambda: GemmaConfig(**SHAPE, head_dim=16),
    "gpt_oss": lambda: GptOssConfig(**SHAPE, head_dim=16, num_local_experts=4, num_experts_per_tok=2),
}


def _built(config: Any) -> Any:
    torch.manual_seed(0)
    return Auto.from_config(config).eval()


@pytest.mark.parametrize("family", WIDE_HEADS)
@pytest.mark.parametrize("name", ["q", "k", "v", "z"])
def test_heads_wider_than_hidden_size_over_heads_are_edited_whole(family: str, name: str) -> None:
    """There, the width of q, k and v was taken to be hidden_size: 32 for 64, half of it edited."""
    hf = _built(WIDE_HEADS[family]())
    model = inlay.load(hf)
    attention = hf.model.layers[1].self_attn
    width = 32 if name in "kv" else 64
    v, head = _v(0, width), _v(1, 16)
    last = width // 16 - 1

    def both(x: Tensor) -> Tensor:
        new = x + v
        new[..., -16:] += head
        return new

    got = model.forward(EVEN, edit=Edit(f"{name}.1", Add(v)) + Edit(f"{name}.1.h{last}", Add(head))).logits
    where = {"q": attention.q_proj, "k": attention.k_proj, "v": attention.v_proj, "z": attention.o_proj}[name]
    with tiny.input_hook(where, both) if name == "z" else tiny.hook(where, both):
        want = tiny.plain(hf, EVEN)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    with pytest.raises(SiteError, match=rf"has width 8, and {name}\.1 has width {width}"):
        model.forward(EVEN, edit=Edit(f"{name}.1", Add(_v(0, 8))))


# -- 11: reads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", ["all", "last", "last2", [0, -1], "first", 1])
def test_reads_of_any_number_of_positions_equal_a_hand_hook(tokens: Any) -> None:
    """There, collects of several positions came back corrupted, and in two result types."""
    model = tiny.model()
    acts = model.read(RAGGED, ["resid_post.0", "resid_post.2"], tokens)
    cut: dict[str, Callable[[Tensor], Tensor]] = {
        "all": lambda h: h,
        "last": lambda h: h[-1:],
        "last2": lambda h: h[-2:],
        "[0, -1]": lambda h: h[[0, -1]],
        "first": lambda h: h[:1],
        "1": lambda h: h[1:2],
    }
    for layer in (0, 2):
        got = acts.rows(f"resid_post.{layer}")
        for row, ids in enumerate(RAGGED):
            want = cut[str(tokens)](tiny.states(model.hf, RAGGED, layer)[row, : len(ids)])
            torch.testing.assert_close(got[row], want, rtol=1e-6, atol=1e-6)


# -- 12: beams, padding, lengths ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_equals_none(side: str) -> None:
    model = tiny.model()
    longest = max(map(len, RAGGED))
    gaps = [[0] * (longest - len(r)) for r in RAGGED]
    ids = torch.tensor([g + r if side == "left" else r + g for r, g in zip(RAGGED, gaps, strict=True)])
    mask = torch.tensor(
        [
            [0] * len(g) + [1] * len(r) if side == "left" else [1] * len(r) + [0] * len(g)
            for r, g in zip(RAGGED, gaps, strict=True)
        ]
    )
    edit = Edit(SITE, Add(_v(0)), tokens=[1, -1]) + Edit(SITE, Swap(Source(OTHER, tokens="last")), tokens="first")
    with model.edited(edit), torch.no_grad():
        together = model.hf(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
    for row, prompt in enumerate(RAGGED):
        own = Edit(SITE, Add(_v(0)), tokens=[1, -1])
        own = own + Edit(SITE, Swap(Source([OTHER[row]], tokens="last")), tokens="first")
        alone = model.forward([prompt], edit=own).logits[0]
        start = longest - len(prompt) if side == "left" else 0
        torch.testing.assert_close(together[row, start : start + len(prompt)], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}])
def test_beams_of_unequal_prompts_equal_each_alone(how: dict[str, Any]) -> None:
    model = tiny.model()
    given = {"max_new_tokens": 5, "do_sample": False, **how}
    edits = [Edit(SITE, Add(4 * _v(0)), tokens=[1, -1]), Edit(SITE, Add(4 * _v(0)), tokens="response")]
    for edit in edits:
        together = model.generate(RAGGED, edit=edit, **given)
        assert together == [model.generate([p], edit=edit, **given)[0] for p in RAGGED]
        assert together != model.generate(RAGGED, **given)


def test_base_and_source_of_other_lengths_are_paired_row_by_row() -> None:
    model = tiny.model()
    source = [[3, 4], [5, 6, 7, 8, 9, 10], [11, 12, 13], [14, 15, 16, 17]]
    states = tiny.states(model.hf, source, 1)

    def change(h: Tensor) -> Tensor:
        new = h.clone()
        for row, (ids, other) in enumerate(zip(RAGGED, source, strict=True)):
            new[row, len(ids) - 1] = states[row, len(other) - 1]
        return new

    got = model.forward(RAGGED, edit=Edit(SITE, Swap(source), tokens="last")).logits
    tiny.same_where_real(got, tiny.hooked(model.hf, RAGGED, 1, change), RAGGED)


# -- 13: wrapped, compiled, subclassed and quantised models ------------------------------------------------------------


class Renamed(LlamaForCausalLM):
    """A subclass; there, models were looked up by their exact type."""


class Packed(nn.Module):
    """A linear map whose weight is stored as two 4-bit numbers a byte, in one column, as 4-bit bases store it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.abs().max() / 7
        whole = (linear.weight / scale).round().clamp(-7, 7).to(torch.int16).flatten() + 8
        self.register_buffer("weight", (whole[::2] * 16 + whole[1::2]).to(torch.uint8)[:, None])
        self.register_buffer("scale", scale.detach())

    def forward(self, x: Tensor) -> Tensor:
        both = torch.stack([self.weight[:, 0] // 16, self.weight[:, 0] % 16], 1).flatten()
        weight = (both.to(x.dtype) - 8) * self.scale
        return x @ weight.reshape(self.out_features, self.in_features).T


def _subclassed() -> Any:
    return Renamed(tiny.llama().config).eval()


def _packed() -> Any:
    hf = tiny.llama()
    for module in list(hf.model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, Packed(child))
    return hf.requires_grad_(False)


def _lora() -> Any:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    return peft.get_peft_model(tiny.llama(), config).eval()


def _compiled() -> Any:
    return torch.compile(tiny.llama(), backend="eager")


def _inside(hf: Any) -> Any:
    """The causal model inside the wrapper, by the wrappers' own names."""
    hf = getattr(hf, "_orig_mod", hf)
    return hf.get_base_model() if hasattr(hf, "get_base_model") else hf


@pytest.mark.parametrize(
    "make", [_subclassed, _packed, _lora, _compiled], ids=["subclass", "4-bit", "peft", "compiled"]
)
def test_models_of_every_wrapping_are_edited(make: Callable[[], Any]) -> None:
    hf = make()
    base = _inside(hf)
    model, v = inlay.load(hf), _v(0)
    plain = tiny.plain(hf, RAGGED)
    edit = Edit(SITE, Add(v), "last") + Edit("z.2.h1", Scale(2.0)) + Edit("q.0.h3", Zero())

    def last(h: Tensor) -> Tensor:
        new = h.clone()
        for row, ids in enumerate(RAGGED):
            new[row, len(ids) - 1] += v
        return new

    def head(z: Tensor) -> Tensor:
        return torch.cat([z[..., :8], 2 * z[..., 8:16], z[..., 16:]], -1)

    got = model.forward(RAGGED, edit=edit).logits
    layers = base.model.layers
    with (
        tiny.hook(layers[0].self_attn.q_proj, lambda q: torch.cat([q[..., :24], 0 * q[..., 24:]], -1)),
        tiny.input_hook(layers[2].self_attn.o_proj, head),
        tiny.hook(layers[1], last),
    ):
        want = tiny.plain(base, RAGGED)
    tiny.same_where_real(got, want, RAGGED, rtol=1e-5, atol=1e-5)
    assert torch.equal(tiny.plain(hf, RAGGED), plain)


# -- 14: sharded and offloaded models ----------------------------------------------------------------------------------


def test_a_model_whose_weights_are_offloaded_is_edited(tmp_path: Path) -> None:
    """There, sharded models failed. Accelerate too puts its own `forward` on modules, and it must stay."""
    from accelerate import disk_offload

    plain_model = tiny.llama()
    model_of = inlay.load(plain_model)
    v = _v(0)
    edit = Edit(SITE, Add(v), "last") + Edit("mlp_out.2", Scale(0.5)) + Edit("z.0.h1", Add(_v(1, 8)))
    want = model_of.forward(EVEN, edit=edit).logits
    base = tiny.plain(plain_model, EVEN)
    hf = tiny.llama()
    disk_offload(hf, tmp_path / "offload", execution_device=torch.device("cpu"))
    assert next(hf.parameters()).device.type == "meta"
    forwards = {name: m.__dict__.get("forward") for name, m in hf.named_modules()}
    model = inlay.load(hf)
    torch.testing.assert_close(model.forward(EVEN, edit=edit).logits, want)
    new = model.generate(EVEN, edit=edit, max_new_tokens=3, do_sample=False)
    assert new == model_of.generate(EVEN, edit=edit, max_new_tokens=3, do_sample=False)
    assert {name: m.__dict__.get("forward") for name, m in hf.named_modules()} == forwards
    torch.testing.assert_close(tiny.plain(hf, EVEN), base)


# -- 16: saving --------------------------------------------------------------------------------------------------------


def test_every_constructor_argument_and_dtype_and_constant_is_saved(tmp_path: Path) -> None:
    model = tiny.model()
    edit = (
        Edit("resid_post.0", Project(torch.randn(WIDTH, 3), keep=True), "last", strength=0.5)
        + Edit("resid_post.0", Clamp(_v(0), -0.5, 0.25))
        + Edit(SITE, Add(nn.Parameter(_v(1).bfloat16())), "first2")
        + Edit(SITE, Replace(_v(2), dims=[1, 5]))
        + Edit("resid_post.2", Noise(0.2, seed=9, dims=[0, 1]))
        + Edit("resid_post.2", Swap(Source(OTHER, tokens=0), dims=[3]), tokens=1)
    )
    again = Edit.from_pretrained(edit.save(tmp_path / "edit"), model)
    assert repr(again) == repr(edit)
    for before, after in zip(edit.parts, again.parts, strict=True):
        for name, tensor in before.intervention.state().items():
            assert after.intervention.state()[name].dtype == tensor.dtype
            assert after.intervention.state()[name].device.type == "cpu"
            assert torch.equal(after.intervention.state()[name], tensor)
    with torch.no_grad():
        assert torch.equal(model.forward(EVEN, edit=again).logits, model.forward(EVEN, edit=edit).logits)


def test_an_unnamed_function_fails_at_save(tmp_path: Path) -> None:
    with pytest.raises(EditError, match="cannot be saved: define it at the top level"):
        Edit(SITE, lambda h: 2 * h).save(tmp_path / "edit")
    assert not (tmp_path / "edit").exists()


# -- 17: noise ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompts", [EVEN, RAGGED, [[1]], [list(range(1, 60))]], ids=["even", "ragged", "one", "long"])
@pytest.mark.parametrize("std", [0.01, 5.0])
def test_noise_fits_any_shape_and_has_the_asked_level(prompts: list[list[int]], std: float) -> None:
    """There, noise was one tensor [1, 4, d] of one level, and a misspelled argument was ignored."""
    model = tiny.model()
    for site, width in ((SITE, WIDTH), ("mlp_act.0", tiny.INNER), ("z.1.h2", tiny.HEAD_WIDTH), ("embed", WIDTH)):
        before = model.read(prompts, site)[site]
        out = model.read(prompts, site, edit=Edit(site, Noise(std, seed=4)))
        eps = torch.cat([a - b for a, b in zip(out.rows(site), model.read(prompts, site).rows(site), strict=True)])
        assert before.shape[-1] == width
        n = eps.numel() if len(prompts) == 1 else max(map(len, prompts)) * width  # rows share their noise
        assert abs(float(eps.double().square().mean()) / std**2 - 1) < 5 * (2 / n) ** 0.5


def test_a_misspelled_argument_is_an_error() -> None:
    for make in (
        lambda: Noise(noise_level=0.1),  # type: ignore[call-arg]
        lambda: Add(_v(0), strenght=2.0),  # type: ignore[call-arg]
        lambda: Edit(SITE, Zero(), token="last"),  # type: ignore[call-arg]
        lambda: Source(OTHER, token="last"),  # type: ignore[call-arg]
    ):
        with pytest.raises(TypeError, match="unexpected keyword argument"):
            make()


# -- 18: an exception leaves nothing -----------------------------------------------------------------------------------


def test_an_exception_leaves_nothing_behind() -> None:
    model = tiny.model()
    base = tiny.plain(model.hf, EVEN)
    names = {name: set(m.__dict__) for name, m in model.hf.named_modules()}
    config = model.hf.config.to_dict()

    def broken(h: Tensor) -> Tensor:
        raise RuntimeError("stop here")

    edit = Edit("resid_post.0", Add(_v(0))) + Edit("pattern.1", Scale(2.0)) + Edit("resid_post.2", broken)
    for call in (
        lambda: model.forward(EVEN, edit=edit),
        lambda: model.generate(EVEN, edit=edit, max_new_tokens=2),
        lambda: model.read(EVEN, "logits", edit=edit),
        lambda: model.forward(EVEN, edit=Edit("resid_post.2", Swap(Source(OTHER, edit=edit)))),
    ):
        with pytest.raises(RuntimeError, match="stop here"):
            call()
        assert patch.standing() == 0
        assert {name: set(m.__dict__) for name, m in model.hf.named_modules()} == names
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf.modules())
        assert model.hf.config.to_dict() == config
        assert torch.equal(tiny.plain(model.hf, EVEN), base)
    with pytest.raises(KeyError, match="the user's own"), model.edited(Edit(SITE, Add(_v(0)))):
        raise KeyError("the user's own")
    assert patch.standing() == 0


# -- 19: as an nn.Module -----------------------------------------------------------------------------------------------


def test_repr_deepcopy_named_parameters_and_zero_grad_are_a_modules() -> None:
    shared = Add(nn.Parameter(_v(0)))
    edit = Edit("resid_post.0", shared) + Edit("resid_post.2", shared) + Edit(SITE, Dropping())
    assert repr(edit).count("resid_post") == 3
    assert len(list(edit.named_parameters())) == 2
    model = tiny.model()
    model.forward(EVEN, edit=edit).logits.sum().backward()
    assert all(p.grad is not None for p in edit.parameters())
    edit.zero_grad()
    assert all(p.grad is None for p in edit.parameters())
    again = copy.deepcopy(edit)
    assert [n for n, _ in again.named_parameters()] == [n for n, _ in edit.named_parameters()]
    assert {id(p) for p in again.parameters()}.isdisjoint(id(p) for p in edit.parameters())
    again.load_state_dict(edit.state_dict())


def test_a_training_step_changes_a_shared_parameter_once() -> None:
    model = tiny.model()
    model.hf.requires_grad_(False)
    v = nn.Parameter(torch.zeros(WIDTH))
    edit = Edit("resid_post.0", Add(v)) + Edit("resid_post.2", Add(v))
    steps = torch.optim.SGD(edit.parameters(), lr=1.0)
    model.forward(EVEN, edit=edit).logits[..., 3].sum().backward()
    gradient = v.grad.clone()
    steps.step()
    assert torch.equal(v.detach(), -gradient)


# -- 20: constants in serial runs --------------------------------------------------------------------------------------


def test_constant_edits_act_in_serial_runs() -> None:
    """There, edits without a source were skipped in serial mode."""
    model = tiny.model()
    source = Source(OTHER, edit=Edit("resid_post.0", Zero(), tokens=1) + Edit("resid_post.0", Add(_v(0)), tokens=2))
    edit = Edit("resid_post.0", Add(_v(1))) + Edit(SITE, Swap(source), tokens="last")

    def below(h: Tensor) -> Tensor:
        return torch.stack([h[:, 0], 0 * h[:, 1], h[:, 2] + _v(0), h[:, 3]], 1)

    with tiny.hook(tiny.block(model.hf, 0), below):
        states = tiny.states(model.hf, OTHER, 1)
    with tiny.hook(tiny.block(model.hf, 0), lambda h: h + _v(1)):
        want = tiny.hooked(model.hf, EVEN, 1, lambda h: torch.cat([h[:, :-1], states[:, -1:]], 1))
    torch.testing.assert_close(model.forward(EVEN, edit=edit).logits, want)


# -- 21: heads and attention weights -----------------------------------------------------------------------------------

PLAIN = {k: SHAPE[k] for k in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")}
PLAIN |= {"initializer_range": 0.3, "pad_token_id": 0}
HEADED: dict[str, tuple[Callable[[], Any], str]] = {
    "llama": (lambda: tiny.llama().config, "model.layers.1.self_attn.o_proj"),
    "gpt2": (lambda: tiny.gpt2().config, "transformer.h.1.attn.c_proj"),
    "gpt_neox": (lambda: GPTNeoXConfig(**PLAIN, intermediate_size=48), "gpt_neox.layers.1.attention.dense"),
    "falcon": (lambda: FalconConfig(**PLAIN, multi_query=True), "transformer.h.1.self_attention.dense"),
    "bloom": (lambda: BloomConfig(**PLAIN), "transformer.h.1.self_attention.dense"),
    "phi3": (lambda: Phi3Config(**SHAPE), "model.layers.1.self_attn.o_proj"),
}


def _logits(hf: Any, rows: list[list[int]]) -> Tensor:
    with torch.no_grad():
        return hf(torch.tensor(rows), use_cache=False).logits


@pytest.mark.parametrize("family", HEADED)
@pytest.mark.parametrize("heads", ["h2", "h[0,3]"])
def test_heads_of_every_family_are_their_own_columns(family: str, heads: str) -> None:
    config, path = HEADED[family]
    hf = _built(config())
    picked = [2] if heads == "h2" else [0, 3]

    def double(z: Tensor) -> Tensor:
        new = z.clone()
        for head in picked:
            new[..., 8 * head : 8 * head + 8] *= 2
        return new

    got = inlay.load(hf).forward(EVEN, edit=Edit(f"z.1.{heads}", Scale(2.0))).logits
    with tiny.input_hook(hf.get_submodule(path), double):
        want = _logits(hf, EVEN)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert float((want - _logits(hf, EVEN)).abs().max()) > 1e-2


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_heads_of_an_interleaved_projection(name: str) -> None:
    """GPT-NeoX keeps q, k and v of one head side by side: [heads, 3, head width]."""
    hf = _built(HEADED["gpt_neox"][0]())
    v = _v(0, 8)
    at = 3 * 8 * 2 + 8 * "qkv".index(name)

    def change(fused: Tensor) -> Tensor:
        new = fused.clone()
        new[..., at : at + 8] += v
        return new

    got = inlay.load(hf).forward(EVEN, edit=Edit(f"{name}.1.h2", Add(v))).logits
    with tiny.hook(hf.gpt_neox.layers[1].attention.query_key_value, change):
        want = _logits(hf, EVEN)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "phi3"])
def test_attention_weights_are_read_and_edited(family: str) -> None:
    """There, attention weights are out of reach on transformers 5."""
    hf = _built(HEADED[family][0]())
    model = inlay.load(hf)
    before = hf.config._attn_implementation
    eager = copy.deepcopy(hf)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        want = eager(torch.tensor(EVEN), output_attentions=True).attentions[1]
    got = model.read(EVEN, "pattern.1")["pattern.1"]  # [rows, queries, heads, keys]
    assert torch.equal(got.transpose(1, 2), want)
    # a head that attends to nothing has no output
    edited = model.forward(EVEN, edit=Edit("pattern.1.h2", Zero())).logits
    torch.testing.assert_close(edited, model.forward(EVEN, edit=Edit("z.1.h2", Zero())).logits, rtol=1e-5, atol=1e-5)
    assert hf.config._attn_implementation == before


# -- 22: a second way of running agrees --------------------------------------------------------------------------------


def test_every_way_of_running_an_edit_agrees() -> None:
    """There, the second backend raised at once."""
    model = tiny.model()
    edit = Edit(SITE, Add(_v(0)), "last2") + Edit("resid_post.2", Scale(0.5), "first")
    want = model.forward(RAGGED, edit=edit, read="resid_post.2")
    with model.edited(edit), torch.no_grad():
        assert torch.equal(model.hf(**tiny.padded(RAGGED), use_cache=False).logits, want.logits)
    stored = model.states(RAGGED, "resid_post.0")
    tiny.same_where_real(model.resume(stored, edit=edit).logits, want.logits, RAGGED, rtol=1e-6, atol=1e-6)
    read = model.read(RAGGED, "resid_post.2", edit=edit, batch_tokens=8)
    for got, one in zip(read.rows("resid_post.2"), want.acts.rows("resid_post.2"), strict=True):
        torch.testing.assert_close(got, one, rtol=1e-5, atol=1e-5)


# -- 23: light import --------------------------------------------------------------------------------------------------


def test_the_import_loads_neither_torch_nor_transformers() -> None:
    code = "import sys, inlay; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# -- phases: from the cache, never from counting calls -----------------------------------------------------------------


def _phased(prompt: list[int]) -> Callable[[Tensor], Tensor]:
    def act(h: Tensor) -> Tensor:
        new = h.clone()
        new[:, : len(prompt)] += 3 * _v(0)
        new[:, len(prompt) :] += 3 * _v(1)
        return new

    return act


PHASED = Edit(SITE, Add(3 * _v(0)), "prompt") + Edit(SITE, Add(3 * _v(1)), "response")


def test_prompt_and_response_are_edited_apart_in_one_generation() -> None:
    """There, an edit was either on the prompt or on the decode steps; both at once was impossible."""
    model = tiny.model()
    got = model.generate(RAGGED, edit=PHASED, max_new_tokens=6, do_sample=False)
    for row, prompt in enumerate(RAGGED):
        assert got[row] == _greedy_by_hand(model.hf, prompt, 6, 1, _phased(prompt))


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_a_chunked_prefill_is_all_prompt(chunk: int) -> None:
    """There, the second chunk counted as the first decode step."""
    model = tiny.model()
    prompt = RAGGED[2]
    with model.edited(PHASED):
        got = model.hf.generate(torch.tensor([prompt]), max_new_tokens=5, do_sample=False, prefill_chunk_size=chunk)
    want = _greedy_by_hand(model.hf, prompt, 5, 1, _phased(prompt))
    assert got[0, len(prompt) :].tolist() == want


def test_assisted_decoding_edits_what_plain_decoding_edits() -> None:
    """There, several new tokens in one call counted as one step."""
    model, assistant = tiny.model(), tiny.llama(seed=0, num_hidden_layers=3)
    prompt = RAGGED[2]
    for edit in (PHASED, Edit(SITE, Add(3 * _v(1)), "response[2:4]"), Edit(SITE, Add(3 * _v(0)), [0, -1])):
        plain = model.generate([prompt], edit=edit, max_new_tokens=8, do_sample=False)
        assisted = model.generate([prompt], edit=edit, max_new_tokens=8, do_sample=False, assistant_model=assistant)
        assert assisted == plain
    assert model.generate([prompt], edit=PHASED, max_new_tokens=8, do_sample=False) != model.generate(
        [prompt], max_new_tokens=8, do_sample=False
    )


@pytest.mark.parametrize("cache", [{"use_cache": False}, {"cache_implementation": "static"}, {}])
def test_every_cache_gives_the_same_generation(cache: dict[str, Any]) -> None:
    model = tiny.model()
    edit = PHASED + Edit("resid_post.0", Add(_v(2)), "response[1:3]")
    for prompt in RAGGED:
        got = model.generate([prompt], edit=edit, max_new_tokens=6, do_sample=False, **cache)[0]
        ids = list(prompt)
        for _ in range(6):

            def low(h: Tensor, n: int = len(prompt)) -> Tensor:
                new = h.clone()
                new[:, n + 1 : n + 3] += _v(2)
                return new

            with tiny.hook(tiny.block(model.hf, 0), low):
                logits = tiny.hooked(model.hf, [ids], 1, _phased(prompt))
            ids.append(int(logits[0, -1].argmax()))
        assert got == ids[len(prompt) :]


def test_the_step_is_in_the_positions_and_strength_is_each_requests_own() -> None:
    """There, users passed both through call counters of their own."""
    model, v = tiny.model(), 2 * _v(0)
    fading = Function(lambda h, positions: h + v / (1 + positions[..., None]))
    strengths = [1.0, 0.0, -1.0, 2.0]
    got = model.generate(RAGGED, edit=Edit(SITE, fading), strength=strengths, max_new_tokens=5, do_sample=False)
    for row, (prompt, s) in enumerate(zip(RAGGED, strengths, strict=True)):

        def change(h: Tensor, s: float = s) -> Tensor:
            return h + s * v / (1 + torch.arange(h.shape[1])[None, :, None])

        assert got[row] == _greedy_by_hand(model.hf, prompt, 5, 1, change)


# -- sources -----------------------------------------------------------------------------------------------------------


def test_one_source_at_twelve_sites_is_two_forwards() -> None:
    """There, an interchange at 12 Sites ran the source 12 times unless they were grouped by hand."""
    model = tiny.model()
    source = Source(OTHER)
    names = [f"{name}.{layer}" for name in ("attn_out", "mlp_out", "z", "mlp_act") for layer in range(3)]
    edit = Edit.of(tuple(part for name in names for part in Edit(name, Swap(source), tokens="last").parts))
    with tiny.forwards(model.hf) as count:
        got = model.forward(EVEN, edit=edit).logits
    assert count == [2]
    apart = Edit.of(tuple(part for name in names for part in Edit(name, Swap(Source(OTHER)), tokens="last").parts))
    torch.testing.assert_close(got, model.forward(EVEN, edit=apart).logits)


def test_parallel_and_serial_sources_are_told_apart() -> None:
    model = tiny.model()
    low = Edit("resid_post.0", Swap(Source(OTHER)), tokens=1)
    parallel = low + Edit("resid_post.2", Swap(Source(EVEN)), tokens=3)
    serial = Edit("resid_post.2", Swap(Source(EVEN, edit=low)), tokens=3)
    one, two = (model.read(EVEN, "resid_post.2", edit=e)["resid_post.2"] for e in (parallel, serial))
    plain = tiny.states(model.hf, EVEN, 2)
    other = tiny.states(model.hf, OTHER, 0)
    with tiny.hook(tiny.block(model.hf, 0), lambda h: torch.cat([h[:, :1], other[:, 1:2], h[:, 2:]], 1)):
        patched = tiny.states(model.hf, EVEN, 2)
    # parallel: the base is patched below and gets its own plain state back at token 3
    torch.testing.assert_close(one, torch.cat([patched[:, :3], plain[:, 3:]], 1))
    # serial: the base is plain, and gets the patched run's state at token 3
    torch.testing.assert_close(two, torch.cat([plain[:, :3], patched[:, 3:]], 1))


def test_a_read_may_be_taken_before_the_edit_at_its_own_site() -> None:
    model, v = tiny.model(), _v(0)
    edit = Edit("resid_post.0", Add(v)) + Edit(SITE, Add(v))
    after = model.forward(EVEN, edit=edit, read=SITE).acts[SITE]
    before = model.forward(EVEN, edit=edit, read=SITE, before=True).acts[SITE]
    with tiny.hook(tiny.block(model.hf, 0), lambda h: h + v):
        want = tiny.states(model.hf, EVEN, 1)
    torch.testing.assert_close(before, want)
    torch.testing.assert_close(after, want + v)


def test_gradients_of_states_are_given() -> None:
    """There, a gradient hook was defined and never used."""
    model = tiny.model()
    acts = model.read(EVEN, "resid_post.*", grads=lambda out: out.logits[:, -1, 5].sum())
    for layer in range(tiny.LAYERS):
        leaf = tiny.states(model.hf, EVEN, layer).detach().requires_grad_()
        with tiny.hook(tiny.block(model.hf, layer), lambda _, leaf=leaf: leaf):
            model.hf(torch.tensor(EVEN), use_cache=False).logits[:, -1, 5].sum().backward()
        torch.testing.assert_close(acts.gradients[f"resid_post.{layer}"], leaf.grad, rtol=1e-4, atol=1e-5)


def test_no_warning_is_given_on_the_way() -> None:
    model = tiny.model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.forward(RAGGED, edit=Edit(SITE, Add(_v(0)), "last") + Edit("z.0.h1", Swap([[1, 2]]), "first2"))
