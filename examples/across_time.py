"""Across time: the state that a recurrent model has at one step of a source run, at another step of the base run.

A Mamba with random weights; the source's token 6 goes to the base's token 3. Asserted: the steps before 3 are as they
were, to the bit; the logits are those of a hook that writes the source's state there; step 3 and all later ones change.

pyvene tutorial: pyvene_101, recurrent networks (a specific timestep).
"""

import torch
from transformers import MambaConfig, MambaForCausalLM

import inlay
from inlay import Edit, Source, Swap

torch.manual_seed(0)
config = MambaConfig(vocab_size=64, hidden_size=32, state_size=8, num_hidden_layers=3, initializer_range=0.3)
hf = MambaForCausalLM(config).eval().requires_grad_(False)
model = inlay.load(hf)
base, source = torch.randint(1, 64, (2, 4, 9))  # 4 rows of 9 ids each

edit = Edit("resid_post.0", Swap(Source(source, tokens=6)), tokens=3)
plain, edited = model.forward(base).logits, model.forward(base, edit=edit).logits

kept = []
handle = hf.backbone.layers[0].register_forward_hook(lambda module, inputs, output: kept.append(output[:, 6]))
hf(source)
handle.remove()


def write(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
    """Block 0's output with the source's state of step 6 at step 3."""
    return torch.cat([output[:, :3], kept[0][:, None], output[:, 4:]], 1)


handle = hf.backbone.layers[0].register_forward_hook(write)
expected = hf(base).logits
handle.remove()
change = (edited - plain).abs().amax((0, 2))
print(f"largest change of a logit at each step: {[round(float(one), 2) for one in change]}")

torch.testing.assert_close(edited, expected)
assert edited[:, :3].equal(plain[:, :3]) and bool((change[3:] > 0.01).all())
