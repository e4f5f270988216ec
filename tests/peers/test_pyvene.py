"""Every intervention that pyvene has, beside ours: the same logits within 1e-5 on a random Llama and a random GPT-2.

Where pyvene's own numbers are wrong, the comparison is on inputs where they are right, and the docstring says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.interventions.tiny import HEAD_WIDTH, LAYERS, OTHER, WIDTH
from tests.peers.beside import (
    EVERY,
    HERE,
    SITES,
    THERE,
    TWO_HERE,
    TWO_THERE,
    Pair,
    at,
    numbers,
    only,
    pairs,
    source,
)
from torch import Tensor

from inlay.interventions import (
    Add,
    Bank,
    Boundless,
    Call,
    Edit,
    Function,
    Intervention,
    LowRank,
    Mask,
    Noise,
    Replace,
    Rotate,
    RotateMask,
    Swap,
    Zero,
    families,
)

LAYER = 1
everywhere = pytest.mark.parametrize("component", SITES)
streams = pytest.mark.parametrize("component", ["block_input", "block_output", "attention_output", "mlp_output"])


def _part(component: str, made: Any, **more: Any) -> dict[str, Any]:
    return {"layer": LAYER, "component": component, "intervention": made, **more}


def _site(component: str) -> str:
    return f"{SITES[component]}.{LAYER}"


# -- interchange -------------------------------------------------------------------------------------------------------


@everywhere
@pytest.mark.parametrize(("here", "there"), [(HERE, THERE), (TWO_HERE, TWO_THERE)], ids=["one", "two"])
def test_interchange(pair: Pair, component: str, here: Any, there: Any) -> None:
    for layer in range(LAYERS):
        part = {"layer": layer, "component": component, "intervention_type": pair.pyvene.VanillaIntervention}
        theirs = pair.theirs([part], pairs(here, there), sources=[OTHER])[1].logits
        pair.agree(Edit(f"{SITES[component]}.{layer}", Swap(source(there)), at(here)), theirs)


@pytest.mark.parametrize("component", ["attention_value_output", "query_output", "key_output", "value_output"])
def test_interchange_of_some_heads(pair: Pair, component: str) -> None:
    """The last of the heads too: of Llama's keys and values there are two."""
    last = pair.width(component) // HEAD_WIDTH - 1
    heads = [[0, last]] * 4
    kind = pair.pyvene.VanillaIntervention
    part = {"layer": LAYER, "component": f"head_{component}", "unit": "h.pos", "intervention_type": kind}
    where = {"sources->base": ([[heads, TWO_THERE]], [[heads, TWO_HERE]])}
    theirs = pair.theirs([part], where, sources=[OTHER])[1].logits
    site = f"{SITES[component]}.{LAYER}.h[0,{last}]"
    pair.agree(Edit(site, Swap(source(TWO_THERE)), at(TWO_HERE)), theirs)


def test_interchange_after_the_activation(pair: Pair) -> None:
    """Theirs is the activation's own output; a Site of ours is what enters the down projection."""
    path = {"llama": "model.layers.1.mlp.act_fn", "gpt2": "transformer.h.1.mlp.act"}[pair.family]
    part = _part("mlp_activation", pair.pyvene.VanillaIntervention(embed_dim=128))
    theirs = pair.theirs([part], pairs(), sources=[OTHER])[1].logits
    pair.agree(Edit(f"module:{path}:out", Swap(source()), at()), theirs)


@everywhere
def test_interchange_of_some_dimensions(pair: Pair, component: str) -> None:
    made = pair.pyvene.VanillaIntervention(embed_dim=pair.width(component))
    made.set_interchange_dim(5)
    theirs = pair.theirs([_part(component, made)], pairs(), sources=[OTHER])[1].logits
    pair.agree(Edit(_site(component), Swap(source(), dims=slice(0, 5)), at()), theirs)


@everywhere
@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["added", "subtracted"])
def test_a_source_is_added(pair: Pair, component: str, sign: float) -> None:
    kind = pair.pyvene.AdditionIntervention if sign > 0 else pair.pyvene.SubtractionIntervention
    part = _part(component, kind(embed_dim=pair.width(component)))
    theirs = pair.theirs([part], pairs(TWO_HERE, TWO_THERE), sources=[OTHER])[1].logits
    pair.agree(Edit(_site(component), Add(source(TWO_THERE)), at(TWO_HERE), sign), theirs)


def test_interchange_of_dimensions_of_each_rows_own(pair: Pair) -> None:
    """Rows have unequal numbers of dimensions: with equal numbers pyvene edits the union of all rows' in every row."""
    dims = [[0, 1], [5, 9, 3], [31], [2, 30]]
    part = _part("block_output", pair.pyvene.VanillaIntervention(embed_dim=WIDTH))
    theirs = pair.theirs([part], pairs(), sources=[OTHER], subspaces=[dims])[1].logits
    other = source()
    edit = Edit(_site("block_output"), Bank([Swap(other, dims=mine) for mine in dims]), at())
    pair.agree(edit, theirs, rows=[1, 2, 3, 4])


