"""Train a world's model: resumable, and the same from the same seed on one thread of one build of torch."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from inlay.errors import FolderError, ResumeError
from inlay.world.config import TrainConfig
from inlay.world.line import BOS, END, PAD
from inlay.world.stream import Piece, Stream
from inlay.world.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EVERY = 500  # steps between two checkpoints
Report = Callable[[int, float], None]


class Training:
    """A training that is under way.

    Attributes:
        step: how many steps are done.
        tokens: how many tokens were trained on, padding not counted.
        seconds: how long that took.
        curve: step and mean loss since the entry before.

    Args:
        world: makes the lines.
        config: says what is trained and on what.
        device: where.
    """

    def __init__(self, world: World, config: TrainConfig, device: str = "cpu") -> None:
        torch.manual_seed(config.seed)
        self.world, self.config, self.device = world, config, device
        names = world.vocabulary
        ids = {"pad_token_id": names.index(PAD), "bos_token_id": names.index(BOS), "eos_token_id": names.index(END)}
        self.model: PreTrainedModel = config.architecture.build(len(names), ids).to(device)
        self.model.config.world = {"version": world.spec.version, "hash": world.hash}
        self.model.config.use_cache = False
        plain = [p for p in self.model.parameters() if p.ndim < 2]
        wide = [p for p in self.model.parameters() if p.ndim >= 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": wide, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=config.lr,
            betas=config.betas,
        )
        self.step, self.pool, self.position = 0, 0, 0
        self.tokens, self.seconds = 0, 0.0
        self.curve: list[tuple[int, float]] = []

    def run(self, out: Path, report: Report | None = None) -> None:
        """Train to the last step, with a checkpoint under `out/checkpoint` every 500 steps."""
        self.model.train()
        began, losses = time.perf_counter() - self.seconds, []
        for pieces, pool, position in Stream(self.world, self.config).steps(self.pool, self.position):
            if self.step >= self.config.steps:
                return
            losses.append(self._one(pieces))
            self.step, self.pool, self.position = self.step + 1, pool, position
            self.seconds = time.perf_counter() - began
            if self.step % 50 == 0 or self.step == self.config.steps:
                self.curve.append((self.step, sum(losses) / len(losses)))
                losses = []
                if report:
                    report(self.step, self.curve[-1][1])
            if self.step % EVERY == 0 or self.step == self.config.steps:
                self.save(out)

    def _one(self, pieces: list[Piece]) -> float:
        """One step of the optimiser; the loss is the weighted mean over all pieces."""
        whole = sum(float(piece.weights[:, 1:].sum()) for piece in pieces)
        total = 0.0
        for piece in pieces:
            ids, weights = piece.ids.to(self.device), piece.weights.to(self.device)
            loss = weighted_loss(self.model(input_ids=ids).logits, ids, weights) / whole
            loss.backward()
            total += float(loss.detach())
            self.tokens += int((weights > 0).sum())
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * one_cycle(self.step, self.config.steps)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def save(self, out: Path) -> None:
        """Write a checkpoint whole: a new folder, then a rename.

        Raises:
            FolderError: the disk refuses.
        """
        new, old = out / "checkpoint.part", out / "checkpoint"
        state = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        for index, entry in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{index}.{name}": t for name, t in entry.items()}
        facts = {
            "config": self.config.model_dump(mode="json"),
            "world": self.world.hash,
            "step": self.step,
            "pool": self.pool,
            "position": self.position,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "curve": self.curve,
        }
        try:
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(parents=True)
            save_file({name: t.detach().cpu().contiguous() for name, t in state.items()}, new / "state.safetensors")
            (new / "state.json").write_text(json.dumps(facts) + "\n")
            shutil.rmtree(old, ignore_errors=True)
            new.rename(old)
        except (OSError, SafetensorError) as error:
            raise FolderError(f"the checkpoint could not be written to {out}: {error}; free some space") from error

    def load(self, out: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            FolderError: there is none, or it is damaged.
            ResumeError: it is of another configuration or another world.
        """
        folder = out / "checkpoint"
        if not folder.is_dir() and (out / "checkpoint.part" / "state.json").exists():
            (out / "checkpoint.part").rename(folder)  # killed between the two renames
        try:
            facts = json.loads((folder / "state.json").read_text())
            state = load_file(folder / "state.safetensors")
        except (OSError, ValueError, SafetensorError) as error:
            raise FolderError(f"{folder} holds no checkpoint to go on from: {error}") from error
        if facts["config"] != self.config.model_dump(mode="json"):
            raise ResumeError(f"{folder} is of another configuration; train into another folder, or without --resume")
        if facts["world"] != self.world.hash:
            raise ResumeError(f"{folder} is of world {facts['world'][:12]}, and this is {self.world.hash[:12]}")
        self.model.load_state_dict({k.removeprefix("model."): t for k, t in state.items() if k.startswith("model.")})
        entries: dict[int, dict[str, Tensor]] = {}
        for name, tensor in state.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                entries.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": entries})
        for name in ("step", "pool", "position", "tokens", "seconds"):
            setattr(self, name, facts[name])
        self.curve = [(step, loss) for step, loss in facts["curve"]]


