"""Counterfactual data: base and source prompts, and what a causal model says when variables are exchanged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from inlay.causal.causal_model import CausalModel, Setting
from inlay.errors import CausalError

_TRIES = 10_000


@dataclass(frozen=True)
class Counterfactual:
    """One row of counterfactual data.

    Attributes:
        base: the prompt that is run: text, a chat or a row of ids.
        sources: for each variable, the prompt that it is taken from.
        variables: the names of the variables that are set.
        label: the answer that follows if they are: a text that is one token, or an id.
        base_label: the base's own answer.

    Raises:
        CausalError: no variable, one twice, or another number of sources.
    """

    base: Any
    sources: tuple[Any, ...]
    variables: tuple[str, ...]
    label: str | int
    base_label: str | int

    def __post_init__(self) -> None:
        names = self.variables
        if not names or len(set(names)) < len(names) or len(self.sources) != len(names):
            raise CausalError(
                f"a row sets the variables {names} from {len(self.sources)} sources: name each variable once, and give "
                "a source prompt for each"
            )


def counterfactuals(
    causal_model: CausalModel,
    n: int,
    variables: Sequence[str | Sequence[str]],
    to_prompt: Callable[[dict[str, Any]], Any],
    to_label: Callable[[dict[str, Any]], str | int] | None = None,
    *,
    sample: Callable[[Random], Setting] | None = None,
    changed: bool = False,
    seed: int = 0,
) -> list[Counterfactual]:
    """Rows of counterfactual data; the same for the same seed.

    Args:
        causal_model: the causal model.
        n: how many rows.
        variables: what is set, in turn row by row: names of variables, or groups of them that are set together, each
            from a source of its own.
        to_prompt: the prompt that stands for a run, given the values of all of its variables.
        to_label: the answer that a run ends in, given the same: a text that is one token, or an id. By default the
            value of the one output, which then is such.
        sample: draws the inputs of a run, where `causal_model.sample` would not do, as when a variable would nearly
            always have one value.
        changed: keep only rows whose label differs from the base's.
        seed: of the draws.

    Raises:
        CausalError: no rows or no variables, an unknown variable, several outputs and no `to_label`, or no row found
            whose label changes.
    """
    if n < 1 or not variables:
        raise CausalError(f"n={n} rows of variables={variables!r}: give at least one of each")
    groups = [(one,) if isinstance(one, str) else tuple(one) for one in variables]
    answer = to_label or _output(causal_model)
    rng = Random(seed)
    draw = sample or causal_model.sample

    def row(group: tuple[str, ...]) -> Counterfactual:
        base, sources = draw(rng), [draw(rng) for _ in group]
        without = causal_model.run(base)
        after = causal_model.interchange(base, dict(zip(group, sources, strict=True)))
        prompts = tuple(to_prompt(causal_model.run(source)) for source in sources)
        return Counterfactual(to_prompt(without), prompts, group, answer(after), answer(without))

    def kept(group: tuple[str, ...]) -> Counterfactual:
        for _ in range(_TRIES):
            found = row(group)
            if not changed or found.label != found.base_label:
                return found
        raise CausalError(
            f"none of {_TRIES} rows that set {', '.join(group)} changes the label; give a sample= that does"
        )

    return [kept(groups[index % len(groups)]) for index in range(n)]


def _output(causal_model: CausalModel) -> Callable[[dict[str, Any]], str | int]:
    """The value of the one output, as an answer."""
    if len(causal_model.outputs) != 1:
        raise CausalError(
            f"the causal model has the outputs {', '.join(causal_model.outputs)}: say with to_label= what the answer is"
        )
    (name,) = causal_model.outputs

    def answer(found: dict[str, Any]) -> str | int:
        value = found[name]
        if not isinstance(value, (str, int)):
            raise CausalError(f"the output {name!r} is {value!r}, and an answer is a text or an id: give to_label=")
        return value if isinstance(value, str) else int(value)

    return answer