# -- closed forms ------------------------------------------------------------------------------------------------------

Made = Callable[[Pair, int], tuple[Any, Intervention, float | None]]  # theirs, ours and our strength, for a width

CONSTANT: dict[str, Made] = {
    "set": lambda pair, n: (
        pair.pyvene.VanillaIntervention(embed_dim=n, source_representation=numbers(n)),
        Replace(numbers(n)),
        None,
    ),
    "add": lambda pair, n: (
        pair.pyvene.AdditionIntervention(embed_dim=n, source_representation=numbers(n)),
        Add(numbers(n)),
        None,
    ),
    "subtract": lambda pair, n: (
        pair.pyvene.SubtractionIntervention(embed_dim=n, source_representation=numbers(n)),
        Add(numbers(n)),
        -1.0,
    ),
    "zero": lambda pair, n: (pair.pyvene.ZeroIntervention(embed_dim=n), Zero(), None),
}


@everywhere
@pytest.mark.parametrize("name", CONSTANT)
def test_a_constant_edit(pair: Pair, component: str, name: str) -> None:
    made, ours, strength = CONSTANT[name](pair, pair.width(component))
    theirs = pair.theirs([_part(component, made)], only(TWO_HERE))[1].logits
    pair.agree(Edit(_site(component), ours, at(TWO_HERE), strength), theirs)


@everywhere
def test_noise(pair: Pair, component: str) -> None:
    """Our numbers in the place of theirs, which are the same for all rows and always for four positions."""
    width = pair.width(component)
    made = pair.pyvene.NoiseIntervention(embed_dim=width)
    made.noise = families.normal(torch.tensor(3), torch.arange(4)[None], width, torch.device("cpu"))
    made.noise_level = torch.tensor(0.7)
    theirs = pair.theirs([_part(component, made)], only(EVERY))[1].logits
    pair.agree(Edit(_site(component), Noise(0.7, seed=3)), theirs)


def test_a_constant_at_all_tokens(pair: Pair) -> None:
    """Without locations pyvene edits the whole tensor, in decoding too."""
    made, ours, _ = CONSTANT["add"](pair, WIDTH)
    pair.agree(Edit(_site("block_output"), ours), pair.theirs([_part("block_output", made)])[1].logits)


def test_a_constant_given_to_the_call(pair: Pair) -> None:
    part = _part("block_output", pair.pyvene.VanillaIntervention(embed_dim=WIDTH))
    theirs = pair.theirs([part], only(), source_representations=numbers(WIDTH))[1].logits
    pair.agree(Edit(_site("block_output"), Replace(numbers(WIDTH)), at()), theirs)


# -- rotated spaces ----------------------------------------------------------------------------------------------------


def _turned(made: Any, basis: Tensor) -> Any:
    """One of pyvene's rotations with the given R: it keeps its own parametrisation of it."""
    made.rotate_layer.weight = basis
    torch.testing.assert_close(made.rotate_layer.weight.detach(), basis, rtol=0, atol=1e-6)
    return made


@streams
@pytest.mark.parametrize("rank", [1, 8])
def test_a_low_rank_space(pair: Pair, component: str, rank: int) -> None:
    ours = LowRank(source(), WIDTH, rank, seed=3)
    made = pair.pyvene.LowRankRotatedSpaceIntervention(embed_dim=WIDTH, low_rank_dimension=rank)
    part = _part(component, _turned(made, ours.basis()), low_rank_dimension=rank)
    theirs = pair.theirs([part], pairs(), sources=[OTHER])[1].logits
    pair.agree(Edit(_site(component), ours, at()), theirs)


def test_a_low_rank_space_over_two_tokens_at_once(pair: Pair) -> None:
    """pyvene joins the positions of every edit in a space that is not the Site's own; ours does with `joint=True`."""
    ours = LowRank(source(TWO_THERE), 2 * WIDTH, 6, seed=3)
    made = pair.pyvene.LowRankRotatedSpaceIntervention(embed_dim=2 * WIDTH, low_rank_dimension=6)
    part = _part("block_output", _turned(made, ours.basis()), low_rank_dimension=6, max_number_of_units=2)
    theirs = pair.theirs([part], pairs(TWO_HERE, TWO_THERE), sources=[OTHER])[1].logits
    pair.agree(Edit(_site("block_output"), ours, at(TWO_HERE), joint=True), theirs)


def _groups(pair: Pair, parts: list[int], full: bool) -> tuple[Rotate, Any]:
    """A rotation in groups of columns, and pyvene's of the same R and partition."""
    ours = Rotate(source(), WIDTH, parts, seed=1)
    basis = families.orthonormal(ours.raw.detach())
    ends = [sum(parts[: i + 1]) for i in range(len(parts))]
    partition = [[end - size, end] for size, end in zip(parts, ends, strict=True)]
    kind = pair.pyvene.RotatedSpaceIntervention if full else pair.pyvene.LowRankRotatedSpaceIntervention
    made = kind(embed_dim=WIDTH, low_rank_dimension=sum(parts), subspace_partition=partition)
    return ours, _turned(made, basis)


