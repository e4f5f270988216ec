"""What a run says of itself: one row for each concept and step, in memory, on disk, and to whoever else wants it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Protocol

from inlay._files import write_files
from inlay.errors import ExtraError, FolderError, TrainError


class Sink(Protocol):
    """Somewhere that a run's numbers go."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step, by name."""
        ...

    def text(self, step: int, name: str, text: str) -> None:
        """A text of a step."""
        ...

    def close(self) -> None:
        """The run is over."""
        ...


class RunLog:
    """The rows of a run.

    A step's have `concept`, `step`, `loss`, `norm` (of the gradient before clipping), `lr` and `factor` (its mean).
    Epochs add rows with `epoch`, `mean_loss` and `held_out`, previews rows with `preview`.

    Args:
        path: a JSONL file to append to, `None` for memory alone.
        sinks: who else is told.

    Raises:
        FolderError: the file cannot be read or written.
    """

    def __init__(self, path: Path | None = None, sinks: Sequence[Sink] = ()) -> None:
        self.path, self.sinks = path, list(sinks)
        self.rows: list[dict[str, Any]] = [] if path is None or not path.exists() else _read(path)
        self._file: IO[str] | None = None

    def drop(self, concepts: Iterable[str], step: int) -> None:
        """Forget what an earlier run said of some concepts from a step on, since it is done again.

        Raises:
            FolderError: the disk refuses.
        """
        again = set(concepts)
        self.rows = [row for row in self.rows if row["concept"] not in again or row["step"] < step]
        if self.path is None:
            return
        if self._file is not None:
            self._file.close()
        write_files(self.path.parent, {self.path.name: "".join(json.dumps(row) + "\n" for row in self.rows).encode()})
        try:
            self._file = self.path.open("a")
        except OSError as error:
            raise FolderError(f"{self.path} cannot be written: {error}") from error

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows, flushed to the file.

        Raises:
            FolderError: the disk refuses.
        """
        new = [dict(row) for row in rows]
        self.rows += new
        if self._file is not None:
            try:
                self._file.writelines(json.dumps(row) + "\n" for row in new)
                self._file.flush()
            except OSError as error:
                with suppress(OSError):  # it would try again to write what did not fit
                    self._file.close()
                self._file = None
                raise FolderError(f"{self.path} cannot be written: {error}") from error
        for row in new:
            for sink in self.sinks:
                _tell(sink, row)

    def losses(self, concept: str | None = None) -> list[float]:
        """The losses of a concept's steps; of the one concept that there is, without a name."""
        return [row["loss"] for row in self.rows if "loss" in row and concept in (None, row["concept"])]

    def close(self) -> None:
        """Close the sinks, and the file, synchronised to the disk.

        Raises:
            FolderError: the disk refuses.
        """
        for sink in self.sinks:
            sink.close()
        if self._file is not None:
            file, self._file = self._file, None
            try:
                with file:
                    os.fsync(file.fileno())
            except OSError as error:
                raise FolderError(f"{self.path} cannot be written: {error}") from error


def _read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log; the last one may be torn."""
    try:
        lines = path.read_text().split("\n")[:-1]
        return [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise FolderError(f"{path} is not a log of a run: {error}") from error


def _tell(sink: Sink, row: Mapping[str, Any]) -> None:
    concept = row["concept"]
    numbers = {f"{name}/{concept}" if concept else name: float(v) for name, v in row.items() if isinstance(v, float)}
    if numbers:
        sink.scalars(row["step"], numbers)
    if "preview" in row:
        sink.text(row["step"], f"preview/{concept}" if concept else "preview", row["preview"])


class TensorBoard:
    """Rows as TensorBoard events.

    Args:
        folder: where the events go.

    Raises:
        ExtraError: tensorboard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ExtraError("log to TensorBoard needs tensorboard: pip install tensorboard") from error
        self.writer: Any = SummaryWriter(str(folder))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One event for each number."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def text(self, step: int, name: str, text: str) -> None:
        """A text event."""
        self.writer.add_text(name, text, step)

    def close(self) -> None:
        """Flush and close."""
        self.writer.close()


class WandB:
    """Rows as a Weights & Biases run.

    Args:
        **options: of `wandb.init`: `project`, `name`, `mode`.

    Raises:
        ExtraError: wandb is not installed.
    """

    def __init__(self, **options: Any) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ExtraError("log to Weights & Biases needs wandb: pip install wandb") from error
        self.run: Any = wandb.init(**options)
        self.run.define_metric("train/step", hidden=True)
        self.run.define_metric("*", step_metric="train/step")  # its own step counts calls of log, and never goes back

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """The numbers, at a step of their own axis: concepts may be behind one another."""
        self.run.log({**values, "train/step": step})

    def text(self, step: int, name: str, text: str) -> None:
        """A text."""
        self.run.log({name: text, "train/step": step})

    def close(self) -> None:
        """Finish the run."""
        self.run.finish()


def sinks(wanted: Sequence[str | Sink], folder: Path | None) -> list[Sink]:
    """Sinks of their names, `"tensorboard"` and `"wandb"`, or given ones.

    Raises:
        TrainError: an unknown name, or TensorBoard without a folder for its events.
        ExtraError: its client is not installed.
    """
    made: list[Sink] = []
    for one in wanted:
        if not isinstance(one, str):
            made.append(one)
        elif one == "tensorboard":
            if folder is None:
                raise TrainError("log='tensorboard' needs out=, the folder that its events go to")
            made.append(TensorBoard(folder / "tensorboard"))
        elif one == "wandb":
            made.append(WandB(dir=None if folder is None else str(folder)))
        else:
            raise TrainError(f"log={one!r}: 'tensorboard', 'wandb', or an object with scalars(), text() and close()")
    return made
