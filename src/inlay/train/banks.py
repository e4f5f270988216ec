"""One Edit for each concept, stacked: a Bank at every part, whose row k + 1 is concept k's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from inlay.errors import TrainError
from inlay.interventions.bank import Bank
from inlay.interventions.base import Intervention
from inlay.interventions.edit import Edit


def stacked(edits: Sequence[Edit]) -> Edit:
    """Edits of one make as one Edit of Banks; an intervention that several parts share stays shared.

    Raises:
        TrainError: the Edits differ in Sites, Tokens, strengths, conditions or what they share.
        EditError: their interventions cannot be stacked.
    """
    first = edits[0]
    for index, edit in enumerate(edits):
        if _make(edit) != _make(first):
            raise TrainError(f"Edit {index} is {edit!r:.160}, and Edit 0 is {first!r:.160}: concepts share one make")
    banks: dict[int, Bank] = {}
    parts = []
    for place, part in enumerate(first.parts):
        key = id(part.intervention)
        if key not in banks:
            banks[key] = Bank([edit.parts[place].intervention for edit in edits])
        parts.append(replace(part, intervention=banks[key]))
    return Edit.of(tuple(parts), first.base)


def row(edit: Edit, number: int) -> Edit:
    """The Edit of one row of stacked ones, 1 to K, as it stands in the tables now."""
    made: dict[int, Intervention] = {}
    parts = []
    for part in edit.parts:
        bank = part.intervention
        if isinstance(bank, Bank):
            made.setdefault(id(bank), bank.item(number))
        parts.append(replace(part, intervention=made.get(id(bank), bank)))
    return Edit.of(tuple(parts), edit.base)


def _make(edit: Edit) -> list[tuple[object, ...]]:
    owners = [id(part.intervention) for part in edit.parts]
    return [
        (str(part.site), str(part.tokens), part.strength, part.joint, repr(part.when), owners.index(owner))
        for part, owner in zip(edit.parts, owners, strict=True)
    ]
