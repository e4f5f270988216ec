"""Alignment: where in a network a causal model's variables were found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from inlay.causal import alignment_folder
from inlay.causal.interchange import InterchangeAccuracy
from inlay.causal.subspace import principal_angles, subspace
from inlay.errors import CausalError
from inlay.interventions.base import Intervention
from inlay.interventions.edit import Edit

if TYPE_CHECKING:
    from inlay.model.model import Model


@dataclass(frozen=True, eq=False, repr=False)
class Alignment:
    """What `das` found.

    Attributes:
        edits: for every variable an Edit, without a source, that exchanges it.
        accuracy: the interchange intervention accuracy and its controls.
        history: of every step the `loss`, and of masks their `share`, averaged over them, and the `temperature`.
        facts: how it was trained, and what the accuracy was measured on.
    """

    edits: Mapping[str, Edit]
    accuracy: InterchangeAccuracy
    history: Mapping[str, list[float]]
    facts: Mapping[str, Any]

    def intervention(self, variable: str | None = None) -> Intervention:
        """The trained intervention of a variable, without a source.

        Args:
            variable: its name; not needed where there is one.

        Raises:
            CausalError: there is no such variable, or there are several and none was named.
        """
        return self.edits[self._name(variable)].parts[0].intervention

    def _name(self, variable: str | None) -> str:
        names = list(self.edits)
        if variable is None and len(names) == 1:
            return names[0]
        if variable not in names:
            raise CausalError(f"variable={variable!r}: name one of {', '.join(names)}")
        return str(variable)

    def edit(self, source: Any) -> Edit:
        """The Edit that exchanges the variables.

        Args:
            source: where the variable is taken from: a `Source`, or prompts to make one of; by name where there are
                several variables, of which some may be left out.

        Raises:
            CausalError: a name is that of no variable, or there are several and none was named.
        """
        named = source if isinstance(source, Mapping) and "input_ids" not in source else {None: source}
        if not named:
            raise CausalError(f"there is no source: give one for some of {', '.join(self.edits)}")
        parts = []
        for variable, one in named.items():
            (part,) = self.edits[self._name(variable)].parts
            parts.append(replace(part, intervention=part.intervention.with_source(one)))
        return Edit.of(tuple(parts))

    def basis(self, variable: str | None = None) -> Tensor:
        """Orthonormal columns [width, r] of what is exchanged; of a mask, what it has come to keep.

        Raises:
            CausalError: as `intervention`, or the intervention is one that takes no subspace.
        """
        made = self.intervention(variable)
        found = subspace(made, made.width() or 0)
        if found is None:
            raise CausalError(f"{type(made).__name__} exchanges no subspace, so that it has no basis")
        return found

    def principal_angles(self, truth: Tensor, variable: str | None = None) -> Tensor:
        """The angles, in radians, between what is exchanged and a subspace that is known to be right.

        The interchange intervention accuracy does not tell subspaces apart that act alike on the data.

        Args:
            truth: [width, s], columns that span it.
            variable: as in `intervention`.

        Returns:
            float64 [min(r, s)], from the smallest.

        Raises:
            CausalError: as `basis`, nothing is kept, or the widths differ.
        """
        found = self.basis(variable)
        if not found.shape[1]:
            raise CausalError("the mask keeps nothing, and there are no angles to nothing")
        return principal_angles(found, truth)

    def save(self, folder: str | Path) -> Path:
        """Write it as a folder: that of its Edits, and `alignment.json`; see `alignment_folder.write`."""
        return alignment_folder.write(self, Path(folder).expanduser())

    @classmethod
    def load(cls, folder: str | Path, model: Model | None = None) -> Alignment:
        """What `save` wrote.

        Args:
            folder: the folder.
            model: the Model that it will be used on; another base model than the stored one then is an error.

        Raises:
            FolderError: no such folder, a damaged one, or one of another base model.
        """
        return alignment_folder.read(cls, Path(folder).expanduser(), model)

    def __repr__(self) -> str:
        where = "; ".join(f"{name}: {edit.parts[0]}" for name, edit in self.edits.items())
        return f"Alignment({where})\n{self.accuracy!r}"
