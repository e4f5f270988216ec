"""An encoder: read, add and swap in a masked language model, whose tokens see each other in both directions.

A BERT with random weights. Asserted: a read is what a hook sees, whatever the padding; an addition at one token gives
what a hook gives, and changes the logits before that token as well as behind it; swapping the last block's states gives
the source's logits; a Site that BERT lacks is an error that names those it has.

pyvene tutorial: Add_New_Model_Type (pyvene supports BERT by a map of its own).
"""

import torch
from transformers import BertConfig, BertForMaskedLM

import inlay
from inlay import Add, Edit, Source, Swap
from inlay.errors import SiteError

torch.manual_seed(0)
shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
hf = BertForMaskedLM(BertConfig(vocab_size=64, initializer_range=0.3, **shape)).eval().requires_grad_(False)
model = inlay.load(hf)
base, source = [[5, 9, 17, 33, 2], [40, 3, 21]], [[31, 22, 13, 44, 7], [55, 6, 8]]
vector = torch.randn(32)

seen = []
block = hf.bert.encoder.layer[1]
handle = block.register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
hf(torch.tensor([base[1]]))  # the short row alone, without padding
handle.remove()
acts = model.read(base, "resid_post.1")


def add(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
    """The vector at token 2."""
    new = output.clone()
    new[:, 2] += vector
    return new


handle = block.register_forward_hook(add)
expected = model.forward(base).logits
handle.remove()
plain = model.forward(base).logits
added = model.forward(base, edit=Edit("resid_post.1", Add(vector), tokens=2)).logits
swapped = model.forward(base, edit=Edit("resid_post.2", Swap(Source(source)))).logits
try:
    model.read(base, "attn_out.1")
    lacking = ""
except SiteError as error:
    lacking = str(error)
change = (added - plain).abs().amax(-1)[0]
print(f"largest change of a logit at each token: {[round(float(one), 2) for one in change]}\n{lacking}")

torch.testing.assert_close(acts.rows("resid_post.1")[1], seen[0][0], rtol=0, atol=1e-5)
torch.testing.assert_close(added, expected)
assert bool((change > 0.01).all())
torch.testing.assert_close(swapped[0], model.forward(source).logits[0])
assert "attn_out" in lacking and "resid_post" in lacking
