"""Instructions: answers from memory and from a context, and which constraints are kept."""

from __future__ import annotations

from inlay.model.model import Model
from inlay.world.checks.row import Row, replies
from inlay.world.world import World


def rows(model: Model, world: World, n: int = 300) -> list[Row]:
    """The table's rows on instructions, on clean lines."""
    found = []
    for kind in ("memory", "context"):
        lines = list(world.lines("instructions", n, "test", f"clean {kind}"))
        scores = world.judge().score(lines, replies(model, [line.prompt for line in lines], new=12))
        least = 0.95 if kind == "memory" else 0.9
        found.append(Row("instructions", f"the right item, {kind}", scores["task"].mean or 0.0, least=least))
        found.append(Row("instructions", f"constraints kept, {kind}", scores["constraints"].mean or 0.0))
        if kind == "context":
            found.append(Row("instructions", "items from the context", scores["faith"].mean or 0.0, least=0.9))
    return found
