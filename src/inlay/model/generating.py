"""Text in, text out, under an Edit: transformers' own generation and streamer."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from inlay.errors import InputError, ModelError
from inlay.model.engine import Run
from inlay.model.inputs import pad
from inlay.model.running import make_run

if TYPE_CHECKING:
    from inlay.model.model import Model


def generate(
    model: Model,
    prompts: Any,
    *,
    edit: Any = None,
    rows: Any = None,
    strength: Any = None,
    stream: bool = False,
    chat: bool | None = None,
    **kwargs: Any,
) -> Any:
    """See `Model.generate`."""
    single = isinstance(prompts, str) or (
        isinstance(prompts, Sequence) and bool(prompts) and isinstance(prompts[0], (Mapping, int))
    )
    if not getattr(model.base, "can_generate", lambda: True)():
        raise ModelError(f"{type(model.base).__name__} does not generate; use model.forward(...)")
    two = bool(model.sites().encoder)
    rows_of_ids = model.encoder.rows(prompts, None, chat)
    batch = pad(rows_of_ids, model.pad_id, model.device, side="right" if two else "left")
    run = make_run(model, edit, rows=rows, strength=strength)
    kwargs.setdefault("pad_token_id", model.pad_id)
    if not {"max_length", "generation_config"} & set(kwargs):
        kwargs.setdefault("max_new_tokens", 64)
    kwargs |= {"input_ids": batch.ids, "attention_mask": batch.mask}
    if stream:
        if len(batch.ids) != 1:
            raise InputError(f"stream=True takes one prompt, not {len(batch.ids)}")
        for name in ("num_beams", "num_return_sequences"):
            if (kwargs.get(name) or 1) > 1:
                raise InputError(f"stream=True yields one text as it grows, and {name}={kwargs[name]} makes several")
        return _stream(model, run, kwargs)
    with run:
        hf: Any = model.hf
        found = hf.generate(**kwargs)
    ids = found if isinstance(found, Tensor) else found.sequences
    texts = [_new_text(model, row) for row in ids[:, 1 if two else batch.ids.shape[1] :]]
    each = len(texts) // len(batch.ids)
    grouped = texts if each == 1 else [texts[i : i + each] for i in range(0, len(texts), each)]
    return grouped[0] if single else grouped


def _new_text(model: Model, ids: Tensor) -> Any:
    return ids.tolist() if model.tokenizer is None else model.tokenizer.decode(ids, skip_special_tokens=True)


def _stream(model: Model, run: Run, kwargs: dict[str, Any]) -> Iterator[str]:
    """The new text as it is generated. Closing the iterator ends the generation at its next token.

    Raises:
        ModelError: the model has no tokenizer.
    """
    from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

    if model.tokenizer is None:
        raise ModelError("stream=True yields text, and this model has no tokenizer")
    streamer = TextIteratorStreamer(model.tokenizer, skip_prompt=True, skip_special_tokens=True)
    closed = threading.Event()
    failed: list[BaseException] = []

    class Closed(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
            return input_ids.new_full((len(input_ids),), int(closed.is_set())).bool()

    criteria = StoppingCriteriaList([*kwargs.pop("stopping_criteria", []), Closed()])

    def work() -> None:
        try:
            with run:
                hf: Any = model.hf
                hf.generate(**kwargs, streamer=streamer, stopping_criteria=criteria)
        except BaseException as error:
            failed.append(error)
            streamer.end()

    def pieces() -> Iterator[str]:
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            for piece in streamer:
                if piece:
                    yield piece
        finally:
            closed.set()
            thread.join()
        if failed:
            raise failed[0]

    return pieces()
