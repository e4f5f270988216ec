"""The attention rule: another gradient around the model's own attention function, fused kernels included.

Legend: R rows, T query tokens, S key tokens, H heads, KV key/value heads, hd head width.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from inlay.attribute.report import Row
from inlay.attribute.rules import RuleSet
from inlay.attribute.surrogate import grafted, scaled
from inlay.errors import RuleError
from inlay.model.attention import Attend, mixed

_WITH_SCORES = ("softcap", "s_aux", "position_bias")  # what adds to the scores, or bounds them, beside scale and mask
_TOLERANCE = 0.02
_tested: weakref.WeakKeyDictionary[nn.Module, dict[Any, float]] = weakref.WeakKeyDictionary()


class AttentionRule:
    """Around a model's attention functions. Two calls of its own A make the gradient of a softmax at temperature T.

    GIM (2505.17630), rule "temperature-adjusted softmax gradients":

        value     = A(sg(q), sg(k), v, scale, softcap, mask, sinks)
        surrogate = A(q, k, sg(v), scale / T, softcap / T, mask / T, sinks / T)
        out       = value + T (surrogate - sg(surrogate))

    The second term is 0, so the output is A's, bit for bit; v's gradient is P^T dO, and T cancels the chain rule's
    1 / T: q and k get dS = P_T (dP - sum(P_T dP)). No pattern is materialised, so memory stays what A's is. Boolean
    masks are left as they are. At T = 1, or with the pattern detached, one call is enough.

    Args:
        rules: the rule set.
        rows: the report's row of each attention module, by the module's id.
        new_row: makes the row of an attention module that the map of Sites does not name.
    """

    def __init__(self, rules: RuleSet, rows: dict[int, Row], new_row: Callable[[nn.Module], Row | None]) -> None:
        self.rules, self.rows, self.new_row = rules, rows, new_row

    def owns(self, module: nn.Module) -> bool:
        """Whether the module is one of the model's."""
        if id(module) not in self.rows and (row := self.new_row(module)):
            self.rows[id(module)] = row
        return id(module) in self.rows

    def attend(
        self,
        own: Attend,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention by the model's own function.

        Args:
            own: the function.
            module: the attention module.
            query: [R, H, T, hd].
            key, value: [R, KV, S, hd].
            mask: boolean or additive, [R, 1, T, S], a kernel's own mask object, or `None`.
            **kwargs: passed on; `scaling`, `softcap`, `position_bias` and `s_aux` (sinks) are part of the scores.

        Returns:
            The output [R, T, H, hd], and the pattern where the function gives one.

        Raises:
            RuleError: dropout is on, or the function does not take its scores' temperature from its arguments.
        """
        kwargs = self._begin(module, query, kwargs)
        query, key, value = self._scaled(query, key, value)
        temperature = self.rules.softmax if torch.is_grad_enabled() else 1
        if temperature == "detached":
            return own(module, query.detach(), key.detach(), value, mask, **kwargs)
        if temperature == 1:
            return own(module, query, key, value, mask, **kwargs)
        self._test(own, module, query, key, value, kwargs, temperature)
        output, pattern = own(module, query.detach(), key.detach(), value, mask, **kwargs)
        cooled, mask_T, kwargs_T = _divided(module, mask, kwargs, temperature)
        surrogate, _ = own(cooled, query, key, value.detach(), mask_T, **kwargs_T)
        return grafted(output, surrogate, temperature), pattern

    def attend_open(
        self,
        eager: Attend,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """The same for eager attention whose pattern is read or edited: the output depends on the pattern returned."""
        kwargs = self._begin(module, query, kwargs)
        query, key, value = self._scaled(query, key, value)
        temperature = self.rules.softmax if torch.is_grad_enabled() else 1
        if temperature == 1:
            return eager(module, query, key, value, mask, **kwargs)
        with torch.no_grad():
            output, pattern = eager(module, query, key, value, mask, **kwargs)
        assert pattern is not None
        if temperature == "detached":
            pattern = pattern.detach().requires_grad_()  # a leaf, so that the pattern has a gradient and passes none on
        else:
            self._test(eager, module, query, key, value, kwargs, temperature)
            cooled, mask_T, kwargs_T = _divided(module, mask, kwargs, temperature)
            _, pattern_T = eager(cooled, query, key, value.detach(), mask_T, **kwargs_T)
            assert pattern_T is not None
            pattern = grafted(pattern.detach(), pattern_T, temperature)
        return grafted(output.detach(), mixed(pattern, value)), pattern

    def _begin(self, module: nn.Module, query: Tensor, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        row = self.rows[id(module)]
        row.count()
        if kwargs.get("dropout"):
            raise RuleError(
                f"{row.path} runs with dropout {kwargs['dropout']} inside backward_rules, which gives equal inputs "
                "unequal scores: call model.hf.eval()"
            )
        scale = kwargs.get("scaling")
        return {**kwargs, "scaling": query.shape[-1] ** -0.5 if scale is None else scale}

    def _scaled(self, *qkv: Tensor) -> tuple[Tensor, ...]:
        return tuple(scaled(x, factor) for x, factor in zip(qkv, self.rules.qkv, strict=True))

    def _test(
        self,
        own: Attend,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kwargs: Mapping[str, Any],
        temperature: float,
    ) -> None:
        """Settle once a module whether its function obeys the temperature: else the gradient would be another one."""
        row, known = self.rows[id(module)], _tested.setdefault(module, {})
        which = (getattr(own, "__qualname__", ""), getattr(own, "__module__", ""), temperature, query.dtype)
        if which not in known:
            with torch.no_grad():
                known[which] = _deviation(own, module, query, key, value, kwargs, temperature)
        row.value = known[which]
        if not row.value <= _TOLERANCE:
            raise RuleError(
                f"{row.path} ({type(module).__name__}): its attention function at scale/{temperature:g} is off the "
                f"softmax at temperature {temperature:g} by {row.value:.2g} of a probability, so that the rule cannot "
                "stand around it; attn_implementation='eager' may help"
            )


def _divided(
    module: nn.Module, mask: Tensor | None, kwargs: Mapping[str, Any], temperature: float
) -> tuple[nn.Module, Tensor | None, dict[str, Any]]:
    """What makes the scores, divided by the temperature: the sinks that a module holds, the mask, the arguments."""
    divided = dict(kwargs)
    for name in ("scaling", *_WITH_SCORES):
        if divided.get(name) is not None:
            divided[name] = divided[name] / temperature
    if isinstance(mask, Tensor) and mask.is_floating_point():
        mask = mask / temperature
    sinks = getattr(module, "sinks", None)
    cooled: Any = module if sinks is None else _WithSinks(module, sinks / temperature)
    return cooled, mask, divided


class _WithSinks:
    """An attention module with other sinks, as its function sees it: some read the module's own, whatever they get."""

    def __init__(self, module: nn.Module, sinks: Tensor) -> None:
        self._module, self.sinks = module, sinks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _deviation(
    own: Attend,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kwargs: Mapping[str, Any],
    temperature: float,
) -> float:
    """How far the function at temperature T is off P^(1/T) / sum P^(1/T), on four random positions; 0 is right.

    The values are unit vectors, so that the output is the pattern P; a sink's share is what P lacks.
    """
    made, size = torch.Generator().manual_seed(0), min(4, query.shape[-1], value.shape[-1])
    sinks = getattr(module, "sinks", None) is not None or kwargs.get("s_aux") is not None
    dtype = torch.float32 if sinks else query.dtype  # a share that is a difference of shares needs the digits
    q, k = (
        torch.randn(1, x.shape[1], size, x.shape[-1], generator=made).to(device=query.device, dtype=dtype)
        for x in (query, key)
    )
    v = torch.eye(size, value.shape[-1], dtype=dtype, device=query.device).expand(1, value.shape[1], -1, -1)
    kept = {name: x for name, x in kwargs.items() if name in ("scaling", "softcap", "s_aux", "dropout")}
    cooled, _, kept_T = _divided(module, None, kept, temperature)
    shares = own(module, q, k, v, None, **kept)[0].double()
    found = own(cooled, q, k, v, None, **kept_T)[0].double()
    sink = (1 - shares.sum(-1, keepdim=True)).clamp(min=0) if sinks else torch.zeros_like(shares[..., :1])
    wanted = torch.cat([shares, sink], -1) ** (1 / temperature)
    wanted = (wanted / wanted.sum(-1, keepdim=True))[..., :-1]
    return float((found - wanted).abs().max())
