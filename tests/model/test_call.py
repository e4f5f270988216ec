"""What an intervention is told beside its state: the selected positions that hold a token, and a key for each row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.model.tiny import WIDTH, frozen, padded, rows
from torch import Tensor, nn

import inlay
from inlay import Add, Bank, Edit, Intervention, Source
from inlay.errors import EditError
from inlay.model.call import Call

SITE, MODEL = "resid_post.1", frozen()


class Told(Intervention):
    """Keeps what it is told, and moves the state so that it counts as touched."""

    needs = frozenset({"chosen"})

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def transform(self, h: Tensor, state: Any, call: Call) -> Tensor:
        self.calls.append(call)
        return h + 1


class Asks(Told):
    """The same, and asks for no positions."""

    needs = frozenset()


def _told(made: Told) -> Call:
    (call,) = made.calls
    made.calls.clear()
    return call


# -- chosen ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "want"),
    [
        ("all", [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]),
        ("prompt", [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]),
        ("prompt[1:]", [[0, 1, 1, 1, 1], [0, 1, 0, 0, 0], [0, 1, 1, 0, 0]]),
        ("last", [[0, 0, 0, 0, 1], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0]]),
        ("ends(1, 1)", [[1, 0, 0, 0, 1], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0]]),
    ],
)
@torch.no_grad()
def test_chosen_is_what_is_selected_and_holds_a_token(tokens: str, want: list[list[int]]) -> None:
    made = Told()
    MODEL.forward(rows(5, 2, 3), edit=Edit(SITE, made, tokens=tokens))
    chosen = _told(made).chosen
    assert chosen is not None and chosen.dtype == torch.bool and chosen.int().tolist() == want


@torch.no_grad()
def test_chosen_is_none_where_it_is_all_or_nobody_asks() -> None:
    made, other = Told(), Asks()
    MODEL.forward(rows(4, 4), edit=Edit(SITE, made) + Edit(SITE, other, tokens="last"))
    assert _told(made).chosen is None and _told(other).chosen is None


@torch.no_grad()
def test_chosen_on_the_left_and_in_a_response() -> None:
    made = Told()
    ids, mask = torch.tensor([[0, 0, 7, 8], [3, 4, 5, 6]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    prompt = torch.tensor([[0, 0, 1, 0], [1, 1, 0, 0]]).bool()
    with MODEL.edited(Edit(SITE, made, tokens="response"), prompt_mask=prompt):
        MODEL.hf(input_ids=ids, attention_mask=mask)
    assert _told(made).chosen.int().tolist() == [[0, 0, 0, 1], [0, 0, 1, 1]]
    with MODEL.edited(Edit(SITE, made)):
        MODEL.hf(input_ids=ids, attention_mask=mask)
    assert _told(made).chosen.int().tolist() == mask.tolist()


@torch.no_grad()
def test_chosen_in_cached_decoding_is_of_each_forward() -> None:
    made = Told()
    MODEL.generate(rows(4, 2), edit=Edit(SITE, made, tokens="prompt[1:]+response"), max_new_tokens=3)
    seen = [None if call.chosen is None else call.chosen.int().tolist() for call in made.calls]
    assert seen[0] == [[0, 1, 1, 1], [0, 0, 0, 1]] and all(one in (None, [[1], [1]]) for one in seen[1:])
    assert len(seen) == 3


@torch.no_grad()
def test_joint_positions_are_one_state_that_has_none() -> None:
    made = Told()
    MODEL.forward(rows(4, 5), edit=Edit(SITE, made, tokens=[0, 2], joint=True), keys=[1, 2])
    call = _told(made)
    assert call.chosen is None and call.keys.flatten().tolist() == [1, 2]


@torch.no_grad()
def test_a_bank_is_told_what_its_items_are() -> None:
    made = Told()
    made.register_buffer("one", torch.ones(WIDTH))
    bank = Bank([made])
    MODEL.forward(rows(3, 2), edit=Edit(SITE, bank), rows=[1, 0], keys=[5, 6])
    call = _told(bank.template)
    assert call.chosen.int().tolist() == [[1, 1, 1], [1, 1, 0]] and call.keys.shape == (2, 1, 1)


# -- keys --------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_keys_reach_every_way_to_run() -> None:
    made = Asks()
    edit, keys = Edit(SITE, made), [3, -(2**62)]

    def told() -> list[int]:
        call = _told(made)
        assert call.keys.dtype == torch.int64 and call.keys.shape == (2, 1, 1)
        return call.keys.flatten().tolist()

    MODEL.forward(rows(3, 4), edit=edit, keys=keys)
    assert told() == keys
    MODEL.forward(rows(3, 4), edit=edit, keys=torch.tensor(keys))
    assert told() == keys
    states = MODEL.states(rows(3, 4), "resid_post.0")
    MODEL.resume(states, edit=edit, keys=keys)
    assert told() == keys
    with MODEL.edited(edit, keys=keys):
        MODEL.hf(**padded(rows(3, 4)))
    assert told() == keys
    both = edit + Edit("resid_post.0", Add(Source(rows(3, 4))))
    MODEL.forward(rows(3, 4), edit=both, keys=keys, worlds=True)
    assert told() == keys
    MODEL.forward(rows(3, 4), edit=edit)
    assert _told(made).keys is None


@torch.no_grad()
def test_beams_share_their_prompts_key() -> None:
    made = Asks()
    with MODEL.edited(Edit(SITE, made), keys=[3, 4]):
        MODEL.hf.generate(input_ids=torch.tensor(rows(4, 4)), num_beams=2, max_new_tokens=2, do_sample=False)
    assert all(call.keys.flatten().tolist() == [3, 3, 4, 4] for call in made.calls[1:])


@pytest.mark.parametrize("keys", [[0.5, 1.5], [[1, 2]], [], "ab", [True, False]])
def test_keys_that_are_no_integers_are_refused(keys: Any) -> None:
    with pytest.raises(EditError, match="keys is one integer a prompt"):
        MODEL.forward(rows(3, 4), edit=Edit(SITE, nn.Identity()), keys=keys)


def test_keys_of_another_number_are_refused() -> None:
    with pytest.raises(EditError, match="names 3 rows, and the batch has 2"):
        MODEL.forward(rows(3, 4), edit=Edit(SITE, nn.Identity()), keys=[1, 2, 3])


def test_a_bare_call_tells_nothing() -> None:
    assert inlay.interventions.Call() == Call(None, None, None, None, None, None)
