"""Several tokens as one state: the intervention sees the selected positions side by side.

With `joint=True` a function gets [rows, 1, 2 width] for two tokens, and can so move what is at one to the other.
Asserted: exchanging the embeddings of two words of a list gives, bit for bit, the logits of the list with the words
exchanged; the model continues the edited list as it would that one, and not as the list that it was given.

Beyond pyvene's tutorials, where each position has an intervention of its own.
"""

import torch
from torch import Tensor

import inlay
from inlay import Edit

model = inlay.load("tidepool", chat=False)
words = ["<|bos|>", "<|doc|>", "list", ":", "cloak", "box", "mug", "key", "arrow", ",", "cloak"]
first, second = words.index("box"), words.index("key")
exchanged = [*words]
exchanged[first], exchanged[second] = words[second], words[first]


def exchange(h: Tensor) -> Tensor:
    """The two halves of a joint state, the other way round."""
    left, right = h.chunk(2, -1)
    return torch.cat([right, left], -1)


edit = Edit("embed", exchange, tokens=[first, second], joint=True)
plain = model.read(" ".join(words), "logits", tokens="last")["logits"]
edited = model.read(" ".join(words), "logits", tokens="last", edit=edit)["logits"]
meant = model.read(" ".join(exchanged), "logits", tokens="last")["logits"]
said = [model.tokenizer.decode(logits[0].argmax()) for logits in (plain, edited)]
print(f"{' '.join(words[2:])!r} goes on with {said[0]!r}, and with two words exchanged by {said[1]!r}")

assert edited.equal(meant)
assert said == ["box", "key"]
