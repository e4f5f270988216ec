"""What every intervention is: registration by kind, the checks of vectors and dimensions, use on any tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.interventions import tiny
from torch import Tensor, nn

from inlay import Add, Bank, Edit, Intervention, Zero
from inlay.errors import EditError, SiteError
from inlay.interventions.base import at_dims, dimensions, keep, unit, vector
from inlay.model.call import Call


@pytest.fixture(autouse=True)
def _kinds() -> Iterator[None]:
    """What a test registers is gone after it."""
    before = dict(Intervention.kinds)
    yield
    Intervention.kinds.clear()
    Intervention.kinds.update(before)


def _shift() -> type[Intervention]:
    class Shift(Intervention):
        """h rolled by some dimensions and scaled: a kind of the user's own, with a tensor and a constant."""

        kind = "test_shift"

        def __init__(self, scale: Any, by: int) -> None:
            super().__init__()
            keep(self, "scale", vector(scale, "scale"))
            self.by = by

        def width(self) -> int:
            return int(self.state()["scale"].shape[-1])

        def config(self) -> dict[str, Any]:
            return {"by": self.by}

        def transform(self, h: Tensor, state: Mapping[str, Tensor], call: Call) -> Tensor:
            new = h.roll(self.by, -1) * state["scale"].to(h)
            return new if call.strength is None else h + call.strength * (new - h)

    return Shift


# -- a kind of the user's own ------------------------------------------------------------------------------------------


def test_a_kind_of_the_users_own_edits_a_forward() -> None:
    scale = torch.randn(tiny.WIDTH)
    model = tiny.model()
    got = model.forward(tiny.RAGGED, edit=Edit("resid_post.1", _shift()(scale, 3))).logits
    want = tiny.hooked(model.hf, tiny.RAGGED, 1, lambda h: h.roll(3, -1) * scale)
    tiny.same_where_real(got, want, tiny.RAGGED)


def test_a_kind_of_the_users_own_stacks_into_a_bank() -> None:
    shift, model = _shift(), tiny.model()
    scales = [torch.randn(tiny.WIDTH) for _ in range(2)]
    edit = Edit("resid_post.1", Bank([shift(s, 3) for s in scales]))
    got = model.forward(tiny.EVEN, edit=edit, rows=[2, 0, 1, 2]).logits
    base = tiny.plain(model.hf, tiny.EVEN)
    assert torch.equal(got[1], base[1])
    for row, pick in ((0, 1), (2, 0), (3, 1)):
        want = tiny.hooked(model.hf, tiny.EVEN, 1, lambda h, s=scales[pick]: h.roll(3, -1) * s)
        torch.testing.assert_close(got[row], want[row])


def test_a_kind_of_the_users_own_is_saved_and_loaded(tmp_path: Path) -> None:
    shift = _shift()
    scale = torch.randn(tiny.WIDTH)
    loaded = Edit.from_pretrained(Edit("resid_post.1", shift(scale, 5)).save(tmp_path / "edit"))
    again = loaded.parts[0].intervention
    assert type(again) is shift and again.by == 5
    assert torch.equal(again.state()["scale"], scale)


def test_a_class_with_a_kind_is_registered_under_it() -> None:
    shift = _shift()
    assert Intervention.kinds["test_shift"] is shift


def test_a_subclass_without_a_kind_of_its_own_takes_nothing_over(tmp_path: Path) -> None:
    class Louder(Add):
        def transform(self, h: Tensor, state: Mapping[str, Tensor], call: Call) -> Tensor:
            return h + 2 * state["vector"].to(h)

    v = torch.randn(tiny.WIDTH)
    assert Intervention.kinds["add"] is Add
    loaded = Edit.from_pretrained(Edit("resid_post.0", Add(v)).save(tmp_path / "add"))
    assert type(loaded.parts[0].intervention) is Add
    with pytest.raises(EditError, match="Louder has no `kind` of its own"):
        Edit("resid_post.0", Louder(v)).save(tmp_path / "louder")


def test_an_intervention_without_a_transform_says_what_to_define() -> None:
    with pytest.raises(NotImplementedError, match=r"Intervention must define transform\(h, state, call\)"):
        Intervention()(torch.zeros(1, 1, 4))


