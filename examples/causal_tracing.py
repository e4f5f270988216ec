"""Causal tracing in 15 lines: corrupt a name, restore one state at a time, and see which states bring the answer back.

Asserted for `about gus : which home ?`: the corruption costs the answer most of its probability; restored states bring
it back at the name before block 1 and at the last token from block 1 on, and nowhere else; nothing at all is brought
back before the name, and the last block's state at the last token brings back all.

The result is a labelled array: `pip install 'inlay[causal]'`.

pyvene tutorials: pyvene_101, causal tracing in 15 lines; Causal_Tracing.
"""

import inlay
from inlay.causal import causal_trace

world, model = inlay.world.tidepool(), inlay.load("tidepool")
question = world.facts.ask("gus", "home").text
grid = causal_trace(model, question, "gus", answer=world.facts.truth("gus", "home"), noise=1.0)

effect = grid.sel(component="resid_post")
print(f"P = {grid.attrs['clean']:.3f}, with noise on the name {grid.attrs['corrupted']:.3f}; restored in resid_post:")
for layer in effect["layer"].values:
    print(f"  layer {layer}  " + " ".join(f"{float(one):5.2f}" for one in effect.sel(layer=layer)))
print("           " + " ".join(f"{word[:5]:>5}" for word in effect["text"].values))

total, values = grid.attrs["total_effect"], effect.values  # [layers, tokens]
name, last = 3, values.shape[1] - 1
found = {(layer, token) for layer, token in zip(*(values > 0.8 * total).nonzero(), strict=True)}
assert total > 0.9
assert found == {(0, name)} | {(layer, last) for layer in range(1, 6)}
assert sorted(abs(values).flatten())[-len(found) - 1] < 0.25 * total  # the largest of all the others
assert abs(grid.values[..., :name]).max() < 1e-6
assert abs(values[-1, last] - total) < 1e-6
