"""From a rule set and a model to layers on modules, with the rows of the report; tests every module on the way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from inlay.attribute.activation_rule import DetachLayer, RatioLayer, ratio_of
from inlay.attribute.attention_rule import AttentionRule
from inlay.attribute.mixture_rule import factors_of
from inlay.attribute.norm_rule import NormLayer, settle
from inlay.attribute.product_rule import InputLayer
from inlay.attribute.report import Counting, Row, not_applied
from inlay.attribute.rules import RuleSet
from inlay.errors import ModelError, RuleError, RuleNotApplied
from inlay.model.bare import on_device
from inlay.model.feed_forward import FeedForward, feed_forwards, growth
from inlay.model.layers import ATTENTION_SIDES
from inlay.model.norms import find_norms
from inlay.model.patch import Here, Layer

if TYPE_CHECKING:
    from inlay.model.model import Model

Planned = tuple[nn.Module, str, Layer]

_GROWTH = 0.1  # how far a growth may be off 1 or 2


@dataclass
class Plan:
    """What stands for one rule set on one model.

    Attributes:
        layers: the layers, each with its module and method.
        attention: the rule around the attention functions, `None` where they keep their gradient.
        rows: the report's.
    """

    layers: list[Planned]
    attention: AttentionRule | None
    rows: list[Row]


def plan(model: Model, rules: RuleSet, here: Here, counting: Counting) -> Plan:
    """Everything that a rule set puts around a model.

    Raises:
        RuleError: a part of the model that a rule is for cannot be reached or tested, or fails its test.
        RuleNotApplied: the model has no part that a rule is for.
    """
    planner = _Planner(model, rules, here, counting)
    attention = planner.attention()
    return Plan([*planner.norms(), *planner.feed_forwards()], attention, planner.rows)


class _Planner:
    def __init__(self, model: Model, rules: RuleSet, here: Here, counting: Counting) -> None:
        self.rules, self.here, self.counting = rules, here, counting
        self.base, self.sites = model.base, model.sites()
        self.rows: list[Row] = []
        self.width = model.width
        self.blocks = {path: self.base.get_submodule(path) for path in (*self.sites.blocks, *self._encoder())}
        self.site_at: dict[str, str] = {}
        for name, places in self.sites.places.items():
            for layer, place in places.items():
                self.site_at.setdefault(place.path, name if layer is None else f"{name}.{layer}")

    def _encoder(self) -> list[str]:
        """The paths of an encoder's blocks: its largest list of modules."""
        if not self.sites.encoder:
            return []
        modules = self.base.named_modules()
        lists = {n: m for n, m in modules if n.startswith(self.sites.encoder) and isinstance(m, nn.ModuleList)}
        largest = max(lists, key=lambda n: sum(p.numel() for p in lists[n].parameters()), default="")
        return [f"{largest}.{i}" for i in range(len(lists[largest]))] if largest else []

    def row(self, rule: str, path: str, module: nn.Module, does: str, **more: Any) -> Row:
        made = Row(rule, path, type(module).__name__, self.site_at.get(path, ""), does, counting=self.counting, **more)
        self.rows.append(made)
        return made

    def missing(self, rule: str, modules: Iterator[nn.Module], wanted: str) -> RuleNotApplied:
        seen = tuple(sorted({type(module).__name__ for module in modules}))
        return not_applied(rule, self.sites.family, seen, f"it has {wanted}, only {', '.join(seen)}")

    # -- norms -------------------------------------------------------------------------------------------------------

    def norms(self) -> Iterator[Planned]:
        """A layer on every norm; every block has one."""
        if self.rules.norm == "ordinary":
            return
        found = find_norms(self.base)
        if not found:
            raise self.missing("norm", self.base.modules(), "no module that is called a norm")
        for path, block in self.blocks.items():
            if not any(norm.startswith(f"{path}.") for norm in found):
                raise self.missing("norm", block.modules(), f"a block, {path}, without a module that is called a norm")
        for path, module in found.items():
            frozen, value = settle(module, path)
            yield module, "forward", NormLayer(self.here, self.row("norm", path, module, "freeze", value=value), frozen)

    # -- attention ---------------------------------------------------------------------------------------------------

    def attention(self) -> AttentionRule | None:
        """The rule around the attention function of every block.

        Raises:
            RuleError: a block calls none, so that its attention cannot be reached.
        """
        if not self.rules.attention:
            return None
        does = self._attention_text()
        inside = {n: p for n, p in self.sites.places.get("pattern", {}).items() if p.side in ATTENTION_SIDES}
        rows: dict[int, Row] = {}
        for layer, block in enumerate(self.sites.blocks):
            if layer not in inside:
                kinds = sorted({type(m).__name__ for m in self.blocks[block].children()})
                raise RuleError(
                    f"the attention rule cannot act in {block} of this {self.sites.family} model: none of its parts "
                    f"({', '.join(kinds)}) is known to call an attention function of transformers, and one with code "
                    "of its own cannot be bent. A RuleSet with softmax=1 and qkv=(1, 1, 1) leaves attention as it is"
                )
            module = self.base.get_submodule(inside[layer].path)
            rows[id(module)] = self.row("attention", inside[layer].path, module, does)
            rows[id(module)].site = f"pattern.{layer}"
        paths = {id(module): path for path, module in self.base.named_modules()}

        def another(module: nn.Module) -> Row | None:
            path = paths.get(id(module))
            return None if path is None else self.row("attention", path, module, does)

        return AttentionRule(self.rules, rows, another)

    def _attention_text(self) -> str:
        softmax = self.rules.softmax
        first = "pattern detached" if softmax == "detached" else f"T={softmax:g}"
        return f"{first}, q,k,v x {','.join(f'{x:g}' for x in self.rules.qkv)}"

    # -- feed-forward parts --------------------------------------------------------------------------------------------

    def feed_forwards(self) -> Iterator[Planned]:
        """Layers on every feed-forward part and activation function; every block has a part."""
        product, ratio = self.rules.product, self.rules.activation == "ratio"
        if product == 1 and not ratio:
            return
        taken: set[int] = set()
        for path, block in self.blocks.items():
            try:
                parts = list(feed_forwards(path, block))
            except ModelError as error:
                raise RuleError(f"the product rule cannot act: {error}") from error
            if not parts:
                raise self.missing("product", block.modules(), f"a block, {path}, without a feed-forward part")
            for part in parts:
                gated, value = self._gated(part)
                yield from self._product(part, gated, value)
                yield from self._activation(part, gated, taken)

    def _gated(self, part: FeedForward) -> tuple[bool, float | None]:
        """Whether a part multiplies two branches of its own, and the growth that says so."""
        if part.role == "shared_gate":
            return False, None
        if part.role == "experts":
            return bool(getattr(part.module, "has_gate", True)), None
        value = growth(part, self.width, self._like(part))
        for whole, gated in ((2, True), (1, False)):
            if abs(value - whole) <= _GROWTH:
                return gated, value
        raise RuleError(
            f"{part.path} ({type(part.module).__name__}) is neither gated nor plain: doubling its input makes what "
            f"goes into {part.down} 2^{value:.2f} times as large, where a gated MLP gives 2^2 and a plain one 2^1"
        )

    def _like(self, part: FeedForward) -> Tensor:
        device = on_device(part.module)
        if device is None:
            raise RuleError(f"{part.path}: its weights are offloaded, and it cannot be tested; load it on a device")
        floats = (p.dtype for p in self.base.parameters() if p.is_floating_point())
        return torch.empty(0, dtype=next(floats, torch.float32), device=device)

    def _product(self, part: FeedForward, gated: bool, value: float | None) -> Iterator[Planned]:
        factor = self.rules.product
        if factor == 1:
            return
        make = partial(self.row, "product", part.path, part.module, value=value)
        if factor == "gate_detached":
            if part.role == "experts":
                yield self._input(part, make(does="router weights held"), (1.0, 0.0))
            elif part.role == "shared_gate":
                yield self._input(part, make(does="gate held"), (0.0,))
            elif not gated:
                make(does="", reason="no gate")
            return
        factors: tuple[float, ...] = factors_of(part, gated, float(factor))
        if factors == (1.0,):
            make(does="", reason="no gate")
            return
        yield self._input(part, make(does=f"gradient of the input x {', '.join(f'{x:g}' for x in factors)}"), factors)

    def _input(self, part: FeedForward, row: Row, factors: tuple[float, ...]) -> Planned:
        return part.module, "forward", InputLayer(self.here, row, factors)

    def _activation(self, part: FeedForward, gated: bool, taken: set[int]) -> Iterator[Planned]:
        held = gated and self.rules.product == "gate_detached"
        if part.role == "shared_gate" or (self.rules.activation != "ratio" and not held):
            return
        if not part.activations:
            raise RuleError(
                f"{part.path} ({type(part.module).__name__}) holds no activation function as a module, so that no rule "
                "can stand around it. Take a rule set with activation='derivative' and a factor, such as 'gim'"
            )
        for name, module in part.activations.items():
            if id(module) in taken:
                continue
            taken.add(id(module))
            path = f"{part.path}.{name}"
            if held:
                yield module, "forward", DetachLayer(self.here, self.row("product", path, module, "gate held"))
                continue
            ratio, value = ratio_of(module, path)
            row = self.row("activation", path, module, "act(x)/x", value=value)
            yield module, "forward", RatioLayer(self.here, row, ratio)
