"""What is trained on: a prompt with the answer that is wanted, and perhaps one that is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inlay.errors import TrainError
from inlay.model.inputs import Row

if TYPE_CHECKING:
    from inlay.model.model import Model

SIDES = {
    "chosen": ("prompt", "chosen"),
    "rejected": ("prompt", "rejected"),
    "teacher": ("teacher", "chosen"),
    "teacher_rejected": ("teacher", "rejected"),
}
"""The sequences of an example that an objective may run: a prompt and a response each."""


@dataclass(frozen=True)
class Example:
    """One example.

    Attributes:
        prompt: text, a chat (a list of `{"role", "content"}`) or ids.
        chosen: the response that is wanted, text or ids.
        rejected: one that is not, for objectives that compare two.
        teacher: a prompt under which the frozen model already does what is wanted, for objectives that imitate it.
        label: 1 where the concept is there and 0 where it is not, for objectives that detect; 1 by default.
        row: which row of the Edit's Bank it trains, where one Edit trains several; 1 by default.
    """

    prompt: Any
    chosen: Any
    rejected: Any = None
    teacher: Any = None
    label: float = 1.0
    row: int = 1


def encode(
    model: Model,
    examples: Sequence[Example],
    sides: Sequence[str],
    *,
    end: bool = True,
    max_tokens: int | None = None,
    chat: bool | None = None,
) -> dict[str, list[Row]]:
    """The sequences of examples by side, prompt and response tokenised apart and joined.

    Args:
        model: whose tokenizer and chat template are used.
        examples: the examples.
        sides: which sequences; names of `SIDES`.
        end: put the tokenizer's end-of-sequence token behind a response of text.
        max_tokens: the most tokens of a sequence, the model's context by default.
        chat: whether plain strings are user turns.

    Raises:
        TrainError: an example lacks a text that a side needs, has an empty response, or is too long.
        InputError: a prompt has no tokens, or more than the context holds.
    """
    limit = model.encoder.limit if max_tokens is None else max_tokens
    found = _sequences(model, examples, sides, end, chat)
    for side, rows in found.items():
        for index, row in enumerate(rows):
            if limit is not None and len(row.ids) > limit:
                raise TrainError(
                    f"example {index} has {row.prompt} + {len(row.ids) - row.prompt} tokens on its {side!r} side, and "
                    f"{limit} are allowed: shorten it, or leave it out with inlay.train.fitting"
                )
    return found


def fitting(
    model: Model,
    data: Sequence[Example | Mapping[str, Any]],
    max_tokens: int,
    *,
    end: bool = True,
    chat: bool | None = None,
) -> list[Example]:
    """The examples of which every sequence has at most `max_tokens` tokens; what is left out is the caller's to count.

    Raises:
        TrainError: an example has an empty response.
        InputError: a prompt has no tokens.
    """
    given, long = examples(data), set[int]()
    for side, fields in SIDES.items():
        some = [i for i, one in enumerate(given) if all(getattr(one, name) is not None for name in fields)]
        if some:
            rows = _sequences(model, [given[i] for i in some], [side], end, chat)[side]
            long |= {i for i, row in zip(some, rows, strict=True) if len(row.ids) > max_tokens}
    return [one for i, one in enumerate(given) if i not in long]


def _sequences(
    model: Model, examples: Sequence[Example], sides: Sequence[str], end: bool, chat: bool | None
) -> dict[str, list[Row]]:
    """The sequences of examples by side, of any length."""
    encoder = model.encoder.without_limit()
    found: dict[str, list[Row]] = {}
    prompts: dict[str, list[Row]] = {}
    for side in sides:
        asked, answered = SIDES[side]
        for name in (asked, answered):
            lacking = [i for i, one in enumerate(examples) if getattr(one, name) is None]
            if lacking:
                raise TrainError(f"example {lacking[0]} has no {name!r}, and this objective runs {side!r}: give it one")
        if asked not in prompts:
            prompts[asked] = encoder.rows([getattr(one, asked) for one in examples], chat=chat)
        responses = _responses(model, [getattr(one, answered) for one in examples], end)
        if () in responses:
            index = responses.index(())
            raise TrainError(
                f"example {index} has an empty response on its {side!r} side: leave it out, or give it one"
            )
        pairs = zip(prompts[asked], responses, strict=True)
        found[side] = [Row(prompt.ids + response, len(prompt.ids)) for prompt, response in pairs]
    return found


def _responses(model: Model, answers: Sequence[Any], end: bool) -> list[tuple[int, ...]]:
    """The ids of responses; texts are tokenised in one call."""
    texts = [i for i, answer in enumerate(answers) if isinstance(answer, str)]
    ids = [() if isinstance(answer, str) else tuple(answer) for answer in answers]
    if texts:
        stop = getattr(model.tokenizer, "eos_token_id", None) if end else None
        made = model.encoder.plain([answers[i] for i in texts])
        for index, mine in zip(texts, made, strict=True):
            ids[index] = mine if stop is None or mine[-1:] == (stop,) else (*mine, stop)
    return ids


def examples(data: Sequence[Any]) -> list[Example]:
    """Examples of what a caller gives: Examples, or mappings with their fields.

    Raises:
        TrainError: there are none, or a field is not known.
    """
    made = []
    for index, one in enumerate(data):
        if isinstance(one, Example):
            made.append(one)
            continue
        if not isinstance(one, Mapping):
            raise TrainError(f"example {index} is {one!r:.60}: give an Example or a mapping with its fields")
        unknown = set(one) - set(Example.__dataclass_fields__)
        if unknown or not {"prompt", "chosen"} <= set(one):
            raise TrainError(
                f"example {index} has the fields {', '.join(map(str, one))}: it needs 'prompt' and 'chosen', and may "
                "have 'rejected', 'teacher', 'label' and 'row'"
            )
        made.append(Example(**one))
    if not made:
        raise TrainError("there are no examples to train on: give at least one")
    return made
