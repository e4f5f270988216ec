"""Skip a block: its output becomes its input, of this run or of another.

Asserted: skipping block 2 gives the logits of the model with that block taken out of its list; no question is answered
wrongly without block 2, and most are without block 0.

pyvene tutorial: pyvene_101, skip intervention.
"""

import copy

import torch

import inlay
from inlay import Edit, Skip

world, model = inlay.world.tidepool(), inlay.load("tidepool")
names = ["amos", "elsa", "gail", "gus", "hugo", "lars"]
questions = [world.facts.ask(name, "home").text for name in names]
true = model.tokenizer.convert_tokens_to_ids([world.facts.truth(name, "home") for name in names])


def logits(model: inlay.Model, edit: Edit | None = None) -> torch.Tensor:
    """At the last token, [questions, vocabulary]."""
    return model.read(questions, "logits", tokens="last", edit=edit)["logits"]


shorter = copy.deepcopy(model.hf)
del shorter.model.layers[2]
shorter.config.num_hidden_layers -= 1
without = inlay.load(shorter, tokenizer=model.tokenizer)

right = []
for layer in range(model.layers):
    said = logits(model, Edit(f"resid_post.{layer}", Skip())).argmax(-1)
    right.append(float((said == torch.tensor(true)).float().mean()))
    print(f"without block {layer}: {right[-1]:.2f} of the questions are answered rightly")

torch.testing.assert_close(logits(model, Edit("resid_post.2", Skip())), logits(without))
assert right[2] == 1.0 and right[0] < 0.5
