"""A run's folder: what it was started with, how far it is, and the Edit of every concept that is finished."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from inlay._files import write_files
from inlay._version import __version__
from inlay.errors import FolderError, ResumeError
from inlay.interventions.edit import Edit
from inlay.train.loop import Loop


class RunFolder:
    """Where a run is kept, so that a killed one goes on at its last checkpoint with the results of an unbroken one.

    Args:
        folder: made where it does not exist.
        fingerprint: a hash of everything that decides what the run gives.
        names: of its concepts; one empty name where a single Edit is trained.

    Raises:
        ResumeError: the folder holds a run of other settings, data or another model.
        FolderError: the disk refuses, or the folder is damaged.
    """

    def __init__(self, folder: Path, fingerprint: str, names: Sequence[str]) -> None:
        self.folder, self.names = folder, list(names)
        known = self._json("run.json")
        if known is None:
            said = {"inlay": __version__, "fingerprint": fingerprint}
            write_files(folder, {"run.json": (json.dumps(said, indent=2) + "\n").encode()})
        elif known.get("fingerprint") != fingerprint:
            raise ResumeError(
                f"{folder} holds a training with other settings, data, Edit or model; go on with those, or give "
                "another out="
            )

    def _json(self, name: str) -> dict[str, Any] | None:
        path = self.folder / name
        try:
            found = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise FolderError(f"{path} cannot be read: {error}") from error
        if not isinstance(found, dict):
            raise FolderError(f"{path} is damaged: it holds no object; delete {self.folder}")
        return found

    # -- a checkpoint ------------------------------------------------------------------------------------------------

    def save(self, loop: Loop, group: int) -> None:
        """Keep how far a loop is; the one before is replaced when the new one is whole.

        The description goes last and names the tensors' hash.
        """
        tensors: dict[str, Tensor] = {f"value.{n}": t.parameter for n, t in loop.tables.items()}
        tensors |= {f"adam.{name}": tensor for name, tensor in loop.optimiser.state_dict().items()}
        for concept in loop.concepts:
            tensors |= {f"kept.{concept.index}.{name}": tensor for name, tensor in concept.kept.items()}
        content = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})
        card = {
            "group": group,
            "done": loop.done,
            "sha256": hashlib.sha256(content).hexdigest(),
            "concepts": [
                {name: getattr(concept, name) for name in ("stopped", "best", "since", "epoch", "diverged")}
                for concept in loop.concepts
            ],
        }
        name = f"checkpoint-{loop.done % 2}.safetensors"  # two in turn: the description never points to half a file
        card["file"] = name
        write_files(self.folder, {name: content, "checkpoint.json": (json.dumps(card) + "\n").encode()})

    def restore(self, loop: Loop, group: int) -> bool:
        """Put a loop where the last checkpoint of its group of concepts was; whether there was one.

        Raises:
            FolderError: the checkpoint is damaged.
        """
        card = self._json("checkpoint.json")
        if card is None or card["group"] != group:
            return False
        tensors = self._tensors(card)
        for name, table in loop.tables.items():
            table.parameter.data.copy_(tensors[f"value.{name}"])
        loop.optimiser.load_state_dict(
            {name.removeprefix("adam."): t for name, t in tensors.items() if name.startswith("adam.")}
        )
        loop.done = card["done"]
        for concept, said in zip(loop.concepts, card["concepts"], strict=True):
            for name, value in said.items():
                setattr(concept, name, value)
            prefix = f"kept.{concept.index}."
            device = next(iter(loop.tables.values())).parameter.device
            concept.kept = {n.removeprefix(prefix): t.to(device) for n, t in tensors.items() if n.startswith(prefix)}
        return True

    def _tensors(self, card: Mapping[str, Any]) -> dict[str, Tensor]:
        path = self.folder / card["file"]
        try:
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() != card["sha256"]:
                raise FolderError(f"{path} is not the file that checkpoint.json describes; delete {self.folder}")
            return load(content)
        except (OSError, SafetensorError) as error:
            raise FolderError(f"{path} cannot be read ({error}); delete {self.folder}") from error

    # -- finished concepts -------------------------------------------------------------------------------------------

    def concept(self, index: int) -> Path:
        """Where the Edit of a concept is kept: `edit`, or `concepts/00003-its-name`."""
        name = self.names[index]
        if self.names == [""]:
            return self.folder / "edit"
        return self.folder / "concepts" / f"{index:05d}-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')[:40]}"

    def finished(self, index: int) -> bool:
        """Whether a concept's Edit is there, whole."""
        return (self.concept(index) / "done.json").exists()

    def finish(self, index: int, edit: Edit, model: Any, facts: Mapping[str, Any]) -> None:
        """Keep the Edit of a concept, then a mark that it is whole."""
        edit.save(self.concept(index), model)
        write_files(self.concept(index), {"done.json": (json.dumps(dict(facts), indent=2) + "\n").encode()})

    def load(self, index: int, model: Any) -> tuple[Edit, dict[str, Any]]:
        """The Edit of a finished concept, and its facts."""
        edit = Edit.from_pretrained(self.concept(index), model)
        facts = self._json(str(self.concept(index).relative_to(self.folder) / "done.json"))
        assert facts is not None
        return edit, facts
