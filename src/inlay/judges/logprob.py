"""LogprobJudge: what a local model's own probabilities say of a text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from inlay.errors import JudgeError, ModelError
from inlay.judges.judge import Axis, Reply
from inlay.judges.questions import YES_NO, applies, check_questions, hash_of, render
from inlay.model.fingerprint import weights
from inlay.model.inputs import Row, plan_batches
from inlay.model.model import Model
from inlay.scores import Scores

_AXES = {
    "concept": Axis(0.0, 2.0, "2 P(yes) / (P(yes) + P(no)): does the text have the concept"),
    "instruction": Axis(0.0, 2.0, "2 P(yes) / (P(yes) + P(no)): is the text about the instruction"),
    "fluency": Axis(
        0.0, 2.0, "2 exp(mean log-probability of the text's tokens under the unedited model) x share of new trigrams"
    ),
}


_Found = tuple[list[float | None], list[str], list[str | None]]  # values, raw, failed


class LogprobJudge:
    """Scores texts by a local model, without sampling.

    `fluency` is 2 exp(m) d: m is the mean log-probability in nats of the text's tokens given the prompt, d the share of
    its trigrams of tokens that it has not had before. So it is near 0 for a text that the model would never write, and
    also for one word said again and again, which a model finds likely. `raw` has m.

    `concept` and `instruction` are yes/no questions: 2 P(yes) / (P(yes) + P(no)) of the next token, each summed over
    the word's usual spellings (`yes`, `Yes`, with and without a space before) that are one token. Where a word has
    none, the first tokens of the two words stand for them. `raw` has the log-odds of yes. They are as good as the model
    is: a small one says yes to anything.

    Call it outside of `model.edited(...)`, whose Edit would judge along.

    Args:
        model: the Model; where it has a chat template, prompts and questions are user turns.
        yes, no: the two words.
        questions: the templates of `concept` and `instruction`, with `{concept}`, `{prompt}` and `{text}`.
        axes: which axes to score.
        batch_tokens: the most padded tokens in one forward; a longer row is alone in its own.

    Raises:
        JudgeError: an axis is unknown or has no question, a question does not show the text, or `batch_tokens` < 1.
        ModelError: the model has no tokenizer, or one that does not tell `yes` from `no`.
    """

    def __init__(
        self,
        model: Model,
        yes: str = " yes",
        no: str = " no",
        questions: Mapping[str, str] = YES_NO,
        axes: Sequence[str] = tuple(_AXES),
        batch_tokens: int = 2048,
    ) -> None:
        if batch_tokens < 1:
            raise JudgeError(f"batch_tokens is {batch_tokens}: give 1 or more")
        if unknown := [name for name in axes if name not in _AXES]:
            raise JudgeError(f"there is no axis {unknown[0]!r}; these are: {', '.join(_AXES)}")
        if model.tokenizer is None:
            raise ModelError(f"{model.name!r} has no tokenizer, and a judge reads text: load it with tokenizer=")
        self.model, self.batch_tokens = model, batch_tokens
        self._encoder = model.encoder.without_limit()
        self.axes = {name: _AXES[name] for name in axes}
        self._words = (yes, no)
        asked = [name for name in axes if name != "fluency"]
        if lacking := [name for name in asked if name not in questions]:
            raise JudgeError(f"axis {lacking[0]!r} has no question: give one in questions=, or leave it out of axes=")
        self.questions = {name: questions[name] for name in asked}
        if asked:
            check_questions(self.questions)
            self._yes, self._no = _tokens_of(model.tokenizer, yes, no)

    def score(self, replies: Sequence[Reply]) -> dict[str, Scores]:
        """See `Judge.score`; an empty text has fluency 0, which `raw` says.

        A prompt with its text, or a question, that is longer than the model's context is not scored: it is `failed`.
        """
        found = {
            name: self._fluency(replies) if name == "fluency" else self._asked(name, replies) for name in self.axes
        }
        return {name: self.axes[name].scores(*each) for name, each in found.items()}

    def identity(self) -> dict[str, Any]:
        """Its kind, the model's identity, and hashes of the questions."""
        return {
            "kind": "logprob",
            "model": self.model.identity() | {"weights": weights(self.model)},
            "chat": self.model.encoder.chat,
            "words": list(self._words) if self.questions else [],
            "questions": {name: hash_of(template) for name, template in self.questions.items()},
            "axes": list(self.axes),
        }

    def _fluency(self, replies: Sequence[Reply]) -> _Found:
        if not replies:
            return [], [], []
        rows = self._encoder.rows([r.prompt for r in replies], [r.text for r in replies])
        failed = [self._too_long(row) for row in rows]
        fits = [index for index, why in enumerate(failed) if why is None]
        scored = [index for index in fits if len(rows[index].ids) > max(rows[index].prompt, 1)]
        values: list[float | None] = [0.0 if why is None else None for why in failed]
        raw = ["no token to score" if why is None else "" for why in failed]
        for index, mean in zip(scored, self._each([rows[i] for i in scored], _mean_logprob), strict=True):
            values[index], raw[index] = 2 * math.exp(mean) * _new(rows[index].ids[rows[index].prompt :]), repr(mean)
        return values, raw, failed

    def _asked(self, name: str, replies: Sequence[Reply]) -> _Found:
        template = self.questions[name]
        mine = [index for index, reply in enumerate(replies) if applies(template, reply)]
        values: list[float | None] = [None] * len(replies)
        raw = [""] * len(replies)
        failed: list[str | None] = [None] * len(replies)
        if not mine:
            return values, raw, failed
        rows = dict(zip(mine, self._encoder.rows([render(template, replies[i]) for i in mine]), strict=True))
        for index, row in rows.items():
            failed[index] = self._too_long(row)
        fits = [index for index in mine if failed[index] is None]
        for index, odds in zip(fits, self._each([rows[i] for i in fits], self._log_odds), strict=True):
            values[index], raw[index] = 1 + math.tanh(odds / 2), repr(odds)  # twice the logistic function
        return values, raw, failed

    def _too_long(self, row: Row) -> str | None:
        limit = self.model.encoder.limit
        if limit is None or len(row.ids) <= limit:
            return None
        return f"{len(row.ids)} tokens are more than the model's context of {limit}"

    def _log_odds(self, logits: Tensor, row: Row) -> Tensor:
        """log P(yes) - log P(no) of the token behind a row."""
        last = logits[len(row.ids) - 1].float()
        return last[self._yes].logsumexp(-1) - last[self._no].logsumexp(-1)

    def _each(self, rows: Sequence[Row], score: Callable[[Tensor, Row], Tensor]) -> Iterator[float]:
        """A number for each row, from its logits [tokens of the longest row beside it, vocabulary]."""
        found: dict[int, float] = {}
        for batch in plan_batches(rows, self.batch_tokens):
            with torch.no_grad():
                logits = self.model.forward([rows[i].ids for i in batch]).logits
                each = torch.stack([score(logits[at], rows[i]) for at, i in enumerate(batch)])
            found |= dict(zip(batch, each.tolist(), strict=True))
        return (found[index] for index in range(len(rows)))

    def __repr__(self) -> str:
        return f"LogprobJudge({self.model.name!r}, {', '.join(self.axes)})"


