"""The line that an instruction stands for: which frame asks so, and about whom."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inlay.errors import WorldError
from inlay.world.concept import Concept
from inlay.world.concepts import SUBJECT, Talk
from inlay.world.line import Draft, Line, Phrase

if TYPE_CHECKING:
    from inlay.world.world import World


def asked(world: World, instruction: str, concept: int | str | Concept | None = None) -> Line:
    """An instruction as a line of section `concepts`, kind `talk`, with its truth and without a reply.

    Args:
        world: whose frames ask.
        instruction: as a user says it.
        concept: what a reply should have, `None` for none.

    Raises:
        WorldError: no frame of the world asks so, or it has no such concept.
    """
    wanted = None if concept is None else world.concept(concept).id
    said = " ".join(instruction.split())
    for frame in world.frames:
        for subject in world.grammar.words(SUBJECT):
            if Talk(frame, subject, ()).instruction == said:
                truth = {"concept": wanted, "frame": frame.name, "subject": subject}
                return Draft("talk", [("user", Phrase().say(said))], truth).line("", "concepts", "test")
    ways = ", ".join(repr(" ".join(frame.ask.parts)) for frame in world.frames) or "nothing"
    raise WorldError(f"{world.spec.version} knows no instruction {instruction!r}; it asks {ways}")
