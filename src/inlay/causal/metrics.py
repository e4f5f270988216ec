"""Metrics: one number for each row of logits at the answer position."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from inlay.errors import CausalError
from inlay.model.answers import Answer, id_table, token_ids

if TYPE_CHECKING:
    from inlay.causal.columns import Rows
    from inlay.model.model import Model

Measure = Callable[[Tensor, Tensor], Tensor]
Direction = Literal["denoise", "noise"]


@dataclass(frozen=True)
class Ends:
    """The runs that a batch of pairs lies between.

    Attributes:
        numbers: which of all pairs the batch holds, n of them.
        total: how many pairs there are in all.
        clean: the clean runs' logits at the answer position, float32 [n, vocabulary].
        corrupted: the corrupted runs', or `None` where there is one run only.
    """

    numbers: Sequence[int]
    total: int
    clean: Tensor
    corrupted: Tensor | None = None

    @classmethod
    def of(cls, rows: Rows, base: Tensor, source: Tensor | None, direction: Direction | None) -> Ends:
        """Of runs that are alone, and clean; or of pairs, where a direction says which run of each is the clean one.

        Raises:
            CausalError: the direction is no such word.
        """
        if source is None:
            return cls(rows.numbers, rows.total, base)
        if direction not in ("denoise", "noise"):
            raise CausalError(f"direction={direction!r}: 'denoise' is a corrupted base and 'noise' a clean one")
        clean, corrupted = (base, source) if direction == "noise" else (source, base)
        return cls(rows.numbers, rows.total, clean, corrupted)


@dataclass(frozen=True)
class Metric:
    """A named number of a row's logits. The functions of this file make them; a plain function is one too.

    Attributes:
        name: for labels.
        units: for labels, may be empty.
        bind: gives for a model and the ends of a batch of pairs the function that measures: logits float32
            [rows, vocabulary] and the pair of each row, int64 [rows], to [rows].
    """

    name: str
    units: str
    bind: Callable[[Model, Ends], Measure]

    @classmethod
    def of(cls, given: Metric | Callable[[Tensor], Tensor]) -> Metric:
        """A Metric as it is; a function of logits [rows, vocabulary] that gives [rows] as one without units.

        Raises:
            CausalError: it is neither, or later, the function gives another shape.
        """
        if isinstance(given, Metric):
            return given
        if not callable(given):
            raise CausalError(
                f"metric={given!r}: give one of inlay.causal's, such as logit_difference(...), or f(logits)"
            )
        name = getattr(given, "__name__", type(given).__name__)

        def measure(logits: Tensor, pair: Tensor) -> Tensor:
            found = given(logits)
            if not isinstance(found, Tensor) or found.shape != logits.shape[:1]:
                what = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise CausalError(
                    f"the metric {name!r} gave {what} for {list(logits.shape)}; it gives one number a row"
                )
            return found

        return cls(name, "", lambda model, ends: measure)


def logit_difference(answers: Answer | Sequence[Answer], foils: Answer | Sequence[Answer]) -> Metric:
    """The answers' logit minus the foils', each the mean over its ids where there are several.

    Args:
        answers: one answer for all pairs, or a list with one for each pair. An answer is a text that is one token, an
            id, or a list of such (so `[[5, 9]]` is one pair's answer of two ids, and `[5, 9]` are those of two pairs).
        foils: the same for what the answer is held against.

    Raises:
        CausalError: later, where they do not fit the pairs or the tokenizer.
    """

    def bind(model: Model, ends: Ends) -> Measure:
        yes, no = _Choices.of(model, answers, ends), _Choices.of(model, foils, ends)
        return lambda logits, pair: yes.mean(logits, pair) - no.mean(logits, pair)

    return Metric("logit difference", "nats", bind)


def log_probability(answers: Answer | Sequence[Answer]) -> Metric:
    """The natural logarithm of the answer's probability, summed over its ids; answers as in `logit_difference`."""

    def bind(model: Model, ends: Ends) -> Measure:
        yes = _Choices.of(model, answers, ends)
        return lambda logits, pair: yes.total(logits, pair)

    return Metric("log probability", "nats", bind)


def probability(answers: Answer | Sequence[Answer]) -> Metric:
    """The answer's probability, summed over its ids; answers as in `logit_difference`."""

    def bind(model: Model, ends: Ends) -> Measure:
        yes = _Choices.of(model, answers, ends)
        return lambda logits, pair: yes.total(logits, pair).exp()

    return Metric("probability", "", bind)


def accuracy(answers: Answer | Sequence[Answer]) -> Metric:
    """1 where the likeliest token is one of the answer's ids, else 0; answers as in `logit_difference`."""

    def bind(model: Model, ends: Ends) -> Measure:
        yes = _Choices.of(model, answers, ends)
        return lambda logits, pair: yes.hold(logits.argmax(-1), pair).float()

    return Metric("accuracy", "", bind)


def kl_divergence() -> Metric:
    """The Kullback-Leibler divergence from the clean run, sum p_clean (log p_clean - log p)."""

    def bind(model: Model, ends: Ends) -> Measure:
        clean = ends.clean.log_softmax(-1)

        def measure(logits: Tensor, pair: Tensor) -> Tensor:
            wanted = clean[pair.to(clean.device)].to(logits.device)
            return (wanted.exp() * (wanted - logits.log_softmax(-1))).sum(-1)

        return measure

    return Metric("KL divergence from the clean run", "nats", bind)


def normalised(metric: Metric | Callable[[Tensor], Tensor]) -> Metric:
    """The metric on a scale of each pair's own: 0 is the corrupted run's value and 1 the clean one's.

    Raises:
        CausalError: later, where there is no corrupted run, or both runs of a pair have the same value.
    """
    inner = Metric.of(metric)

    def bind(model: Model, ends: Ends) -> Measure:
        if ends.corrupted is None:
            raise CausalError(f"normalised({inner.name}) needs a clean and a corrupted run, and here is one run only")
        measure, every = inner.bind(model, ends), torch.arange(len(ends.numbers))
        low, high = measure(ends.corrupted, every), measure(ends.clean, every)
        same = (low == high).nonzero().flatten()
        if len(same):
            raise CausalError(
                f"normalised({inner.name}): pair {ends.numbers[int(same[0])]} has {float(low[same[0]]):g} in its clean "
                "and in its corrupted run, so that there is no scale; leave it out"
            )

        def scaled(logits: Tensor, pair: Tensor) -> Tensor:
            zero, one = (end[pair.to(end.device)].to(logits.device) for end in (low, high))
            return (measure(logits, pair) - zero) / (one - zero)

        return scaled

    return Metric(f"normalised {inner.name}", "", bind)


@dataclass(frozen=True)
class _Choices:
    """The ids of each pair's answer.

    Attributes:
        ids: int64 [n, k].
        real: bool [n, k], which of them there are.
    """

    ids: Tensor
    real: Tensor

    @classmethod
    def of(cls, model: Model, answers: Answer | Sequence[Answer], ends: Ends) -> _Choices:
        every = token_ids(model, answers, ends.total)
        return cls(*id_table([every[number] for number in ends.numbers], ends.clean.shape[-1]))

    def _at(self, device: torch.device, pair: Tensor) -> tuple[Tensor, Tensor]:
        pair = pair.to(self.ids.device)
        return self.ids[pair].to(device), self.real[pair].to(device)

    def mean(self, logits: Tensor, pair: Tensor) -> Tensor:
        """The mean logit over the ids, [rows]."""
        ids, real = self._at(logits.device, pair)
        return (logits.gather(1, ids) * real).sum(1) / real.sum(1)

    def total(self, logits: Tensor, pair: Tensor) -> Tensor:
        """The logarithm of the ids' summed probability, [rows]."""
        ids, real = self._at(logits.device, pair)
        return logits.log_softmax(-1).gather(1, ids).masked_fill(~real, -torch.inf).logsumexp(1)

    def hold(self, token: Tensor, pair: Tensor) -> Tensor:
        """Whether a token is one of the ids, bool [rows]."""
        ids, _ = self._at(token.device, pair)  # what pads them repeats the first
        return (ids == token[:, None]).any(1)
