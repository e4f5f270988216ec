"""A part of a state: swap some dimensions and leave the others.

The embedding of `elsa` becomes that of `gus`, in both halves of the dimensions, in all of them at once, or in the first
tenth. Asserted: the dimensions that are not named stay as they were, to the bit; both halves together are the whole
swap, to the bit; the whole swap makes the model answer with gus' home, and a tenth of the dimensions does not.

pyvene tutorial: pyvene_101, set activations with subspaces.
"""

import torch

import inlay
from inlay import Edit, Source, Swap

world, model = inlay.world.tidepool(), inlay.load("tidepool")
elsa, gus = (world.facts.ask(name, "home").text for name in ("elsa", "gus"))
source, half = Source(gus), model.width // 2
home = model.tokenizer.convert_tokens_to_ids(world.facts.truth("gus", "home"))


def swap(dims: slice | None) -> Edit:
    """The name's token, 3 of the chat, takes some dimensions from the source."""
    return Edit("embed", Swap(source, dims), tokens=3)


first, second = swap(slice(0, half)), swap(slice(half, model.width))
chances = []
edits = {"both halves": first + second, "all": swap(None), "a tenth": swap(slice(0, model.width // 10))}
for name, edit in edits.items():
    out = model.forward(elsa, edit=edit, read="embed", tokens=3)
    chances.append(out.logits[0, -1].softmax(-1)[home].item())
    print(f"{name:<11} P(the home of gus) = {chances[-1]:.3f}")

before, after = (model.forward(elsa, edit=edit, read="embed", tokens=3) for edit in (None, first))
assert after.acts["embed"][0, half:].equal(before.acts["embed"][0, half:])
assert not torch.equal(after.acts["embed"][0, :half], before.acts["embed"][0, :half])
assert chances[0] == chances[1] > 0.95 > 0.05 > chances[2]
