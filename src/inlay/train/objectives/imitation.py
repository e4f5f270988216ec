"""Imitate: bring the edited model's activations to those of the prompted model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from inlay.errors import TrainError

if TYPE_CHECKING:
    from inlay.train.loop import Loop
    from inlay.train.step import Step

_AT_ONCE = 8


def distance(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], mask: Tensor) -> Tensor:
    """The sum over Sites of the mean over tokens and width of (student - teacher)^2, [R]; no gradient to the teacher.

    Args:
        student, teacher: activations by Site, each [R, T, width].
        mask: which tokens are real, bool [R, T].
    """
    sums = []
    for site, theirs in teacher.items():
        dtype = torch.promote_types(theirs.dtype, torch.float32)
        gap = (student[site].to(dtype) - theirs.detach().to(dtype)).square().mean(-1)
        sums.append(gap.masked_fill(~mask, 0).sum(-1) / mask.sum(-1).clamp_min(1))
    return torch.stack(sums).sum(0)


@dataclass(frozen=True)
class Imitate:
    """Prompt steering replacement (PSR, 2605.03907): over the response, the states that the teacher's prompt gives.

    The loss of an example is `distance` between the edited model on its prompt and the frozen model on the teacher's,
    divided by the mean distance of the unedited model over the concept's examples. So it starts near 1, and 0 is
    perfect imitation.

    Attributes:
        read: the Sites that are compared, by default every block's output.

    Raises:
        TrainError: the teacher's prompts change nothing, so that there is nothing to imitate.
    """

    read: str = "resid_post.*"
    _unedited: dict[int, float] = field(default_factory=dict, init=False, repr=False, compare=False)

    sides: ClassVar[tuple[str, ...]] = ("chosen", "teacher")

    def prepare(self, loop: Loop) -> None:
        """Measure the unedited model on every concept's examples, before the training."""
        frozen = loop.frozen
        sites = frozen.model.sites().expand(self.read)
        for concept in loop.concepts:
            found = []
            for start in range(0, len(concept.numbers), _AT_ONCE):
                some = concept.numbers[start : start + _AT_ONCE]
                student, teacher = (frozen.read([n[side] for n in some], sites, "response") for side in self.sides)
                assert student.mask is not None
                found.append(distance(student, teacher, student.mask))
            mean = float(torch.cat(found).mean())
            if not mean > 0:
                name = f" of {concept.name!r}" if concept.name else ""
                raise TrainError(
                    f"the teacher prompts{name} give the states that the plain ones give: nothing to imitate"
                )
            self._unedited[concept.index] = mean

    def __call__(self, step: Step) -> Tensor:
        """The contributions of the examples, [R]."""
        whose = step.concepts.tolist()
        if not self._unedited.keys() >= set(whose):
            raise TrainError(
                "Imitate divides by the unedited model's distance: call its prepare(loop) first, as fit does"
            )
        (student,) = step.run("chosen", factor=step.factors(), read=self.read, tokens="response")
        assert student.acts is not None and student.acts.mask is not None
        gaps = distance(student.acts, step.frozen("teacher", self.read, "response"), student.acts.mask)
        means = torch.tensor([self._unedited[concept] for concept in whose], dtype=gaps.dtype, device=gaps.device)
        return step.per_row(gaps / means)
