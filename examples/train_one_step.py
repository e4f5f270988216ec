"""One training step: a vector that is added to a state gets a gradient, and the model gets none.

Asserted: the step lowers the loss; the gradient is that of a vector added by a hook; the base's weights have none, and
are frozen as before.

pyvene tutorials: pyvene_101, trainable intervention; Intervention_Training.
"""

import torch

import inlay
from inlay import Add, Edit

world, model = inlay.world.tidepool(), inlay.load("tidepool")
lines = list(world.lines("facts", 16, "train", "question"))
prompts = [line.prompt for line in lines]
replies = ["eastgate"] * len(lines)  # what the vector shall make the model say, whatever is asked

vector = torch.nn.Parameter(torch.zeros(model.width))
edit = Edit("resid_post.3", Add(vector), tokens="last")
optimizer = torch.optim.SGD(edit.parameters(), lr=10.0)

before = model.forward(prompts, responses=replies, edit=edit, loss=True).loss
before.backward()
gradient = vector.grad.clone()
optimizer.step()
after = model.forward(prompts, responses=replies, edit=edit, loss=True).loss
print(f"loss {before:.3f}, after one step {after:.3f}")

rows = torch.arange(len(lines))
ends = torch.tensor([len(row.ids) - 1 for row in model.encoder.rows(prompts)])  # the last token of each prompt
by_hand = torch.zeros(model.width, requires_grad=True)


def hook(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
    """Block 3's output, with the vector at the last token of each prompt."""
    return output.index_put((rows, ends), by_hand.expand(len(lines), -1), accumulate=True)


handle = model.hf.model.layers[3].register_forward_hook(hook)
model.forward(prompts, responses=replies, loss=True).loss.backward()
handle.remove()

assert after < before - 0.1
torch.testing.assert_close(gradient, by_hand.grad)
assert all(weight.grad is None and not weight.requires_grad for weight in model.hf.parameters())
