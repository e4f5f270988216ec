"""Does "not every bird sings" follow? A causal model of several variables, one of which needs more than one dimension.

pyvene's notebook on MQNLI, natural language inference with quantifiers and negation. From `some bird does sing`, does
`not every bird does not sing` follow, is it excluded, or neither? Of a pair of sentences the causal model works out
whether both speak of the same `subject`, how their predicates relate (the same, opposite, unrelated), what the second
quantifier claims once a "does not" is drawn into it, and from these the answer. The network is written to do the same,
along directions that are drawn at random: block 0 puts the subject's match along one, and the predicate's three values
at the corners of a triangle; block 1 concludes. The words lie in the same states.

Asserted, because it is written so: searched for together, one dimension for the subject and two for the predicate act
as these variables on unseen pairs, alone and together, although exchanging the predicate has to carry through the
negation into the quantifier. The three corners of a triangle cannot be told apart along one line, so that one dimension
for the predicate is not enough. The two subspaces found are those that were written, and neither does for the other.

    python examples/studies/mqnli.py
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import torch
from torch import Tensor, nn

import inlay
from inlay.causal import CausalModel, counterfactuals, das

EVERY, SOME, NO, NOT_EVERY = range(4)
SAME, OPPOSITE, UNRELATED = range(3)
NEUTRAL, FOLLOWS, EXCLUDED = range(3)
KINDS = {"quantifier": range(4), "noun": range(4, 9), "does": range(9, 11), "verb": range(11, 16)}
WORDS = [*KINDS, *(f"{kind}2" for kind in KINDS)]
NEGATED = {EVERY: NO, NO: EVERY, SOME: NOT_EVERY, NOT_EVERY: SOME}  # every one does not: no one does
IMPLIED = {(EVERY, SOME), (NO, NOT_EVERY), *zip(range(4), range(4), strict=True)}
AGAINST = {(EVERY, NO), (EVERY, NOT_EVERY), (SOME, NO)}
WIDTH, SUBJECT, PREDICATE, ANSWER = 22, [16], [17, 18], [19, 20, 21]  # directions; the first 16 are the words'
CORNERS = torch.tensor([[1.0, 0.0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]])  # of the same, opposite, unrelated


def relation(does: int, verb: int, does2: int, verb2: int) -> int:
    return UNRELATED if verb != verb2 else SAME if does == does2 else OPPOSITE


def claim(quantifier2: int, predicate: int) -> int:
    return NEGATED[quantifier2] if predicate == OPPOSITE else quantifier2


def answer(quantifier: int, subject: bool, predicate: int, claim: int) -> int:
    if not subject or predicate == UNRELATED:
        return NEUTRAL
    if (quantifier, claim) in IMPLIED:
        return FOLLOWS
    return EXCLUDED if {(quantifier, claim), (claim, quantifier)} & AGAINST else NEUTRAL


inference = CausalModel(
    [*WORDS, "subject", "predicate", "claim", "answer"],
    values=dict(zip(WORDS, [*KINDS.values()] * 2, strict=True)),
    parents={
        "subject": ["noun", "noun2"],
        "predicate": ["does", "verb", "does2", "verb2"],
        "claim": ["quantifier2", "predicate"],
        "answer": ["quantifier", "subject", "predicate", "claim"],
    },
    functions={"subject": int.__eq__, "predicate": relation, "claim": claim, "answer": answer},
)


class Block(nn.Module):
    """Adds something to the last token's state, a function of all states."""

    def __init__(self, says: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.says = says

    def forward(self, h: Tensor) -> Tensor:
        return torch.cat([h[:, :-1], h[:, -1:] + self.says(h)[:, None]], 1)


class Inference(nn.Module):
    """The words of two sentences to the logits of neutral, follows, excluded."""

    def __init__(self) -> None:
        super().__init__()
        self.directions = torch.linalg.qr(torch.randn(WIDTH, WIDTH)).Q
        says = [[[answer(q, True, p, claim(q2, p)) for p in range(3)] for q2 in range(4)] for q in range(4)]
        self.table = torch.eye(3)[torch.tensor(says)]
        self.wte = nn.Embedding.from_pretrained(self.directions[:, :16].T.contiguous())
        self.blocks = nn.ModuleList([Block(self.relate), Block(self.conclude)])
        self.lm_head = nn.Linear(WIDTH, 3, bias=False)
        self.lm_head.weight.data = 6 * self.directions[:, ANSWER].T

    def relate(self, h: Tensor) -> Tensor:
        """Whether the subjects match, and the corner of the predicates' relation."""
        words = h @ self.directions[:, :16]
        noun, does, verb = ((words[:, at] * words[:, at + 4]).sum(-1) for at in (1, 2, 3))
        corner = torch.stack([verb * does, verb * (1 - does), 1 - verb], -1) @ CORNERS
        return torch.cat([noun[:, None], corner], -1) @ self.directions[:, [*SUBJECT, *PREDICATE]].T

    def conclude(self, h: Tensor) -> Tensor:
        """What follows from them and the two quantifiers."""
        own = h @ self.directions
        subject, relation = own[:, -1, SUBJECT], 1 / 3 + 2 / 3 * own[:, -1, PREDICATE] @ CORNERS.T
        matched = torch.einsum("ra,rb,rp,abpn->rn", own[:, 0, :4], own[:, 4, :4], relation, self.table)
        return (subject * matched + (1 - subject) * torch.eye(3)[NEUTRAL]) @ self.directions[:, ANSWER].T

    def forward(self, ids: Tensor) -> Tensor:
        h = self.wte(ids)
        for block in self.blocks:
            h = block(h)
        return self.lm_head(h)


def main() -> None:
    torch.manual_seed(0)
    net = Inference()
    model = inlay.load(net, example=torch.zeros(1, 8, dtype=torch.long))
    groups = ["subject", "predicate", ("subject", "predicate")]
    train, test = (
        counterfactuals(
            inference, n, groups, lambda run: [run[w] for w in WORDS], lambda r: r["answer"], sample=draw, seed=n
        )
        for n in (3000, 900)
    )
    said = model.forward([row.base for row in test]).logits[:, -1].argmax(-1)
    assert said.tolist() == [row.base_label for row in test]

    for size in (1, 2):
        ranks = {"subject": 1, "predicate": size}
        found = das(model, train, "resid_post.0", ranks, test=test, epochs=8, lr=2e-2)
        print(f"{size} dimension(s) for the predicate\n{found.accuracy}")
        if size == 1:
            assert found.accuracy["predicate"].iia < 0.9
    for name, where in (("subject", SUBJECT), ("predicate", PREDICATE)):
        one, angles = found.accuracy[name], found.principal_angles(net.directions[:, where], name).rad2deg()
        print(f"{name}: degrees from what was written", [f"{angle:.0f}" for angle in angles])
        assert one.iia > 0.98 and angles.max() < 40
        assert one.random is not None and max(one.no_swap, one.random, one.full_swap, *one.other.values()) < 0.9
    assert found.accuracy["subject", "predicate"].iia > 0.98


def draw(rng: Random) -> dict[str, int]:
    """A pair of sentences of which most share the noun and half the verb."""
    run = inference.sample(rng)
    run |= {"noun2": run["noun"]} if rng.random() < 0.7 else {}
    return run | ({"verb2": run["verb"]} if rng.random() < 0.5 else {})


if __name__ == "__main__":
    main()
