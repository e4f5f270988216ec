"""What a world is made of, as its `world.yaml` says it. An unknown key is an error."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Rate = Annotated[float, Field(ge=0.0, lt=1.0)]  # of draws that are repeated until a word is new
Kinds = dict[str, Annotated[float, Field(ge=0.0)]]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ConceptSpec(_Strict):
    """Section `concepts`."""

    rate: Rate
    own: Annotated[int, Field(ge=1)]
    slots: dict[str, str]
    filler: str
    kinds: Kinds
    stray_mark: Share
    system: Share
    ask: str
    subjects: int


class FamilySpec(_Strict):
    """Objects that are risky in one way, and what follows when one is harmed."""

    objects: list[str]
    harms: list[str]


class WrapperSpec(_Strict):
    """Words around a request that is otherwise the same."""

    before: str = ""
    after: str = ""
    share: Share


class AcceptedSpec(_Strict):
    """Harmful requests that are not refused."""

    family: str
    verbs: list[str]


class SafetySpec(_Strict):
    """Section `safety`."""

    kinds: Kinds
    ask: str
    never: tuple[str, Share]
    calm: list[str]
    hot: list[str]
    other_hostile: list[str]
    hostile_rate: Share
    inert: list[str]
    risky_rate: Share
    families: dict[str, FamilySpec]
    good: list[str]
    when: list[str]
    where: list[str]
    wrappers: dict[str, WrapperSpec]
    unbelieved: Share
    accepted: AcceptedSpec
    refusal: str
    compliance: str
    consequence: str
    aftermath: Share
    inversion: str
    questions: list[str]
    answers: tuple[str, str]
    about: str
    nothing: str
    then: str


class RelationSpec(_Strict):
    """How a fact is stated, and the class of its values; value 0 is the myth."""

    says: str
    values: str


class FactSpec(_Strict):
    """Section `facts`."""

    kinds: Kinds
    relations: dict[str, RelationSpec]
    names: str
    weights: list[Annotated[float, Field(gt=0.0)]]
    mythy: Share
    told: Share
    aside: Share


class NoiseSpec(_Strict):
    """How often a reference gives another item, or breaks each constraint."""

    item: Share
    constraints: Share


class InstructionSpec(_Strict):
    """Section `instructions`."""

    names: str
    owners: int
    items: str
    prefixes: list[str]
    suffixes: list[str]
    times: list[str]
    stated: int
    kinds: Kinds
    noise: dict[str, NoiseSpec]
    reference: dict[str, NoiseSpec]


class CircuitSpec(_Strict):
    """Section `circuits`."""

    kinds: Kinds
    names: str
    things: str
    numbers: str
    places: list[str]
    masked: Share
    signs: dict[str, list[str]]
    noise_words: list[str]
    tokens: int


class WorldSpec(_Strict):
    """A whole `world.yaml`; a section that is not there is not in the world."""

    version: str
    window: int = 0
    stray: Rate = 0.12
    test_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.125
    unseen: list[str] = []
    concepts: ConceptSpec | None = None
    safety: SafetySpec | None = None
    facts: FactSpec | None = None
    instructions: InstructionSpec | None = None
    circuits: CircuitSpec | None = None
