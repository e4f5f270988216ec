"""Edits without inlay: a torch hook with explicit positions, and a greedy loop that recomputes every step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

At = Callable[[int, int], Iterable[int]]
Change = Callable[[Tensor, int, list[int]], Tensor]


@contextmanager
def hooked(module: nn.Module, change: Change, at: At) -> Iterator[None]:
    """Edit a module's output [R, T, W] while inside.

    Args:
        module: the module; where it returns a tuple, its first item is edited.
        change: (h [k, W], row, positions) -> [k, W].
        at: (row, T) -> positions; those at or above T are left out.
    """

    def hook(_: nn.Module, args: Any, output: Any) -> Any:
        h = output[0] if isinstance(output, tuple) else output
        new = h.clone()
        for row in range(h.shape[0]):
            here = [i for i in at(row, h.shape[1]) if i < h.shape[1]]
            if here:
                new[row, here] = change(h[row, here], row, here)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def greedy(
    hf: Any, prompt: Sequence[int], steps: int, module: nn.Module | None = None, change: Any = None, at: Any = None
) -> tuple[list[int], Tensor]:
    """`steps` new ids and the logits [steps, V] that chose them, without a cache and without `generate`."""
    row, chosen = list(prompt), []
    with torch.no_grad(), hooked(module, change, at) if module is not None else nullcontext():
        for _ in range(steps):
            logits = hf(torch.tensor([row]), use_cache=False).logits[0, -1]
            chosen.append(logits)
            row.append(int(logits.argmax()))
    return row[len(prompt) :], torch.stack(chosen)


def output_of(hf: Any, module: nn.Module, row: Sequence[int]) -> Tensor:
    """What a module gives [T, W] for one row of ids alone."""
    seen: list[Tensor] = []
    handle = module.register_forward_hook(lambda m, a, o: seen.append(o[0] if isinstance(o, tuple) else o))
    try:
        with torch.no_grad():
            hf(torch.tensor([list(row)]), use_cache=False)
    finally:
        handle.remove()
    return seen[0][0]


def left_padded(rows: Sequence[Sequence[int]], pad: int = 0) -> tuple[Tensor, Tensor]:
    """Ids and mask [R, T] with the padding in front."""
    longest = max(map(len, rows))
    ids = [[pad] * (longest - len(row)) + list(row) for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)
