"""What a piece of work holds in memory: bytes saved for a backward, and the peak of the process."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn


@contextmanager
def saved() -> Iterator[Callable[[], float]]:
    """The bytes that forwards inside the `with` save for their backward, each storage once, without module state."""
    state = [one for one in gc.get_objects() if issubclass(type(one), nn.Module)]
    tensors = [tensor for one in state for tensor in (*one.parameters(False), *one.buffers(False))]
    known = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield lambda: float(sum(found.values()))


@contextmanager
def peak() -> Iterator[Callable[[], float]]:
    """The most bytes resident inside the `with`, above what was there at its start; Linux alone."""
    Path("/proc/self/clear_refs").write_text("5")
    before, found = _status("VmRSS"), []
    yield lambda: found[0]
    found.append(_status("VmHWM") - before)


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
