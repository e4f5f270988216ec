"""What each backward rule hit, module by module."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from inlay.attribute.rules import RuleSet
from inlay.errors import RuleNotApplied

if TYPE_CHECKING:
    import polars

RULES = ("norm", "attention", "product", "activation")


@dataclass
class Counting:
    """Whether calls count."""

    on: bool = True


@dataclass
class Row:
    """One rule at one module, or the reason why a rule cannot be applied there.

    Attributes:
        rule: `"norm"`, `"attention"`, `"product"` or `"activation"`.
        path: the module's path in the model.
        kind: its class.
        site: the Site that lies there, "" where none does.
        does: what the rule does there.
        calls: how often a forward inside the context called it.
        value: the module's self-test. Norm: <dx, x> / <dy, y - bias>, 1 where frozen (0 for an ordinary norm);
            attention: the largest error of a probability at temperature T (settled by the first call); product: how the
            MLP grows, 2 with a gate and 1 without; activation: the largest error of x ratio(x).
        reason: why the rule is not applicable; "" where it stands.
    """

    rule: str
    path: str
    kind: str
    site: str = ""
    does: str = ""
    calls: int = 0
    value: float | None = None
    reason: str = ""
    counting: Counting = field(default_factory=Counting, repr=False)

    def count(self) -> None:
        """Note a call, but for those that backward makes of a checkpointed block."""
        self.calls += self.counting.on


def not_applied(rule: str, family: str, seen: tuple[str, ...], why: str) -> RuleNotApplied:
    """The error of a rule that hit nothing, of the classes of modules that it looked at."""
    message = f"the {rule} rule hit nothing in this {family} model: {why}. Take a RuleSet without that rule"
    return RuleNotApplied(message, rule, family, seen)


class RuleReport:
    """The rules in force and the modules that they hit.

    Attributes:
        rules: the rule set.
        family: the model's family.
        rows: one `Row` a rule and module, live while the context stands.
        forwards: how many forwards of the model ran in this thread inside the context.
    """

    def __init__(self, rules: RuleSet, family: str, rows: list[Row]) -> None:
        self.rules, self.family, self.rows = rules, family, rows
        self.forwards = 0

    def of(self, rule: str) -> list[Row]:
        """The rows of one rule."""
        return [row for row in self.rows if row.rule == rule]

    def check(self) -> None:
        """Settle that every rule acted.

        Raises:
            RuleNotApplied: no forward ran, or a rule stands around modules that none of them called.
        """
        if not self.forwards:
            raise RuleNotApplied(
                f"{self.rules.name} hit nothing in this {self.family} model: no forward of it ran in this thread "
                "inside the context; run the model inside, and enter the context anew in every thread",
                self.rules.name,
                self.family,
            )
        for rule in RULES:
            standing = [row for row in self.of(rule) if not row.reason]
            if standing and not any(row.calls for row in standing):
                seen = tuple(sorted({row.kind for row in standing}))
                why = f"no forward called any of its {len(standing)} modules ({', '.join(seen)})"
                raise not_applied(rule, self.family, seen, why)

    def frame(self) -> polars.DataFrame:
        """One line for each row: rule, path, kind, site, does, calls, value (null without a self-test), reason."""
        import polars

        names = ("rule", "path", "kind", "site", "does", "calls", "value", "reason")
        schema = dict.fromkeys(names, polars.String) | {"calls": polars.Int64, "value": polars.Float64}
        return polars.DataFrame([{name: getattr(row, name) for name in names} for row in self.rows], schema=schema)

    def __str__(self) -> str:
        """A line for each rule and class of module."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"{self.rules.name} on {self.family}, {self.forwards} forwards"
        groups: defaultdict[tuple[str, str, str, str], list[Row]] = defaultdict(list)
        for row in self.rows:
            groups[row.rule, row.kind, row.does, row.reason].append(row)
        for (rule, kind, does, reason), rows in groups.items():
            values = [row.value for row in rows if row.value is not None]
            tested = f", self-test {min(values):.5f} to {max(values):.5f}" if values else ""
            if reason:
                yield f"{rule:<10} {kind} x {len(rows)}: not applicable, {reason}{tested}"
            else:
                yield f"{rule:<10} {kind} x {len(rows)}: {does}, {sum(r.calls for r in rows)} calls{tested}"
