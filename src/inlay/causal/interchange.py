"""Interchange intervention accuracy: how often a model answers as a causal model says when a variable is exchanged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inlay.causal.counterfactuals import Counterfactual
from inlay.causal.stored_runs import Group, StoredRuns, label_ids
from inlay.causal.subspace import subspace
from inlay.errors import CausalError
from inlay.interventions.base import Intervention
from inlay.interventions.edit import Edit, Part
from inlay.interventions.from_source import Swap
from inlay.interventions.masks import Masked
from inlay.interventions.rotation import LowRank

if TYPE_CHECKING:
    from inlay.model.model import Model


@dataclass(frozen=True)
class GroupAccuracy:
    """The rows of counterfactual data that set the same variables, and the share of them answered as predicted.

    Attributes:
        variables: what is set.
        rows: how many rows.
        iia: the share with the interchange.
        hard: with a mask at its limit (m > 1/2), `None` for an interchange without a mask.
        no_swap: with the base run as it is: the share of rows whose label is the base's answer.
        full_swap: with the whole state at the Site and tokens taken from the source.
        random: in a random subspace of equal rank, `None` for an interchange in no subspace or in all of it.
        other: where one variable of several is set: by the name of each other one, with this one's source in its place.
    """

    variables: Group
    rows: int
    iia: float
    hard: float | None
    no_swap: float
    full_swap: float
    random: float | None
    other: Mapping[str, float]


@dataclass(frozen=True)
class InterchangeAccuracy:
    """What `interchange_accuracy` found.

    Attributes:
        groups: for each group of variables that the data sets together.
    """

    groups: tuple[GroupAccuracy, ...]

    @property
    def iia(self) -> float:
        """The share over all rows."""
        return sum(one.iia * one.rows for one in self.groups) / sum(one.rows for one in self.groups)

    def __getitem__(self, variables: str | Group) -> GroupAccuracy:
        """That of one variable, or of some that are set together.

        Raises:
            CausalError: the data does not set just these.
        """
        wanted = (variables,) if isinstance(variables, str) else tuple(variables)
        for one in self.groups:
            if one.variables == wanted:
                return one
        have = "; ".join(", ".join(one.variables) for one in self.groups)
        raise CausalError(f"no rows set just {', '.join(wanted)}; these are set: {have}")

    def to_json(self) -> list[dict[str, Any]]:
        """JSON values that `from_json` reads."""
        return [asdict(one) for one in self.groups]

    @classmethod
    def from_json(cls, stored: Sequence[Mapping[str, Any]]) -> InterchangeAccuracy:
        """What `to_json` gave, back."""
        return cls(tuple(GroupAccuracy(**{**one, "variables": tuple(one["variables"])}) for one in stored))

    def __repr__(self) -> str:
        head = ["set", "rows", "IIA", "hard", "no swap", "full swap", "random", "other"]
        lines = [head]
        for one in self.groups:
            found = (one.iia, one.hard, one.no_swap, one.full_swap, one.random)
            others = ", ".join(f"{name} {share:.3f}" for name, share in one.other.items())
            numbers = ["" if share is None else f"{share:.3f}" for share in found]
            lines.append([", ".join(one.variables), str(one.rows), *numbers, others])
        shown = [i for i in range(len(head)) if any(line[i] for line in lines[1:])]
        wide = {i: max(len(line[i]) for line in lines) for i in shown}
        return "\n".join("  ".join(line[i].ljust(wide[i]) for i in shown).rstrip() for line in lines)


def interchange_accuracy(
    model: Model,
    data: Sequence[Counterfactual],
    edits: Edit | Mapping[str, Edit],
    *,
    candidates: Sequence[str | int] | None = None,
    source_tokens: Any = None,
    seed: int = 0,
    batch_tokens: int = 8192,
    device: str | torch.device | None = None,
    chat: bool | None = None,
) -> InterchangeAccuracy:
    """Interchange intervention accuracy (IIA; 2303.02536, section 3), beside what it has to be held against.

    The answer is the likeliest token behind the prompt. Layers below the Sites run once for all of the interchanges.

    Args:
        model: the Model.
        data: what `counterfactuals` gives.
        edits: where the variable is set, and by which intervention; by name where the data sets several. Their sources
            are given here: `Edit("resid_post.3", LowRank(None, model.width, 4), tokens="last")`.
        candidates: the answers that compete; all tokens by default.
        source_tokens: which tokens of the sources, where they are not those of the Edit.
        seed: of the random subspace.
        batch_tokens: the most padded tokens in one forward (one row at least).
        device: where stored states lie; by default the model's, `"cpu"` where that has not the memory.
        chat: whether plain strings are user turns.

    Raises:
        CausalError: the data sets a variable that has no Edit, or a label is no token or not among the candidates.
        InlayError: prompts, Sites, Tokens or interventions do not fit the model.
    """
    named = by_variable(data, edits)
    runs = StoredRuns(
        model, data, named, source_tokens=source_tokens, batch_tokens=batch_tokens, device=device, chat=chat
    )
    return accuracy_of(runs, candidate_ids(runs, candidates), seed)


def by_variable(data: Sequence[Counterfactual], edits: Edit | Mapping[str, Edit]) -> Mapping[str, Edit]:
    """The Edit of each variable.

    Raises:
        CausalError: one Edit, and data that sets several variables.
    """
    if not isinstance(edits, Edit):
        return edits
    names = list(dict.fromkeys(name for row in data for name in row.variables))
    if len(names) > 1:
        raise CausalError(f"the data sets {', '.join(names)}: give an Edit for each, {{{names[0]!r}: Edit(...), ...}}")
    return {name: edits for name in names}


def candidate_ids(runs: StoredRuns, candidates: Sequence[str | int] | None) -> Tensor | None:
    """The ids of the answers that compete, int64 ascending; `None` for all tokens.

    Raises:
        CausalError: one is no token, or a label is not among them.
    """
    if candidates is None:
        return None
    ids: Tensor = label_ids(runs.model, candidates).unique().to(runs.model.device)
    lost = (~torch.isin(runs.labels, ids)).nonzero().flatten()
    if len(lost):
        raise CausalError(f"the label of row {int(lost[0])} is not among the candidates {list(candidates)!r:.80}")
    return ids


@torch.no_grad()
def accuracy_of(runs: StoredRuns, answers: Tensor | None, seed: int) -> InterchangeAccuracy:
    """`interchange_accuracy` of stored runs.

    Args:
        runs: the data.
        answers: what `candidate_ids` gives.
        seed: of the random subspace.
    """
    return InterchangeAccuracy(tuple(_group(runs, group, answers, seed) for group in runs.groups))


def _group(runs: StoredRuns, group: Group, answers: Tensor | None, seed: int) -> GroupAccuracy:
    """All figures of the rows that set the same variables."""
    rows = runs.groups[group]
    parts = [part for name in group for part in runs.parts[name]]

    def share(edit: Callable[[list[int]], Edit | None]) -> float:
        right = torch.zeros((), device=runs.model.device)
        for some in runs.batches(rows):
            logits = runs.logits(some, edit(some))
            logits = logits.to(right.device)
            found = logits.argmax(-1) if answers is None else answers[logits[:, answers].argmax(-1)]
            right += (found == runs.labels[some]).sum()
        return float(right) / len(rows)

    def changed(made: Mapping[int, Intervention | None]) -> float:
        return share(lambda some: runs.edit(some, change=lambda part: made[id(part)]))

    masked = any(isinstance(part.intervention, Masked) for part in parts)
    drawn = _random(runs, parts, seed)
    others = [name for name in runs.parts if name not in group] if len(group) == 1 else []
    return GroupAccuracy(
        variables=group,
        rows=len(rows),
        iia=share(runs.edit),
        hard=changed({id(part): _hard(part.intervention) for part in parts}) if masked else None,
        no_swap=share(lambda some: None),
        full_swap=changed({id(part): Swap(None) for part in parts}),
        random=None if drawn is None else changed(drawn),
        other={name: share(partial(runs.edit, take={name: group[0]})) for name in others},
    )


def _hard(intervention: Intervention) -> Intervention | None:
    """A mask at its limit, `None` where it keeps nothing; any other intervention as it is."""
    if not isinstance(intervention, Masked):
        return intervention
    return intervention.hardened() if bool(intervention.kept().any()) else None


def _random(runs: StoredRuns, parts: Sequence[Part], seed: int) -> dict[int, Intervention | None] | None:
    """By part, a random subspace of the rank of its own; `None` where one has no subspace, or all of the space."""
    draws = torch.Generator().manual_seed(seed)
    made: dict[int, Intervention | None] = {}
    for part in parts:
        width = runs.width(part)
        own = subspace(part.intervention, width)
        if own is None or not 0 < own.shape[1] < width:
            return None
        made[id(part)] = LowRank.of(torch.randn(own.shape, generator=draws))
    return made
