"""What the frozen model gives for sequences, computed once: states below the Edit, log-probs, activations.

Legend: R rows, T tokens of a batch, d width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from inlay.model import reading
from inlay.model.activations import Activations
from inlay.model.inputs import Row, pad, plan_batches
from inlay.model.passes import Want
from inlay.model.resume import States
from inlay.model.running import expanded, make_run, wanted
from inlay.model.sites import Site
from inlay.model.tokens import Tokens
from inlay.train.scoring import Predicted, predicted

if TYPE_CHECKING:
    from inlay.model.model import Model, Output


class Frozen:
    """A frozen model over sequences that are met again and again.

    The residual stream at `cut` is kept for each sequence, so that a forward under an Edit runs the blocks above it
    alone. That is exact: nothing below the lowest Site of the Edit depends on what is trained.

    Args:
        model: the Model, whose weights must not change meanwhile.
        cut: the `resid_pre` or `resid_post` to keep, `None` to keep nothing and run every forward from the ids.
        batch_tokens: the most padded tokens of a forward that fills the store.
        device: where what is kept lies; by default the model's.

    Attributes:
        sequences: every distinct sequence, in the order of its first use.
    """

    def __init__(
        self, model: Model, cut: Site | None, batch_tokens: int = 8192, device: torch.device | str | None = None
    ) -> None:
        self.model, self.cut, self.batch_tokens = model, cut, batch_tokens
        self.device = torch.device(device) if device is not None else model.device
        self.sequences: list[Row] = []
        self._numbers: dict[Row, int] = {}
        self._hidden: dict[int, Tensor] = {}
        self._logps: dict[int, Tensor] = {}
        self._read: dict[tuple[str, str], dict[int, Tensor]] = {}

    def add(self, rows: Iterable[Row]) -> list[int]:
        """The numbers of sequences; one that is known already keeps its number."""
        numbers = []
        for row in rows:
            number = self._numbers.setdefault(row, len(self.sequences))
            if number == len(self.sequences):
                self.sequences.append(row)
            numbers.append(number)
        return numbers

    def keep(self, numbers: Sequence[int], logps: bool, advance: Callable[[int], None] = lambda done: None) -> None:
        """Compute what is not there yet: the states at the cut, and the responses' log-probs where asked for."""
        lacking = [
            n
            for n in dict.fromkeys(numbers)
            if (self.cut is not None and n not in self._hidden) or (logps and n not in self._logps)
        ]
        for batch in self._batches(lacking):
            if self.cut is not None:
                self._keep_states(batch)
            if logps:
                with torch.no_grad():
                    found = self.score(batch).logps
                self._logps |= dict(zip(batch, found.to(self.device), strict=True))
            advance(len(batch))

    def _batches(self, numbers: Sequence[int]) -> list[list[int]]:
        rows = [self.sequences[n] for n in numbers]
        return [[numbers[i] for i in some] for some in plan_batches(rows, self.batch_tokens)] if rows else []

    def _keep_states(self, numbers: Sequence[int]) -> None:
        assert self.cut is not None
        batch = pad([self.sequences[n] for n in numbers], self.model.pad_id, self.model.device)
        wants = [Want(self.cut, Tokens.parse("all"))]
        run = make_run(self.model, None, wants, attended=batch.mask, prompt_mask=batch.prompt, stop=True, whole=True)
        args, kwargs = self.model.arguments(batch)
        with torch.no_grad(), run, reading.until_stopped():
            self.model.hf(*args, **kwargs)
        whole = run.taken[0][0].whole
        assert whole is not None
        for number, hidden in zip(numbers, whole, strict=True):
            self._hidden[number] = hidden[: len(self.sequences[number].ids)].to(self.device, copy=True)

    def kept(self) -> list[Tensor]:
        """All that is kept: states, log-probs, activations."""
        stores = (self._hidden, self._logps, *self._read.values())
        return [tensor for store in stores for tensor in store.values()]

    def logps(self, numbers: Sequence[int]) -> Tensor:
        """The frozen model's log-probs of the responses, summed, float32 [R]; kept."""
        self.keep(numbers, logps=True)
        return torch.stack([self._logps[n] for n in numbers]).to(self.model.device)

    def read(self, numbers: Sequence[int], sites: Sequence[Site], tokens: Any) -> Activations:
        """Activations of the frozen model, [R, k, ...] with a mask; kept."""
        spec = str(Tokens.parse(tokens))
        stores = {site: self._read.setdefault((str(site), spec), {}) for site in sites}
        lacking = [n for n in dict.fromkeys(numbers) if any(n not in store for store in stores.values())]
        for some in self._batches(lacking):
            batch = pad([self.sequences[n] for n in some], self.model.pad_id, self.model.device)
            wants = wanted(self.model, list(sites), tokens)
            run = make_run(self.model, None, wants, attended=batch.mask, prompt_mask=batch.prompt, stop=True)
            args, kwargs = self.model.arguments(batch)
            with torch.no_grad(), run, reading.until_stopped():
                self.model.hf(*args, **kwargs)
            acts = reading.collect(run)
            assert acts is not None
            for site, store in stores.items():
                for number, values in zip(some, acts.rows(site), strict=True):
                    store[number] = values.to(self.device, copy=True)
        return evened({str(site): [store[n] for n in numbers] for site, store in stores.items()}, self.model)

    def forward(self, numbers: Sequence[int], keep_logits: bool = True, **options: Any) -> tuple[Output, Sequence[Row]]:
        """One forward over sequences, under the ambient gradient mode.

        Args:
            numbers: which.
            keep_logits: give the logits from the shortest prompt's last token on; else those of the last token.
            **options: as in `Model.forward`: `edit`, `rows`, `strength`, `keys`, `read`, `tokens`, `before`.
        """
        rows = [self.sequences[n] for n in numbers]
        if self._narrows(options):
            longest, shortest = max(len(row.ids) for row in rows), min(row.prompt for row in rows)
            first = shortest - 1 if keep_logits else longest - 1
            # as a number it would be a slice, which is not contiguous, and the head's product would run once a row
            options["logits_to_keep"] = torch.arange(first, longest, device=self.model.device)
        if self.cut is not None:
            self.keep(numbers, logps=False)
            return self.model.resume(self._states(numbers), **options), rows
        batch = pad(rows, self.model.pad_id, self.model.device)
        wants = wanted(
            self.model, options.pop("read", None), options.pop("tokens", "all"), options.pop("before", False)
        )
        mine = {name: options.pop(name) for name in ("rows", "strength", "keys") if name in options}
        run = make_run(
            self.model, options.pop("edit", None), wants, prompt_mask=batch.prompt, attended=batch.mask, **mine
        )
        return self.model.run_batch(run, batch, **options), rows

    def _narrows(self, options: dict[str, Any]) -> bool:
        """Whether the head may be left out at the prompts' tokens: nobody edits or reads behind it."""
        from inlay.model.probe import takes

        named = [site.name for site in self.model.sites().expand(options["read"])] if options.get("read") else []
        named += [part.site.name for part in expanded(self.model, options.get("edit"))]
        behind = {"logits", "final_norm", "module"} & set(named)
        return not behind and takes(self.model.base, "logits_to_keep")

    def _states(self, numbers: Sequence[int]) -> States:
        assert self.cut is not None
        rows = [self.sequences[n] for n in numbers]
        hidden = pad_sequence([self._hidden[n].to(self.model.device) for n in numbers], batch_first=True)
        return States(self.cut, hidden, pad(rows, self.model.pad_id, self.model.device))

    def score(self, numbers: Sequence[int], logits: bool = False, **options: Any) -> Predicted:
        """The responses' log-probs in one forward; see `forward`."""
        output, rows = self.forward(numbers, **options)
        return predicted(output, rows, logits)


