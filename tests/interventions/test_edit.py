"""Edit: sums in written order, shared interventions, and what an nn.Module must be able to do."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.interventions import tiny
from tests.interventions.tiny import EVEN, OTHER, RAGGED, WIDTH
from torch import Tensor, nn

import inlay
from inlay import Add, Bank, Clamp, Edit, Function, Mean, Project, Replace, Scale, Source, Swap, Zero
from inlay.errors import EditError, SiteError, TokensError

SITE = "resid_post.1"


def _v(seed: int) -> Tensor:
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))


# -- order and sums ----------------------------------------------------------------------------------------------------


def test_parts_at_one_site_act_in_written_order() -> None:
    model, v = tiny.model(), _v(0)
    add, scale = Edit(SITE, Add(v)), Edit(SITE, Scale(2.0))
    for edit, change in ((add + scale, lambda h: 2 * (h + v)), (scale + add, lambda h: 2 * h + v)):
        got = model.forward(EVEN, edit=edit).logits
        torch.testing.assert_close(got, tiny.hooked(model.hf, EVEN, 1, change))


def test_sums_are_associative_and_keep_their_order() -> None:
    a, b, c = Edit(SITE, Add(_v(0))), Edit(SITE, Scale(2.0)), Edit("resid_post.0", Zero([1]))
    left, right = (a + b) + c, a + (b + c)
    assert left.parts == right.parts == a.parts + b.parts + c.parts
    assert len(a.parts) == 1  # a sum leaves its terms as they are
    assert sum([b, c], a).parts == left.parts


def test_written_order_holds_between_sites_of_one_module_only() -> None:
    """Across Sites the forward decides: the lower block first, however it is written."""
    model, v = tiny.model(), _v(0)
    low, high = Edit("resid_post.0", Add(v)), Edit("resid_post.2", Scale(0.5))
    assert torch.equal(model.forward(EVEN, edit=low + high).logits, model.forward(EVEN, edit=high + low).logits)


def test_one_tensor_under_two_names_keeps_written_order() -> None:
    """resid_post.0 and resid_pre.1 are one tensor, and the lower block's output comes first."""
    model, v = tiny.model(), _v(0)
    edit = Edit("resid_post.0", Add(v)) + Edit("resid_pre.1", Scale(2.0))
    got = model.forward(EVEN, edit=edit).logits
    torch.testing.assert_close(got, tiny.hooked(model.hf, EVEN, 0, lambda h: 2 * (h + v)))


def test_different_tokens_at_one_site() -> None:
    model, v, w = tiny.model(), _v(0), _v(1)
    edit = Edit(SITE, Add(v), "first") + Edit(SITE, Replace(w), "last") + Edit(SITE, Scale(3.0), [0, 1])

    def change(h: Tensor) -> Tensor:
        new = h.clone()
        new[:, 0] += v
        new[:, -1] = w
        new[:, :2] *= 3
        return new

    torch.testing.assert_close(model.forward(EVEN, edit=edit).logits, tiny.hooked(model.hf, EVEN, 1, change))


def test_what_is_no_edit_does_not_add() -> None:
    with pytest.raises(TypeError, match="unsupported operand"):
        Edit(SITE, Add(_v(0))) + Add(_v(0))  # type: ignore[operator]


# -- every layer -------------------------------------------------------------------------------------------------------


def test_a_site_of_every_layer() -> None:
    model, v = tiny.model(), _v(0)
    got = model.forward(RAGGED, edit=Edit("resid_post.*", Add(v)))
    with tiny.hook(tiny.block(model.hf, 0), lambda h: h + v), tiny.hook(tiny.block(model.hf, 1), lambda h: h + v):
        want = tiny.hooked(model.hf, RAGGED, 2, lambda h: h + v)
    tiny.same_where_real(got.logits, want, RAGGED)
    assert got.touched == [sum(map(len, RAGGED))] * tiny.LAYERS


