"""Objectives by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from inlay.errors import TrainError
from inlay.train.objectives.detection import ProbeBCE, ReFTr1
from inlay.train.objectives.imitation import Imitate
from inlay.train.objectives.language import Lang
from inlay.train.objectives.margins import Prism, Split
from inlay.train.objectives.matching import JSDMatch
from inlay.train.objectives.preference import DPO, IPO, APOZero, BiPO, SimPO
from inlay.train.objectives.steering import RePS

if TYPE_CHECKING:
    from inlay.train.step import Step

OBJECTIVES: dict[str, type] = {
    "lm": Lang,
    "reps": RePS,
    "bipo": BiPO,
    "dpo": DPO,
    "ipo": IPO,
    "simpo": SimPO,
    "apo_zero": APOZero,
    "split": Split,
    "prism": Prism,
    "reft_r1": ReFTr1,
    "probe_bce": ProbeBCE,
    "imitate": Imitate,
    "jsd_match": JSDMatch,
}


def objective(of: str | Callable[[Step], Tensor], **settings: Any) -> Callable[[Step], Tensor]:
    """An objective by name, or one that is given, with some settings changed.

    One of inlay's own is copied, so that two runs share nothing that it measures.

    Args:
        of: a name of `OBJECTIVES`, one of these objects, or any function of a Step.
        **settings: of the objective.

    Raises:
        TrainError: there is no such objective, it has no such setting, or a setting is out of range.
    """
    if isinstance(of, str):
        if of not in OBJECTIVES:
            raise TrainError(f"objective={of!r}: one of {', '.join(OBJECTIVES)}, or a function of a Step")
        made: Callable[[Step], Tensor] = OBJECTIVES[of](**_known(OBJECTIVES[of], settings))
        return made
    if isinstance(of, type) or not callable(of):
        called = f"{of.__name__}()" if isinstance(of, type) else "a name or a function of a Step"
        raise TrainError(f"objective={of!r:.60}: give {called}")
    if is_dataclass(of):
        return replace(of, **_known(type(of), settings))
    if settings:
        raise TrainError(f"{', '.join(settings)}: {of!r:.60} is a function and takes no settings; bind them in it")
    return of


def _known(kind: type, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, all of which the objective has."""
    known = [one.name for one in fields(kind) if one.init]
    unknown = [name for name in settings if name not in known]
    if unknown:
        has = f"it has {', '.join(known)}" if known else "it has none"
        raise TrainError(f"{kind.__name__} has no setting {', '.join(map(repr, unknown))}; {has}")
    return settings
