"""Read activations: any Site, layer and token of many prompts, with one call.

Asserted: the residual stream of every layer at the last token is what transformers' `output_hidden_states` has, for
prompts of unequal length, the shortest among them; and on requests that it has not seen, a nearest-mean probe on it
tells harmful from harmless.

pyvene tutorial: pyvene_101, activation collection.
"""

import torch

import inlay

world, model = inlay.world.tidepool(), inlay.load("tidepool")
harmful, harmless = (
    {split: [line.prompt for line in world.lines("safety", 30, split, kind)] for split in ("train", "test")}
    for kind in ("RH", "AL")
)

acts = model.read(harmful["test"], "resid_post.*", tokens="last")
row = min(range(30), key=lambda i: len(model.encoder.rows([harmful["test"][i]])[0].ids))
with torch.no_grad():
    ids = torch.tensor([model.encoder.rows([harmful["test"][row]])[0].ids])
    theirs = model.hf(ids, output_hidden_states=True).hidden_states
for layer in range(model.layers - 1):  # their last one is behind the final norm
    torch.testing.assert_close(acts[f"resid_post.{layer}"][row], theirs[layer + 1][0, -1])

site = "resid_post.2"
yes, no = (model.read(texts["train"], site, tokens="last")[site].mean(0) for texts in (harmful, harmless))
states = torch.cat([acts[site], model.read(harmless["test"], site, tokens="last")[site]])
nearer = (states - yes).norm(dim=1) < (states - no).norm(dim=1)
right = (nearer == torch.tensor([True] * 30 + [False] * 30)).float().mean()
print(
    f"read {len(acts)} Sites of shape {list(acts[site].shape)}; nearest mean at {site}: {right:.2f} of requests right"
)

assert right > 0.95