def test_heads_of_every_layer() -> None:
    model, v = tiny.model(), torch.randn(tiny.HEAD_WIDTH)
    got = model.forward(EVEN, edit=Edit("z.*.h1", Add(v))).logits
    edit = Edit("z.0.h1", Add(v)) + Edit("z.1.h1", Add(v)) + Edit("z.2.h1", Add(v))
    torch.testing.assert_close(got, model.forward(EVEN, edit=edit).logits)


def test_a_layer_counted_from_the_end() -> None:
    model = tiny.model()
    got, want = (model.forward(EVEN, edit=Edit(s, Add(_v(0)))).logits for s in ("resid_post.-2", "resid_post.1"))
    assert torch.equal(got, want)


# -- shared interventions ----------------------------------------------------------------------------------------------


def test_a_shared_intervention_is_one_module_with_one_set_of_parameters() -> None:
    shared = Add(nn.Parameter(_v(0)))
    edit = Edit("resid_post.0", shared) + Edit("resid_post.2", shared) + Edit(SITE, Add(nn.Parameter(_v(1))))
    assert len(edit.interventions) == 2
    assert [tuple(p.shape) for p in edit.parameters()] == [(WIDTH,), (WIDTH,)]
    assert len(dict(edit.named_parameters())) == 2
    assert len(edit.state_dict()) == 2


def test_a_shared_parameter_gets_the_sum_of_its_gradients_and_one_step() -> None:
    model = tiny.model()
    model.hf.requires_grad_(False)
    v = nn.Parameter(_v(0))
    shared = Add(v)
    edit = Edit("resid_post.0", shared, "last") + Edit("resid_post.2", shared, "first")
    model.forward(EVEN, edit=edit).logits[..., 3].sum().backward()
    apart = [nn.Parameter(_v(0)), nn.Parameter(_v(0))]
    edit_apart = Edit("resid_post.0", Add(apart[0]), "last") + Edit("resid_post.2", Add(apart[1]), "first")
    model.forward(EVEN, edit=edit_apart).logits[..., 3].sum().backward()
    torch.testing.assert_close(v.grad, apart[0].grad + apart[1].grad)
    before = v.detach().clone()
    torch.optim.SGD(edit.parameters(), lr=1.0).step()
    torch.testing.assert_close(v.detach(), before - v.grad)


def test_a_sum_with_itself_is_the_edit_twice() -> None:
    model, v = tiny.model(), _v(0)
    edit = Edit(SITE, Add(v))
    twice = edit + edit
    assert len(twice.parts) == 2 and len(twice.interventions) == 1
    got = model.forward(EVEN, edit=twice).logits
    torch.testing.assert_close(got, tiny.hooked(model.hf, EVEN, 1, lambda h: h + v + v))


# -- as a module -------------------------------------------------------------------------------------------------------


def _rich() -> Edit:
    shared = Add(nn.Parameter(_v(0)))
    net = nn.Sequential(nn.Linear(WIDTH, 4), nn.Tanh(), nn.Linear(4, WIDTH))
    return (
        Edit("resid_post.0", shared, "last")
        + Edit("resid_post.2", shared, "first2", strength=0.5)
        + Edit(SITE, net)
        + Edit(SITE, Clamp(_v(1), 0.1, 0.2), [0, -1])
        + Edit("resid_post.0", Swap(OTHER), "last")
    )


def test_repr_says_what_it_is() -> None:
    said = repr(_rich())
    assert said == (
        "Edit(Add at resid_post.0, tokens='last' + Add at resid_post.2, tokens='first2', strength=0.5 + "
        "Function at resid_post.1, tokens='all' + Clamp at resid_post.1, tokens='prompt[0]+prompt[-1]' + "
        "Swap at resid_post.0, tokens='last')"
    )


