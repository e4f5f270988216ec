"""Direction: a unit vector at a Site, its natural scale, and where it came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inlay.errors import DirectionError
from inlay.interventions.base import unit
from inlay.interventions.closed_form import Ablate, Add, Clamp
from inlay.interventions.edit import Edit
from inlay.model.sites import Site

if TYPE_CHECKING:
    from inlay.model.model import Model


@dataclass(frozen=True, eq=False)
class Direction:
    """What a method found for a concept.

    Attributes:
        vector: float32 [width], of length 1; given at any length but 0.
        site: where it lives.
        scale: the mean length of the training states at the Site. Strengths count in it: `add(strength=1)` adds a
            vector as long as a state is.
        method: the method's name.
        concept: the concept's name.
        data: what it was fitted on: numbers of texts and tokens, a hash of the texts, seed, settings.
        model: what `score` reads with; not saved.

    Raises:
        DirectionError: the scale is not positive.
        EditError: the vector is not one, not finite, or of length 0.
    """

    vector: Tensor
    site: Site
    scale: float
    method: str
    concept: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    model: Model | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        made = unit(self.vector, f"Direction({self.concept or self.method})").float().cpu()
        object.__setattr__(self, "vector", made)
        object.__setattr__(self, "site", Site.parse(self.site))
        if not 0 < self.scale < float("inf"):
            raise DirectionError(f"a Direction's scale is {self.scale}; it is a length, so a positive number")

    def add(self, strength: float = 1.0, tokens: Any = "all") -> Edit:
        """Steer: add `strength` x `scale` x vector.

        Args:
            strength: in mean lengths of a state; negative steers away.
            tokens: which positions.
        """
        return Edit(self.site, Add(self.vector * self.scale), tokens, strength=strength)

    def ablate(self, tokens: Any = "all") -> Edit:
        """Remove the component along the vector."""
        return Edit(self.site, Ablate(self.vector), tokens)

    def clamp(self, low: float, high: float | None = None, tokens: Any = "all") -> Edit:
        """Bring the component along the vector into [low, high], or to `low`, in mean lengths of a state."""
        top = None if high is None else high * self.scale
        return Edit(self.site, Clamp(self.vector, low * self.scale, top), tokens)

    def score(self, texts: Sequence[Any], pool: str | None = "max", **kwargs: Any) -> Any:
        """Detect: the projections h.vector of texts; see `scoring.scores`.

        Args:
            texts: see `Text.of`.
            pool: `"max"`, `"mean"` or `"last"` over a text's tokens; `None` for every token.
            **kwargs: as in `scoring.scores`.

        Returns:
            float32 [texts]; without a pool a list of float32 [tokens].

        Raises:
            DirectionError: no model is known; a Direction from disk gets one by `load(folder, model)`.
        """
        from inlay.directions.scoring import scores

        if self.model is None:
            raise DirectionError("this Direction has no model to read with: load it with one, or use scores(model, ..)")
        found = scores(self.model, texts, [self], pool, **kwargs)
        return found[0] if pool else [tokens[:, 0] for tokens in found]

    @property
    def width(self) -> int:
        """The length of the vector's list of numbers."""
        return int(self.vector.shape[0])

    def cosine(self, other: Direction | Tensor) -> float:
        """The cosine to another Direction or vector."""
        theirs = other.vector if isinstance(other, Direction) else other
        return float(torch.nn.functional.cosine_similarity(self.vector.double(), theirs.double(), dim=0))
