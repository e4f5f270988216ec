"""Measure a world's model anew on held-out lines, and say which phenomena it has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from inlay.errors import WorldError
from inlay.world.world import World

if TYPE_CHECKING:
    from inlay.model.model import Model
    from inlay.world.checks.row import Row

HELD_OUT = 1000  # the seed of the lines that are measured on; trainings use small ones
GROUPS = ("concepts", "facts", "instructions", "circuits", "safety", "guard")


@dataclass(frozen=True)
class Report:
    """An acceptance table.

    Attributes:
        model: the model's name.
        rows: what was measured, and its bounds.
    """

    model: str
    rows: list[Row]

    @property
    def missed(self) -> list[Row]:
        """The rows that are outside of their bounds."""
        return [row for row in self.rows if row.met is False]

    def markdown(self) -> str:
        """The table."""
        lines = ["| section | phenomenon | value | accepted | |", "| --- | --- | --- | --- | --- |"]
        for row in self.rows:
            verdict = {True: "met", False: "MISSED", None: ""}[row.met]
            note = f" ({row.note})" if row.note else ""
            lines.append(f"| {row.section} | {row.what}{note} | {row.value:.3f} | {row.bound} | {verdict} |")
        return "\n".join(lines)

    def records(self) -> list[dict[str, object]]:
        """The rows as plain values."""
        return [
            {
                "section": row.section,
                "phenomenon": row.what,
                "value": row.value,
                "accepted": row.bound,
                "met": row.met,
                "note": row.note,
            }
            for row in self.rows
        ]


def check(model: Model, sections: str | Sequence[str] = "all", world: World | None = None) -> Report:
    """The acceptance table of a model that was trained on a world.

    Args:
        model: the model, as `inlay.load` gives it.
        sections: some of `GROUPS`; by default those that the model was trained for: a windowed one for `safety` and
            `guard`, one with full attention for all others and `safety`.
        world: the world; tidepool by default. Its lines are drawn with a seed that no training has.

    Raises:
        WorldError: the model is of another world, or no section is called so.
        ExtraError: scikit-learn is not installed.
    """
    from inlay.world.checks import circuits, facts, guard, instructions, safety, talk

    world = World(world.folder if world else Path(__file__).parent / "tidepool", HELD_OUT)
    _check_world(model, world)
    measure: dict[str, Callable[[Model, World], list[Row]]] = {
        "concepts": talk.rows,
        "facts": facts.rows,
        "instructions": instructions.rows,
        "circuits": circuits.rows,
        "safety": safety.rows,
        "guard": guard.rows,
    }
    if sections == "all":
        windowed = getattr(model.config, "sliding_window", None)
        wanted: Sequence[str] = ("safety", "guard") if windowed else GROUPS[:-1]
        wanted = [name for name in wanted if name in world.sections or name == "guard"]
    else:
        wanted = [sections] if isinstance(sections, str) else list(sections)
    for name in wanted:
        if name not in measure:
            raise WorldError(f"there is no check of {name!r}; these are: {', '.join(GROUPS)}")
    return Report(model.name, [row for name in wanted for row in measure[name](model, world)])


def _check_world(model: Model, world: World) -> None:
    of = getattr(model.hf.config, "world", None)
    if not of:
        raise WorldError(f"{model.name} was not trained on a world: its configuration names none")
    if of["hash"] != world.hash:
        raise WorldError(
            f"{model.name} was trained on {of['version']} ({of['hash'][:12]}), and this is {world.spec.version} "
            f"({world.hash[:12]}): give the world that it was trained on, or train it anew"
        )
