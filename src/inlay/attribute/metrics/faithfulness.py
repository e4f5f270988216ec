"""Faithfulness of scores: what the model does without the tokens that they put first, beside chance and the best.

Legend: R rows, T tokens, m features of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inlay.attribute.backward import refuse_dropout
from inlay.attribute.metrics.again import asked_for, same_question
from inlay.attribute.metrics.columns import KNOWN, Column, columns
from inlay.attribute.metrics.examples import Example
from inlay.attribute.metrics.naopc import WIDTH
from inlay.attribute.metrics.soft import DRAWS
from inlay.attribute.metrics.stability import sensitivity_of
from inlay.attribute.metrics.table import Faithfulness
from inlay.errors import InputError

if TYPE_CHECKING:
    from inlay.attribute.asked import Asked
    from inlay.attribute.token_scores import TokenScores
    from inlay.model.model import Model

RANDOM = 20


def faithfulness(
    model: Model,
    scores: TokenScores | Sequence[TokenScores] | Mapping[str, TokenScores],
    metrics: Sequence[str] = ("aopc", "naopc"),
    *,
    keep: tuple[int, int] = (0, 0),
    evidence: Sequence[Sequence[int]] | None = None,
    width: int = WIDTH,
    most_runs: int = 100_000,
    draws: int = DRAWS,
    seed: int = 0,
    **again: Any,
) -> Faithfulness:
    """Metrics of one or several methods on the same question.

    Below the methods always stand `random`, the mean over 20 seeded rankings, and `oracle`, the ranking of the evidence
    where it is given, else that of the limits of NAOPC: the order that loses the most for metrics of what is taken
    away, and that which loses the least for metrics of what is left. The limits take 2^m runs of a row up to 12
    features, and about width m^2 above. Runs are shared between methods and metrics, and the beginnings of runs too.
    The erased tokens get the baseline of the (first) scores. An Edit must be in force here as it was there.

    Args:
        model: the Model.
        scores: what `tokens` returned, several of the same question, or these under names of your own.
        metrics: names of `COLUMNS`; `"aopc"`, `"naopc"` and `"soft"` stand for two each. `"comprehensiveness"` and
            `"sufficiency"` are GIM's shares of the number, defined where that is above 0.
        keep: how many tokens at the start and at the end of a row stay in all runs; (1, 1) is the GIM paper's protocol.
        evidence: for each row the positions of the tokens that the answer follows from, where that is known.
        width: of the beam for the limits of more than 12 features.
        most_runs: the most runs that the limits of one row may take.
        draws: of elements for `"soft"`.
        seed: of all draws.
        **again: for scores from disk the arguments that `tokens` had: prompts, target, foil, at, quantity, responses,
            per_step, chat, baseline, within, by, batch_tokens.

    Raises:
        InputError: an unknown metric, scores of different questions, scores from disk without what was asked, a row
            without features, a metric that lacks what it needs, or limits that take too many runs.
    """
    refuse_dropout(model.base)
    named, wanted = _named(scores), columns(metrics)
    every = asked_for(model, next(iter(named.values())), again)
    for one in named.values():
        same_question(one, every[0])
    if evidence is None and (lacking := [one.name for one in wanted if one.name in KNOWN]):
        raise InputError(f"{', '.join(lacking)} compare with the tokens that the answer follows from: give evidence=")
    eligible = _eligible(every[0], keep)
    known = _evidence(eligible, evidence, every[0])
    values = torch.full((len(named) + 2, len(wanted), len(eligible)), torch.nan, dtype=torch.float64)
    examples = [
        Example(every, row, eligible[row], known[row], width, most_runs, draws, seed) for row in range(len(eligible))
    ]
    for row, example in enumerate(examples):
        mine = torch.stack([example.by_feature(one.scores[row]) for one in named.values()])
        for j, column in enumerate(wanted):
            values[:, j, row] = _measured(example, column, mine)
    sizes_alone = [i for i, one in enumerate(named.values()) if not one.signed]
    for j, column in enumerate(wanted):
        if column.name == "infidelity":
            values[sizes_alone, j] = torch.nan  # a size foresees no change of the number
    for j, column in enumerate(wanted):
        if column.measure is None:
            for i, (name, one) in enumerate(named.items()):
                if one.explain is None:
                    raise InputError(
                        f"{column.name} runs a method again, and the scores {name!r} are from disk: make them anew"
                    )
                values[i, j] = sensitivity_of(every, one.explain, seed=seed)
    caption = _caption(next(iter(named.values())), every[0], examples, wanted)
    sizes = [len(some) for some in eligible]
    return Faithfulness([*named, "random", "oracle"], wanted, values, sizes, caption)


def _measured(example: Example, column: Column, mine: Tensor) -> Tensor:
    """A metric of a row for each method, for chance and for the oracle, float64 [methods + 2]."""
    if column.measure is None:
        return torch.full((len(mine) + 2,), torch.nan, dtype=torch.float64)
    if column.oracle is None:
        nothing = torch.full((2,), torch.nan, dtype=torch.float64)
        return torch.cat([column.measure(example, mine), nothing])
    oracle = example.oracle(column.oracle == "greatest")
    found = column.measure(example, torch.cat([mine, oracle[None], example.random(RANDOM)]))
    count = len(mine)
    return torch.cat([found[:count], found[count + 1 :].mean()[None], found[count, None]])


def _named(scores: Any) -> dict[str, TokenScores]:
    from inlay.attribute.token_scores import TokenScores

    if isinstance(scores, TokenScores):
        scores = [scores]
    found = dict(scores) if isinstance(scores, Mapping) else {one.method: one for one in scores}
    if not found or len(found) < len(scores):
        why = "two are by the same method" if found else "there are none"
        raise InputError(f"scores of methods: {why}; give them as a dict of names")
    if taken := {"random", "oracle"} & set(found):
        raise InputError(f"{', '.join(sorted(taken))} is the name of a row of reference: give the scores another")
    return found


def _eligible(asked: Asked, keep: tuple[int, int]) -> list[list[tuple[int, ...]]]:
    """For each row the features that may be replaced."""
    if min(keep) < 0:
        raise InputError(f"keep={keep}: how many tokens stay at the start and at the end of a row")
    found = []
    for index, (row, some) in enumerate(zip(asked.rows, asked.features, strict=True)):
        inside = range(keep[0], len(row.ids) - keep[1])
        found.append([feature for feature in some if all(slot in inside for slot in feature)])
        if not found[-1]:
            raise InputError(
                f"keep={keep} leaves no feature of row {index}, which has {len(row.ids)} tokens: keep fewer"
            )
    return found


def _evidence(eligible: Any, evidence: Sequence[Sequence[int]] | None, asked: Asked) -> list[Tensor | None]:
    """For each row which of its features hold evidence, bool [m]."""
    if evidence is None:
        return [None] * len(eligible)
    if len(evidence) != len(eligible):
        raise InputError(f"evidence of {len(evidence)} rows for {len(eligible)}: give one list for each")
    found: list[Tensor | None] = []
    for index, (some, where) in enumerate(zip(eligible, evidence, strict=True)):
        count = len(asked.rows[index].ids)
        if bad := [slot for slot in where if not 0 <= slot < count]:
            raise InputError(f"evidence at {bad[0]} of row {index}, which has {count} tokens: positions are from 0")
        found.append(torch.tensor([any(slot in where for slot in feature) for feature in some]))
    return found


def _caption(scores: TokenScores, asked: Asked, examples: Sequence[Example], wanted: Sequence[Column]) -> str:
    if examples[0].evidence is not None:
        oracle = "the evidence"
    elif all(example.exact for example in examples):
        oracle = "the exact limits of NAOPC"
    else:
        oracle = f"the limits of NAOPC, by a beam of {examples[0].width} above 12 features"
    given = f"{scores.quantity}, {len(examples)} rows, erased to {asked.baseline.name}"
    noted = any(one.oracle for one in wanted)
    return f"{given}; random: mean of {RANDOM} rankings; oracle: {oracle}" if noted else given
