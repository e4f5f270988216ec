"""Path patching: which heads speak to the output directly, and what speaks to those heads.

tidepool continues `list : cloak box mug , cloak` with `box`; the source has another word in the place of `box`.
Asserted: along the path that goes through no other head, three heads of block 4, which are the induction heads that
`attention_weights.py` finds by what they look at, cost the answer more than any other head does. What block 0's heads
say of `box` reaches them in their values: along the paths into their queries or keys nothing changes, since the word
before `box` is the same in both runs.

The results are labelled arrays: `pip install 'inlay[causal]'`.

pyvene tutorials: pyvene_101, path patching; IOI_Replication.
"""

import inlay
from inlay.causal import logit_difference, path_grid, path_patch

world, model = inlay.world.tidepool(), inlay.load("tidepool", chat=False)
lines = list(world.lines("circuits", 16, "test", "induction"))
base = ["<|bos|> <|doc|> " + line.truth["question"] for line in lines]
source = ["<|bos|> <|doc|> " + line.truth["counterfactual"] for line in lines]
metric = logit_difference([line.truth["answer"] for line in lines], [line.truth["foil"] for line in lines])

direct = path_grid(model, base, source, "z.*", "logits", metric=metric)  # layers x heads x pairs
clean = float(direct["clean"].mean())
drop = clean - direct.mean("pair")
cost = sorted(
    ((float(drop.sel(layer=layer, head=head)), (layer, head)) for layer in range(6) for head in range(4)), reverse=True
)
print(f"logit difference {clean:.2f}; the heads that cost it most, as (layer, head):")
for lost, head in cost[:5]:
    print(f"  {head}: -{lost:.2f}")

into = {}
for receiver in ("q.4", "k.4", "v.4"):
    changed = path_patch(model, base, source, "z.0", receiver, metric=metric)
    into[receiver] = clean - float(changed.mean("pair"))
    print(f"from block 0's heads into {receiver}: -{into[receiver]:.2f}")

assert {head for _, head in cost[:3]} == {(4, 0), (4, 1), (4, 3)}
assert cost[2][0] > 5 * cost[3][0]
assert into["v.4"] > 5 and abs(into["q.4"]) < 0.2 and abs(into["k.4"]) < 0.2
