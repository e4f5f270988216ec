"""backward_rules: a context in which gradients through a model follow a rule set, and its forward stays what it is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from torch import nn

from inlay.attribute.planned import Plan, plan
from inlay.attribute.report import Counting, RuleReport
from inlay.attribute.rules import RuleSet, rule_set
from inlay.errors import RuleError
from inlay.model import attention, patch

if TYPE_CHECKING:
    from inlay.model.model import Model


class _InForce(threading.local):
    """The models that have rules in this thread."""

    def __init__(self) -> None:
        self.models: set[int] = set()


_in_force = _InForce()


@contextmanager
def backward_rules(model: Model, rules: str | RuleSet = "gim") -> Iterator[RuleReport]:
    """Inside, whatever takes a gradient through the model in this thread takes that of the rules.

    Logits and every Site's value are bit for bit what they are outside. Rules act where the forward runs: the backward
    may come later, but for that of a checkpointed forward, which runs the forward again. They compose with
    `model.edited`, `model.read(grads=...)`, `model.resume` and plain calls of `model.hf`; a Site's gradient is the one
    that reaches it, so that q's has attention's factors in it and mlp_in's the product rule's. Another thread may hold
    other rules on the same model.

    Args:
        model: the Model, in eval mode (or in training mode without dropout).
        rules: a RuleSet, or the name of a preset: `grad`, `gim`, `attnlrp`, `cp_lrp`, `transformer_lrp`, `relp`,
            `relp_ah`.

    Yields:
        A `RuleReport`: what each rule stands around, its self-test, and how often it was called.

    Raises:
        RuleError: on entering: rules are already in force on this model in this thread (they do not nest), the model
            is in training mode with dropout, or a rule cannot act on a part of the model; in backward: that of a
            checkpointed forward runs outside of the context.
        RuleNotApplied: on entering: the model has no part that a rule is for; on leaving without an exception: no
            forward ran, or none called any module of a rule.
    """
    chosen, base = rule_set(rules), model.base
    if id(base) in _in_force.models:
        raise RuleError("backward rules are already in force on this model in this thread: leave them first")
    refuse_dropout(base)
    here, counting = patch.Here(), Counting()
    made = plan(model, chosen, here, counting)
    report = RuleReport(chosen, model.sites().family, made.rows)
    standing = _Standing(base, here, made, counting)
    made.layers += [*_forwards(model, standing, report), *_checkpoints(model, standing)]
    with standing:
        yield report
    report.check()


class _Standing:
    """The rules' layers on the model, in the thread that enters this."""

    def __init__(self, base: nn.Module, here: patch.Here, plan: Plan, counting: Counting) -> None:
        self.base, self.here, self.plan, self.counting = base, here, plan, counting
        self.inside = False
        self._stack = ExitStack()

    def __enter__(self) -> None:
        self._stack.enter_context(self.in_thread())
        self.inside = True

    def __exit__(self, *error: Any) -> None:
        self.inside = False
        self._stack.close()

    @contextmanager
    def in_thread(self) -> Iterator[None]:
        """The rules in the current thread."""
        with ExitStack() as stack:
            if self.plan.attention is not None:
                attention.switch_on(self.base)
                stack.callback(attention.switch_off, self.base)
                stack.enter_context(attention.ruled(self.plan.attention))
            for module, name, layer in self.plan.layers:
                patch.put(module, name, layer)
                stack.callback(patch.lift, module, name, layer)
            _in_force.models.add(id(self.base))
            stack.callback(_in_force.models.discard, id(self.base))
            self.here.on = True
            try:
                yield
            finally:
                self.here.on = False

    @contextmanager
    def again(self) -> Iterator[None]:
        """The rules as a checkpointed block runs again in backward, in this thread or in one of autograd's own."""
        if not self.inside:
            raise RuleError(
                "the backward of a checkpointed forward ran after backward_rules was left, where the blocks that it "
                "runs again have no rules: call backward inside the context, or switch gradient checkpointing off"
            )
        was, self.counting.on = self.counting.on, False
        try:
            with nullcontext() if self.here.on else self.in_thread():
                yield
        finally:
            self.counting.on = was


class _ForwardLayer(patch.Layer):
    """Around the model's forward: counts, and refuses dropout that was switched on since."""

    def __init__(self, standing: _Standing, report: RuleReport) -> None:
        super().__init__(standing.here)
        self.base, self.report, self.inside = standing.base, report, False

    def around(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Count a forward, once for the model and the decoder in it."""
        if self.inside:
            return call(*args, **kwargs)
        refuse_dropout(self.base)
        self.report.forwards += 1
        self.inside = True
        try:
            return call(*args, **kwargs)
        finally:
            self.inside = False


def _forwards(model: Model, standing: _Standing, report: RuleReport) -> list[tuple[nn.Module, str, patch.Layer]]:
    layer, sites = _ForwardLayer(standing, report), model.sites()
    paths = dict.fromkeys(("", sites.decoder, sites.encoder))
    return [(model.base.get_submodule(path), "forward", layer) for path in paths]


class _CheckpointLayer(patch.Layer):
    """Around a block's checkpointing: what runs again in backward runs under the rules."""

    def __init__(self, standing: _Standing) -> None:
        super().__init__(standing.here)
        self.standing = standing

    def before(self, args: patch.Args, kwargs: patch.Kwargs) -> tuple[patch.Args, patch.Kwargs]:
        """Wrap the function that the checkpoint calls now and again."""
        function, standing, first = args[0], self.standing, True

        def again(*inputs: Any, **more: Any) -> Any:
            nonlocal first
            if first:
                first = False
                return function(*inputs, **more)
            with standing.again():
                return function(*inputs, **more)

        return (again, *args[1:]), kwargs


def _checkpoints(model: Model, standing: _Standing) -> list[tuple[nn.Module, str, patch.Layer]]:
    name = "_gradient_checkpointing_func"
    blocks = [m for m in model.base.modules() if getattr(m, "gradient_checkpointing", False) and name in m.__dict__]
    return [(block, name, _CheckpointLayer(standing)) for block in blocks]


def refuse_dropout(base: nn.Module) -> None:
    """Raise where a forward would drop anything: equal inputs would have unequal scores."""
    if not base.training:
        return
    for path, module in base.named_modules():
        named = {"p": getattr(module, "p", 0.0)} if isinstance(module, nn.modules.dropout._DropoutNd) else vars(module)
        for name, value in named.items():
            if module.training and isinstance(value, float) and value > 0 and (name == "p" or "drop" in name):
                raise RuleError(
                    f"the model is in training mode, and {path or type(base).__name__} drops ({name}={value}): call "
                    "model.hf.eval(), or set its dropout to 0"
                )
