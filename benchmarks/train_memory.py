"""What a LoReFT step holds in memory, each way in a fresh process.

python train_memory.py module hand 4096 8
python train_memory.py whole pyreft d768
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import memory
import torch
import train_peers
import train_step

STEPS, SHAPES = 3, ((1024, 4), (4096, 8))
WHOLE = "d768"
MB = 1e6


def notes() -> list[str]:
    """Lines of what every way holds."""
    lines = []
    modules = ["hand", "inlay", *(["pyreft"] if not train_peers.missing("pyreft") else [])]
    for width, rank in SHAPES:
        found = {kind: _apart("module", kind, str(width), str(rank)) for kind in modules}
        told = "; ".join(
            f"{kind} {each['state'] / MB:.3g} MB of parameters and buffers, {each['saved'] / MB:.3g} MB saved for the "
            f"backward, peak {each['peak'] / MB:.0f} MB"
            for kind, each in found.items()
        )
        small = 4 * (2 * width * rank + rank)
        met = "met" if found["inlay"]["state"] <= small else "MISSED"
        lines.append(f"memory, width {width}, rank {rank}: {told}; aim: a state of d x r for the rotation: {met}")
    found = {kind: _apart("whole", kind, WHOLE) for kind in train_step.kinds()}
    told = "; ".join(
        f"{kind} {each['saved'] / MB:.0f} MB saved for the backward, peak {each['peak'] / MB:.0f} MB"
        for kind, each in found.items()
    )
    lines.append(f"memory of {STEPS} training steps, {WHOLE}, above the model and the modules: {told}")
    return lines


def _apart(*arguments: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def module(kind: str, width: int, rank: int) -> dict[str, float]:
    """Bytes of a module alone: its state, what its forward saves, and the peak above what was there before it."""
    train_peers.module_step(
        train_step.made(kind, 8, 2), *torch.randn(2, 1, 1, 8)
    )()  # imports, and torch's own first use
    h, back = train_step.positions(width)
    with memory.peak() as peak:
        made = train_step.made(kind, width, rank)
        step = train_peers.module_step(made, h, back)
        for _ in range(STEPS):
            step()
    own = [*made.parameters(), *made.buffers()]
    with memory.saved() as saved:
        step()
    return {"state": sum(t.numel() * t.element_size() for t in own), "saved": saved(), "peak": peak()}


def whole(kind: str, size: str) -> dict[str, float]:
    """Bytes of training steps of a model: what a forward saves, and the peak above model and modules."""
    run: Callable[[], float] = train_step.whole_step(kind, size)
    with memory.peak() as peak:
        for _ in range(STEPS):
            run()
    with memory.saved() as saved:
        run()
    return {"saved": saved(), "peak": peak()}


def main(what: str, kind: str, *sizes: str) -> None:
    """Print one way's bytes as JSON."""
    torch.set_num_threads(1)
    found: Any = module(kind, int(sizes[0]), int(sizes[1])) if what == "module" else whole(kind, sizes[0])
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
