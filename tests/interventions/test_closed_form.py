"""Every closed-form intervention in a model's forward beside its formula in a bare torch hook."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.interventions import tiny
from tests.interventions.tiny import WIDTH
from torch import Tensor, nn

import inlay
from inlay import Ablate, Add, Clamp, Edit, Intervention, Noise, Project, Replace, Scale, Zero
from inlay.errors import EditError, SiteError
from inlay.interventions import families

Formula = Callable[[Tensor], Tensor]
DIMS = [3, 4, 20]


def _v(seed: int) -> Tensor:
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))


def _some(change: Formula) -> Formula:
    """A formula at DIMS alone."""

    def act(h: Tensor) -> Tensor:
        new = h.clone()
        new[..., DIMS] = change(h)[..., DIMS]
        return new

    return act


def _clamp(low: float, high: float) -> Formula:
    def act(h: Tensor) -> Tensor:
        u = _v(1).double() / _v(1).double().norm()
        along = h @ u
        return h + (along.clamp(low, high) - along)[..., None] * u

    return act


def _project(keep: bool) -> Formula:
    def act(h: Tensor) -> Tensor:
        span = torch.stack([_v(2), _v(3), _v(2) + 3 * _v(4)], 1).double()
        inside = h @ span @ torch.linalg.inv(span.T @ span) @ span.T  # the projector of any basis
        return inside if keep else h - inside

    return act


def _ablate(h: Tensor) -> Tensor:
    u = _v(1).double()
    return h - (h @ u)[..., None] * u / (u @ u)


def _noise(h: Tensor) -> Tensor:
    eps = families.normal(torch.tensor(5), torch.arange(h.shape[1])[None], WIDTH, h.device)
    return h + 0.3 * eps.double()


# name -> (the intervention, its formula on a float64 state [rows, tokens, width])
KINDS: dict[str, tuple[Callable[[], Intervention], Formula]] = {
    "add": (lambda: Add(_v(0)), lambda h: h + _v(0).double()),
    "clamp": (lambda: Clamp(3 * _v(1), -0.1, 0.2), _clamp(-0.1, 0.2)),
    "clamp to one value": (lambda: Clamp(_v(1), 2.5), _clamp(2.5, 2.5)),
    "ablate": (lambda: Ablate(7 * _v(1)), _ablate),
    "project": (lambda: Project(torch.stack([_v(2), _v(3), _v(2) + 3 * _v(4)], 1)), _project(False)),
    "project keep": (lambda: Project(torch.stack([_v(2), _v(3), _v(2) + 3 * _v(4)], 1), keep=True), _project(True)),
    "replace": (lambda: Replace(_v(0)), lambda h: _v(0).double().expand(h.shape)),
    "replace dims": (lambda: Replace(_v(0), dims=DIMS), _some(lambda h: _v(0).double().expand(h.shape))),
    "zero": (lambda: Zero(), torch.zeros_like),
    "zero dims": (lambda: Zero(dims=DIMS), _some(torch.zeros_like)),
    "scale": (lambda: Scale(-1.5), lambda h: -1.5 * h),
    "scale dims": (lambda: Scale(-1.5, dims=DIMS), _some(lambda h: -1.5 * h)),
    "noise": (lambda: Noise(0.3, seed=5), _noise),
    "noise dims": (lambda: Noise(0.3, seed=5, dims=DIMS), _some(_noise)),
}
each = pytest.mark.parametrize(("make", "formula"), KINDS.values(), ids=KINDS)
both = pytest.mark.parametrize("family", tiny.FAMILIES)


def _in_float64(formula: Formula, strength: Tensor | float | None = None) -> Formula:
    """The formula as a hook's function: float64 inside, the state's dtype outside."""

    def act(h: Tensor) -> Tensor:
        wide = h.double()
        new = formula(wide)
        return (new if strength is None else wide + strength * (new - wide)).to(h.dtype)

    return act


@both
@each
def test_equals_the_formula_in_a_hook(make: Callable[[], Intervention], formula: Formula, family: str) -> None:
    hf = tiny.FAMILIES[family]()
    base = tiny.plain(hf, tiny.RAGGED)
    got = inlay.load(hf).forward(tiny.RAGGED, edit=Edit("resid_post.1", make())).logits
    want = tiny.hooked(hf, tiny.RAGGED, 1, _in_float64(formula))
    tiny.same_where_real(got, want, tiny.RAGGED, rtol=1e-5, atol=2e-5)
    assert float((want - base).abs().max()) > 0.1  # the edit is no small thing beside the tolerance
    assert torch.equal(tiny.plain(hf, tiny.RAGGED), base)


@each
@pytest.mark.parametrize("how", ["edit", "call", "rows", "both"])
def test_strength_scales_the_change(make: Callable[[], Intervention], formula: Formula, how: str) -> None:
    model = tiny.model()
    per_row = [0.0, 0.5, -2.0, 1.0]
    edit = Edit("resid_post.1", make(), strength=0.3 if how in ("edit", "both") else None)
    call = {"edit": None, "call": 0.3, "rows": per_row, "both": per_row}[how]
    total = torch.tensor(per_row, dtype=torch.float64).reshape(-1, 1, 1) if how in ("rows", "both") else 1.0
    total = total * (1.0 if how == "rows" else 0.3)
    got = model.forward(tiny.RAGGED, edit=edit, strength=call).logits
    want = tiny.hooked(model.hf, tiny.RAGGED, 1, _in_float64(formula, total))
    tiny.same_where_real(got, want, tiny.RAGGED, rtol=1e-5, atol=2e-5)
    if how in ("rows", "both"):
        assert torch.equal(got[0], tiny.plain(model.hf, tiny.RAGGED)[0])


@each
def test_strength_zero_changes_no_bit(make: Callable[[], Intervention], formula: Formula) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny.model(dtype=dtype)
        base = tiny.plain(model.hf, tiny.RAGGED)
        for strength in ({"edit": Edit("resid_post.1", make(), strength=0.0)}, {"strength": 0.0}):
            given: Any = {"edit": Edit("resid_post.1", make()), **strength}
            assert torch.equal(model.forward(tiny.RAGGED, **given).logits, base)


@each
def test_half_precision_rounds_once_or_twice(make: Callable[[], Intervention], formula: Formula) -> None:
    hf = tiny.llama(dtype=torch.bfloat16)
    h = tiny.states(hf, tiny.EVEN, 1)
    out = inlay.load(hf).forward(tiny.EVEN, edit=Edit("resid_post.1", make()), read="resid_post.1")
    got = out.acts["resid_post.1"]
    assert got.dtype == torch.bfloat16
    want = formula(h.double())
    size = torch.maximum(h.double().abs(), want.abs()) + (want - h.double()).abs()
    assert bool(((got.double() - want).abs() <= 2**-8 * size + 2**-9).all())
    # and what was read is what the layers above were given
    assert torch.equal(tiny.hooked(hf, tiny.EVEN, 1, lambda _: got), out.logits)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_other_tokens_and_dimensions_keep_every_bit(
    make: Callable[[], Intervention], formula: Formula, dtype: torch.dtype
) -> None:
    model = tiny.model(dtype=dtype)
    made = make()
    h = tiny.states(model.hf, tiny.EVEN, 1)
    acts = model.read(tiny.EVEN, "resid_post.1", edit=Edit("resid_post.1", made, tokens=[1, -1]))
    got = acts["resid_post.1"]
    assert torch.equal(got[:, [0, 2]], h[:, [0, 2]])
    assert not torch.equal(got[:, [1, 3]], h[:, [1, 3]])
    if "dims" in made.state():
        others = [d for d in range(WIDTH) if d not in DIMS]
        assert torch.equal(got[..., others], h[..., others])


@each
def test_selected_tokens_equal_the_formula_there(make: Callable[[], Intervention], formula: Formula) -> None:
    model = tiny.model()

    def last_alone(h: Tensor) -> Tensor:
        new, changed = h.clone(), _in_float64(formula)(h)
        for row, ids in enumerate(tiny.RAGGED):
            new[row, len(ids) - 1] = changed[row, len(ids) - 1]
        return new

    got = model.forward(tiny.RAGGED, edit=Edit("resid_post.1", make(), tokens="last")).logits
    tiny.same_where_real(got, tiny.hooked(model.hf, tiny.RAGGED, 1, last_alone), tiny.RAGGED, rtol=1e-5, atol=2e-5)


@each
def test_a_float64_model_is_edited_in_float64(make: Callable[[], Intervention], formula: Formula) -> None:
    hf = tiny.llama(dtype=torch.float64)
    h = tiny.states(hf, tiny.EVEN, 1)
    made = make()
    got = inlay.load(hf).read(tiny.EVEN, "resid_post.1", edit=Edit("resid_post.1", made))["resid_post.1"]
    # the vectors are kept in float32, as they were given; with them taken as they are, the arithmetic is float64
    state = {name: t.double() if t.is_floating_point() else t for name, t in made.state().items()}
    if "basis" in state:
        inside = h @ state["basis"] @ state["basis"].T
        want = inside if made.config()["keep"] else h - inside
    elif "direction" in state:
        u = state["direction"]
        along = h @ u
        wanted = along.clamp(state["low"], state["high"]) if "low" in state else torch.zeros_like(along)
        want = h + (wanted - along)[..., None] * u
    else:
        want = formula(h)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, want, rtol=0, atol=1e-7 if "std" in state else 1e-12)


@each
def test_the_state_that_came_in_is_not_written_to(make: Callable[[], Intervention], formula: Formula) -> None:
    model = tiny.model()
    with torch.no_grad():
        h = torch.randn(2, 3, WIDTH)
        before = h.clone()
        made = make()
        state = {name: t.clone() for name, t in made.state().items()}
        made(h)
        model.forward(tiny.EVEN, edit=Edit("resid_post.1", made, strength=0.5))
    assert torch.equal(h, before)
    assert all(torch.equal(t, state[name]) for name, t in made.state().items())


@both
def test_heads_are_edited_alone(family: str) -> None:
    hf = tiny.FAMILIES[family]()
    v = torch.randn(tiny.HEAD_WIDTH)

    def head_two(z: Tensor) -> Tensor:
        new = z.clone()
        new[..., 2 * tiny.HEAD_WIDTH : 3 * tiny.HEAD_WIDTH] += v
        return new

    attention = tiny.block(hf, 1)
    out = attention.self_attn.o_proj if family == "llama" else attention.attn.c_proj
    got = inlay.load(hf).forward(tiny.RAGGED, edit=Edit("z.1.h2", Add(v))).logits
    with tiny.input_hook(out, head_two):
        want = tiny.plain(hf, tiny.RAGGED)
    tiny.same_where_real(got, want, tiny.RAGGED)


def test_an_output_that_the_model_overwrites_may_be_replaced() -> None:
    """Falcon's blocks add attention's output to the MLP's in place."""
    from transformers import FalconConfig, FalconForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": tiny.VOCABULARY}
    hf = FalconForCausalLM(FalconConfig(**shape, initializer_range=0.3, parallel_attn=True)).eval()
    model, v = inlay.load(hf), torch.randn(WIDTH)
    stored = torch.randn(4, 4, WIDTH)
    before = stored.clone()
    cases: list[tuple[Any, Tensor]] = [(Replace(v), v.expand(4, 4, WIDTH)), (lambda h: stored, before)]
    for intervention, want in cases:
        with torch.no_grad():
            got = model.forward(tiny.EVEN, edit=Edit("mlp_out.0", intervention), read="mlp_out.0")
            with tiny.hook(hf.transformer.h[0].mlp, lambda _, w=want: w.clone()):
                expected = hf(torch.tensor(tiny.EVEN)).logits
        torch.testing.assert_close(got.logits, expected)
        assert torch.equal(got.acts["mlp_out.0"], want)
        assert torch.equal(stored, before)


