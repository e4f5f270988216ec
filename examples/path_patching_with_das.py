"""Path patching in a learned subspace: which directions of a state matter along one path.

tidepool continues `list : cloak box mug , cloak` with `box`. The state of the first `box` behind block 3 reaches the
answer through the values of block 4's heads (`path_patching.py`). All other paths are held at the base run: the queries
and keys of block 4 and the heads of block 5. Along the one that is left, 16 directions of the 128 are trained so that
exchanging them makes the model continue with the source's word. Asserted on lists that were not trained on: they do so
in more than 0.8 of the lists and a random subspace of the same rank in none; the whole state does in all.

pyvene tutorial: pyvene_101, path patching with trainable interventions.
"""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

import inlay
from inlay import Edit, LowRank, Source, Swap

world, model = inlay.world.tidepool(), inlay.load("tidepool", chat=False)


class Lists:
    """Pairs of lists that differ in one word, whose run's states are read once."""

    def __init__(self, split: str, n: int) -> None:
        lines = list(world.lines("circuits", n, split, "induction"))
        self.base = ["<|bos|> <|doc|> " + line.truth["question"] for line in lines]
        self.source = ["<|bos|> <|doc|> " + line.truth["counterfactual"] for line in lines]
        at = [next(s.start for s in line.spans if s.label == "causal") for line in lines]
        self.at = torch.tensor(at)[:, None]  # the word's token in each row, [rows, 1]
        words = [text.split()[token] for text, token in zip(self.source, at, strict=True)]
        self.answers = torch.tensor(model.tokenizer.convert_tokens_to_ids(words))
        self.last = torch.tensor([len(text.split()) - 1 for text in self.base])
        self.there = Source(model.read(self.source, "resid_post.3", tokens=self.at))
        own = Source(model.read(self.base, ["q.4", "k.4", "z.5"]))
        self.held = Edit("q.4", Swap(own)) + Edit("k.4", Swap(own)) + Edit("z.5", Swap(own))
        self.states = model.states(self.base, "resid_post.2")  # nothing below changes: it is run once

    def logits(self, interchange: Swap | LowRank) -> torch.Tensor:
        """At the last token, with the word's state exchanged along the path."""
        edit = Edit("resid_post.3", interchange.with_source(self.there), tokens=self.at) + self.held
        return model.resume(self.states, edit=edit).logits[torch.arange(len(self.base)), self.last]

    def share(self, interchange: Swap | LowRank) -> float:
        """How many lists are continued with the source's word."""
        with torch.no_grad():
            return float((self.logits(interchange).argmax(-1) == self.answers).float().mean())


train, test = Lists("train", 64), Lists("test", 40)
whole, subspace = Swap(None), LowRank(None, model.width, rank=16)
random = test.share(subspace)
optimizer = torch.optim.Adam(subspace.parameters(), lr=0.03)
for _ in range(30):
    loss = cross_entropy(train.logits(subspace), train.answers)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
trained, every = test.share(subspace), test.share(whole)
print(
    f"the source's word follows in {random:.2f} (random), {trained:.2f} (trained), {every:.2f} (whole state) of lists"
)

assert random == 0.0 and trained > 0.8 and every == 1.0
