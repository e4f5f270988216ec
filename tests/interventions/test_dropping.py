"""Dropout by keys: a row drops the same alone, in a batch, in a Bank, padded or cached; without keys torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.interventions import tiny
from tests.interventions.tiny import RAGGED, WIDTH
from torch import Tensor

from inlay import Bank, DiReFT, Edit, LobiReFT, LoRA, LoReFT, NullOut, Steer
from inlay.interventions import families
from inlay.model.call import Call

SITE = "resid_post.1"
KEYS = [7, 11, 13, 17]


def _v(seed: int = 0) -> Tensor:
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))


def _lora() -> LoRA:
    made = LoRA(WIDTH, WIDTH, 3, dropout=0.5)
    torch.nn.init.normal_(made.up, generator=torch.Generator().manual_seed(1))
    return made


MAKE: dict[str, Any] = {
    "loreft": lambda: LoReFT(WIDTH, 4, dropout=0.5),
    "direft": lambda: DiReFT(WIDTH, 4, dropout=0.5),
    "lobireft": lambda: LobiReFT(WIDTH, 4, dropout=0.5),
    "steer": lambda: Steer(_v(), dropout=0.5),
    "null out": lambda: NullOut(_v(), 40.0, dropout=0.5),
    "lora": _lora,
}
each = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)


def test_the_mask_depends_on_key_position_and_dimension_alone_and_keeps_its_share() -> None:
    keys, positions = torch.tensor([3, 4, 3]).reshape(-1, 1, 1), torch.arange(200)[None]
    mask = families.keep_mask(keys, positions, 100, 0.3, torch.device("cpu"))
    assert mask.shape == (3, 200, 100) and torch.equal(mask[0], mask[2])
    assert torch.equal(families.keep_mask(keys[:1], positions[:, 7:9], 100, 0.3, mask.device)[0], mask[0, 7:9])
    share = 0.7 * 20000
    for other in (mask[0], mask[1]):
        assert abs(float(other.sum()) - share) < 5 * (20000 * 0.21) ** 0.5  # five standard deviations
    both = float((mask[0] & mask[1]).sum())
    assert abs(both - 0.49 * 20000) < 5 * (20000 * 0.49 * 0.51) ** 0.5
    assert bool(families.keep_mask(keys, positions, 100, 0.0, mask.device).all())


@each
def test_a_row_drops_the_same_alone_padded_and_in_a_bank(make: Any) -> None:
    model, made = tiny.model(), make()
    with torch.no_grad():
        got = model.forward(RAGGED, edit=Edit(SITE, made), keys=KEYS).logits
        plain = model.forward(RAGGED).logits
        bank = Bank([make(), made])
        banked = model.forward(RAGGED, edit=Edit(SITE, bank), rows=[2, 2, 0, 2], keys=KEYS).logits
        for index, row in enumerate(RAGGED):
            alone = model.forward([row], edit=Edit(SITE, made), keys=KEYS[index : index + 1]).logits[0]
            torch.testing.assert_close(got[index, : len(row)], alone, rtol=1e-4, atol=1e-5)
            want = plain[index, : len(row)] if index == 2 else alone
            torch.testing.assert_close(banked[index, : len(row)], want, rtol=1e-4, atol=1e-5)
        other = model.forward(RAGGED, edit=Edit(SITE, made), keys=[8, 12, 14, 18]).logits
        undropped = model.forward(RAGGED, edit=Edit(SITE, made.eval())).logits
    tokens = torch.tensor([len(row) for row in RAGGED]) - 1
    for different in (other, undropped, plain):
        apart = (got - different)[torch.arange(4), tokens].abs().amax(-1)
        assert bool((apart > 1e-3).all())


@each
def test_on_which_side_a_row_is_padded_does_not_matter(make: Any) -> None:
    model, edit, keys = tiny.model(), Edit(SITE, make()), torch.tensor(KEYS)
    right = tiny.padded(RAGGED)
    longest = right["input_ids"].shape[1]
    shifts = [longest - len(row) for row in RAGGED]
    left = {name: torch.stack([t.roll(by) for t, by in zip(x, shifts, strict=True)]) for name, x in right.items()}
    with torch.no_grad(), model.edited(edit, keys=keys):
        a, b = (model.hf(**batch, use_cache=False).logits for batch in (right, left))
    for index, (row, by) in enumerate(zip(RAGGED, shifts, strict=True)):
        torch.testing.assert_close(b[index, by:], a[index, : len(row)], rtol=1e-4, atol=1e-5)


@each
def test_in_evaluation_mode_nothing_is_dropped_with_keys_or_without(make: Any) -> None:
    made = make()
    still = type(made).rebuild(made.state(), made.config() | {"dropout": 0.0})
    h, given = torch.randn(2, 3, WIDTH), torch.randn(2, 3, WIDTH)
    keys = torch.tensor([1, 2]).reshape(-1, 1, 1)
    with torch.no_grad():
        want = still(h, Call(input=given))
        made.eval()
        assert torch.equal(made(h, Call(input=given, keys=keys)), want) and torch.equal(
            made(h, Call(input=given)), want
        )
        made.train()
        assert not torch.equal(made(h, Call(input=given, keys=keys)), want)
    assert not still.training and "positions" in made.needs and "positions" not in still.needs


def test_what_is_dropped_is_the_change_and_the_rest_is_scaled() -> None:
    made, h = LoReFT(WIDTH, 4, dropout=0.5).double(), torch.randn(2, 6, WIDTH, dtype=torch.float64)
    keys = torch.tensor([1, 2]).reshape(-1, 1, 1)
    with torch.no_grad():
        dropped, whole = made(h, Call(keys=keys)) - h, made.eval()(h) - h
    gone = dropped == 0
    torch.testing.assert_close(dropped, torch.where(gone, 0.0, 2 * whole), rtol=0, atol=1e-12)
    assert 0.35 < float(gone.double().mean()) < 0.65


def test_a_vector_drops_the_same_entries_at_all_positions_of_a_row_and_others_in_another() -> None:
    made, h = Steer(_v(), dropout=0.5), torch.zeros(2, 6, WIDTH)
    for keys in (torch.tensor([1, 2]).reshape(-1, 1, 1), None):
        with torch.no_grad():
            new = made(h, Call(keys=keys))
        assert torch.equal(new, new[:, :1].expand_as(new)) and not torch.equal(new[0], new[1])
        kept = new[:, 0] != 0
        assert torch.equal(new[:, 0][kept], (2 * _v()).expand(2, -1)[kept])


def test_sites_do_not_drop_the_same() -> None:
    made, h, keys = LoReFT(WIDTH, 4, dropout=0.5), torch.randn(1, 5, WIDTH), torch.ones(1, 1, 1, dtype=torch.long)
    with torch.no_grad():
        one, two = (made(h, Call(keys=keys, site=f"resid_post.{layer}")) for layer in (1, 2))
    assert not torch.equal(one == h, two == h)


def test_without_keys_it_is_torchs_own_dropout() -> None:
    made, h = LoReFT(WIDTH, 4, dropout=0.5), torch.randn(2, 5, WIDTH)
    torch.manual_seed(0)
    with torch.no_grad():
        got = made(h)
        change = made.eval()(h) - h
    torch.manual_seed(0)
    torch.testing.assert_close(got, h + torch.nn.functional.dropout(change, 0.5), rtol=0, atol=1e-5)
