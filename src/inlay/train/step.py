"""Step: what an objective is given to make a loss of. Some examples of one step, and every run that can be asked for.

Legend: R examples, T tokens, d width, V vocabulary, n response tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inlay.errors import TrainError
from inlay.interventions.edit import Edit
from inlay.model.activations import Activations
from inlay.model.running import expanded
from inlay.model.sites import Site
from inlay.train.frozen import Frozen, evened, reach
from inlay.train.scoring import Predicted
from inlay.train.suppress import suppressing

if TYPE_CHECKING:
    from inlay.train.factors import Factors

Factor = float | Tensor | None


@dataclass(frozen=True, eq=False)
class Group:
    """A mini-batch of one concept, all of it, of which a Step may hold a part.

    Attributes:
        concept: whose it is, from 0.
        number: which mini-batch of the concept's own, from 0; random draws depend on it.
        size: how many examples it has.
        tokens: how many response tokens they have, by side.
        share: its weight in the concept's loss of this step: 1 / mini-batches.
        progress: how far the concept is, from 0 to below 1.
    """

    concept: int
    number: int
    size: int
    tokens: Mapping[str, int]
    share: float
    progress: float


@dataclass(frozen=True, eq=False)
class Item:
    """An example in a Step.

    Attributes:
        group: its mini-batch.
        place: its place in that, from 0.
        numbers: its sequences by side, as `Frozen` numbers them.
        row: the row of the Edit's Banks that it trains.
        label: see `Example.label`.
    """

    group: Group
    place: int
    numbers: Mapping[str, int]
    row: int
    label: float


@dataclass(frozen=True)
class Ran:
    """One side of a forward under the Edit.

    Attributes:
        logps: float32 [R], the response's log-prob, summed over its tokens.
        lengths: float32 [R], the number of its tokens.
        totals: float32 [R], the number of tokens of prompt and response.
        acts: what was read, each [R, k, ...] with a mask [R, k]; `None` without `read=`.
        logits: [R, n, V], those that predict each response token; `None` unless asked for.
        mask: bool [R, n], which of these are real.
    """

    logps: Tensor
    lengths: Tensor
    totals: Tensor
    acts: Activations | None
    logits: Tensor | None
    mask: Tensor


class Step:
    """The examples that an objective makes a loss of.

    Args:
        frozen: the sequences and the frozen model.
        edit: what is trained.
        items: the examples, maybe of many concepts.
        factors: draws random strengths, `None` for 1.
        seed: of all draws.
        training: whether dropout is drawn.
    """

    def __init__(
        self,
        frozen: Frozen,
        edit: Edit,
        items: Sequence[Item],
        factors: Factors | None = None,
        seed: int = 42,
        training: bool = True,
    ) -> None:
        self.frozen_model, self.edit, self.items = frozen, edit, list(items)
        self.sampler, self.seed, self.training = factors, seed, training
        self.model, self.device = frozen.model, frozen.model.device
        self._runs = 0  # each forward draws its own dropout

    # -- the examples ------------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """R."""
        return len(self.items)

    def _tensor(self, value: Callable[[Item], float]) -> Tensor:
        return torch.tensor([value(item) for item in self.items], dtype=torch.float32, device=self.device)

    @cached_property
    def concepts(self) -> Tensor:
        """Whose example each is, int64 [R]."""
        return torch.tensor([item.group.concept for item in self.items], device=self.device)

    @cached_property
    def progress(self) -> Tensor:
        """How far each example's concept is, float32 [R], from 0 to below 1."""
        return self._tensor(lambda item: item.group.progress)

    @cached_property
    def labels(self) -> Tensor:
        """The examples' labels, float32 [R]."""
        return self._tensor(lambda item: item.label)

    @cached_property
    def rows(self) -> Tensor:
        """The rows of the Edit's Banks that the examples train, int64 [R]."""
        return torch.tensor([item.row for item in self.items], device=self.device)

    def lengths(self, side: str) -> Tensor:
        """The number of response tokens, float32 [R]."""
        sequences = self.frozen_model.sequences
        return self._tensor(lambda item: len(sequences[item.numbers[side]].ids) - sequences[item.numbers[side]].prompt)

    def totals(self, side: str) -> Tensor:
        """The number of tokens of prompt and response, float32 [R]."""
        return self._tensor(lambda item: len(self.frozen_model.sequences[item.numbers[side]].ids))

    # -- the loss ----------------------------------------------------------------------------------------------------

    def per_row(self, values: Tensor) -> Tensor:
        """Contributions [R] of values [R], so that a concept's loss is their mean over its mini-batch."""
        return values * self._tensor(lambda item: item.group.share / item.group.size)

    def per_token(self, sums: Tensor, side: str = "chosen") -> Tensor:
        """Contributions [R] of sums over tokens [R], so that a concept's loss is their sum over its response tokens."""
        return sums * self._tensor(lambda item: item.group.share / item.group.tokens[side])

    # -- what is trained ---------------------------------------------------------------------------------------------

    @cached_property
    def parts(self) -> list[Any]:
        """The Edit's parts, one for each layer that is meant."""
        return expanded(self.model, self.edit)

    @property
    def sites(self) -> list[Site]:
        """Where the parts act, each a Site of one layer."""
        return [part.site for part in self.parts]

    def state(self, part: int = 0) -> dict[str, Tensor]:
        """What the intervention of a part takes: vectors [R, 1, d], scalars [R, 1, 1], matrices [R, d, r]."""
        intervention = self.parts[part].intervention
        found = {}
        for name, tensor in intervention.state().items():
            if name in intervention.common:
                found[name] = tensor
                continue
            mine = (
                tensor.index_select(0, self.rows)
                if intervention.banked
                else tensor[None].expand(self.size, *tensor.shape)
            )
            found[name] = mine.reshape(self.size, *[1] * max(0, 3 - mine.ndim), *mine.shape[1:])
        template = intervention.template if intervention.banked else intervention
        return dict(template.prepare(found))

    # -- random strengths --------------------------------------------------------------------------------------------

    def factors(self, which: int = 0) -> Tensor:
        """Random strengths, float32 [R], drawn apart for each `which`; 1 where none are drawn.

        They depend on the seed, the concept's own mini-batch and the example's place in it alone, so that a concept
        draws the same by itself and among others.
        """
        if self.sampler is None:
            return torch.ones(self.size, device=self.device)
        drawn: dict[Group, Tensor] = {}
        for item in self.items:
            if item.group not in drawn:
                drawn[item.group] = self.sampler.draw(item.group.size, self.seed, item.group.number, which)
        return self._tensor(lambda item: float(drawn[item.group][item.place]))

    def _keys(self, run: int, sides: int) -> Tensor | None:
        """One number for every example and side that dropout depends on, int64 [sides R]."""
        if not self.training:
            return None
        made = []
        for side in range(sides):
            for item in self.items:
                key = 0
                for part in (self.seed, item.group.number, item.place, run, side):
                    key = (key * 1_000_003 + part) % (1 << 61)
                made.append(key)
        return torch.tensor(made, device=self.device)

    # -- forwards ----------------------------------------------------------------------------------------------------

    def run(
        self,
        *sides: str,
        factor: Factor | Sequence[Factor] = None,
        null: bool = False,
        read: Sequence[str | Site] | str | Site | None = None,
        tokens: Any = "response",
        before: bool = False,
        logits: bool = False,
    ) -> tuple[Ran, ...]:
        """One forward of all examples on some sides, under the Edit.

        Args:
            *sides: names of `SIDES`.
            factor: a strength for all, for each example [R], or a list with one of these for each side.
            null: what suppresses: each intervention's `null()`, or the strength's negative where it has none.
            read: Sites to read; those below the Edit are the frozen model's.
            tokens: which tokens to read.
            before: read before the Edit acts.
            logits: also give the logits that predict the response.
        """
        edit, strength = self.edit, self._strengths(factor, len(sides))
        if null:
            edit = suppressing(edit)
            own = edit.parts[0].intervention is not self.edit.parts[0].intervention
            strength = None if own else strength  # a null of its own has no strength to be drawn
        above, below = self._read(read)
        numbers = [item.numbers[side] for side in sides for item in self.items]
        self._runs += 1
        per_row = {"strength": strength, "keys": self._keys(self._runs, len(sides))}
        if any(part.intervention.banked for part in edit.parts):
            per_row["rows"] = self.rows.repeat(len(sides))
        given = {name: value for name, value in per_row.items() if value is not None}
        reads = {"read": above, "tokens": tokens, "before": before} if above else {}
        found = self.frozen_model.score(numbers, logits, edit=edit, **given, **reads)
        return tuple(self._ran(found, index, side, above, below, tokens) for index, side in enumerate(sides))

    def _ran(self, found: Predicted, index: int, side: str, above: list[Site], below: list[Site], tokens: Any) -> Ran:
        here = slice(index * self.size, (index + 1) * self.size)
        values: dict[str, list[Tensor]] = {}
        if above:
            assert found.output.acts is not None
            values = {str(site): found.output.acts.rows(site)[here] for site in above}
        if below:
            frozen = self.frozen(side, below, tokens)
            values |= {str(site): frozen.rows(site) for site in below}
        acts = evened(values, self.model) if values else None
        lengths = self.lengths(side)
        longest = int(lengths.max())  # of this side alone, as in `frozen_logits`
        logits = None if found.logits is None else found.logits[here, :longest]
        return Ran(found.logps[here], lengths, self.totals(side), acts, logits, found.mask[here, :longest])

    def _read(self, read: Any) -> tuple[list[Site], list[Site]]:
        """The wanted Sites that the forward reaches, and those below where it starts."""
        sites = [] if read is None else self.model.sites().expand(read)
        cut = self.frozen_model.cut
        if cut is None:
            return sites, []
        start = reach(self.model, cut)
        above = [site for site in sites if reach(self.model, site) >= start]
        return above, [site for site in sites if site not in above]

    def _strengths(self, factor: Factor | Sequence[Factor], sides: int) -> Tensor | None:
        """Strengths [sides R], `None` for 1."""
        each = list(factor) if isinstance(factor, (list, tuple)) else [factor] * sides
        if len(each) != sides:
            raise TrainError(f"{len(each)} strengths for {sides} sides: give one for each")
        if all(one is None for one in each):
            return None
        made = [torch.as_tensor(1.0 if one is None else one, dtype=torch.float32) for one in each]
        return torch.cat([one.to(self.device).expand(self.size) for one in made])

    # -- the frozen model --------------------------------------------------------------------------------------------

    def reference(self, side: str) -> Tensor:
        """The responses' log-probs by the frozen model, float32 [R]."""
        return self.frozen_model.logps([item.numbers[side] for item in self.items])

    def frozen(self, side: str, read: Sequence[str | Site] | str | Site, tokens: Any = "response") -> Activations:
        """Activations of the frozen model, each [R, k, ...] with a mask [R, k]; kept between steps."""
        numbers = [item.numbers[side] for item in self.items]
        return self.frozen_model.read(numbers, self.model.sites().expand(read), tokens)

    def frozen_logits(self, side: str) -> tuple[Tensor, Tensor]:
        """The frozen model's logits [R, n, V] that predict each response token, and which are real, bool [R, n]."""
        with torch.no_grad():
            found = self.frozen_model.score([item.numbers[side] for item in self.items], logits=True)
        assert found.logits is not None
        return found.logits, found.mask
