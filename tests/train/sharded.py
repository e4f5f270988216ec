"""What two processes do with a base whose blocks are sharded between them: `work` runs in each of the two."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from tests.model.tiny import WIDTH, rows, tiny
from tests.train import attached_by_hand as by_hand
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

import inlay
from inlay import Add, Edit
from inlay.errors import InlayError
from inlay.train.attached import EditedModel
from inlay.train.examples import Example
from inlay.train.fit import fit
from inlay.train.parameterise import reft

PROCESSES = 2
PAIRS = list(zip(rows(6, 4, 5, 7, seed=1), rows(3, 5, 2, 4, seed=2), strict=True))
HALVES = [PAIRS[:2], PAIRS[2:]]
EXAMPLES = [Example(prompt, response) for prompt, response in PAIRS]
FIT: dict[str, Any] = {"epochs": 2, "batch": 2, "lr": 0.05}
STEPS, RATE = 2, 0.1


def adding() -> tuple[nn.Parameter, Edit]:
    v = nn.Parameter(torch.randn(WIDTH, generator=torch.Generator().manual_seed(0)))
    return v, Edit("resid_post.1", Add(v), tokens="first2+last2")


def moved(model: inlay.Model) -> Edit:
    """A LoReFT at every block, away from its start, where most gradients vanish."""
    edit = reft(model, rank=2, tokens="first2+last2")
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in edit.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draws))
    return edit


def sharded() -> inlay.Model:
    """The blocks one by one, and the root, which then holds embeddings and head."""
    hf = tiny()
    model = inlay.load(hf)
    for block in hf.model.layers:
        fully_shard(block)
    fully_shard(hf)
    return model


def work(rank: int, folder: str) -> None:
    """Do everything, and leave `folder/<rank>.pt`: results by name."""
    here = Path(folder)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(PROCESSES)}  # as torchrun does
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
    }  # Trainer asks for it; the group is there already
    dist.init_process_group("gloo", init_method=f"file://{here / 'meeting'}", rank=rank, world_size=PROCESSES)
    found = {
        "weights": [type(p).__name__ for p in sharded().hf.parameters()],
        "by itself": by_itself(rank),
        "wrapped": wrapped(rank),
        "recomputed": wrapped(rank, use_reentrant=False),
        "reft": wrapped(rank, moved),
        "trainer": trained(here / "trainer"),
        "smoothed": trained(here / "smoothed", label_smoothing_factor=0.1),
        "generated": generated(),
        "fitted": fitted(),
        "errors": errors(here),
    }
    torch.save(found, here / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def marked(pairs: list[by_hand.Pair]) -> dict[str, Tensor]:
    """A batch that says which tokens are prompt without its labels, which label smoothing takes away."""
    batch = by_hand.batch(pairs)
    return {**batch, "prompt_mask": (batch["labels"] == -100) & batch["attention_mask"].bool()}


def by_itself(rank: int) -> tuple[Tensor, Tensor]:
    """Loss and gradient of `model.edited` in a loop of one's own, averaged over the processes by hand."""
    model, (v, edit) = sharded(), adding()
    model.hf.requires_grad_(False)
    batch = marked(HALVES[rank])
    with model.edited(edit, prompt_mask=batch.pop("prompt_mask")):
        loss = model.hf(**batch).loss
        loss.backward()
    assert v.grad is not None
    return averaged(loss.detach()), averaged(v.grad)


def averaged(mine: Tensor) -> Tensor:
    dist.all_reduce(mine)
    return mine / PROCESSES


def wrapped(rank: int, make: Callable[[inlay.Model], Edit] | None = None, **checkpointing: Any) -> list[Tensor | None]:
    """Gradients of an EditedModel in DistributedDataParallel."""
    model = sharded()
    with EditedModel(model, make(model) if make else adding()[1]) as edited:
        if checkpointing:
            edited.gradient_checkpointing_enable(checkpointing)
        parallel = nn.parallel.DistributedDataParallel(edited.train())
        parallel(**by_hand.batch(HALVES[rank])).loss.backward()
        return [parameter.grad for parameter in edited.edit.parameters()]


def trained(folder: Path, **options: Any) -> Tensor:
    """The vector after some steps of Trainer, whose checkpoints are the first process's."""
    v, edit = adding()
    arguments = transformers.TrainingArguments(
        str(folder), per_device_train_batch_size=2, max_steps=STEPS, learning_rate=RATE, optim="sgd", use_cpu=True,
        lr_scheduler_type="constant", max_grad_norm=0.0, save_steps=STEPS, report_to=[], disable_tqdm=True,
        remove_unused_columns=False, train_sampling_strategy="sequential", average_tokens_across_devices=False,
        **options,
    )  # fmt: skip
    # Trainer deals out batches in turn, each process the next.
    made = transformers.Trainer(
        model=EditedModel(sharded(), edit), args=arguments, train_dataset=PAIRS, data_collator=marked
    )
    made.train()
    return v.detach()


def generated() -> Tensor:
    model = sharded()
    with EditedModel(model, adding()[1]) as edited:
        return edited.generate(torch.tensor([PAIRS[0][0]]), max_new_tokens=5, do_sample=False)


def fitted() -> Tensor:
    """`fit` in every process, all with the same examples."""
    v, edit = adding()
    fit(sharded(), edit, "lm", EXAMPLES, **FIT)
    return v.detach()


def errors(folder: Path) -> dict[str, str]:
    """What is said to what does not work."""
    said: dict[str, str] = {}

    @contextmanager
    def noted(name: str) -> Iterator[None]:
        try:
            yield
        except InlayError as error:
            said[name] = str(error)

    with noted("loaded"):
        inlay.load(sharded().hf)
    with noted("head"):
        EditedModel(sharded(), adding()[1], train_head=True)
    late = EditedModel(inlay.load(tiny()), adding()[1], train_head=True)
    fully_shard(late.hf.lm_head)
    with noted("late"):
        late.save_pretrained(folder / "late")
    whole = EditedModel(inlay.load(tiny()), adding()[1])
    fully_shard(whole)
    with noted("whole"):
        whole.save_pretrained(folder / "whole")
    return said
