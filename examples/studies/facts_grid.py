"""Where is a fact about a name read? A patching grid over layers and tokens.

pyvene's notebook about capitals ("The capital of Spain is", patched from a run about Italy) on tidepool's facts. A run
that asks about one name is patched with a run that asks the same about another, one layer and token at a time; a cell
says how far the answer moves from the one name's value (0) to the other's (1).

Asserted, because it must be so: the runs differ in the name's token alone, so that at the embeddings its cell is 1 and
all others are 0; a token before the name never sees it; behind the last block only the last token is read. And found:
in between the fact goes straight from the name to the last token. The name's cells fall with depth, the last token's
rise, no other token ever carries much, and block 0's attention reads the most.

    python examples/studies/facts_grid.py [figure.png]
"""

from __future__ import annotations

import sys

import torch

import inlay
from inlay.causal import logit_difference, normalised, patch_grid

NAME = 3  # <|bos|> <|user|> about NAME : which RELATION ? ...


def main() -> None:
    torch.set_num_threads(1)
    world, model = inlay.world.tidepool(), inlay.load("tidepool")
    asked = pairs(world)
    base = [world.facts.ask(one, relation).text for one, _, relation in asked]
    source = [world.facts.ask(other, relation).text for _, other, relation in asked]
    towards = [world.facts.truth(other, relation) for _, other, relation in asked]
    away = [world.facts.truth(one, relation) for one, _, relation in asked]
    moved = normalised(logit_difference(towards, away))

    found = patch_grid(model, base, source, "resid_pre.*", metric=moved)
    words = found["text"].values[0].astype(object)
    words[[NAME, NAME + 3]] = "NAME", "RELATION"
    grid = found.mean("pair").assign_coords(text=("token", words))
    end = patch_grid(model, base, source, f"resid_post.{model.layers - 1}", metric=moved).mean("pair").values[0]
    read = patch_grid(model, base, source, "attn_out.*", tokens=-1, metric=moved).mean("pair").values[:, 0]

    print(f"{len(asked)} pairs such as {base[0]!r} <- {source[0]!r}")
    print("before block " + " ".join(f"{word:>8.8}" for word in words))
    for layer, row in enumerate([*grid.values, end]):
        print(f"{layer:>12} " + " ".join(f"{value:8.2f}" for value in row))
    print("the last token's attention, block by block:", " ".join(f"{value:.2f}" for value in read))
    if len(sys.argv) > 1:
        grid.plot(title="the answer about the other name").savefig(sys.argv[1], dpi=150)

    cells = torch.tensor(grid.values)
    name, last = cells[:, NAME], cells[:, -1]
    others = torch.cat([cells[:, NAME + 1 : -1], torch.tensor(end)[None, NAME + 1 : -1]])
    assert cells[:, :NAME].abs().max() < 1e-4 and cells[0, NAME + 1 :].abs().max() < 1e-4 and abs(name[0] - 1) < 1e-4
    assert abs(end[:-1]).max() < 1e-4 and abs(end[-1] - 1) < 1e-4
    assert (name.diff() < 0.01).all() and (last.diff() > -0.01).all() and others.abs().max() < 0.15
    assert read.argmax() == 0


def pairs(world: inlay.world.World) -> list[tuple[str, str, str]]:
    """Two names with different values of a relation, and the relation; none whose question a myth answers."""
    facts, found = world.facts, []
    for relation in facts.values:
        names = [name for name in facts.names if not facts.mythy(name, relation)]
        found += [(one, other, relation) for one, other in zip(names[::2], names[1::2], strict=False)]
    return [(one, other, r) for one, other, r in found if facts.truth(one, r) != facts.truth(other, r)][::2]


if __name__ == "__main__":
    main()
