"""Question: the number that is explained, for each row, and where in the forward it is read.

Legend: R rows, N reads (all rows' read slots, one after the other), V vocabulary, m the most ids of an answer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inlay.errors import TargetError
from inlay.model import patch
from inlay.model.answers import Answer, id_table, token_ids
from inlay.model.chosen import chosen_slots, token_text
from inlay.model.inputs import Row, pad, plan_batches
from inlay.model.sites import Site

if TYPE_CHECKING:
    from inlay.model.model import Model

QUANTITIES = ("logit", "logit_diff", "logprob", "prob", "prob_diff", "kl", "entropy")
"""What is explained. In nats, but for `prob` and `prob_diff`: logit (a mean over several ids), its difference to the
foil's, log-probability and probability (of any of several ids), the divergence from the clean run, the entropy."""

Target = Answer | Sequence[Answer] | Callable[[Tensor], Tensor] | Any
Measure = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Projection:
    """A target inside of the model: the state's component along a vector, h.vector, at a Site.

    Attributes:
        site: one Site of the residual stream's width.
        vector: [width].
    """

    site: str | Site
    vector: Tensor


@dataclass(frozen=True)
class Question:
    """What is asked of each row.

    Attributes:
        rows: the rows.
        slots: for each row the slots that are read: there are N in all.
        measure: gives for logits [n, V] and the numbers of these reads, int64 [n], the values [n]; a row's number is
            the sum over its reads.
        quantity: a name of `QUANTITIES`, `"projection"`, or a function's own name.
        target: what each row is asked for, as text.
        foil: what it is held against, as text; `None` without a foil.
        steps: for each row its prompt and step, where each step of a response is a row of its own.
        projection: of a target inside of the model, that instead of logits.
        function: of a target that is a function, that.
    """

    rows: tuple[Row, ...]
    slots: tuple[tuple[int, ...], ...]
    measure: Measure
    quantity: str
    target: list[str]
    foil: list[str] | None = None
    steps: tuple[tuple[int, int], ...] | None = None
    projection: Projection | None = None
    function: Callable[[Tensor], Tensor] | None = None

    @property
    def owners(self) -> list[int] | None:
        """The prompt of each row, where several rows are the steps of one."""
        return None if self.steps is None else [owner for owner, _ in self.steps]


def question(
    model: Model,
    prompts: Any,
    target: Target = None,
    foil: Answer | Sequence[Answer] | None = None,
    *,
    at: Any = None,
    quantity: str | None = None,
    responses: Sequence[str] | None = None,
    per_step: bool = False,
    batch_tokens: int = 8192,
    chat: bool | None = None,
) -> Question:
    """The number to explain.

    Args:
        model: the Model.
        prompts, responses, chat: see `Encoder.rows`.
        target: the token: a text that is one token, an id, a list with one of these for each prompt, or lists of
            several tokens. `None`: the likeliest token, or, with `responses`, the response's own tokens. A function of
            logits [n, V] that gives [n]. A `Projection`, or whatever has a `site` and a `vector`, such as a Direction.
        foil: what the target is held against, in the same forms.
        at: the token behind which the target is predicted, one a row, by default the last. With the response as target:
            the tokens that are explained, by default `"response"`.
        quantity: a name of `QUANTITIES`; by default `"logit_diff"` with a foil, and `"logprob"` without.
        per_step: each token of the response is a question of its own, about the text before it.
        batch_tokens: the most padded tokens of a forward that looks for the likeliest token.

    Raises:
        TargetError: the target is no token, or does not fit the quantity.
        TokensError: a row lacks the position.
    """
    rows = tuple(model.encoder.rows(prompts, responses, chat))
    if hasattr(target, "site") and hasattr(target, "vector"):
        inside = _one_place(model, Projection(target.site, target.vector))
        if foil is not None or quantity is not None:
            raise TargetError("a direction's score has no foil and no other quantity: leave foil= and quantity= out")
        slots = _ones(model, rows, "last" if at is None else at)
        return Question(rows, slots, _identity, "projection", [str(inside.site)] * len(rows), projection=inside)
    if target is None and responses is not None:
        if foil is not None:
            raise TargetError("the response is its own target, and has no foil: leave foil= out, or give target=")
        return _of_response(model, rows, "response" if at is None else at, quantity or "logprob", per_step)
    if per_step:
        raise TargetError("per_step=True asks about each token of a response: give responses= and no target=")
    slots = _ones(model, rows, "last" if at is None else at)
    if callable(target):
        if foil is not None or quantity is not None:
            raise TargetError("a function of the logits is the quantity itself: leave foil= and quantity= out")
        name = getattr(target, "__name__", type(target).__name__)
        return Question(rows, slots, _called(target, name), name, [name] * len(rows), function=target)
    quantity = quantity or ("logprob" if foil is None else "logit_diff")
    if quantity not in QUANTITIES:
        raise TargetError(f"quantity={quantity!r}: one of {', '.join(QUANTITIES)}")
    if (foil is None) == quantity.endswith("_diff"):
        raise TargetError(f"quantity={quantity!r} {'needs' if foil is None else 'takes no'} foil=")
    clean = None
    if target is None or quantity == "kl":
        clean = clean_logits(model, rows, slots, batch_tokens)
    if quantity in ("kl", "entropy"):
        if target is not None:
            raise TargetError(f"quantity={quantity!r} is of the whole distribution: leave target= out")
        return Question(rows, slots, _of_all(clean if quantity == "kl" else None), quantity, [""] * len(rows))
    wanted = token_ids(model, target, len(rows)) if target is not None else _likeliest(clean)
    against = None if foil is None else token_ids(model, foil, len(rows))
    measure = _of_ids(quantity, wanted, against, model.sites().place(Site("logits")).width)
    texts = [None if ids is None else [_text(model, one) for one in ids] for ids in (wanted, against)]
    return Question(rows, slots, measure, quantity, texts[0] or [], texts[1])