def test_the_result_must_have_the_shape_of_the_state() -> None:
    class Half(Intervention):
        def transform(self, h: Tensor, state: Mapping[str, Tensor], call: Call) -> Tensor:
            return h[..., : h.shape[-1] // 2]

    with pytest.raises(EditError, match=r"resid_post\.0: the intervention returned \[4, 4, 16\] for \[4, 4, 32\]"):
        tiny.model().forward(tiny.EVEN, edit=Edit("resid_post.0", Half()))


# -- on any tensor -----------------------------------------------------------------------------------------------------


def test_an_intervention_is_a_module_on_any_tensor() -> None:
    v, h = torch.randn(6), torch.randn(2, 3, 6)
    assert torch.equal(Add(v)(h), h + v)
    strengths = torch.tensor([0.0, 2.0]).reshape(2, 1, 1)
    got = Add(v)(h, Call(strength=strengths))
    assert torch.equal(got[0], h[0])
    torch.testing.assert_close(got[1], h[1] + 2 * v)


def test_state_and_config_rebuild_it() -> None:
    made = _shift()(torch.randn(5), 2)
    again = type(made).rebuild(made.state(), made.config())
    h = torch.randn(1, 2, 5)
    assert torch.equal(again(h), made(h))


# -- vectors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [[1, 2, 3], (1.0, 2.0, 3.0), np.array([1.0, 2.0, 3.0]), torch.tensor([1, 2, 3])])
def test_a_vector_is_made_of_lists_arrays_and_tensors(values: Any) -> None:
    made = vector(values, "v")
    assert made.is_floating_point()
    assert made.tolist() == [1.0, 2.0, 3.0]


def test_a_vector_keeps_its_dtype_and_a_parameter_itself() -> None:
    assert vector(torch.ones(3, dtype=torch.bfloat16), "v").dtype == torch.bfloat16
    assert vector(torch.ones(3, dtype=torch.float64), "v").dtype == torch.float64
    parameter = nn.Parameter(torch.ones(3))
    assert vector(parameter, "v") is parameter


@pytest.mark.parametrize(
    ("values", "telling"),
    [
        (torch.ones(2, 3), r"v is one vector \[width\], not a tensor of shape \[2, 3\]"),
        (torch.tensor(1.0), r"not a tensor of shape \[\]"),
        (torch.ones(0), r"not a tensor of shape \[0\]"),
        (torch.tensor([1.0, float("nan"), float("inf")]), r"v holds 2 value\(s\) that are NaN or infinite"),
        (None, "v is one vector"),
        ("abc", "v is one vector"),
        ([[1.0], [1.0, 2.0]], "v is one vector"),
    ],
    ids=["matrix", "number", "empty", "not finite", "None", "text", "ragged"],
)
def test_what_is_no_vector_says_so(values: Any, telling: str) -> None:
    with pytest.raises(EditError, match=telling):
        vector(values, "v")


def test_a_unit_vector_has_length_one_whatever_the_length_and_dtype() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        made = unit(torch.tensor([3.0, 4.0], dtype=dtype) * 1024, "u")
        torch.testing.assert_close(made.double(), torch.tensor([0.6, 0.8], dtype=torch.float64), rtol=1e-6, atol=0)


def test_a_direction_of_length_zero_has_none() -> None:
    with pytest.raises(EditError, match="u has length 0 and so no direction"):
        unit(torch.zeros(4), "u")


def test_unit_of_very_long_and_very_short_vectors() -> None:
    want = torch.tensor([0.6, 0.8])
    for scale in (1e30, 1e-30):  # the squares of these leave float32's range
        torch.testing.assert_close(unit(torch.tensor([3.0, 4.0]) * scale, "u"), want)


# -- dimensions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dims", "want"),
    [
        ([3, 0], [3, 0]),
        (range(2, 4), [2, 3]),
        (slice(1, 4), [1, 2, 3]),
        (slice(4), [0, 1, 2, 3]),
        (slice(0, 6, 2), [0, 2, 4]),
        (torch.tensor([2, 5]), [2, 5]),
        (np.array([2, 5]), [2, 5]),
        (torch.tensor([True, False, True]), [0, 2]),
        ([False, True, True], [1, 2]),
    ],
    ids=repr,
)
def test_dimensions_of_lists_slices_and_masks(dims: Any, want: list[int]) -> None:
    made = dimensions(dims)
    assert made is not None and made.dtype == torch.int64
    assert made.tolist() == want


def test_no_dimensions_are_all_of_them() -> None:
    assert dimensions(None) is None


@pytest.mark.parametrize(
    "dims",
    [[], [-1], slice(2, None), slice(-3, None), slice(0, -1), slice(3, 3), 4, [[1, 2]], [0.5], torch.zeros(3).bool()],
    ids=repr,
)
def test_what_are_no_dimensions_say_so(dims: Any) -> None:
    with pytest.raises(EditError, match="dims"):
        dimensions(dims)


def test_text_is_no_dimensions() -> None:
    with pytest.raises(EditError, match="dims is a list of dimensions"):
        dimensions("abc")  # type: ignore[arg-type]


def test_a_mask_of_another_width_than_the_site_is_refused() -> None:
    mask = torch.zeros(2 * tiny.WIDTH, dtype=torch.bool)
    mask[tiny.WIDTH + 4] = True
    with pytest.raises(SiteError, match=rf"dimension 36 is out of range at resid_post\.0, of width {tiny.WIDTH}"):
        tiny.model().forward(tiny.EVEN, edit=Edit("resid_post.0", Zero(mask)))


def test_at_dims_writes_there_and_nowhere_else() -> None:
    h, new = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    got = at_dims(h, new, {"dims": torch.tensor([3])})
    assert torch.equal(got[..., 3], new[..., 3]) and torch.equal(got[..., :3], h[..., :3])
    assert at_dims(h, new, {}) is new


# -- keep and check ----------------------------------------------------------------------------------------------------


def test_a_parameter_is_kept_as_it_is_and_a_tensor_is_copied() -> None:
    module = nn.Module()
    parameter, tensor = nn.Parameter(torch.ones(2)), torch.ones(2)
    keep(module, "trained", parameter)
    keep(module, "fixed", tensor)
    assert module.trained is parameter
    assert [name for name, _ in module.named_parameters()] == ["trained"]
    tensor.fill_(9)
    assert module.fixed.tolist() == [1.0, 1.0]


def test_widths_are_compared_where_the_site_has_one() -> None:
    add = Add(torch.ones(5))
    with pytest.raises(SiteError, match=r"Add has width 5, and mlp_act\.2 has width 48"):
        add.check(48, "mlp_act.2")
    add.check(5, "x")
    add.check(-1, "pattern.0")  # grows with the sequence
    add.check(0, "module:a:out")  # not known before the forward
    Zero().check(48, "mlp_act.2")
    with pytest.raises(SiteError, match="dimension 7 is out of range at x, of width 7"):
        Zero([1, 7]).check(7, "x")
