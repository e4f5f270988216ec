"""What a bench run does. An unknown key is an error, and a run is never resumed under another configuration."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from inlay.directions.methods import METHODS
from inlay.errors import BenchError

PLAIN = ("unsteered", "prompt", "simple_prompt")  # rows without a factor, which are always there
FACTORS = (0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0, 1.5)  # mean lengths of a training state
DEFAULT_METHODS = ("diff_mean", "pca", "lat", "lda", "probe", "token_probe")

Count = Annotated[int, Field(ge=1)]


class BenchConfig(BaseModel):
    """The settings of a run.

    Attributes:
        methods: names in `directions.METHODS`; the control `random` and the rows of `PLAIN` are always run beside them.
        site: one Site or several, `"resid_post.*"` for every layer; the middle block's output by default. Of several,
            detection takes the one with the best AUROC on training rows that the choice was not fitted on, steering
            the one that does best on the choosing prompts.
        tokens: which tokens directions are fitted on and texts are scored on.
        steer_tokens: which tokens a steering edit acts on; by default all but those that every prompt begins with.
        factors: strengths, in mean lengths of a training state at the Site; `"auto"` is `FACTORS`.
        pick: whether each concept has its own factor in the leaderboard, or all share the one that is best on average.
            Both are computed.
        split: the share of the prompts that choose the factor; the others report.
        detect, steer, side_effects: which parts are run; side effects need steering.
        max_new_tokens: of a generated reply.
        temperature: 0 takes the likeliest token; above 0 samples.
        batch_rows: replies that are generated together.
        batch_tokens: the most padded tokens in a forward that reads or scores.
        seed: of methods that draw, of sampling and of bootstrap intervals.
        settings: by method, those that differ from its defaults.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    methods: tuple[str, ...] = DEFAULT_METHODS
    site: str | tuple[str, ...] | None = None
    tokens: str = "all"
    steer_tokens: str | None = None
    factors: Literal["auto"] | tuple[float, ...] = "auto"
    pick: Literal["concept", "global"] = "concept"
    split: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    detect: bool = True
    steer: bool = True
    side_effects: bool = True
    max_new_tokens: Count = 64
    temperature: Annotated[float, Field(ge=0.0)] = 0.0
    batch_rows: Count = 128
    batch_tokens: Count = 8192
    seed: int = 0
    settings: dict[str, dict[str, Any]] = {}

    @field_validator("methods")
    @classmethod
    def _known(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        methods = tuple(name for name in methods if name not in PLAIN)
        for name in methods:
            if name not in METHODS:
                raise ValueError(f"there is no method {name!r}; there are: {', '.join(METHODS)}")
        if not methods or len(set(methods)) < len(methods):
            raise ValueError(f"methods are {', '.join(methods) or 'none'}: give each once")
        return methods

    @field_validator("factors")
    @classmethod
    def _different(cls, factors: Any) -> Any:
        if factors != "auto":
            if not factors or len(set(factors)) < len(factors):
                raise ValueError(f"factors are {factors}: give at least one, each once")
            if any(not 0 < abs(f) < float("inf") for f in factors):
                raise ValueError(f"factors are {factors}: none is 0 or infinite; 0 is the unsteered row, always run")
        return factors

    @classmethod
    def of(cls, **given: Any) -> BenchConfig:
        """A configuration from keywords.

        Raises:
            BenchError: an unknown key or a bad value, named.
        """
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            known = f"; the settings are: {', '.join(cls.model_fields)}" if first["type"] == "extra_forbidden" else ""
            raise BenchError(f"bench setting {where}: {first['msg']} (given {first['input']!r:.60}){known}") from None

    def facts(self) -> dict[str, Any]:
        """What decides the rows of a run: all settings but those that only say how much is done at a time."""
        loose = {"batch_tokens"} if self.temperature else {"batch_tokens", "batch_rows"}  # a batch shares its draws
        return self.model_dump(mode="json", exclude=loose)

    def sites(self, layers: int) -> str | tuple[str, ...]:
        """The Sites of a model of so many layers."""
        return self.site or f"resid_post.{layers // 2}"

    @property
    def grid(self) -> tuple[float, ...]:
        """The factors, as numbers."""
        return FACTORS if self.factors == "auto" else self.factors

    @property
    def all_methods(self) -> tuple[str, ...]:
        """The methods and the controls that are always run beside them."""
        return self.methods if "random" in self.methods else (*self.methods, "random")