# -- what the formulas promise -----------------------------------------------------------------------------------------


def _edited(intervention: Intervention) -> Tensor:
    return tiny.model().read(tiny.EVEN, "resid_post.1", edit=Edit("resid_post.1", intervention))["resid_post.1"]


def test_clamp_puts_the_component_into_the_range() -> None:
    u = _v(1) / _v(1).norm()
    along = _edited(Clamp(_v(1), -0.1, 0.2)) @ u
    assert float(along.min()) >= -0.1 - 1e-5 and float(along.max()) <= 0.2 + 1e-5
    torch.testing.assert_close(_edited(Clamp(_v(1), 2.5)) @ u, torch.full((4, 4), 2.5))


def test_clamp_may_be_open_on_one_side() -> None:
    h = tiny.states(tiny.llama(), tiny.EVEN, 1)
    along = h @ (_v(1) / _v(1).norm())
    above = _edited(Clamp(_v(1), 0.0, math.inf))
    assert bool(torch.isfinite(above).all())
    assert torch.equal(above[along > 0], h[along > 0])
    assert float((above @ _v(1)).min()) > -1e-4


def test_ablate_and_project_leave_nothing_of_the_subspace() -> None:
    assert float((_edited(Ablate(_v(1))) @ _v(1)).abs().max()) < 1e-4
    basis = torch.randn(WIDTH, 4)
    assert float((_edited(Project(basis)) @ basis).abs().max()) < 1e-4


