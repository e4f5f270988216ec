"""Counterfactual data as runs of a model that are kept: base states below the Sites, source activations at them.

Legend: n rows of data, N distinct prompts, T tokens, k selected tokens, W width of a Site, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inlay.causal.cells import WHOLE, start_of
from inlay.causal.counterfactuals import Counterfactual
from inlay.errors import CausalError
from inlay.interventions.base import Intervention
from inlay.interventions.edit import Edit, Part
from inlay.interventions.from_source import Swap
from inlay.interventions.source import Source
from inlay.model.activations import Activations
from inlay.model.answers import answer_table
from inlay.model.inputs import Batch, Row, pad, plan_batches
from inlay.model.last_logits import last_logits
from inlay.model.resume import States
from inlay.model.running import expanded
from inlay.model.sites import Site
from inlay.model.tokens import Tokens
from inlay.model.two_stacks import refuse

if TYPE_CHECKING:
    from inlay.model.model import Model

Group = tuple[str, ...]
Change = Callable[[Part], Intervention | None]


class StoredRuns:
    """What all interchanges of some counterfactual data have in common, run once.

    Below the Sites of the Edits nothing depends on what is exchanged, so that an interchange, and a step of training
    one, runs the layers above them alone. A model or Site that no forward can start from is run whole each time.

    Args:
        model: the Model.
        data: the rows.
        edits: for every variable where it is set, and by which intervention; their sources are given here.
        source_tokens: which tokens of the sources, where they are not those of the Edit.
        batch_tokens: the most padded tokens in one forward (one row at least).
        device: where what is stored lies; by default the model's, `"cpu"` where that has not the memory.
        chat: whether plain strings are user turns.

    Attributes:
        variables: what each row sets.
        groups: row numbers by the variables that they set together.
        rows: the base rows.
        labels: int64 [n], on the model's device.

    Raises:
        CausalError: no rows, a row sets a variable that has no Edit, or a label is no token of the model.
        InlayError: prompts, Sites or Tokens do not fit the model.
    """

    def __init__(
        self,
        model: Model,
        data: Sequence[Counterfactual],
        edits: Mapping[str, Edit],
        *,
        source_tokens: Any = None,
        batch_tokens: int = 8192,
        device: str | torch.device | None = None,
        chat: bool | None = None,
    ) -> None:
        refuse(model, "an interchange over counterfactual data")
        self.model, self.batch_tokens = model, batch_tokens
        self.device = torch.device(device) if device is not None else model.device
        self.parts: dict[str, list[Part]] = {name: expanded(model, edit) for name, edit in edits.items()}
        self.variables = [row.variables for row in data]
        self.groups = grouped(data, edits)
        self.labels = label_ids(model, [row.label for row in data]).to(model.device)
        self._source_tokens = None if source_tokens is None else Tokens.parse(source_tokens)
        self._keep_bases(model.encoder.rows([row.base for row in data], chat=chat))
        self._keep_sources(data, chat)

    # -- what is run once --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _keep_bases(self, rows: Sequence[Row]) -> None:
        """The base runs' states at the lowest start of any part."""
        self.rows, (distinct, self._base) = rows, _distinct((row, 0) for row in rows)
        self._last = torch.tensor([len(row.ids) - 1 for row in rows])
        cut = min(_start(self.model, site) for parts in self.parts.values() for part in parts for site in _sites(part))
        self._states: States | None = None
        if cut == WHOLE:
            return
        site = Site("resid_post", cut - 1) if cut else Site("resid_pre", 0)
        bases = [row for row, _ in distinct]
        hidden_NTW: Tensor | None = None
        for some in plan_batches(bases, self.batch_tokens):
            found = self.model.states([list(bases[index].ids) for index in some], site).hidden
            if hidden_NTW is None:  # the longest come first
                hidden_NTW = found.new_zeros(len(bases), *found.shape[1:], device=self.device)
            hidden_NTW[some, : found.shape[1]] = found.to(self.device)
        assert hidden_NTW is not None
        self._states = States(site, hidden_NTW, pad(bases, self.model.pad_id, self.model.device))

    @torch.no_grad()
    def _keep_sources(self, data: Sequence[Counterfactual], chat: bool | None) -> None:
        """The source runs' activations for every part of every variable."""
        every = [part for parts in self.parts.values() for part in parts]
        asks = {self._ask(part, taker) for part in every for taker in (part.intervention, Swap(None))}
        own = any(not tokens.storable for _, tokens in asks)  # positions of each row, which belong to one row's sources
        places = [(number, name) for number, row in enumerate(data) for name in row.variables]
        prompts = self.model.encoder.rows([source for row in data for source in row.sources], chat=chat)
        numbers = [number if own else 0 for number, _ in places]
        distinct, index = _distinct(zip(prompts, numbers, strict=True))
        self._source = dict(zip(places, index, strict=True))
        ids, of = [list(row.ids) for row, _ in distinct], [number for _, number in distinct]
        longest = max(map(len, ids))
        self._acts: dict[tuple[Site, Tokens], tuple[Tensor, Tensor | None]] = {}
        for site, tokens in asks:
            mine = tokens.pick(of, len(data), longest)
            acts = self.model.read(ids, site, mine, device=self.device, batch_tokens=self.batch_tokens)
            values = acts[site] if acts.mask is not None else acts[site][:, None]
            ragged = acts.mask is not None and not bool(acts.mask.all())
            self._acts[site, tokens] = (values.flatten(2), acts.mask if ragged else None)

    def _ask(self, part: Part, taker: Intervention) -> tuple[Site, Tokens]:
        """What an intervention in the place of a part's reads of its source's run."""
        placed = taker.with_source(Source([[0]], tokens=self._source_tokens))
        return placed.asks(self.model, part.site, part.tokens)

    # -- one batch ---------------------------------------------------------------------------------------------------

    def edit(
        self, rows: Sequence[int], take: Mapping[str, str] | None = None, change: Change | None = None
    ) -> Edit | None:
        """The Edit that sets the variables of some rows, which all set the same ones, from their stored sources.

        Args:
            rows: row numbers.
            take: for each variable whose Edit acts, whose source it gets; by default each its own.
            change: gives for a part another intervention in place of its own, `None` to leave the part out.

        Returns:
            The Edit, `None` where all parts are left out.
        """
        made = []
        for variable, other in (take or {name: name for name in self.variables[rows[0]]}).items():
            index = torch.tensor([self._source[row, other] for row in rows], device=self.device)
            for part in self.parts[variable]:
                taker = part.intervention if change is None else change(part)
                if taker is None:
                    continue
                site, tokens = self._ask(part, taker)
                values, real = self._acts[site, tokens]
                stored: Any = values[index]
                if real is not None:
                    stored = Activations({str(site): stored}, real[index.to(real.device)])
                cut = rows, len(self.rows), self._longest(rows)
                made.append(
                    replace(
                        part,
                        tokens=part.tokens.pick(*cut),
                        when=part.when and part.when.pick(*cut),
                        intervention=taker.with_source(Source(stored)),
                    )
                )
        return Edit.of(tuple(made)) if made else None

    def width(self, part: Part) -> int:
        """The width of the states that a part's intervention is given."""
        values, _ = self._acts[self._ask(part, part.intervention)]
        return values.shape[-1] * (values.shape[1] if part.joint else 1)

    def logits(self, rows: Sequence[int], edit: Edit | None = None) -> Tensor:
        """Each row's logits [r, V] at its last token under an Edit, float32 or float64."""
        if self._states is None:
            forward = partial(self.model.forward, [list(self.rows[row].ids) for row in rows], edit=edit)
        else:
            states = _cut(self._states.pick([self._base[row] for row in rows]), self._longest(rows))
            forward = partial(self.model.resume, states, edit=edit)
        found, _ = last_logits(self.model, self._last[list(rows)], forward)
        return found

    def _longest(self, rows: Sequence[int]) -> int:
        return max(len(self.rows[row].ids) for row in rows)

    def batches(self, rows: Sequence[int]) -> Iterator[list[int]]:
        """Rows that set the same variables, in forwards of at most `batch_tokens`."""
        for some in plan_batches([self.rows[row] for row in rows], self.batch_tokens):
            yield [rows[index] for index in some]