def _one_place(model: Model, projection: Projection) -> Projection:
    """The projection, once it is known to have one Site and the width of that."""
    sites = model.sites().expand(projection.site)
    if len(sites) != 1:
        raise TargetError(
            f"a direction's score is read at one Site, and {projection.site} is {len(sites)}: name a layer"
        )
    shape, width = list(projection.vector.shape), model.sites().width(sites[0])
    if width < 0:
        raise TargetError(f"{sites[0]} is as wide as the text is long: no vector fits it")
    if width and not sites[0].heads and shape != [width]:
        raise TargetError(f"the vector is {shape}, and {sites[0]} is {width} wide: give [{width}]")
    return projection


def clean_logits(model: Model, rows: Sequence[Row], slots: Sequence[Sequence[int]], batch_tokens: int = 8192) -> Tensor:
    """The logits behind some slots of each row, float32 [N, V], without gradient."""
    found: dict[int, Tensor] = {}
    for some in plan_batches(list(rows), batch_tokens):
        batch = pad([rows[r] for r in some], model.pad_id, model.device)
        with torch.no_grad():
            logits = read_logits(model, batch, [slots[r] for r in some])
        counts = [len(slots[r]) for r in some]
        found |= dict(zip(some, logits.split(counts), strict=True))
    return torch.cat([found[r] for r in range(len(rows))])


def read_logits(model: Model, batch: Any, slots: Sequence[Sequence[int]], **kwargs: Any) -> Tensor:
    """One forward of padded rows; the logits behind some slots of each, [N, V] in float32 at least."""
    from inlay.model.model import Output

    index = torch.tensor([r for r, some in enumerate(slots) for _ in some])
    slot = torch.tensor([s for some in slots for s in some])
    head = model.base.get_submodule(model.sites().place(Site("logits")).path)
    named = "logits_to_keep" in inspect.signature(model.base.forward).parameters  # others let it pass, and keep all
    # an Edit of the logits finds its tokens in whole rows
    if named and not patch.shadowed(head, "forward"):
        kept, slot = slot.unique(return_inverse=True)
        kwargs["logits_to_keep"] = kept.to(model.device)
    args, kwargs = model.arguments(batch, **kwargs)
    every = Output(model.hf(*args, **kwargs), None, None, batch.mask).logits
    found = every[index.to(every.device), slot.to(every.device)]
    return found.to(torch.promote_types(found.dtype, torch.float32))


