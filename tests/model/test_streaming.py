"""Streaming: the pieces are the unstreamed text, the edit is in force where the text is made, and nothing is left."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from tests.model import chat
from tests.model.by_hand import greedy
from tests.model.chat import WIDTH, block, ids, text
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

import inlay
from inlay import Add, Bank, Edit
from inlay.errors import EditError, InputError, ModelError, TokensError
from inlay.model import patch

PROMPT = ids("the captain and crew sail the old ship east")
STEPS = 12


@cache
def model() -> inlay.Model:
    return chat.wrapped("llama")


@cache
def vector(seed: int) -> Tensor:
    return 4.0 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))


def edit(seed: int = 0, tokens: str = "all") -> Edit:
    return Edit("resid_post.1", Add(vector(seed)), tokens=tokens)


def by_hand(seed: int = 0, steps: int = STEPS) -> str:
    hf = model().hf
    found, _ = greedy(hf, PROMPT, steps, block(hf, 1), lambda h, *_: h + vector(seed), lambda row, n: range(n))
    return text(found)


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    threads = threading.active_count()
    yield
    assert patch.standing() == 0
    assert not any("forward" in m.__dict__ for m in model().base.modules())
    assert threading.active_count() == threads, "no thread of a stream lives on"


class Calls:
    """Counts forwards, as a user's own hook would; the generating thread's included."""

    def __enter__(self) -> list[int]:
        self.seen: list[int] = []
        self.handle = model().hf.register_forward_pre_hook(lambda *_: self.seen.append(threading.get_ident()))
        return self.seen

    def __exit__(self, *_: Any) -> None:
        self.handle.remove()


@pytest.mark.parametrize("more", [{}, {"do_sample": True}, {"use_cache": False}, {"cache_implementation": "static"}])
def test_the_pieces_are_the_unstreamed_text(more: dict[str, Any]) -> None:
    m = model()
    torch.manual_seed(2)
    whole = m.generate(PROMPT, edit=edit(), max_new_tokens=STEPS, **more)
    torch.manual_seed(2)
    pieces = list(m.generate(PROMPT, edit=edit(), max_new_tokens=STEPS, stream=True, **more))
    assert "".join(pieces).strip() == whole.strip() and len(pieces) > 1 and all(pieces)
    if not more:
        assert whole == by_hand()


def test_without_an_edit() -> None:
    pieces = list(model().generate(text(PROMPT), chat=False, max_new_tokens=STEPS, stream=True))
    assert "".join(pieces).strip() == text(greedy(model().hf, PROMPT, STEPS)[0])


def test_rows_and_strength() -> None:
    bank = Edit("resid_post.1", Bank([Add(vector(1)), Add(vector(0))]))
    found = model().generate(PROMPT, edit=bank, rows=[2], strength=[1.0], max_new_tokens=STEPS, stream=True)
    assert "".join(found).strip() == by_hand(0)


def test_the_consumer_is_outside_of_the_edit() -> None:
    """Between two pieces the caller may use the model, and it is unedited there."""
    m = model()
    plain = m.forward([PROMPT]).logits
    stream = m.generate(PROMPT, edit=edit(), max_new_tokens=STEPS, stream=True)
    pieces = []
    for piece in stream:
        pieces.append(piece)
        assert torch.equal(m.forward([PROMPT]).logits, plain)
    assert "".join(pieces).strip() == by_hand()


def test_two_streams_at_once_with_different_edits() -> None:
    m = model()
    streams = [m.generate(PROMPT, edit=edit(s), max_new_tokens=STEPS, stream=True) for s in (0, 1, 2)]
    texts = [""] * 3
    for _ in range(STEPS + 1):
        for i, stream in enumerate(streams):
            texts[i] += next(stream, "")
    assert [t.strip() for t in texts] == [by_hand(0), by_hand(1), by_hand(2)]
    assert len(set(texts)) == 3
    assert all(next(stream, None) is None for stream in streams)


def test_a_stream_inside_of_another_edit() -> None:
    """A context belongs to the thread that entered it: what streams in another thread is not edited by it."""
    m = model()
    with m.edited(edit(1)) as run:
        m.forward([PROMPT])
        streamed = "".join(m.generate(PROMPT, edit=edit(0), max_new_tokens=STEPS, stream=True))
    assert streamed.strip() == by_hand(0) and run.touched == [len(PROMPT)]


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_closing_early_ends_the_generation_and_lifts_the_edit(taken: int) -> None:
    m = model()
    released = threading.Event()

    class Slow(StoppingCriteria):
        """Holds the generation after its sixth token until the consumer is closing."""

        def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Any:
            if input_ids.shape[1] >= len(PROMPT) + 6:
                released.wait(30)
            return torch.zeros(len(input_ids), dtype=torch.bool)

    with Calls() as calls:
        stream = m.generate(
            PROMPT, edit=edit(), max_new_tokens=50, stream=True, stopping_criteria=StoppingCriteriaList([Slow()])
        )
        for _ in range(taken):
            next(stream)
        release = threading.Timer(0.2, released.set)
        release.start()
        stream.close()
        assert patch.standing() == 0
        release.join()
        assert len(calls) <= 6 and bool(calls) == bool(taken), "it began on demand, and did not go on to the end"
    assert torch.equal(m.forward([PROMPT]).logits, chat.wrapped("llama").forward([PROMPT]).logits)


def test_a_stream_that_is_dropped_ends_too() -> None:
    stream = model().generate(PROMPT, edit=edit(), max_new_tokens=40, stream=True)
    next(stream)
    del stream
    assert patch.standing() == 0


def test_a_stream_that_was_never_begun_leaves_nothing() -> None:
    stream = model().generate(PROMPT, edit=edit(), max_new_tokens=40, stream=True)
    assert patch.standing() == 0
    del stream


def test_an_error_in_the_generation_is_raised_in_the_consumer() -> None:
    calls = []

    def fail(h: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("the user's own")
        return h

    stream = model().generate(PROMPT, edit=Edit("resid_post.1", fail), max_new_tokens=STEPS, stream=True)
    with pytest.raises(RuntimeError, match="the user's own"):
        list(stream)
    assert patch.standing() == 0


def test_errors_of_ours_are_raised_in_the_consumer() -> None:
    m = model()
    with pytest.raises(EditError, match="changed nothing"):
        list(m.generate(PROMPT, edit=edit(tokens="response"), max_new_tokens=1, stream=True))
    with pytest.raises(TokensError, match="position 40 is out of range in row 0"):
        list(m.generate(PROMPT, edit=Edit("resid_post.1", Add(vector(0)), tokens=40), stream=True))


def test_what_cannot_be_streamed() -> None:
    m = model()
    with pytest.raises(InputError, match="stream=True takes one prompt, not 2"):
        m.generate([PROMPT, PROMPT], stream=True)
    with pytest.raises(ModelError, match="stream=True yields text, and this model has no tokenizer"):
        inlay.load(m.hf).generate(PROMPT, stream=True)
    for more in ({"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}):
        with pytest.raises(InputError, match="stream"):
            list(m.generate(PROMPT, stream=True, max_new_tokens=3, **more))


def test_a_list_of_one_prompt_streams() -> None:
    pieces = model().generate([PROMPT], edit=edit(), max_new_tokens=STEPS, stream=True)
    assert "".join(pieces).strip() == by_hand()


def test_the_users_own_criteria_still_stop() -> None:
    class After(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Any:
            return torch.full((len(input_ids),), input_ids.shape[1] >= len(PROMPT) + 3)

    pieces = model().generate(
        PROMPT, edit=edit(), stopping_criteria=StoppingCriteriaList([After()]), max_new_tokens=STEPS, stream=True
    )
    assert "".join(pieces).strip() == by_hand(steps=3)


def test_gradients_are_off_in_the_generating_thread() -> None:
    grads: list[bool] = []

    def note(h: Tensor) -> Tensor:
        grads.append(torch.is_grad_enabled())
        return h * 1.5

    list(model().generate(PROMPT, edit=Edit("resid_post.1", note), max_new_tokens=3, stream=True))
    assert grads and not any(grads)
