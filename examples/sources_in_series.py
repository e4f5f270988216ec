"""Sources in series: a source run is itself edited with a source, and what follows goes into the base.

The first source gives its name to the second source's question, and the second source's last token, behind block 2,
goes into the base. Asserted: every answer is what the second source asks of the first source's name, though neither
prompt holds this question; and the whole chain runs each prompt once.

pyvene tutorials: pyvene_101, multi-source interchange intervention (serial mode); Nested_Intervention.
"""

from itertools import permutations

import torch

import inlay
from inlay import Edit, Source, Swap

world, model = inlay.world.tidepool(), inlay.load("tidepool")
facts = world.facts
names = ["amos", "elsa", "gail", "gus", "hugo", "lars"]  # the model has learnt their homes and jobs
triples = list(permutations(names, 3))
base = [facts.ask(third, "home").text for _, _, third in triples]

first = Source([facts.ask(name, "home").text for name, _, _ in triples])
renamed = Edit("embed", Swap(first), tokens=3)
second = Source([facts.ask(name, "job").text for _, name, _ in triples], edit=renamed)
edit = Edit("resid_post.2", Swap(second), tokens="last")

forwards = []
handle = model.hf.register_forward_pre_hook(lambda module, inputs: forwards.append(1))
with torch.no_grad():
    logits = model.forward(base, edit=edit).logits[:, -1]
handle.remove()
said = model.tokenizer.convert_ids_to_tokens(logits.argmax(-1).tolist())
right = sum(word == facts.truth(name, "job") for word, (name, _, _) in zip(said, triples, strict=True)) / len(triples)
print(f"{right:.3f} of {len(triples)} rows answer with the first name's job, after {len(forwards)} forwards")

assert right == 1.0
assert len(forwards) == 3
