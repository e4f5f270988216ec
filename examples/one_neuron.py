"""One number: one neuron of one head at one token.

Neuron 7 of head 1 of block 4 takes the value that it has in another prompt. Asserted: of the outputs of all heads up to
block 4 it alone changes, and the logits are those of a hook on the output projection's input.

pyvene tutorial: pyvene_101, intervene on a single neuron.
"""

import torch

import inlay
from inlay import Edit, Source, Swap

world, model = inlay.world.tidepool(), inlay.load("tidepool")
elsa, gus = (world.facts.ask(name, "home").text for name in ("elsa", "gus"))

edit = Edit("z.4.h1", Swap(Source(gus), dims=[7]), tokens="last")
sites = [f"z.{layer}" for layer in range(5)]
before = model.forward(elsa, read=sites)
after = model.forward(elsa, edit=edit, read=sites)
changed = (before.acts.stack() != after.acts.stack()).nonzero().tolist()  # layer, row, token, head, neuron
value = model.read(gus, "z.4.h1", tokens="last")["z.4.h1"][0, 7]


def by_hand(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    """Head 1 has the columns 32 to 63 of the output projection's input."""
    new = inputs[0].clone()
    new[0, -1, 32 + 7] = value
    return (new,)


handle = model.hf.model.layers[4].self_attn.o_proj.register_forward_pre_hook(by_hand)
expected = model.forward(elsa).logits
handle.remove()
effect = (after.logits - before.logits).abs().max()
print(f"changed numbers (layer, row, token, head, neuron): {changed}; the largest change of a logit is {effect:.4f}")

last = before.logits.shape[1] - 1
assert changed == [[4, 0, last, 1, 7]]
assert after.logits.equal(expected) and effect > 1e-4
