"""The product rule: what a product of two functions of x gives each of its factors, 1/2 in LRP's uniform rule.

GIM (2505.17630), rule "gradient division"; AttnLRP (2402.05602), Proposition 3.3. The factor is put on the gradient of
the part's input, which equals putting it on the product: both factors are functions of that one input.
"""

from __future__ import annotations

from torch import Tensor

from inlay.attribute.report import Row
from inlay.attribute.surrogate import scaled
from inlay.model.patch import Args, Here, Kwargs, Layer


class InputLayer(Layer):
    """Around one module: scales the gradients of its float inputs, the first by `factors[0]`, and so on.

    A mixture's experts take (hidden states, router weights): the first passes two products, act(gate) * up inside each
    expert and expert * weight, and the second one.
    """

    order = 1 << 60  # behind every run's layers, whose Sites see the scaled gradient

    def __init__(self, here: Here, row: Row, factors: tuple[float, ...]) -> None:
        super().__init__(here)
        self.row, self.factors = row, factors

    def before(self, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """Scale what the module is given."""
        self.row.count()
        factors = iter(self.factors)
        named = [*enumerate(args), *kwargs.items()]
        new = {
            key: scaled(value, next(factors, 1.0)) if isinstance(value, Tensor) and value.is_floating_point() else value
            for key, value in named
        }
        return tuple(new[i] for i in range(len(args))), {name: new[name] for name in kwargs}
