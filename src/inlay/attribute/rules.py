"""Rule sets: which backward rules stand, as data. Every preset is one row.

Sources: GIM = Edin et al. 2025 (2505.17630); AttnLRP = Achtibat et al. 2024 (2402.05602) and CP-LRP = Ali et al. 2022
(2202.07304), both as in LXT; TransformerLRP = the GIM paper's baseline of that name; RelP = 2508.21258.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from inlay.errors import RuleError


@dataclass(frozen=True)
class RuleSet:
    """What the backward pass does at each kind of module; the defaults are the ordinary gradient.

    Attributes:
        name: for reports.
        norm: `"freeze"` holds sigma of every LayerNorm and RMSNorm; its mean-centring is still differentiated.
        softmax: the temperature T of the attention softmax's backward, dS = P_T (dP - sum(P_T dP)) with
            P_T = softmax(S / T); or `"detached"`: nothing flows into the pattern (which is the same as to q and k).
        qkv: what the gradients of q, k and v are multiplied by, before KV heads are repeated.
        product: what a product inside a feed-forward gives each of its factors (act(gate) * up; expert * router weight;
            shared expert * its gate); or `"gate_detached"`: the gate is a constant.
        activation: `"derivative"`: act'(x); `"ratio"`: act(x) / x (where the gate is detached: of ungated MLPs alone).

    Raises:
        RuleError: a field has a value that it cannot have.
    """

    name: str
    norm: Literal["ordinary", "freeze"] = "ordinary"
    softmax: float | Literal["detached"] = 1.0
    qkv: tuple[float, float, float] = (1.0, 1.0, 1.0)
    product: float | Literal["gate_detached"] = 1.0
    activation: Literal["derivative", "ratio"] = "derivative"

    def __post_init__(self) -> None:
        self._check("norm", self.norm in ("ordinary", "freeze"), "'ordinary' or 'freeze'")
        temperature = isinstance(self.softmax, (int, float)) and 0 < self.softmax < float("inf")
        self._check("softmax", self.softmax == "detached" or temperature, "a temperature above 0, or 'detached'")
        self._check("qkv", len(self.qkv) == 3, "three factors, of q, k and v")
        factor = isinstance(self.product, (int, float))
        self._check("product", self.product == "gate_detached" or factor, "a factor, or 'gate_detached'")
        self._check("activation", self.activation in ("derivative", "ratio"), "'derivative' or 'ratio'")

    def _check(self, field: str, fits: bool, wanted: str) -> None:
        if not fits:
            raise RuleError(f"RuleSet({self.name!r}, {field}={getattr(self, field)!r}): {field} is {wanted}")

    @property
    def attention(self) -> bool:
        """Whether attention has another gradient than its own."""
        return self.softmax != 1 or self.qkv != (1, 1, 1)


_LRP = (1 / 4, 1 / 4, 1 / 2)

PRESETS: dict[str, RuleSet] = {
    rules.name: rules
    for rules in (
        RuleSet("grad"),
        RuleSet("gim", "freeze", 2.0, _LRP, 1 / 2),
        RuleSet("attnlrp", "freeze", 1.0, _LRP, 1 / 2, "ratio"),
        RuleSet("cp_lrp", "freeze", "detached", (0, 0, 1), "gate_detached", "ratio"),
        RuleSet("transformer_lrp", "freeze", "detached", (0, 0, 1)),
        RuleSet("relp", "freeze", 1.0, (1, 1, 1), 1 / 2, "ratio"),
        RuleSet("relp_ah", "freeze", "detached", (0, 0, 1), 1 / 2, "ratio"),
    )
}


def rule_set(rules: str | RuleSet) -> RuleSet:
    """A preset by its name, or the RuleSet itself.

    Raises:
        RuleError: no preset is called so.
    """
    if isinstance(rules, RuleSet):
        return rules
    if rules not in PRESETS:
        raise RuleError(f"there is no rule set {rules!r}: there are {', '.join(PRESETS)}, or give a RuleSet")
    return PRESETS[rules]