def grouped(data: Sequence[Counterfactual], known: Iterable[str]) -> dict[Group, list[int]]:
    """Row numbers by the variables that they set together.

    Raises:
        CausalError: there are no rows, or one sets a variable that has no place.
    """
    if not data:
        raise CausalError("there are no rows of counterfactual data: give at least one")
    names, groups = list(known), dict[Group, list[int]]()
    for number, row in enumerate(data):
        if unknown := [name for name in row.variables if name not in names]:
            raise CausalError(f"row {number} sets {unknown[0]!r}, and only {', '.join(names)} has a place")
        groups.setdefault(row.variables, []).append(number)
    return groups


def label_ids(model: Model, labels: Sequence[str | int]) -> Tensor:
    """The id of every label, int64 [n] on the CPU.

    Raises:
        CausalError: a text is no single token, or an id is none.
        ModelError: a text is given, and the model has no tokenizer.
    """
    ids, _ = answer_table(model, list(labels), len(labels))
    return ids[:, 0].long()


def _distinct(items: Iterable[tuple[Row, int]]) -> tuple[list[tuple[Row, int]], list[int]]:
    """The distinct ones, and which of them each is."""
    known: dict[tuple[Row, int], int] = {}
    index = [known.setdefault(item, len(known)) for item in items]
    return list(known), index


def _sites(part: Part) -> list[Site]:
    """Where a part acts, and where its condition looks."""
    return [part.site, *(leaf.site for leaf in (part.when.leaves() if part.when else ()))]


def _start(model: Model, site: Site) -> int:
    """How many blocks need not be run again for what is done at a Site, or `WHOLE`."""
    if site.name == "module":
        inside = [b for b, path in enumerate(model.sites().blocks) if f"{site.path}.".startswith(f"{path}.")]
        return start_of(model, Site("resid_pre", inside[0])) if inside else WHOLE
    if site.name in ("final_norm", "logits"):
        return start_of(model, Site("resid_post", model.layers - 1))
    return WHOLE if site.layer is None else start_of(model, site)


def _cut(states: States, longest: int) -> States:
    """The states without the slots that are padding in all rows."""
    b = states.batch
    shorter = Batch(b.ids[:, :longest], b.mask[:, :longest], b.prompt, b.positions[:, :longest])
    return replace(states, hidden=states.hidden[:, :longest], batch=shorter)
