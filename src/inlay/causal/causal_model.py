"""CausalModel: what a network is thought to compute, as a small acyclic program whose variables can be set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from random import Random
from typing import Any

from inlay.errors import CausalError

Setting = Mapping[str, Any]
_TRIES = 100_000


class CausalModel:
    """Variables that are inputs or functions of others, without cycles (2303.02536, section 2).

    ```python
    equal = CausalModel(
        ["a", "b", "same"],
        values={"a": range(4), "b": range(4)},
        parents={"same": ["a", "b"]},
        functions={"same": lambda a, b: a == b},
    )
    equal.run({"a": 1, "b": 1})["same"]  # True
    ```

    Args:
        variables: their names, in the order in which they are reported.
        values: for every input, the values that it is drawn from, or a function of a `random.Random` that draws one.
        parents: for every computed variable, what it is computed from. A variable without parents is an input.
        functions: for every computed variable, a pure function of its parents' values, in the order of `parents`.

    Attributes:
        variables: the names.
        parents: of every variable; () for an input.
        inputs: the variables without parents.
        outputs: the variables that no other is computed from.
        depth: for every variable the longest way down to it from an input, which itself has 0.

    Raises:
        CausalError: a name is unknown or there twice, a variable lacks its values or its function, or there is a cycle.
    """

    def __init__(
        self,
        variables: Sequence[str],
        values: Mapping[str, Sequence[Any] | Callable[[Random], Any]],
        parents: Mapping[str, Sequence[str]],
        functions: Mapping[str, Callable[..., Any]],
    ) -> None:
        self.variables = tuple(variables)
        if not self.variables or len(set(self.variables)) < len(self.variables):
            raise CausalError(f"variables={list(variables)}: give each name once, and at least one")
        for what, names in (("values", values), ("parents", parents), ("functions", functions)):
            self._known(names, what)
        self.parents = {name: tuple(parents.get(name, ())) for name in self.variables}
        for name, above in self.parents.items():
            self._known(above, f"parents[{name!r}]")
            self._check(name, bool(above), values, functions)
        self.inputs = tuple(name for name in self.variables if not self.parents[name])
        used = {name for above in self.parents.values() for name in above}
        self.outputs = tuple(name for name in self.variables if name not in used)
        self._values = {name: one if callable(one) else tuple(one) for name, one in values.items()}
        self._functions = dict(functions)
        self._order = self._sorted()
        self.depth: dict[str, int] = {}
        for name in self._order:
            self.depth[name] = max((self.depth[above] + 1 for above in self.parents[name]), default=0)

    def _known(self, names: Mapping[str, Any] | Sequence[str], what: str) -> None:
        if unknown := [name for name in names if name not in self.variables]:
            raise CausalError(f"{what} names {unknown[0]!r}, and the variables are {', '.join(self.variables)}")

    @staticmethod
    def _check(name: str, computed: bool, values: Mapping[str, Any], functions: Mapping[str, Any]) -> None:
        if computed and name not in functions:
            raise CausalError(f"{name!r} has parents and no function: give functions[{name!r}]")
        if computed and name in values:
            raise CausalError(f"{name!r} is computed from its parents: values are those of inputs, leave them out")
        if not computed and name in functions:
            raise CausalError(f"{name!r} has a function and no parents: give parents[{name!r}]")
        if not computed and (name not in values or not (callable(values[name]) or len(values[name]))):
            raise CausalError(
                f"the input {name!r} has no values: give values[{name!r}], a list or a function of an rng"
            )

    def _sorted(self) -> tuple[str, ...]:
        try:
            return tuple(TopologicalSorter(self.parents).static_order())
        except CycleError as error:
            raise CausalError(f"a variable depends on itself: {' -> '.join(error.args[1])}") from None

    def run(self, setting: Setting) -> dict[str, Any]:
        """The value of every variable.

        Args:
            setting: a value for every input; a value for a computed variable is taken in place of its function's.

        Raises:
            CausalError: an input has no value, or a name is unknown.
        """
        self._known(setting, "the setting")
        if missing := [name for name in self.inputs if name not in setting]:
            raise CausalError(f"the setting has no value for the input {missing[0]!r}")
        found: dict[str, Any] = {}
        for name in self._order:
            found[name] = setting[name] if name in setting else self._computed(name, found)
        return {name: found[name] for name in self.variables}

    def _computed(self, name: str, found: Setting) -> Any:
        return self._functions[name](*(found[above] for above in self.parents[name]))

    def interchange(self, base: Setting, sources: Mapping[str, Setting]) -> dict[str, Any]:
        """The value of every variable in the base, with some variables set to what they are in other runs.

        Args:
            base: as in `run`.
            sources: for every variable that is set, the setting of the run that it is taken from.

        Raises:
            CausalError: as in `run`.
        """
        self._known(sources, "sources")
        return self.run({**base, **{name: self.run(source)[name] for name, source in sources.items()}})

    def sample(self, rng: Random, where: Callable[[dict[str, Any]], bool] | None = None) -> dict[str, Any]:
        """A setting of the inputs, each drawn by itself.

        Args:
            rng: what draws.
            where: keeps a draw if the values of all variables, as `run` gives them, pass; by default any.

        Raises:
            CausalError: no draw out of 100 000 passes.
        """
        for _ in range(_TRIES):
            drawn = {name: self._drawn(name, rng) for name in self.inputs}
            if where is None or where(self.run(drawn)):
                return drawn
        raise CausalError(f"none of {_TRIES} draws passes where={where!r}; draw the inputs so that some do")

    def _drawn(self, name: str, rng: Random) -> Any:
        values = self._values[name]
        return values(rng) if callable(values) else rng.choice(values)

    def sample_for(self, variable: str, value: Any, rng: Random) -> dict[str, Any]:
        """A setting of the inputs in which a variable has a value.

        Raises:
            CausalError: the variable is unknown, or no draw out of 100 000 gives it that value.
        """
        self._known([variable], "sample_for")
        if variable in self.inputs:
            return {**self.sample(rng), variable: value}
        return self.sample(rng, lambda found: bool(found[variable] == value))

    def live_paths(self, setting: Setting) -> list[tuple[str, ...]]:
        """The paths from an input to an output that carry a difference.

        A path is live if some other value of its input, passed on along this path alone, changes the output: every
        variable on the path is computed anew from the one before it, with all of its other parents as they are.

        Args:
            setting: as in `run`; a computed variable that it sets passes nothing on.

        Raises:
            CausalError: as in `run`, or an input is drawn by a function, so that its other values are not known.
        """
        found = self.run(setting)
        children = {name: [low for low in self.variables if name in self.parents[low]] for name in self.variables}
        paths: list[tuple[str, ...]] = []
        growing: list[tuple[str, ...]] = [(name,) for name in self.inputs]
        while growing:
            path = growing.pop(0)
            longer = [(*path, low) for low in children[path[-1]]]
            if not longer and len(path) > 1 and self._carries(path, setting, found):
                paths.append(path)
            growing = longer + growing
        return paths

    def _carries(self, path: tuple[str, ...], setting: Setting, found: Setting) -> bool:
        values = self._values[path[0]]
        if callable(values):
            raise CausalError(
                f"live_paths tries every value of {path[0]!r}, and it is drawn by a function: give a list"
            )
        if any(name in setting for name in path[1:]):
            return False
        for value in values:
            changed = value
            for before, name in pairwise(path):
                changed = self._computed(name, {**found, before: changed})
            if changed != found[path[-1]]:
                return True
        return False

    def __repr__(self) -> str:
        return f"CausalModel({', '.join(self.inputs)} -> {', '.join(self.outputs)}; {len(self.variables)} variables)"