def test_project_with_one_column_is_ablate() -> None:
    torch.testing.assert_close(_edited(Project(_v(1)[:, None])), _edited(Ablate(_v(1))))


def test_removed_and_kept_parts_add_up() -> None:
    basis = torch.randn(WIDTH, 5)
    total = _edited(Project(basis)) + _edited(Project(basis, keep=True))
    torch.testing.assert_close(total, tiny.states(tiny.llama(), tiny.EVEN, 1))


def test_project_orthonormalises_once_and_precisely() -> None:
    skewed = torch.stack([_v(2), _v(2) + 1e-3 * _v(3)], 1)  # nearly dependent columns are still a basis
    basis = Project(skewed).state()["basis"].double()
    torch.testing.assert_close(basis.T @ basis, torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-6)
    wide = skewed.double()
    projector = wide @ torch.linalg.inv(wide.T @ wide) @ wide.T
    torch.testing.assert_close(basis @ basis.T, projector, rtol=0, atol=1e-6)


# -- noise -------------------------------------------------------------------------------------------------------------


def _noise_of(rows: list[list[int]], noise: Noise, **kwargs: Any) -> list[Tensor]:
    model = tiny.model()
    edited = model.read(rows, "resid_post.1", edit=Edit("resid_post.1", noise), **kwargs).rows("resid_post.1")
    plain = model.read(rows, "resid_post.1").rows("resid_post.1")
    return [a - b for a, b in zip(edited, plain, strict=True)]