@streams
@pytest.mark.parametrize("group", [0, 1])
def test_a_partition_of_a_full_rotation(pair: Pair, component: str, group: int) -> None:
    ours, made = _groups(pair, [4, 6, 22], full=True)
    theirs = pair.theirs([_part(component, made)], pairs(), sources=[OTHER], subspaces=[[[group]] * 4])[1].logits
    pair.agree(Edit(_site(component), ours.part(group), at()), theirs)


@pytest.mark.parametrize("full", [True, False], ids=["full", "low rank"])
def test_a_partition_with_each_rows_own_group(pair: Pair, full: bool) -> None:
    """Groups of one size: pyvene stacks the rows' columns into one tensor."""
    ours, made = _groups(pair, [4, 4, 24] if full else [4, 4], full)
    where = {"subspaces": [[[0], [1], [1], [0]]]}
    theirs = pair.theirs([_part("block_output", made)], pairs(), sources=[OTHER], **where)[1].logits
    edit = Edit(_site("block_output"), Bank([ours.part(0), ours.part(1)]), at())
    pair.agree(edit, theirs, rows=[1, 2, 2, 1])


@streams
def test_the_first_columns_of_a_full_rotation(pair: Pair, component: str) -> None:
    ours, made = _groups(pair, [7, 25], full=True)
    made.set_interchange_dim(7)
    theirs = pair.theirs([_part(component, made)], pairs(), sources=[OTHER])[1].logits
    pair.agree(Edit(_site(component), ours.part(0), at()), theirs)


# -- masks -------------------------------------------------------------------------------------------------------------


@streams
def test_a_masked_rotation(pair: Pair, component: str) -> None:
    ours = RotateMask(source(), WIDTH, temperature=20.0, seed=2)
    made = _turned(pair.pyvene.SigmoidMaskRotatedSpaceIntervention(embed_dim=WIDTH), ours.basis())
    ours.theta.data = 60 * numbers(WIDTH)
    made.masks.data = ours.theta.detach().clone()
    made.set_temperature(torch.tensor(20.0))
    theirs = pair.theirs([_part(component, made)], pairs(), sources=[OTHER])[1].logits
    pair.agree(Edit(_site(component), ours, at()), theirs)


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning")  # in pyvene
@streams
def test_a_mask(pair: Pair, component: str) -> None:
    ours = Mask(source(TWO_THERE), WIDTH, temperature=0.5)
    made = pair.pyvene.SigmoidMaskIntervention(embed_dim=WIDTH)
    ours.theta.data = numbers(WIDTH)
    made.mask.data = ours.theta.detach().clone()
    made.set_temperature(torch.tensor(0.5))
    theirs = pair.theirs([_part(component, made)], pairs(TWO_HERE, TWO_THERE), sources=[OTHER])[1].logits
    pair.agree(Edit(_site(component), ours, at(TWO_HERE)), theirs)


def _boundaries(pair: Pair, ours: Boundless, columns: float, temperature: float) -> Any:
    """pyvene's boundary, and ours, at a number of columns."""
    made = _turned(pair.pyvene.BoundlessRotatedSpaceIntervention(embed_dim=WIDTH), ours.basis())
    ours.boundary.data.fill_(columns / WIDTH)
    made.set_intervention_boundaries(columns / WIDTH)
    made.set_temperature(torch.tensor(temperature))
    return made


@streams
def test_a_hard_boundary(pair: Pair, component: str) -> None:
    """Their mask sigmoid(i/T) sigmoid((c n - i)/T) holds the first column at 1/2 for ever, ours takes all of it.

    With T near 0 that half is all that differs: at c n = 4.75 the other columns on the source's side are 1 to 4 in
    both. So ours less half of the first column's interchange is theirs.
    """
    ours = Boundless(source(), WIDTH, temperature=1e-3, seed=2)
    made = _boundaries(pair, ours, 4.75, 1e-3)
    theirs = pair.theirs([_part(component, made)], pairs(), sources=[OTHER])[1].logits
    first = ours.basis()[:, :1]

    def without_the_half(h: Tensor, source: Tensor) -> Tensor:
        return ours(h, Call(source=source)) - 0.5 * (source - h) @ first @ first.T

    pair.agree(Edit(_site(component), Function(without_the_half, source()), at()), theirs)


@streams
def test_a_soft_boundary(pair: Pair, component: str) -> None:
    """At any temperature: their mask in a `RotateMask` of ours, which takes any weights."""
    boundless = Boundless(None, WIDTH, seed=2)
    made = _boundaries(pair, boundless, 11.3, 2.0)
    column = torch.arange(WIDTH).double()
    weights = torch.sigmoid(column / 2.0) * torch.sigmoid((11.3 - column) / 2.0)
    ours = RotateMask(source(), WIDTH, temperature=1.0, seed=2)
    ours.theta.data = torch.logit(weights).float()
    theirs = pair.theirs([_part(component, made)], pairs(), sources=[OTHER])[1].logits
    pair.agree(Edit(_site(component), ours, at()), theirs)
