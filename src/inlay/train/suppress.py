"""The Edit that takes out what a trained one adds."""

from __future__ import annotations

from dataclasses import replace

from inlay.errors import TrainError
from inlay.interventions.base import Intervention
from inlay.interventions.edit import Edit


def suppressing(edit: Edit) -> Edit:
    """An Edit's null, sharing its tensors: what RePS (2505.20809) trains to suppress, and what to suppress with.

    Each intervention's own `null()`, such as the `NullOut` of a `Steer`, which is used at strength 1; the same Edit at
    the negative strength where none of them has one.

    Raises:
        TrainError: some have one and some have none.
    """
    nulls: dict[int, Intervention] = {}
    for intervention in edit.interventions:
        null = intervention.null() if isinstance(intervention, Intervention) else None
        if null is not None:
            nulls[id(intervention)] = null
    if not nulls:
        return edit.with_strength(-1.0)
    if len(nulls) < len(edit.interventions):
        raise TrainError(
            "some of the Edit's interventions have a null of their own and some have none: train them apart"
        )
    parts = [replace(part, intervention=nulls[id(part.intervention)], strength=None) for part in edit.parts]
    return Edit.of(tuple(parts), edit.base)
