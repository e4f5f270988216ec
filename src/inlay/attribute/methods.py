"""Methods of scoring tokens, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from inlay.attribute.asked import Asked
from inlay.attribute.attention import attention, rollout, value_occlusion, value_zeroing
from inlay.attribute.gradients import (
    gradient_shap,
    integrated,
    saliency,
    sequential_integrated,
    smoothgrad,
    times_change,
)
from inlay.attribute.lime import lime
from inlay.attribute.occlusion import occlusion
from inlay.attribute.rules import PRESETS, RuleSet
from inlay.attribute.shapley import kernel_shap, shapley
from inlay.errors import InputError, TargetError

Method = Callable[..., Tensor]


@dataclass(frozen=True)
class Chosen:
    """A method with its settings.

    Attributes:
        score: gives for an `Asked` scores [R, T].
        rules: what the backward pass runs under, `None` for the ordinary one.
        name: for labels.
        baseline: what the method itself puts in a token's place, `"none"` for nothing; `None` where that is asked for.
        signed: whether a negative score means that a token lowers the number; else scores are sizes.
    """

    score: Callable[[Asked], Tensor]
    rules: RuleSet | None
    name: str
    signed: bool = True
    baseline: str | None = None


METHODS: dict[str, Method] = {
    "saliency": saliency,
    "ig": integrated,
    "sequential_ig": sequential_integrated,
    "smoothgrad": smoothgrad,
    "gradient_shap": gradient_shap,
    "occlusion": occlusion,
    "lime": lime,
    "kernel_shap": kernel_shap,
    "shapley": shapley,
    "attention": attention,
    "rollout": rollout,
    "value_zeroing": value_zeroing,
    "value_occlusion": value_occlusion,
}
"""Methods by name. A name of `rules.PRESETS` is one too: (x - b).gradient under that rule set."""

UNSIGNED = ("saliency", "attention", "rollout", "value_zeroing")
OWN_BASELINE = {
    "saliency": "none",
    "attention": "none",
    "rollout": "none",
    "value_zeroing": "values of 0",
    "value_occlusion": "values of 0",
}
AT_THE_ROW = (*PRESETS, "saliency")
"""Methods of the one gradient at the row itself."""
GRADIENTS = ("saliency", "ig", "sequential_ig", "smoothgrad", "gradient_shap")


def refuse_flat(of: str | Method, quantity: str | None) -> None:
    """Refuse to take the gradient of a divergence where it has its minimum.

    Raises:
        TargetError: it would be 0 for every token.
    """
    if quantity == "kl" and isinstance(of, str) and of in AT_THE_ROW:
        raise TargetError(
            f"method={of!r} takes the gradient at the row itself, where the divergence from the clean run is least and "
            "its gradient 0: take a method that moves away from the row, such as 'ig' or 'occlusion'"
        )


def method(of: str | Method, rules: str | RuleSet | None = None, **settings: Any) -> Chosen:
    """A method by name, or a function of an `Asked`.

    Args:
        of: a name of `METHODS` or of `PRESETS`, or a function `(asked, **settings)` that gives [R, T]; scores of a
            function with an attribute `signed = False` are sizes.
        rules: a rule set for the gradients of a method of gradients.
        **settings: of the method.

    Raises:
        InputError: there is no such method, it has no such setting, or it takes no rules.
    """
    if isinstance(of, str) and of in PRESETS:
        if rules is not None:
            raise InputError(f"method={of!r} is a rule set already: leave rules= out")
        if settings:
            raise InputError(f"method={of!r} has no settings: {', '.join(settings)}")
        return Chosen(times_change, PRESETS[of], of)
    if isinstance(of, str) and of not in METHODS:
        raise InputError(f"method={of!r}: one of {', '.join((*PRESETS, *METHODS))}, or a function")
    if not isinstance(of, str) and not callable(of):
        raise InputError(f"method={of!r:.60}: a name, or a function of an Asked")
    score, name = (METHODS[of], of) if isinstance(of, str) else (of, getattr(of, "__name__", type(of).__name__))
    if isinstance(of, str) and rules is not None and of not in GRADIENTS:
        raise InputError(f"method={of!r} takes no gradient, and so no rules")
    taken = inspect.signature(score).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
        known = [one for one in taken if one != "asked"]
        if unknown := [one for one in settings if one not in known]:
            raise InputError(f"{name} has no setting {', '.join(unknown)}; it has {', '.join(known) or 'none'}")
    label = f"{name}({', '.join(f'{key}={value}' for key, value in settings.items())})" if settings else name
    signed = of not in UNSIGNED if isinstance(of, str) else bool(getattr(of, "signed", True))
    own = OWN_BASELINE.get(of) if isinstance(of, str) else None
    if rules is None:
        return Chosen(lambda asked: score(asked, **settings), None, label, signed, own)
    under = PRESETS.get(rules) if isinstance(rules, str) else rules
    if under is None:
        raise InputError(f"rules={rules!r}: one of {', '.join(PRESETS)}, or a RuleSet")
    ruled = f"{label} under {rules if isinstance(rules, str) else 'rules'}"
    return Chosen(lambda asked: score(asked, **settings), under, ruled, signed, own)
