"""A run: edits and reads set into a model for the length of a call or a `with`, and lifted without a trace.

Legend: R rows, T tokens of a call, S known slots, W a Site's width.
"""

from __future__ import annotations

import inspect
import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from inlay.errors import EditError, ModelError, TokensError
from inlay.model import attention, patch
from inlay.model.call import PartLike, State, rowed
from inlay.model.frame import NONE, Frame, Prompt, Text
from inlay.model.pairing import Values, check
from inlay.model.passes import Pass, Taken, Tally, Want
from inlay.model.sitemap import DECODER, SiteMap
from inlay.model.sites import Site
from inlay.model.tokens import Tokens
from inlay.model.windows import Live, Window

_runs = itertools.count()


class Run:
    """Edits and reads in force on one model. Enter it with `with`; it acts in the thread that entered it.

    Attributes:
        touched: how many attended positions each part of the Edit reached so far (`None` inside compiled code).
        taken: per wanted Site, one `Taken` per forward call.
    """

    def __init__(
        self,
        base: nn.Module,
        sites: SiteMap,
        parts: Sequence[PartLike] = (),
        wants: Sequence[Want] = (),
        *,
        rows: Tensor | None = None,
        strength: Tensor | None = None,
        keys: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        attended: Tensor | None = None,
        sources: Mapping[int, Values | Live] | None = None,
        constants: Mapping[int, Tensor] | None = None,
        text: Text | None = None,
        stop: bool = False,
        grads: bool = False,
        whole: bool = False,
        start_at: tuple[Site, Tensor] | None = None,
        numbers: Sequence[int] | None = None,
        tally: Tally | None = None,
        window: Window | None = None,
    ) -> None:
        from inlay.model.layers import AttentionLayer
        from inlay.model.plan import plan
        from inlay.model.resume import skipping

        self.base, self.sites, self.parts, self.wants = base, sites, parts, wants
        self.rows, self.strength, self.keys, self.prompt_mask, self.attended = (
            rows,
            strength,
            keys,
            prompt_mask,
            attended,
        )
        self.sources, self.constants = sources or {}, constants or {}
        self.text, self.stop, self.grads, self.whole = text, stop, grads, grads or whole
        self.numbers, self.tally, self.window = numbers, tally, window
        self.here = patch.Here()
        self.now: Pass | None = None
        self.last: Pass | None = None
        self.generation: Prompt | None = None
        self.replaying = self.generating = False
        self.encoded = 0  # rows of the encoder's pass in the generation that is under way
        self._opened = ExitStack()
        self.calls, self.compiled = 0, False
        self.reached = [False] * len(parts)
        self.site_names = [str(part.site) for part in parts]
        self.factors = [None if p.strength is None else torch.tensor(float(p.strength)) for p in parts]
        self.taken: list[list[Taken]] = [[] for _ in wants]
        self.leaves = list(dict.fromkeys(leaf for p in parts if p.when is not None for leaf in p.when.leaves()))
        asked = [(one.tokens or Tokens.parse("all"), sites.stack(one.site)) for one in (*parts, *wants, *self.leaves)]
        distinct = list(dict.fromkeys(asked))
        self.spec_of = [distinct.index(one) for one in asked]
        self.specs, self.stacks = [tokens for tokens, _ in distinct], [stack for _, stack in distinct]
        self.counts: list[Tensor | int] = [0] * len(self.specs)
        self.acted: dict[int, Tensor | int] = {i: 0 for i, part in enumerate(parts) if part.when is not None}
        self.transforms = list({id(part.intervention): part.intervention for part in parts}.values())
        self.transform_of = [[t is p.intervention for t in self.transforms].index(True) for p in parts]
        self.inside = False
        self._near: dict[tuple[int, str, torch.device], tuple[Tensor, int, Tensor]] = {}
        for index, part in enumerate(parts):
            self._check_rows(index, part)
        self.layers = [*(skipping(self, *start_at) if start_at else ()), *plan(self)]
        self.opens_attention = any(isinstance(layer, AttentionLayer) for _, _, layer in self.layers)

    def _check_rows(self, index: int, part: PartLike) -> None:
        if part.intervention.banked and self.rows is None:
            raise EditError(
                f"part {index} of the Edit ({part.site}) is a Bank: say which row each prompt uses, rows=[...]"
            )

    # -- lifecycle ---------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if self.here.on:
            raise EditError("this run is already in force; make a second one with model.edited(...)")
        order = next(_runs)
        for _, _, layer in self.layers:
            layer.order = order
        self._install()
        self.here.on = True
        if self.opens_attention:
            self._opened.enter_context(attention.opened())
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self.here.on = False
        self.now, self.generation, self.inside = None, None, False
        self._opened.close()
        self._remove()
        if kind is None:
            if self.tally is None:
                self._add_to(Tally()).check(self.parts)
            else:
                self._add_to(self.tally)
            if not self.calls and not self.compiled:
                warnings.warn(
                    "an edit was in force and no forward of its model ran in this thread; a thread started inside "
                    "`with model.edited(...)` must enter its own",
                    stacklevel=2,
                )

    def _install(self) -> None:
        done = []
        try:
            if self.opens_attention:
                attention.switch_on(self.base)
            for module, name, layer in self.layers:
                patch.put(module, name, layer)
                done.append((module, name, layer))
        except BaseException:
            self._remove(done)
            raise

    def _remove(self, layers: Sequence[tuple[nn.Module, str, patch.Layer]] | None = None) -> None:
        for module, name, layer in reversed(self.layers if layers is None else list(layers)):
            patch.lift(module, name, layer)
        if self.opens_attention:
            attention.switch_off(self.base)

    @contextmanager
    def again(self, now: Pass | None) -> Iterator[None]:
        """The run as it stood in an earlier forward, for the recomputation of a checkpointed block in backward."""
        was, install = (self.here.on, self.now, self.replaying), not self.here.on
        if install:
            self._install()
        self.here.on, self.now, self.replaying = True, now, True
        try:
            with attention.opened() if self.opens_attention else nullcontext():
                yield
        finally:
            self.here.on, self.now, self.replaying = was
            if install:
                self._remove()

    # -- one forward -------------------------------------------------------------------------------------------------

    @staticmethod
    def parameters(module: nn.Module, method: str = "forward") -> tuple[str, ...]:
        """The names of a method's parameters, without `self`."""
        return tuple(inspect.signature(getattr(module, method)).parameters)

    def begin(
        self, names: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any], stack: str = DECODER
    ) -> None:
        """Settle what this call of a stack shares: its positions, the gathered bank rows, the selections."""
        frame = self._frame(dict(zip(names, args, strict=False)) | dict(kwargs))
        prompt = frame.prompt
        if prompt is not self.generation:
            self.settle(prompt, stack)
        device = prompt.device
        rows, strength, keys = (self._per_row(each, frame, device) for each in (self.rows, self.strength, self.keys))
        states = self._states(rows)
        specs = zip(self.specs, prompt.tables, self.stacks, strict=True)
        chosen = [frame.select(spec, table) if where == stack else NONE for spec, table, where in specs]
        self.now = self.last = Pass(frame, states, chosen, strength, rows, keys)
        if torch.compiler.is_compiling():
            self.compiled = True
        else:
            self.calls += 1
            self._count(frame)

    def settle(self, prompt: Prompt, stack: str = DECODER) -> None:
        """Resolve every Tokens spec that the run has in a stack over a prompt's slots.

        Raises:
            TokensError: a row lacks a position, or selects another number than its source.
        """
        here = [tokens if where == stack else None for tokens, where in zip(self.specs, self.stacks, strict=True)]
        prompt.resolve(here, self.text)
        check(self, prompt, stack)

    def prompt(
        self,
        rows: int,
        slots: int,
        device: torch.device,
        attended: Tensor | None = None,
        ids: Tensor | None = None,
        wait: bool = False,
    ) -> Prompt:
        """The known slots of a forward or a generation; what `prompt_mask` does not cover is response.

        `wait` allows a device to be waited for, to learn that nothing is padded: once a generation, not once a forward.
        """
        if attended is not None:
            attended = attended.to(device).bool()
            known = wait or device.type == "cpu"
            if known and not torch.compiler.is_compiling() and bool(attended.all()):
                attended = None
        mask = self.prompt_mask
        if mask is not None:
            if mask.shape[1] > slots:
                raise TokensError(f"prompt_mask covers {mask.shape[1]} slots, and there are {slots}")
            mask = torch.nn.functional.pad(mask.to(device), (0, slots - mask.shape[1]))
        return Prompt(rows, slots, device, attended, mask, ids, numbers=self.numbers)

    def _frame(self, values: Mapping[str, Any]) -> Frame:
        ids, embeds = values.get("input_ids"), values.get("inputs_embeds")
        first = embeds if embeds is not None else ids
        if first is None:
            first = next((v for v in values.values() if isinstance(v, Tensor)), None)
        ids, first = self.mine(ids), self.mine(first)
        if first is None:
            raise ModelError("the forward got no tensor that inlay could count tokens in")
        rows, length = first.shape[:2]
        cache = values.get("cache")
        cache = cache if cache is not None else values.get("past_key_values")
        start = cache.get_seq_length() if cache is not None else 0
        if isinstance(start, Tensor):
            start = start.clone()  # the cache counts on in place
        if self.generation is not None:
            return Frame(self.generation, rows, length, start)
        if isinstance(start, Tensor):
            start = int(start)
        slots = start + length
        mask = self.mine(values["attention_mask"]) if "attention_mask" in values else self.attended
        if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape[1] != slots:
            mask = None
        each = rows // (self.encoded or rows)  # beams stand side by side, and share a prompt
        mask, ids = (one if one is None else one[::each] for one in (mask, None if start else ids))
        return Frame(self.prompt(rows // each, slots, first.device, mask, ids), rows, length, start)

    def _per_row(self, value: Tensor | None, frame: Frame, device: torch.device) -> Tensor | None:
        if value is None or value.ndim == 0:
            return value
        if value.shape[0] != frame.prompt.rows:
            raise EditError(
                f"rows=, strength= or keys= names {value.shape[0]} rows, and the batch has {frame.prompt.rows}"
            )
        value = value.to(device)
        return value if frame.expand == 1 else value.repeat_interleave(frame.expand, 0)

    def _states(self, rows: Tensor | None) -> list[State]:
        return [self._state(index, rows) for index in range(len(self.transforms))]

    def fresh(self, now: Pass) -> Pass:
        """The same pass with its states computed anew, for a backward that has its own graph."""
        return replace(now, states=self._states(now.rows))

    def _state(self, index: int, rows: Tensor | None) -> State:
        transform = self.transforms[index]
        state, prepare = transform.state(), transform.prepare
        if not transform.banked:
            return cast(State, prepare(state))
        assert rows is not None
        gathered = {"rows": rows}
        for name, table in state.items():
            mine = self.near(index, name, table, rows.device)
            if name not in transform.common:
                mine = rowed(mine.index_select(0, rows))
            gathered[name] = mine
        return cast(State, prepare(gathered))

    def near(self, index: int, name: str, tensor: Tensor, device: torch.device) -> Tensor:
        """A tensor of transform `index` on a device; a fixed one is copied there once, not once a step."""
        if tensor.device == device:
            return tensor
        if tensor.requires_grad or tensor.grad_fn is not None or torch.compiler.is_compiling():
            return tensor.to(device)
        known = self._near.get((index, name, device))
        if known is None or known[0] is not tensor or known[1] != tensor._version:
            known = self._near[index, name, device] = (tensor, tensor._version, tensor.to(device))
        return known[2]

    def _count(self, frame: Frame) -> None:
        for index in set(self.spec_of[: len(self.parts)]):
            chosen = self.current.chosen[index]
            if chosen.empty:
                continue
            mask = frame.attended() if chosen.mask is None else chosen.mask
            here = frame.rows * frame.length if mask is None else mask.sum() * (frame.rows // mask.shape[0])
            self.counts[index] = self.counts[index] + here

    def mine(self, whole: Any) -> Any:
        """The run's own rows of a batch's tensor [rows, ...], or [rows * tokens, ...]."""
        return whole if self.window is None or not isinstance(whole, Tensor) else self.window.get(whole)

    def back(self, whole: Tensor, new: Tensor) -> Tensor:
        """The batch's tensor with the run's own rows replaced."""
        return new if self.window is None else self.window.put(whole, new)

    @property
    def touched(self) -> list[int] | None:
        """Attended positions that each part changed so far; `None` when every forward ran inside compiled code."""
        if not self.calls:
            return None
        known = [reached or self.compiled for reached in self.reached]  # a compiled block does not say
        counts = [int(self.acted.get(index, count)) for index, count in enumerate(self.selected)]
        return [count if reached else 0 for count, reached in zip(counts, known, strict=True)]

    @property
    def selected(self) -> list[int]:
        """Attended positions that each part selected so far, whether or not its module ran."""
        return [int(self.counts[self.spec_of[index]]) for index in range(len(self.parts))]

    def _add_to(self, tally: Tally) -> Tally:
        touched = self.selected if self.stop else self.touched or []  # what stops early does not reach the parts above
        tally.add(self.calls, touched, self.selected)
        return tally

    def acting(self) -> bool:
        """Whether a forward of this run is under way; not so in a recomputation that belongs to another forward.

        Raises:
            ModelError: a module was called by itself, so that nobody knows which positions it sees.
        """
        if self.now is not None:
            return True
        if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
            return False
        raise ModelError("a module of the model ran outside of the model's forward while an edit was in force")

    @property
    def current(self) -> Pass:
        """The pass of the forward that is running."""
        assert self.now is not None
        return self.now
