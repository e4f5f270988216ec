"""Generation piece by piece: transformers' own streamer, with the edit in force in the generating thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

from inlay.errors import ModelError
from inlay.model.engine import Run


def stream_text(hf: Any, tokenizer: Any, run: Run, kwargs: dict[str, Any]) -> Iterator[str]:
    """The new text as it is generated. Closing the iterator ends the generation at its next token.

    Raises:
        ModelError: the model has no tokenizer.
    """
    from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

    if tokenizer is None:
        raise ModelError("stream=True yields text, and this model has no tokenizer")
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    closed = threading.Event()
    failed: list[BaseException] = []

    class Closed(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
            return input_ids.new_full((len(input_ids),), int(closed.is_set())).bool()

    criteria = StoppingCriteriaList([*kwargs.pop("stopping_criteria", []), Closed()])

    def work() -> None:
        try:
            with run:
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
