"""Linking: one intervention at several Sites is one set of weights.

Asserted: the linked edit has one vector's parameters; its gradient is the sum of the gradients that two separate
vectors get at the two Sites; a step moves both places alike.

pyvene tutorial: pyvene_101, intervention linking.
"""

import torch

import inlay
from inlay import Add, Edit

world, model = inlay.world.tidepool(), inlay.load("tidepool")
lines = list(world.lines("facts", 8, "train", "question"))
data = {"prompts": [line.prompt for line in lines], "responses": [line.reply for line in lines], "loss": True}


def vector() -> Add:
    """A trainable vector that is zero."""
    return Add(torch.nn.Parameter(torch.zeros(model.width)))


shared, own = vector(), [vector(), vector()]
linked = Edit("resid_post.1", shared, tokens="last") + Edit("resid_post.3", shared, tokens="last")
apart = Edit("resid_post.1", own[0], tokens="last") + Edit("resid_post.3", own[1], tokens="last")
for edit in (linked, apart):
    model.forward(edit=edit, **data).loss.backward()
gradients = [add.vector.grad for add in (shared, *own)]
count = sum(parameter.numel() for parameter in linked.parameters())
print(f"{count} parameters; gradients of length {[round(float(one.norm()), 5) for one in gradients]}")

optimizer = torch.optim.SGD(linked.parameters(), lr=100.0)
optimizer.step()
with torch.no_grad():
    states = {}
    for site in ("resid_post.1", "resid_post.3"):
        found, left = (
            model.read(data["prompts"], site, tokens="last", edit=linked, before=before)[site]
            for before in (True, False)
        )
        states[site] = left - found

assert count == model.width
torch.testing.assert_close(gradients[0], gradients[1] + gradients[2])
torch.testing.assert_close(states["resid_post.1"], states["resid_post.3"], rtol=0, atol=1e-5)
assert states["resid_post.1"].norm() > 1e-3