def test_a_deepcopy_is_equal_and_independent() -> None:
    model, edit = tiny.model(), _rich()
    again = copy.deepcopy(edit)
    want = model.forward(EVEN, edit=edit).logits.detach()
    assert torch.equal(model.forward(EVEN, edit=again).logits, want)
    assert {id(p) for p in edit.parameters()}.isdisjoint(id(p) for p in again.parameters())
    # what is shared in the original is shared in the copy, and the parts hold the copy's own modules
    assert again.parts[0].intervention is again.parts[1].intervention is again.interventions[0]
    with torch.no_grad():
        for p in again.parameters():
            p.add_(1)
    assert not torch.equal(model.forward(EVEN, edit=again).logits, want)
    assert torch.equal(model.forward(EVEN, edit=edit).logits, want)


def test_an_edit_can_be_handed_to_another_process() -> None:
    """By the language's own means, as data loaders and launchers do; folders hold no pickle."""
    shared = Add(nn.Parameter(_v(0)))
    edit = Edit("resid_post.0", shared, "last") + Edit("resid_post.2", shared) + Edit(SITE, Bank([Scale(2.0)]))
    again = pickle.loads(pickle.dumps(edit))
    assert again.parts[0].intervention is again.parts[1].intervention
    model = tiny.model()
    got, want = (model.forward(EVEN, edit=e, rows=[0, 1, 1, 0]).logits for e in (again, edit))
    assert torch.equal(got, want)


def test_named_parameters_state_dict_and_zero_grad() -> None:
    edit = _rich()
    names = [name for name, _ in edit.named_parameters()]
    assert len(names) == len(set(names)) == 5  # the shared vector, two weights, two biases
    model = tiny.model()
    model.forward(EVEN, edit=edit).logits.sum().backward()
    assert all(p.grad is not None for p in edit.parameters())
    edit.zero_grad()
    assert all(p.grad is None for p in edit.parameters())
    other = copy.deepcopy(edit)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(2)
    edit.load_state_dict(other.state_dict())
    assert torch.equal(model.forward(EVEN, edit=edit).logits, model.forward(EVEN, edit=other).logits)


def test_to_another_dtype_moves_the_state_that_acts() -> None:
    model, edit = tiny.model(), Edit(SITE, Add(nn.Parameter(_v(0)))) + Edit(SITE, Replace(_v(1), dims=[2]))
    moved = edit.to(torch.bfloat16)
    assert moved is edit
    assert [t.dtype for t in edit.parts[0].intervention.state().values()] == [torch.bfloat16]
    assert edit.parts[1].intervention.state()["dims"].dtype == torch.int64

    def change(h: Tensor) -> Tensor:
        new = h + _v(0).bfloat16()
        new[..., 2] = _v(1).bfloat16()[2].float()
        return new

    torch.testing.assert_close(model.forward(EVEN, edit=edit).logits, tiny.hooked(model.hf, EVEN, 1, change))
    assert all(t.device.type == "meta" for t in copy.deepcopy(edit).to("meta").state_dict().values())


def test_train_and_eval_and_requires_grad_reach_the_parts() -> None:
    edit = _rich()
    edit.eval()
    assert not any(m.training for m in edit.modules())
    edit.requires_grad_(False)
    out = tiny.model().forward(EVEN, edit=edit)
    assert all(not p.requires_grad for p in edit.parameters())
    assert not any(p.grad is not None for p in edit.parameters())
    assert out.logits.shape == (4, 4, tiny.VOCABULARY)


def test_it_is_not_called() -> None:
    with pytest.raises(EditError, match=r"an Edit acts inside a model: model\.forward\(prompts, edit=edit\)"):
        Edit(SITE, Add(_v(0)))(torch.zeros(1, 1, WIDTH))


# -- strength ----------------------------------------------------------------------------------------------------------


