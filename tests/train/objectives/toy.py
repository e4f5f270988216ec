"""A toy causal model in float64 and a Step over it: every row is run alone, without pads, then put side by side.

Two blocks of width D: `resid_post.0` is the running mean of the embeddings, where the edit acts, `resid_post.1` adds a
running mean of tanh(h A). What an objective gives is compared with its formula, written out example by example with
`ToyStep.logp` and the like.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from inlay.model.activations import Activations
from inlay.model.sites import Site
from inlay.train.step import Ran

V, D = 7, 5
SITES = ("resid_post.0", "resid_post.1")
PARTS = {
    "chosen": ("prompt", "chosen"),
    "rejected": ("prompt", "rejected"),
    "teacher": ("teacher", "chosen"),
    "teacher_rejected": ("teacher", "rejected"),
}

_draws = torch.Generator().manual_seed(3)
EMBED, MIX, HEAD = (torch.randn(a, b, generator=_draws, dtype=torch.float64) for a, b in ((V, D), (D, D), (D, V)))

Apply = Callable[[Tensor, Tensor, Tensor], Tensor]


def add(h: Tensor, vector: Tensor, s: Tensor) -> Tensor:
    return h + s * vector


def set_along(h: Tensor, vector: Tensor, s: Tensor) -> Tensor:
    return h + (s - (h @ vector))[:, None] * vector


def null_out(h: Tensor, vector: Tensor, s: Tensor) -> Tensor:
    return h - ((h @ vector).relu() / (vector @ vector).clamp_min(1e-12))[:, None] * vector


def top_add(h: Tensor, vector: Tensor, s: Tensor) -> Tensor:
    z = (h @ vector).relu()
    return h + s * z.topk(min(2, len(z))).values.mean() * vector


def running_mean(x: Tensor) -> Tensor:
    return x.cumsum(0) / torch.arange(1, len(x) + 1, dtype=x.dtype)[:, None]


def forward(ids: Sequence[int], edit: Callable[[Tensor], Tensor] | None = None) -> dict[str, Tensor]:
    """One row, [T, ...] each; `before` is `resid_post.0` before the edit."""
    before = running_mean(EMBED[list(ids)])
    h = before if edit is None else edit(before)
    top = h + running_mean(torch.tanh(h @ MIX))
    return {"before": before, SITES[0]: h, SITES[1]: top, "logits": top @ HEAD}


def score(out: dict[str, Tensor], ids: Sequence[int], prompt: int) -> Tensor:
    logps = out["logits"].log_softmax(-1)
    return sum((logps[t - 1, ids[t]] for t in range(prompt, len(ids))), torch.zeros((), dtype=torch.float64))


def where(tokens: Any, n: int, prompt: int) -> slice:
    return {"all": slice(0, n), "response": slice(prompt, n), "prompt_end": slice(prompt - 1, prompt)}[str(tokens)]


@dataclass(frozen=True)
class Row:
    prompt: list[int]
    chosen: list[int]
    rejected: list[int] = field(default_factory=lambda: [1])
    teacher: list[int] = field(default_factory=lambda: [2])
    concept: int = 0
    progress: float = 0.0
    label: float = 1.0

    def ids(self, side: str) -> tuple[list[int], int]:
        prompt, response = (getattr(self, name) for name in PARTS[side])
        return prompt + response, len(prompt)


ROWS = [
    Row([1, 2], [3, 4, 5], [6, 0], [5, 5, 1], progress=0.25),
    Row([4], [0, 6], [2, 2, 3, 1], [1, 6], progress=0.25, label=0.0),
    Row([3, 3, 1], [5], [4, 0, 6], [0, 2], concept=1, progress=0.75),
]


class ToyStep:
    """A Step over `ROWS`; its mini-batches are whole, one for each concept."""

    def __init__(
        self, vector: Tensor, rows: Sequence[Row] = ROWS, *, edit: Apply = add, null: Apply | None = None, k: int = 2
    ) -> None:
        self.vector, self.given, self.edit, self.null = vector, list(rows), edit, null
        self.size = len(self.given)
        self.concepts = torch.tensor([row.concept for row in rows])
        self.progress = self._tensor([row.progress for row in rows])
        self.labels = self._tensor([row.label for row in rows])
        self.sites = [Site.parse(SITES[0])]
        intervention = SimpleNamespace(banked=False, config=lambda: {"k": k})
        self.parts = [SimpleNamespace(tokens="all", intervention=intervention)]
        self.more: dict[str, Tensor] = {}
        self.asked: list[tuple[Any, ...]] = []

    @staticmethod
    def _tensor(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)

    # -- what objectives ask for -------------------------------------------------------------------------------------

    def factors(self, which: int = 0) -> Tensor:
        return self._tensor([0.5 + 0.1 * which + 0.3 * i for i in range(self.size)])

    def state(self, part: int = 0) -> dict[str, Tensor]:
        return {"vector": self.vector.expand(self.size, 1, D), **self.more}

    def per_row(self, values: Tensor) -> Tensor:
        return values / self._tensor([sum(other.concept == row.concept for other in self.given) for row in self.given])

    def per_token(self, sums: Tensor, side: str = "chosen") -> Tensor:
        name = PARTS[side][1]
        counts = [sum(len(getattr(o, name)) for o in self.given if o.concept == row.concept) for row in self.given]
        return sums / self._tensor(counts)

    def run(
        self,
        *sides: str,
        factor: Any = None,
        null: bool = False,
        read: Any = None,
        tokens: Any = "response",
        before: bool = False,
        logits: bool = False,
    ) -> tuple[Ran, ...]:
        each = factor if isinstance(factor, list) else [factor] * len(sides)
        self.asked += [(side, null) for side in sides]
        return tuple(
            self._ran(side, torch.ones(self.size).double() if f is None else f, null, read, tokens, before, logits)
            for side, f in zip(sides, each, strict=True)
        )

    def _ran(self, side: str, factor: Tensor, null: bool, read: Any, tokens: Any, before: bool, logits: bool) -> Ran:
        outs = [self.out(i, side, factor[i], null) for i in range(self.size)]
        ids = [row.ids(side) for row in self.given]
        logps = torch.stack([score(out, *mine) for out, mine in zip(outs, ids, strict=True)])
        lengths, totals = self._tensor([len(a) - p for a, p in ids]), self._tensor([len(a) for a, _ in ids])
        acts = None if read is None else self._acts(outs, side, read, tokens, before)
        seen = [out["logits"][p - 1 : -1] for out, (_, p) in zip(outs, ids, strict=True)]
        mask = pad_sequence([torch.ones(len(one), dtype=torch.bool) for one in seen], batch_first=True)
        return Ran(logps, lengths, totals, acts, pad_sequence(seen, batch_first=True) if logits else None, mask)

    def _acts(self, outs: list[dict[str, Tensor]], side: str, read: Any, tokens: Any, before: bool) -> Activations:
        sites = SITES if str(read) == "resid_post.*" else (str(read),)
        cuts = [where(tokens, len(ids), prompt) for ids, prompt in (row.ids(side) for row in self.given)]
        values = {
            site: [out["before" if before else site][cut] for out, cut in zip(outs, cuts, strict=True)]
            for site in sites
        }
        mask = pad_sequence([torch.ones(len(one), dtype=torch.bool) for one in values[sites[0]]], batch_first=True)
        return Activations(
            {site: pad_sequence(mine, batch_first=True) for site, mine in values.items()}, mask, layers=2
        )

    def reference(self, side: str) -> Tensor:
        return torch.stack([self.logp(i, side) for i in range(self.size)])

    def frozen(self, side: str, read: Any, tokens: Any = "response") -> Activations:
        return self._acts([forward(row.ids(side)[0]) for row in self.given], side, read, tokens, False)

    def frozen_logits(self, side: str) -> tuple[Tensor, Tensor]:
        seen = [forward(ids)["logits"][prompt - 1 : -1] for ids, prompt in (row.ids(side) for row in self.given)]
        mask = pad_sequence([torch.ones(len(one), dtype=torch.bool) for one in seen], batch_first=True)
        return pad_sequence(seen, batch_first=True), mask

    def loop(self) -> Any:
        """What `prepare` of an objective takes."""
        by_concept = sorted({row.concept for row in self.given})
        members = {k: [i for i, row in enumerate(self.given) if row.concept == k] for k in by_concept}

        def read(numbers: Sequence[tuple[int, str]], sites: Any, tokens: Any) -> Activations:
            some = ToyStep(self.vector, [self.given[i] for i, _ in numbers])
            return some.frozen(numbers[0][1], "resid_post.*", tokens)

        model = SimpleNamespace(sites=lambda: SimpleNamespace(expand=lambda read: list(SITES)))
        concepts = [
            SimpleNamespace(index=k, name=f"c{k}", numbers=[{side: (i, side) for side in PARTS} for i in mine])
            for k, mine in members.items()
        ]
        return SimpleNamespace(frozen=SimpleNamespace(model=model, read=read), concepts=concepts)

    # -- what the formulas are written with --------------------------------------------------------------------------

    def out(self, i: int, side: str, factor: Tensor | float, null: bool = False) -> dict[str, Tensor]:
        s, ids = torch.as_tensor(factor, dtype=torch.float64), self.given[i].ids(side)[0]
        edit, s = (self.null, s) if null and self.null else (self.edit, -s if null else s)
        assert edit is not None
        return forward(ids, lambda h: edit(h, self.vector, s))

    def logp(self, i: int, side: str, factor: Tensor | float | None = None, null: bool = False) -> Tensor:
        ids, prompt = self.given[i].ids(side)
        return score(forward(ids) if factor is None else self.out(i, side, factor, null), ids, prompt)


def trained(seed: int = 0) -> Tensor:
    """A vector that takes gradient."""
    return torch.randn(D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def agree(step: ToyStep, got: Tensor, expected: Sequence[Tensor]) -> None:
    """Contributions and their gradients, example by example, are those of the formula."""
    assert got.shape == (step.size,)
    for mine, theirs in zip(got, expected, strict=True):
        (a,) = torch.autograd.grad(mine, step.vector, retain_graph=True)
        (b,) = torch.autograd.grad(theirs, step.vector, retain_graph=True)
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
        assert b.abs().max() > 1e-6, "the formula's own gradient is there to be compared"
