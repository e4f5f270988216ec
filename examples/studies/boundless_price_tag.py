"""Is the price between the two bounds? Boundless DAS finds the check of the lower bound, and how large it is.

pyvene's notebook on Boundless DAS and the price tagging game ("yes if it costs between 1.30 and 8.55 dollars"). Alpaca
was found to check both bounds and to join the checks. Here a network is written that does just this, in directions of
its residual stream that are drawn at random: block 0 puts "not below the lower bound" along one and "not above the
upper bound" along another, and block 1 says yes where both hold. The bounds, the price and 10 random features of it
lie in the same stream of 16 dimensions.

Asserted, because it is written so: one dimension is all there is to a check. The boundary, which starts at 8 of 16
dimensions, must come down to 1 (3 are allowed), and with the mask at its limit the interchange must act as the variable
on rows that were not trained on, as the direction that was written does. A random subspace of equal rank does not, nor
does the whole state, which takes the other check along; nor the price, which lies in the same state and decides the
check, but has been compared by then. What is kept leans towards the direction that was written. It need not lie along
it: whatever else is exchanged, block 1 does not read.

The mask's temperature counts in dimensions. From 50, which is made for thousands of them, the weights of 16 would all
stay at 1/2 for most of the training, and the penalty alone would decide where the boundary goes.

    python examples/studies/boundless_price_tag.py
"""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from random import Random

import torch
from torch import Tensor, nn

import inlay
from inlay import Boundless, Edit, LowRank
from inlay.causal import CausalModel, counterfactuals, das, interchange_accuracy

WIDTH, PRICES = 16, 40
PRICE, LOW, HIGH, ABOVE, BELOW, YES = range(6)  # what each direction holds; the rest are random features of a price
NO_ID, YES_ID = 0, 1


class Block(nn.Module):
    """Adds something to the last token's state, a function of all states."""

    def __init__(self, says: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.says = says

    def forward(self, h: Tensor) -> Tensor:
        return torch.cat([h[:, :-1], h[:, -1:] + self.says(h)[:, None]], 1)


class PriceTag(nn.Module):
    """The tokens low, high, price, which are prices, to the logits of no and yes."""

    def __init__(self) -> None:
        super().__init__()
        self.directions = torch.linalg.qr(torch.randn(WIDTH, WIDTH)).Q
        features = torch.randn(PRICES, WIDTH)
        features[:, :6] = 0
        features[:, PRICE] = torch.linspace(0, 1, PRICES)
        self.wte = nn.Embedding.from_pretrained(features @ self.directions.T)
        self.blocks = nn.ModuleList([Block(self.compare), Block(self.join)])
        self.lm_head = nn.Linear(WIDTH, 2, bias=False)
        self.lm_head.weight.data = 8 * torch.stack([-self.directions[:, YES], self.directions[:, YES]])

    def compare(self, h: Tensor) -> Tensor:
        """Both bounds, and what they say of the price."""
        low, high, price = (h @ self.directions[:, PRICE]).unbind(1)
        checks = (price > low - 1e-3).float(), (price < high + 1e-3).float()
        return torch.stack([low, high, *checks], -1) @ self.directions[:, [LOW, HIGH, ABOVE, BELOW]].T

    def join(self, h: Tensor) -> Tensor:
        """1/2 where both checks hold, else below 0."""
        checks = h[:, -1] @ self.directions[:, [ABOVE, BELOW]]
        return (checks.sum(-1, keepdim=True) - 1.5) * self.directions[:, YES]

    def forward(self, ids: Tensor) -> Tensor:
        h = self.wte(ids)
        for block in self.blocks:
            h = block(h)
        return self.lm_head(h)


game = CausalModel(
    ["low", "high", "price", "above", "below", "answer"],
    values={"low": range(20), "high": range(20, PRICES), "price": range(PRICES)},
    parents={"above": ["price", "low"], "below": ["price", "high"], "answer": ["above", "below"]},
    functions={
        "above": lambda price, low: price >= low,
        "below": lambda price, high: price <= high,
        "answer": lambda above, below: YES_ID if above and below else NO_ID,
    },
)


def main() -> None:
    torch.manual_seed(0)
    net = PriceTag()
    model = inlay.load(net, example=torch.tensor([[0, 0, 0]]))
    ids = itemgetter("low", "high", "price")
    train, test = (counterfactuals(game, n, ["above"], ids, sample=even, seed=n) for n in (2048, 512))
    said = model.forward([row.base for row in test]).logits[:, -1].argmax(-1)
    right = (said == torch.tensor([row.base_label for row in test])).float().mean()

    start = Boundless(None, WIDTH, temperature=5.0)
    found = das(model, train, "resid_post.0", start, test=test, epochs=16, lr=1e-2, cool_to=0.1)
    boundary, score = found.intervention(), found.accuracy["above"]
    kept = int(boundary.kept().sum())
    angle = float(found.principal_angles(net.directions[:, [ABOVE]])[0].rad2deg())

    def along(slot: int) -> float:
        """The accuracy of an interchange along one of the directions that were written."""
        written = Edit("resid_post.0", LowRank.of(net.directions[:, [slot]]), "last")
        return interchange_accuracy(model, test, written).iia

    print(f"the network answers {right:.3f} of the questions right")
    print(
        f"boundary at {boundary.rank():.2f} of {WIDTH} dimensions, {kept} kept, {angle:.0f} degrees from the direction"
    )
    print(found.accuracy)
    print(f"as written: lower bound {along(ABOVE):.3f}, upper bound {along(BELOW):.3f}, price {along(PRICE):.3f}")

    assert right == 1 and along(ABOVE) == 1
    assert 1 <= kept <= 3 and score.hard is not None and score.hard > 0.95
    assert angle < 45
    assert max(score.no_swap, score.random, score.full_swap, along(BELOW), along(PRICE)) < 0.85


def even(rng: Random) -> dict[str, int]:
    """A run in which the price is as often above the lower bound as not."""
    return game.sample_for("above", rng.random() < 0.5, rng)


if __name__ == "__main__":
    main()
