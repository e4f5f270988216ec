"""From prompts to padded batches: tokenising, chat templates, and the checks that come before a forward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inlay.errors import InputError, ModelError, TemplateError

_SENTINEL = "inlaysentinel"


@dataclass(frozen=True)
class Row:
    """One row of ids, of which the first `prompt` are prompt and the rest response."""

    ids: tuple[int, ...]
    prompt: int


@dataclass(frozen=True)
class Batch:
    """Padded rows.

    Attributes:
        ids: int64 [R, T].
        mask: int64 [R, T], 1 where a token is.
        prompt: bool [R, T], which tokens are prompt; `None` where no response is marked.
        positions: int64 [R, T], the attended index of each token, 0 on padding.
    """

    ids: Tensor
    mask: Tensor
    prompt: Tensor | None
    positions: Tensor


class Encoder:
    """Turns prompts into rows of ids.

    Args:
        tokenizer: a Hugging Face tokenizer, or `None` for a model that is fed ids only.
        limit: the most tokens that a row may have, `None` for no limit.
        chat: whether plain strings are user turns; by default they are where the tokenizer has a chat template.
    """

    def __init__(
        self, tokenizer: Any, limit: int | None, chat: bool | None = None, vocabulary: int | None = None
    ) -> None:
        self.tokenizer, self.limit, self.vocabulary = tokenizer, limit, vocabulary
        self.chat = bool(getattr(tokenizer, "chat_template", None)) if chat is None else chat

    def rows(self, prompts: Any, responses: Sequence[str] | None = None, chat: bool | None = None) -> list[Row]:
        """Rows of ids from prompts.

        Args:
            prompts: a string, a chat (a list of `{"role", "content"}`), rows of ids, an int64 tensor [R, T], a
                tokenizer's output with its mask, or a list of strings or chats.
            responses: one response text a prompt, appended to it and marked as response.
            chat: as for the encoder, for this call.

        Raises:
            InputError: no prompts, an empty one, one longer than the context, or another number of responses.
            TemplateError: a chat, and no chat template.
        """
        rows = [Row(ids, len(ids)) for ids in self._prompts(prompts, self.chat if chat is None else chat)]
        if not rows:
            raise InputError("the list of prompts is empty: give at least one")
        if responses is not None:
            responses = [responses] if isinstance(responses, str) else responses
            if len(responses) != len(rows):
                raise InputError(f"{len(responses)} responses for {len(rows)} prompts: give one for each")
            rows = [
                Row(r.ids + self._ids(text, special=False), r.prompt) for r, text in zip(rows, responses, strict=True)
            ]
        for index, row in enumerate(rows):
            if not row.ids:
                raise InputError(f"prompt {index} has no tokens: {_shown(prompts, index)}")
            if self.limit is not None and len(row.ids) > self.limit:
                raise InputError(
                    f"prompt {index} has {len(row.ids)} tokens, and the model's context holds {self.limit}: shorten it"
                )
            if self.vocabulary is not None and (min(row.ids) < 0 or max(row.ids) >= self.vocabulary):
                bad = next(i for i in row.ids if not 0 <= i < self.vocabulary)
                raise InputError(f"prompt {index} holds the id {bad}, and the vocabulary has {self.vocabulary}")
        return rows

    def _prompts(self, prompts: Any, chat: bool) -> Iterator[tuple[int, ...]]:
        if isinstance(prompts, Mapping) and "input_ids" in prompts:
            yield from _masked(prompts["input_ids"], prompts.get("attention_mask"))
        elif isinstance(prompts, Tensor):
            yield from _masked(prompts, None)
        elif isinstance(prompts, str) or _is_chat(prompts):
            yield self._one(prompts, chat)
        elif isinstance(prompts, Sequence) and prompts and all(type(i) is int for i in prompts):
            yield tuple(prompts)
        elif isinstance(prompts, Sequence):
            for index, prompt in enumerate(prompts):
                yield self._one(prompt, chat, index)
        else:
            raise InputError(f"prompts are text, chats or rows of ids, not {type(prompts).__name__}")

    def _one(self, prompt: Any, chat: bool, index: int = 0) -> tuple[int, ...]:
        if isinstance(prompt, str):
            return (
                self._ids(self.render([{"role": "user", "content": prompt}]), special=False)
                if chat
                else self._ids(prompt)
            )
        if _is_chat(prompt):
            return self._ids(self.render(prompt), special=False)
        if isinstance(prompt, Sequence) and all(type(i) is int for i in prompt):
            return tuple(prompt)
        raise InputError(
            f"prompt {index} is {prompt!r:.80}: give text, a chat of {{'role', 'content'}} or a row of ids"
        )

    def _ids(self, text: str, special: bool = True) -> tuple[int, ...]:
        if self.tokenizer is None:
            raise ModelError("this model has no tokenizer: give rows of ids, or load it with tokenizer=")
        # verbose=False: what is too long is an error of ours, or is cut by who asked for it
        return tuple(self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])

    def plain(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Ids of texts as they stand, without special tokens.

        Raises:
            ModelError: there is no tokenizer.
        """
        if self.tokenizer is None:
            return [self._ids(text) for text in texts]
        found = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return [tuple(ids) for ids in found]

    def render(self, chat: Sequence[Mapping[str, str]]) -> str:
        """A chat as text, by the tokenizer's template, opened for the assistant when the last turn is not its own.

        Raises:
            TemplateError: there is no template, or it refuses the chat.
        """
        if not getattr(self.tokenizer, "chat_template", None):
            raise TemplateError(
                "the tokenizer has no chat template: give plain strings with chat=False, or set tokenizer.chat_template"
            )
        try:
            text = self.tokenizer.apply_chat_template(
                list(chat), tokenize=False, add_generation_prompt=chat[-1]["role"] != "assistant"
            )
        except Exception as error:
            raise TemplateError(f"the chat template refuses {list(chat)!r:.120}: {error}") from error
        return str(text)

    def turn_end(self) -> str | None:
        """The text that the template puts behind a user's last message; `None` without a template."""
        if not getattr(self.tokenizer, "chat_template", None):
            return None
        rendered = self.render([{"role": "user", "content": _SENTINEL}])
        _, found, behind = rendered.rpartition(_SENTINEL)
        if not found or not behind:
            return None
        said = self.decode(self.tokenizer(rendered, add_special_tokens=False)["input_ids"])
        if _SENTINEL in said:
            return said.rpartition(_SENTINEL)[2]
        return self.decode(self.tokenizer(behind, add_special_tokens=False)["input_ids"])

    def without_limit(self) -> Encoder:
        """The same, for texts of any length."""
        return Encoder(self.tokenizer, None, self.chat, self.vocabulary)

    def prefix(self, chat: bool | None = None) -> int:
        """How many tokens every prompt begins with, whatever a user says: bos, and what a template puts before a turn.

        AxBench's "prefix" (there the common tokens of two messages; a word-level tokenizer has too few for that).
        """
        if self.tokenizer is None:
            return 0
        if self.chat if chat is None else chat:
            whole = self.render([{"role": "user", "content": _SENTINEL}])
            before, one = self._ids(whole.partition(_SENTINEL)[0], False), self._ids(whole, False)
        else:
            before, one = self._ids(""), self._ids(_SENTINEL)
        same = (a == b for a, b in zip(before, one, strict=False))
        return next((n for n, equal in enumerate(same) if not equal), min(len(before), len(one)))

    def decode(self, ids: Sequence[int]) -> str:
        """Ids as text, special tokens included."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _is_chat(prompt: Any) -> bool:
    return (
        isinstance(prompt, Sequence)
        and not isinstance(prompt, str)
        and bool(prompt)
        and all(isinstance(turn, Mapping) and "role" in turn for turn in prompt)
    )


def _masked(ids: Any, mask: Any) -> Iterator[tuple[int, ...]]:
    if isinstance(ids, Sequence) and any(isinstance(row, Sequence) for row in ids):
        masks = [None] * len(ids) if mask is None else mask  # as a tokenizer gives them, rows of unequal lengths
        if len(masks) != len(ids):
            raise InputError(f"attention_mask has {len(masks)} rows, and input_ids {len(ids)}")
        for row, real in zip(ids, masks, strict=True):
            yield from _masked(torch.as_tensor(row, dtype=torch.long), real)
        return
    ids = torch.as_tensor(ids)
    ids = ids[None] if ids.ndim == 1 else ids
    if ids.ndim != 2 or ids.is_floating_point():
        raise InputError(f"ids are an int tensor [rows, tokens], not {ids.dtype} {list(ids.shape)}")
    mask = torch.ones_like(ids) if mask is None else torch.as_tensor(mask)
    mask = mask[None] if mask.ndim == 1 else mask
    if mask.shape != ids.shape:
        raise InputError(f"attention_mask is {list(mask.shape)}, and input_ids is {list(ids.shape)}")
    for row, real in zip(ids, mask.bool(), strict=True):
        yield tuple(row[real].tolist())


def _shown(prompts: Any, index: int) -> str:
    if isinstance(prompts, str):
        return repr(prompts)
    return repr(prompts[index])[:80] if isinstance(prompts, Sequence) else type(prompts).__name__


def pad(rows: Sequence[Row], pad_id: int, device: torch.device, side: str = "right") -> Batch:
    """Rows padded to the longest, on a device."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    mask, prompt = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    positions = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        start = 0 if side == "right" else longest - len(row.ids)
        here = slice(start, start + len(row.ids))
        ids[index, here] = torch.tensor(row.ids)
        mask[index, here] = 1
        prompt[index, start : start + row.prompt] = True
        positions[index, here] = torch.arange(len(row.ids))
    marked = any(row.prompt < len(row.ids) for row in rows)
    return Batch(ids.to(device), mask.to(device), prompt.to(device) if marked else None, positions.to(device))


def plan_batches(rows: Sequence[Row], budget: int) -> list[list[int]]:
    """Row numbers in batches of at most `budget` padded tokens (one row at least), longest rows first."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i].ids))
    batches: list[list[int]] = []
    for index in order:
        if batches and (len(batches[-1]) + 1) * len(rows[batches[-1][0]].ids) <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
