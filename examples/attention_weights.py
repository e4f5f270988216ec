"""Attention weights: find the induction heads of tidepool by what they look at.

In `list : cloak box mug , cloak` the next word is the one that followed `cloak` the first time, so a head that does
this task looks from the second `cloak` at the first `box`. Asserted: three heads of block 4 have nearly all of their
weight there, whatever the list, and no head of the first three blocks has half of it; the weights are those that
transformers returns.

pyvene tutorial: pyvene_101, attention weights.
"""

import torch

import inlay

world, model = inlay.world.tidepool(), inlay.load("tidepool", chat=False)  # chat=False: a text is a document
lines = [line.truth["question"] for line in world.lines("circuits", 30, "test", "induction")]
prompts = ["<|bos|> <|doc|> " + line for line in lines if not line.endswith(",")]
words = [prompt.split() for prompt in prompts]
followers = torch.tensor([row.index(row[-1]) + 1 for row in words])  # the word behind the first one like the last

weights = model.read(prompts, "pattern.*", tokens="last").stack()  # [layers, rows, heads, keys]
there = weights[:, torch.arange(len(words)), :, followers].mean(0)  # [layers, heads]
found = [(layer, head) for layer, head in (there > 0.95).nonzero().tolist()]
print(f"{prompts[0]!r}: induction heads, as (layer, head): {found}")
print(there.numpy().round(2))

with torch.no_grad():
    eager = inlay.load("tidepool", attn_implementation="eager")
    ids = torch.tensor([model.tokenizer.convert_tokens_to_ids(words[0])])
    theirs = torch.stack(eager.hf(ids, output_attentions=True).attentions)[:, 0, :, -1]

torch.testing.assert_close(weights[:, 0, :, : len(words[0])], theirs)
assert found == [(4, 0), (4, 1), (4, 3)]
assert there[:3].max() < 0.5