def test_with_strength_multiplies_and_shares() -> None:
    model, v = tiny.model(), _v(0)
    edit = Edit(SITE, Add(v)) + Edit(SITE, Add(v), strength=0.5)
    stronger = edit.with_strength(4.0)
    assert [p.strength for p in stronger.parts] == [4.0, 2.0]
    assert [p.strength for p in edit.parts] == [None, 0.5]
    assert stronger.parts[0].intervention is edit.parts[0].intervention
    got = model.forward(EVEN, edit=stronger).logits
    torch.testing.assert_close(got, tiny.hooked(model.hf, EVEN, 1, lambda h: h + 6 * v))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_strength_that_is_not_finite_is_refused_wherever_it_is_given(bad: float) -> None:
    model, edit = tiny.model(), Edit(SITE, Add(_v(0)))
    with pytest.raises(EditError, match=r"strength.*finite"):
        Edit(SITE, Add(_v(0)), strength=bad)
    with pytest.raises(EditError, match=r"strength.*finite"):
        edit.with_strength(bad)
    for strength in (bad, [1.0, bad, 1.0, 1.0], torch.tensor(bad)):
        with pytest.raises(EditError, match=r"strength.*finite"):
            model.forward(EVEN, edit=edit, strength=strength)
        with pytest.raises(EditError, match=r"strength.*finite"):
            model.edited(edit, strength=strength)