def evened(values: dict[str, list[Tensor]], model: Model) -> Activations:
    """Activations [R, k, ...] of rows [k_i, ...] of unequal lengths, zeros behind them, and a mask."""
    first = next(iter(values.values()))
    counts = torch.tensor([len(row) for row in first])
    mask = torch.arange(int(counts.max()))[None] < counts[:, None]
    padded = {
        name: pad_sequence([row.to(model.device) for row in rows], batch_first=True) for name, rows in values.items()
    }
    return Activations(padded, mask.to(model.device), layers=model.layers)


def lowest(model: Model, edit: Any) -> Site | None:
    """The state below which nothing depends on an Edit, `None` where that is the embeddings.

    That is the lowest Site of its parts and of their conditions; of an Edit behind the last block, the last block's.
    """
    sites = [part.site for part in expanded(model, edit)]
    sites += [leaf.site for part in expanded(model, edit) if part.when is not None for leaf in part.when.leaves()]
    first = min(reach(model, site) for site in sites)
    return None if first < 0 else Site("resid_post" if first % 2 else "resid_pre", first // 2)


def reach(model: Model, site: Site) -> int:
    """2 l for what needs block l to run, 2 l + 1 for its output, -1 for what lies before the first block."""
    if site.name == "module":
        inside = [i for i, path in enumerate(model.sites().blocks) if f"{site.path}.".startswith(f"{path}.")]
        return 2 * inside[0] if inside else -1
    if site.layer is None:
        return -1 if site.name == "embed" else 2 * model.layers - 1
    return 2 * site.layer + (site.name == "resid_post")