def _mean_logprob(logits: Tensor, row: Row) -> Tensor:
    """The mean log-probability of a row's response; of a row without a prompt, from its second token on."""
    start = max(row.prompt, 1)
    said = torch.tensor(row.ids[start:], device=logits.device)
    told = logits[start - 1 : len(row.ids) - 1].float().log_softmax(-1)
    return told.gather(-1, said[:, None]).mean()


def _new(ids: Sequence[int]) -> float:
    """The share of trigrams that were not there before; 1 for fewer than three tokens."""
    trigrams = list(zip(ids, ids[1:], ids[2:], strict=False))
    return len(set(trigrams)) / len(trigrams) if trigrams else 1.0


def _tokens_of(tokenizer: Any, yes: str, no: str) -> tuple[list[int], list[int]]:
    """The ids that stand for yes and for no.

    Raises:
        ModelError: the tokenizer does not tell them apart.
    """
    ids = [_single(tokenizer, word.strip()) for word in (yes, no)]
    if ids[0] and ids[1] and not ids[0] & ids[1]:
        return sorted(ids[0]), sorted(ids[1])
    for pair in ((yes, no), (yes.strip(), no.strip())):  # one that begins with a space may split into space and word
        first = [_ids(tokenizer, word)[:1] for word in pair]
        if first[0] and first[1] and first[0] != first[1] and tokenizer.unk_token_id not in first[0] + first[1]:
            return first[0], first[1]
    raise ModelError(
        f"the tokenizer begins {yes!r} and {no!r} with the same token, or does not know them: give words that it tells "
        "apart as yes= and no=, or score axes=['fluency'] alone"
    )


def _single(tokenizer: Any, word: str) -> set[int]:
    """The ids of those usual spellings of a word that are one known token."""
    spellings = [space + form for space in ("", " ") for form in (word, word.capitalize())]
    found = [ids[0] for ids in (_ids(tokenizer, spelling) for spelling in spellings) if len(ids) == 1]
    return set(found) - {tokenizer.unk_token_id}


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