def weighted_loss(logits: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """Summed next-token loss of logits [R, T, V], ids [R, T] and weights [R, T], which count what is predicted."""
    each = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    return (each * weights[:, 1:].flatten()).sum()


def one_cycle(step: int, steps: int, warm: float = 0.1) -> float:
    """The factor on the learning rate: up in a line over 10 % of the steps, down in half a cosine over the rest."""
    up = max(1, int(warm * steps))
    if step < up:
        return (step + 1) / up
    return 0.5 * (1 + math.cos(math.pi * (step - up) / max(1, steps - up)))


def train(
    world: World,
    config: TrainConfig,
    out: str | Path,
    resume: bool = False,
    device: str = "cpu",
    report: Report | None = None,
) -> Path:
    """Train a model and write it with its tokenizer to a folder, bfloat16 safetensors, ready for `inlay.load`.

    Args:
        world: makes the lines; its seed is the configuration's.
        config: says what is trained.
        out: the folder; checkpoints lie under it while the training runs.
        resume: go on from the checkpoint there.
        device: `"cpu"` or `"cuda"`.
        report: called with step and loss every 50 steps.

    Raises:
        FolderError: `out` holds a model or a checkpoint and `resume` is not set, or the disk refuses.
        ResumeError: the checkpoint is of another configuration or world.
    """
    out = Path(out)
    if not resume and any((out / name).exists() for name in ("config.json", "checkpoint")):
        raise FolderError(f"{out} holds a model or a checkpoint: give another folder, or go on with resume")
    training = Training(World(world.folder, config.seed), config, device)
    if resume:
        training.load(out)
    training.run(out, report)
    try:
        write_model(training, out)
    except (OSError, SafetensorError) as error:
        raise FolderError(f"the model could not be written to {out}: {error}; free some space and resume") from error
    return out


def write_model(training: Training, out: Path) -> None:
    """The finished model: weights in bfloat16, configuration, tokenizer, and what is known of its training."""
    model: Any = training.model
    model.to(torch.bfloat16).eval()
    model.config.use_cache = True
    model.generation_config.use_cache = True
    model.save_pretrained(out)
    path = out / "config.json"  # stored in bfloat16, to be computed in float32
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "float32"}, indent=2) + "\n")
    training.world.tokenizer().save_pretrained(out)
    facts: Mapping[str, Any] = {
        "config": training.config.model_dump(mode="json"),
        "world": {"version": training.world.spec.version, "hash": training.world.hash},
        "tokens": training.tokens,
        "seconds": round(training.seconds),
        "machine": _machine(training.device),
        "curve": [[step, round(loss, 4)] for step, loss in training.curve],
    }
    (out / "training.json").write_text(json.dumps(facts) + "\n")
    shutil.rmtree(out / "checkpoint", ignore_errors=True)


def _machine(device: str) -> str:
    if device.startswith("cuda"):
        return f"one {torch.cuda.get_device_name(device)}"
    return f"{torch.get_num_threads()} CPU thread(s), torch {torch.__version__}"
