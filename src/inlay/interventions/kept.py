"""Kept: what was made of some tensors, for as long as these stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

T = TypeVar("T")


class Kept:
    """Results that depend on tensors alone, each made once and again when one of its tensors has changed.

    They are kept for the tensors and not for a module, so that interventions which share a parameter share what is made
    of it. Nothing is kept while gradients are recorded (a result has one graph), nor in compiled code.
    """

    def __init__(self) -> None:
        self._known = WeakIdKeyDictionary()

    def get(self, tensors: Sequence[Tensor], make: Callable[[], T]) -> T:
        """What `make` gives, for the tensors that it depends on; kept for as long as the first of them lives."""
        if torch.compiler.is_compiling() or any(tensor.is_inference() for tensor in tensors):
            return make()
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            self._known.pop(tensors[0], None)  # training may go on to write past the version counter, in `.data`
            return make()
        known = self._known.get(tensors[0])
        if known is None or not _same(known[0], tensors):
            with torch.inference_mode(False), torch.no_grad():  # for a later forward that records gradients
                known = [(tensor.detach(), tensor._version) for tensor in tensors], make()
            self._known[tensors[0]] = known
        made: T = known[1]
        return made


def _same(known: Sequence[tuple[Tensor, int]], tensors: Sequence[Tensor]) -> bool:
    """Whether the tensors hold what they held: the same memory, never written to since.

    A tensor that was given other memory (`.data = `, `.to(device)`) keeps its version; the old memory is held on to
    until then, so that nothing else can lie at its address.
    """
    return len(known) == len(tensors) and all(
        then.data_ptr() == now.data_ptr() and version == now._version
        for (then, version), now in zip(known, tensors, strict=True)
    )
