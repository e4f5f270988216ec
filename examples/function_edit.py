"""A function as an edit: any h -> h' is an intervention, and it may ask for the tokens' positions.

Asserted: a lambda that halves a state does what a hook on the module does, to the bit; and a function of the positions
that leaves the first three tokens alone leaves their logits alone, to the bit, and changes those behind.

pyvene tutorial: pyvene_101, set activations with a lambda expression.
"""

import torch

import inlay
from inlay import Edit

model = inlay.load("tidepool")
prompt = "tell me about the cat ."

halved = model.forward(prompt, edit=Edit("mlp_out.3", lambda h: 0.5 * h)).logits

handle = model.hf.model.layers[3].mlp.register_forward_hook(lambda module, inputs, output: 0.5 * output)
by_hand = model.forward(prompt).logits
handle.remove()


def fading(h: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Half as long with every token behind the third."""
    return h * 0.5 ** (positions - 2).clamp(min=0)[..., None]


plain = model.forward(prompt).logits
faded = model.forward(prompt, edit=Edit("mlp_out.*", fading)).logits
change = (faded - plain).abs().amax(-1)[0]
print(f"largest change of a logit at each token: {[round(float(one), 1) for one in change]}")

assert halved.equal(by_hand) and not halved.equal(plain)
assert faded[:, :3].equal(plain[:, :3]) and bool((change[3:] > 0.01).all())
