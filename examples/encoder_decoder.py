"""An encoder-decoder model: edits in both stacks of one call.

A T5 with random weights. The named Sites are the decoder's, and the encoder's blocks are raw Sites; Tokens count in the
stack that the Site lies in. Asserted: an addition in each stack gives what hooks on both blocks give; swapping the
encoder's last state gives the logits of the other input; the encoder alone has named Sites of its own.

pyvene tutorial: Add_New_Model_Type.
"""

import torch
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

import inlay
from inlay import Add, Edit, Source, Swap

torch.manual_seed(0)
shape = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4}
config = T5Config(vocab_size=64, decoder_start_token_id=0, pad_token_id=0, **shape)
hf = T5ForConditionalGeneration(config).eval().requires_grad_(False)
model = inlay.load(hf)
base, source = [[5, 9, 17, 33, 2], [40, 3, 21, 7, 9]], [[31, 22, 13, 44, 7], [55, 6, 8, 12, 3]]
decoded = {"decoder_input_ids": torch.tensor([[0, 7, 9], [0, 5, 5]])}
vector = torch.randn(32)

in_both = Edit("module:encoder.block.1:out", Add(vector), tokens="last") + Edit("resid_post.1", Add(vector), tokens=1)
edited = model.forward(base, edit=in_both, **decoded)


def add_at(token: int) -> object:
    """A hook that adds the vector at one token of a block's output."""

    def hook(module: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        new = (output if isinstance(output, Tensor) else output[0]).clone()
        new[:, token] += vector
        return new if isinstance(output, Tensor) else (new, *output[1:])

    return hook


handles = [
    hf.encoder.block[1].register_forward_hook(add_at(4)),  # the last of 5
    hf.decoder.block[1].register_forward_hook(add_at(1)),
]
expected = hf(torch.tensor(base), **decoded).logits
for handle in handles:
    handle.remove()

swap = Edit("module:encoder.final_layer_norm:out", Swap(Source(source)))
swapped = model.forward(base, edit=swap, **decoded).logits
alone = inlay.load(hf.get_encoder()).read(base, "resid_post.1")["resid_post.1"]
within = model.forward(base, read="module:encoder.block.1:out", **decoded).acts["module:encoder.block.1:out"]
print(f"{model}; positions that each part changed: {edited.touched}")
print(f"the encoder alone has {', '.join(inlay.load(hf.get_encoder()).sites().places)}")

torch.testing.assert_close(edited.logits, expected)
assert edited.touched == [2, 2]
torch.testing.assert_close(swapped, model.forward(source, **decoded).logits)
torch.testing.assert_close(alone, within)