def test_noise_is_the_same_alone_and_in_a_padded_batch() -> None:
    together = _noise_of(tiny.RAGGED, Noise(0.5, seed=3))
    for row, ids in enumerate(tiny.RAGGED):
        torch.testing.assert_close(together[row], _noise_of([ids], Noise(0.5, seed=3))[0], rtol=0, atol=1e-5)


def test_noise_has_the_level_that_was_asked_for() -> None:
    for std in (0.1, 2.0, 40.0):
        eps = torch.cat([x.flatten() for x in _noise_of([list(range(2, 60))], Noise(std, seed=1))])
        # five standard errors of a standard deviation's estimate
        assert abs(float(eps.std()) / std - 1) < 5 / math.sqrt(2 * len(eps))


def test_noise_differs_between_seeds_positions_and_not_between_calls() -> None:
    first, again = _noise_of(tiny.EVEN, Noise(1.0, seed=1)), _noise_of(tiny.EVEN, Noise(1.0, seed=1))
    other = _noise_of(tiny.EVEN, Noise(1.0, seed=2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert float((first[0] - other[0]).abs().mean()) > 0.5
    assert float((first[0][0] - first[0][1]).abs().mean()) > 0.5


def test_noise_in_generation_is_the_noise_of_the_whole_sequence() -> None:
    model, noise = tiny.model(), Noise(3.0, seed=4)
    edit = Edit("resid_post.1", noise)
    prompt = [5, 9, 17]
    new = model.generate(prompt, edit=edit, max_new_tokens=8, do_sample=False)
    assert new != model.generate(prompt, max_new_tokens=8, do_sample=False)
    ids = list(prompt)
    for _ in range(8):  # without a cache: the whole sequence again for every token
        eps = families.normal(torch.tensor(4), torch.arange(len(ids))[None], WIDTH, torch.device("cpu"))
        logits = tiny.hooked(model.hf, [ids], 1, lambda h, e=eps: h + 3.0 * e)
        ids.append(int(logits[0, -1].argmax()))
    assert new == ids[3:]


def test_noise_of_std_zero_changes_no_bit() -> None:
    h = torch.randn(2, 3, WIDTH)
    assert torch.equal(Noise(0.0)(h), h)


# -- training ----------------------------------------------------------------------------------------------------------


def test_gradients_reach_a_trainable_vector_and_nothing_else() -> None:
    model = tiny.model()
    model.hf.requires_grad_(False)
    v = nn.Parameter(torch.randn(WIDTH))
    out = model.forward(tiny.EVEN, edit=Edit("resid_post.1", Add(v), tokens="last"))
    out.logits[:, -1, 7].sum().backward()
    by_hand = v.detach().clone().requires_grad_()

    def last(h: Tensor) -> Tensor:
        return torch.cat([h[:, :-1], h[:, -1:] + by_hand], 1)

    with tiny.hook(tiny.block(model.hf, 1), last):
        model.hf(**tiny.padded(tiny.EVEN), use_cache=False).logits[:, -1, 7].sum().backward()
    torch.testing.assert_close(v.grad, by_hand.grad)
    assert all(p.grad is None for p in model.hf.parameters())


@pytest.mark.parametrize(
    "make",
    [
        Add,
        Replace,
        lambda p: Replace(p, dims=DIMS),
        Ablate,
        lambda p: Clamp(p, 0.5),
        lambda p: Project(p[:, None] if p.ndim == 1 else p),
        inlay.Mean,
    ],
    ids=["add", "replace", "replace dims", "ablate", "clamp", "project", "mean"],
)
def test_a_parameter_is_trained_or_refused_and_never_silently_frozen(make: Callable[[Any], Intervention]) -> None:
    parameter = nn.Parameter(torch.randn(WIDTH))
    try:
        made = make(parameter)
    except EditError:
        return
    assert list(made.parameters()), "the parameter was copied, and training it would change nothing"


def test_a_trainable_factor() -> None:
    factor = nn.Parameter(torch.tensor(2.0))
    h = torch.randn(2, 3, 4)
    Scale(factor)(h).sum().backward()
    torch.testing.assert_close(factor.grad, h.sum())


# -- bad input ---------------------------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("make", [Add, Replace, Ablate, lambda v: Clamp(v, 1.0)])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_vectors_that_are_not_finite_are_refused(make: Callable[[Tensor], Any], bad: float) -> None:
    v = torch.ones(WIDTH)
    v[[3, 9]] = bad
    with pytest.raises(EditError, match=r"holds 2 value\(s\) that are NaN or infinite"):
        make(v)


@pytest.mark.parametrize("make", [Ablate, lambda v: Clamp(v, 1.0)], ids=["ablate", "clamp"])
def test_a_zero_direction_is_refused(make: Callable[[Tensor], Any]) -> None:
    with pytest.raises(EditError, match="has length 0 and so no direction"):
        make(torch.zeros(WIDTH))


@pytest.mark.parametrize("make", [Add, Replace, Ablate, lambda v: Clamp(v, 1.0)])
def test_matrices_are_no_vectors(make: Callable[[Tensor], Any]) -> None:
    with pytest.raises(EditError, match=r"one vector \[width\], not a tensor of shape \[2, 32\]"):
        make(torch.ones(2, WIDTH))


@pytest.mark.parametrize(
    "make",
    [Add, Replace, Ablate, lambda v: Clamp(v, 1.0), lambda v: Project(v[:, None]), inlay.Mean],
    ids=["add", "replace", "ablate", "clamp", "project", "mean"],
)
@pytest.mark.parametrize(("site", "width"), [("resid_post.1", 32), ("mlp_act.0", 48), ("z.1.h2", 8), ("k.0", 16)])
def test_another_width_names_both(make: Callable[[Tensor], Any], site: str, width: int) -> None:
    model, base = tiny.model(), tiny.plain(tiny.llama(), tiny.EVEN)
    with pytest.raises(SiteError, match=rf"has width 7, and {site} has width {width}"):
        model.forward(tiny.EVEN, edit=Edit(site, make(torch.ones(7))))
    assert torch.equal(model.forward(tiny.EVEN).logits, base)


def test_another_width_at_a_raw_site_names_both() -> None:
    with pytest.raises(SiteError, match=r"width 7.*width 32"):
        tiny.model().forward(tiny.EVEN, edit=Edit("module:model.layers.0.self_attn:out", Add(torch.ones(7))))


@pytest.mark.parametrize(
    "intervention",
    [lambda: Zero([2, 32]), lambda: Scale(2.0, [32]), lambda: Replace(torch.ones(32), [32]), lambda: Noise(1, 0, [32])],
    ids=["zero", "scale", "replace", "noise"],
)
def test_dimensions_out_of_range_are_refused(intervention: Callable[[], Intervention]) -> None:
    with pytest.raises(SiteError, match=r"dimension 32 is out of range at resid_post\.0, of width 32"):
        tiny.model().forward(tiny.EVEN, edit=Edit("resid_post.0", intervention()))


def test_a_dependent_basis_is_refused() -> None:
    with pytest.raises(EditError, match="the columns are not independent"):
        Project(torch.stack([_v(0), _v(1), _v(0) - 2 * _v(1)], 1))
    with pytest.raises(EditError, match="the columns are not independent"):
        Project(torch.stack([_v(0), torch.zeros(WIDTH)], 1))


def test_what_is_no_basis_is_refused() -> None:
    with pytest.raises(EditError, match=r"\[width, r\] with r <= width, not \[3, 4\]"):
        Project(torch.ones(3, 4))
    with pytest.raises(EditError, match=r"\[width, r\] with r <= width, not \[4\]"):
        Project(torch.ones(4))
    with pytest.raises(EditError, match="NaN or infinite"):
        Project(torch.full((4, 1), NAN))
    with pytest.raises(EditError, match=r"Project\(basis\)"):
        Project("rotation")


@pytest.mark.parametrize("std", [-1.0, NAN, INF])
def test_no_standard_deviation(std: float) -> None:
    with pytest.raises(EditError, match=r"Noise\(std=.*a finite number from 0"):
        Noise(std)


@pytest.mark.parametrize("seed", [2**63, -(2**63) - 1])
def test_a_seed_beyond_int64_is_refused(seed: int) -> None:
    with pytest.raises(EditError, match="seed"):
        Noise(1.0, seed=seed)


@pytest.mark.parametrize(("low", "high"), [(1.0, 0.0), (NAN, 1.0), (0.0, NAN), (NAN, None)])
def test_a_range_that_is_none(low: float, high: float | None) -> None:
    with pytest.raises(EditError, match="low must not be above high"):
        Clamp(torch.ones(4), low, high)


@pytest.mark.parametrize(("low", "high"), [(INF, None), (-INF, None), (INF, INF), (-INF, -INF)])
def test_a_component_is_not_set_to_infinity(low: float, high: float | None) -> None:
    with pytest.raises(EditError, match="finite"):
        Clamp(torch.ones(4), low, high)


@pytest.mark.parametrize("factor", [NAN, INF, torch.ones(2)])
def test_what_is_no_factor(factor: Any) -> None:
    with pytest.raises(EditError, match="one finite number"):
        Scale(factor)