def test_gradients_reach_strengths() -> None:
    model, v = tiny.model(), _v(0)
    strength = nn.Parameter(torch.tensor([1.0, 2.0, 0.0, 0.5]))
    model.forward(EVEN, edit=Edit(SITE, Add(v), strength=2.0), strength=strength).logits[..., 3].sum().backward()
    by_hand = strength.detach().clone().requires_grad_()
    with tiny.hook(tiny.block(model.hf, 1), lambda h: h + 2 * by_hand.reshape(-1, 1, 1) * v):
        model.hf(torch.tensor(EVEN), use_cache=False).logits[..., 3].sum().backward()
    torch.testing.assert_close(strength.grad, by_hand.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strength", [[1.0], [1.0, 2.0], [1.0] * 5, [[1.0] * 4], []])
def test_another_number_of_strengths_than_prompts(strength: Any) -> None:
    with pytest.raises(EditError, match="strength"):
        tiny.model().forward(EVEN, edit=Edit(SITE, Add(_v(0))), strength=strength)


# -- tokens of an edit -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_tokens", [8192, 8, 1])
def test_a_read_in_batches_keeps_each_prompts_own_positions(batch_tokens: int) -> None:
    """A read sorts prompts by length and cuts them into batches; positions given as a tensor must follow."""
    model = tiny.model()
    at = torch.tensor([[4], [2], [6], [1]])
    got = model.read(RAGGED, SITE, edit=Edit(SITE, Zero(), tokens=at), batch_tokens=batch_tokens).rows(SITE)
    for row, ids in enumerate(RAGGED):
        want = tiny.states(model.hf, [ids], 1)[0]
        want[at[row]] = 0
        torch.testing.assert_close(got[row], want, rtol=1e-5, atol=1e-5)


def test_prompt_and_response_have_their_own_edits() -> None:
    model = tiny.model()
    edit = Edit(SITE, Add(3 * _v(0)), "prompt") + Edit(SITE, Add(3 * _v(1)), "response")
    new = model.generate(EVEN, edit=edit, max_new_tokens=5, do_sample=False)
    for row, prompt in enumerate(EVEN):
        ids = list(prompt)
        for _ in range(5):
            v = torch.stack([3 * _v(0) if t < len(prompt) else 3 * _v(1) for t in range(len(ids))])
            ids.append(int(tiny.hooked(model.hf, [ids], 1, lambda h, v=v: h + v)[0, -1].argmax()))
        assert new[row] == ids[len(prompt) :]


def test_an_edit_that_reaches_nothing_says_so() -> None:
    model = tiny.model()
    edit = Edit("resid_post.0", Add(_v(0))) + Edit(SITE, Add(_v(0)), tokens="response")
    with pytest.raises(EditError, match=r"part 1 of the Edit \(resid_post\.1, tokens='response'\) changed nothing"):
        model.forward(EVEN, edit=edit)


def test_touched_counts_attended_positions() -> None:
    model = tiny.model()
    edit = Edit(SITE, Add(_v(0)), "last") + Edit(SITE, Add(_v(0)), "first2+last") + Edit("z.0.h1", Zero())
    assert model.forward(RAGGED, edit=edit).touched == [4, 4 * 3 - 1, sum(map(len, RAGGED))]


# -- making one --------------------------------------------------------------------------------------------------------


def test_sites_and_tokens_are_read_when_it_is_made() -> None:
    with pytest.raises(SiteError, match=r"no Site is called 'residual\.3'"):
        Edit("residual.3", Add(_v(0)))
    with pytest.raises(TokensError, match="'lots' is not understood"):
        Edit(SITE, Add(_v(0)), tokens="lots")
    with pytest.raises(SiteError, match="'resid_post' needs a layer"):
        Edit("resid_post", Add(_v(0)))


def test_a_layer_out_of_range_is_named_before_any_forward() -> None:
    model = tiny.model()
    with tiny.forwards(model.hf) as count, pytest.raises(SiteError, match="layers 0 to 2"):
        model.edited(Edit("resid_post.3", Add(_v(0))))
    assert count == [0]


@pytest.mark.parametrize("bare", [torch.ones(WIDTH), nn.Parameter(torch.ones(WIDTH))], ids=["tensor", "parameter"])
def test_a_bare_tensor_is_no_intervention(bare: Tensor) -> None:
    with pytest.raises(EditError, match=r"not a bare tensor: write Add\(v\) to add it, Replace\(v\) to set it"):
        Edit(SITE, bare)


def test_an_edit_without_parts() -> None:
    with pytest.raises(EditError, match="an Edit without parts changes nothing"):
        Edit.of(())


@pytest.mark.parametrize("edit", [Add(_v(0)), _v(0), "resid_post.1", [Edit(SITE, Add(_v(0)))]])
def test_what_is_no_edit(edit: Any) -> None:
    with pytest.raises(EditError, match=r"is not an Edit: write Edit\('resid_post\.3', Add\(v\)\)"):
        tiny.model().forward(EVEN, edit=edit)


def test_modules_and_functions_are_wrapped() -> None:
    assert isinstance(Edit(SITE, nn.Identity()).parts[0].intervention, Function)
    assert isinstance(Edit(SITE, lambda h: h).parts[0].intervention, Function)
    project = Project(torch.randn(WIDTH, 2))
    assert Edit(SITE, project).parts[0].intervention is project


def test_one_edit_on_two_models_at_once() -> None:
    """An Edit holds nothing of a model."""
    a, b = tiny.model(0), inlay.load(tiny.gpt2(1))
    edit = Edit(SITE, Add(_v(0))) + Edit(SITE, Mean(Source(OTHER, tokens="last")), "last")
    want = [m.forward(EVEN, edit=edit).logits for m in (a, b)]
    with a.edited(edit), b.edited(edit), torch.no_grad():
        got = [m.hf(**tiny.padded(EVEN), use_cache=False).logits for m in (a, b)]
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


def test_rows_of_a_bank_and_shared_parts_survive_a_round_trip(tmp_path: Path) -> None:
    bank = Bank([Add(_v(0)), Add(_v(1))])
    edit = Edit("resid_post.0", bank, "last") + Edit("resid_post.2", bank)
    again = Edit.from_pretrained(edit.save(tmp_path / "edit"))
    model = tiny.model()
    got, want = (model.forward(EVEN, edit=e, rows=[0, 1, 2, 2]).logits for e in (again, edit))
    assert torch.equal(got, want)
    assert len(again.interventions) == 1