def _ones(model: Model, rows: Sequence[Row], at: Any) -> tuple[tuple[int, ...], ...]:
    """One slot of each row."""
    chosen = chosen_slots(model, pad(list(rows), model.pad_id, torch.device("cpu")), at)
    slots = tuple(tuple(row.nonzero().flatten().tolist()) for row in chosen)
    if bad := [r for r, some in enumerate(slots) if len(some) != 1]:
        raise TargetError(f"at={at!r} is {len(slots[bad[0]])} tokens of row {bad[0]}: a target is predicted behind one")
    return slots


def _of_response(model: Model, rows: Sequence[Row], at: Any, quantity: str, per_step: bool) -> Question:
    """The response's own tokens, under teacher forcing."""
    if quantity not in ("logit", "logprob", "prob"):
        raise TargetError(f"quantity={quantity!r} of a response: one of logit, logprob, prob, summed over its tokens")
    chosen = chosen_slots(model, pad(list(rows), model.pad_id, torch.device("cpu")), at)
    said = [row.nonzero().flatten().tolist() for row in chosen]
    if bad := [r for r, some in enumerate(said) if not some or some[0] == 0]:
        why = "none" if not said[bad[0]] else "the first, which nothing predicts"
        raise TargetError(f"at={at!r} means {why} of the tokens of row {bad[0]}")
    steps = None
    if per_step:
        steps = tuple((r, step) for r, some in enumerate(said) for step in range(len(some)))
        rows, said = (
            tuple(Row(rows[r].ids[: said[r][step] + 1], rows[r].prompt) for r, step in steps),
            [[said[r][step]] for r, step in steps],
        )
    wanted = [[row.ids[s]] for row, some in zip(rows, said, strict=True) for s in some]
    slots = tuple(tuple(s - 1 for s in some) for some in said)
    if steps is not None:  # what is predicted is not fed
        rows = tuple(Row(row.ids[:-1], min(row.prompt, len(row.ids) - 1)) for row in rows)
    measure = _of_ids(quantity, wanted, None, model.sites().place(Site("logits")).width)
    texts = iter([_text(model, ids) for ids in wanted])
    target = ["".join(next(texts) for _ in some) for some in said]
    return Question(tuple(rows), slots, measure, quantity, target, steps=steps)


def _likeliest(clean: Tensor | None) -> list[list[int]]:
    assert clean is not None
    return [[int(i)] for i in clean.argmax(-1)]


def _text(model: Model, ids: Sequence[int]) -> str:
    return " | ".join(token_text(model, one) for one in ids)


def _identity(values: Tensor, which: Tensor) -> Tensor:
    return values


def _called(function: Callable[[Tensor], Tensor], name: str) -> Measure:
    def measure(logits: Tensor, which: Tensor) -> Tensor:
        found = function(logits)
        if not isinstance(found, Tensor) or found.shape != logits.shape[:1]:
            what = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise TargetError(f"the target {name!r} gave {what} for logits {list(logits.shape)}; it gives one a row")
        return found

    return measure


def _of_all(clean: Tensor | None) -> Measure:
    def measure(logits: Tensor, which: Tensor) -> Tensor:
        logp = logits.log_softmax(-1)
        if clean is None:
            return -(logp.exp() * logp).sum(-1)
        wanted = clean.log_softmax(-1)[which.to(clean.device)].to(logp.device)
        return (wanted.exp() * (wanted - logp)).sum(-1)

    return measure


def _of_ids(quantity: str, wanted: list[list[int]], against: list[list[int]] | None, vocabulary: int) -> Measure:
    tables = [id_table(wanted, vocabulary)] + ([] if against is None else [id_table(against, vocabulary)])

    def one(logits: Tensor, which: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        ids, real = (part[which.to(part.device)].to(logits.device) for part in table)
        if "logit" in quantity:
            return (logits.gather(1, ids) * real).sum(1) / real.sum(1)
        logp = logits.log_softmax(-1).gather(1, ids).masked_fill(~real, -torch.inf).logsumexp(1)
        return logp if quantity == "logprob" else logp.exp()

    def measure(logits: Tensor, which: Tensor) -> Tensor:
        values = [one(logits, which, table) for table in tables]
        return values[0] if against is None else values[0] - values[1]

    return measure
