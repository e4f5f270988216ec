"""Edit: Site x Tokens x Intervention, and sums of these."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from inlay.errors import EditError
from inlay.interventions.base import Intervention
from inlay.interventions.function import Function
from inlay.interventions.when import Condition
from inlay.model.sites import Site
from inlay.model.tokens import Tokens


@dataclass(frozen=True)
class Part:
    """One Site x Tokens x Intervention.

    Attributes:
        site: where; `"resid_post.*"` is every layer with the same intervention.
        tokens: which positions.
        intervention: what happens there.
        strength: a factor on the change, `None` for 1.
        when: where it acts at all, `None` for everywhere.
        joint: whether the selected positions are one state, side by side.
    """

    site: Site
    tokens: Tokens
    intervention: Intervention
    strength: float | None = None
    when: Condition | None = None
    joint: bool = False

    def __str__(self) -> str:
        more = "" if self.strength is None else f", strength={self.strength:g}"
        more += ", joint=True" if self.joint else ""
        more += "" if self.when is None else f", when={self.when!r}"
        return f"{type(self.intervention).__name__} at {self.site}, tokens={str(self.tokens)!r}{more}"


def _finite(strength: Any) -> float | None:
    try:
        number = None if strength is None else float(strength)
    except (TypeError, ValueError):
        number = float("nan")
    if number is not None and not abs(number) < float("inf"):
        raise EditError(f"strength={strength!r}: give a finite number")
    return number


class Edit(nn.Module):
    """Interventions at Sites and Tokens of a frozen model. Edits add up with `+` into one.

    The parts at one Site act in written order; across Sites the forward's own order decides. One intervention object
    used in several parts is shared: counted, trained and saved once.

    Args:
        site: a Site, such as `"resid_post.20"`, `"z.5.h3"` or `"resid_post.*"`.
        intervention: an Intervention, or any module or function h -> h' (wrapped in `Function`).
        tokens: which positions; see `Tokens`.
        strength: a factor on the change that the intervention makes, `None` for 1.
        when: a condition (`When`, or some of them joined by `&`, `|`, `~`): the change is made only where it holds.
        joint: hand the intervention the selected positions side by side as one state, [rows, 1, positions * width], in
            place of each by itself; every row must select as many.

    Raises:
        SiteError, TokensError: a spec is misspelled.
        EditError: the intervention or the condition is not one, or the strength is not finite.
    """

    def __init__(
        self,
        site: str | Site,
        intervention: Any,
        tokens: Any = "all",
        strength: float | None = None,
        *,
        when: Condition | None = None,
        joint: bool = False,
    ) -> None:
        super().__init__()
        if when is not None and not isinstance(when, Condition):
            raise EditError(f"when={when!r:.60} is not a condition: write When('resid_post.2', direction, above=0.0)")
        if isinstance(intervention, Tensor):
            raise EditError(
                "an Edit takes an intervention, not a bare tensor: write Add(v) to add it, Replace(v) to set it"
            )
        made = intervention if isinstance(intervention, Intervention) else Function(intervention)
        self._set((Part(Site.parse(site), Tokens.parse(tokens), made, _finite(strength), when, joint),), {})

    def _set(self, parts: tuple[Part, ...], base: dict[str, Any]) -> None:
        self.parts = parts
        self.base = base
        self.interventions = nn.ModuleList(dict.fromkeys(part.intervention for part in parts))
        self.conditions = nn.ModuleList(dict.fromkeys(part.when for part in parts if part.when is not None))

    @classmethod
    def of(cls, parts: tuple[Part, ...], base: dict[str, Any] | None = None) -> Edit:
        """An Edit of these parts.

        Raises:
            EditError: there are none.
        """
        if not parts:
            raise EditError("an Edit without parts changes nothing; leave edit= out instead")
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made._set(tuple(parts), base or {})
        return made

    def __add__(self, other: Edit) -> Edit:
        if not isinstance(other, Edit):
            return NotImplemented
        return Edit.of(self.parts + other.parts)

    def with_strength(self, strength: float) -> Edit:
        """The same Edit, sharing its interventions, with every part's strength multiplied by `strength`."""
        factor = _finite(strength) or 0.0
        parts = [replace(p, strength=factor * (1.0 if p.strength is None else p.strength)) for p in self.parts]
        return Edit.of(tuple(parts), self.base)

    def forward(self, *_: Any, **__: Any) -> Any:
        """Not callable: an Edit acts inside a model.

        Raises:
            EditError: always.
        """
        raise EditError(
            "an Edit acts inside a model: model.forward(prompts, edit=edit), or with model.edited(edit): ..."
        )

    def save(self, folder: str | Path, model: Any = None) -> Path:
        """Write it as a folder, `edit.json` and `edit.safetensors`; see `folder.write`."""
        from inlay.interventions import folder as disk

        return disk.write(self, Path(folder).expanduser(), model)

    def push_to_hub(self, repo_id: str, model: Any = None, **kwargs: Any) -> Any:
        """Upload the folder that `save` writes to a model repository of the Hugging Face hub.

        Args:
            repo_id: `"user/name"`.
            model: the Model it was made for, recorded in the folder.
            **kwargs: passed on to `HfApi.create_repo` (`private=`, `token=`).

        Returns:
            The hub's commit.
        """
        from inlay.interventions import folder as disk

        return disk.push(self, repo_id, model, **kwargs)

    @classmethod
    def from_pretrained(cls, name: str | Path, model: Any = None, **kwargs: Any) -> Edit:
        """Load a folder that `save` wrote, or a hub repository that `push_to_hub` made.

        Args:
            name: a folder, or a hub id.
            model: the Model it will act on; another base model than the stored one then is an error.
            **kwargs: passed on to `huggingface_hub.snapshot_download` (`revision=`, `token=`).

        Raises:
            FolderError: not an Edit folder, an unknown kind or format, or made for another base model.
        """
        from inlay.interventions import folder as disk

        return disk.read(name, model, **kwargs)

    def __repr__(self) -> str:
        return "Edit(" + " + ".join(str(part) for part in self.parts) + ")"
