"""Worlds: base and sources as rows of one batch, in place of one forward for each.

Asserted: the logits are those of separate forwards, to float tolerance; one forward runs in place of three; only the
base's rows come back; gradients are the same too.

Beyond pyvene's tutorials: after penzai's worlds axis.
"""

import torch

import inlay
from inlay import Add, Edit, Source, Swap

world, model = inlay.world.tidepool(), inlay.load("tidepool")
facts = world.facts
amos, elsa, gus = (facts.ask(name, what).text for name, what in (("amos", "home"), ("elsa", "home"), ("gus", "job")))
vector = torch.nn.Parameter(torch.zeros(model.width))
edit = (
    Edit("embed", Swap(Source(elsa)), tokens=3)  # the name
    + Edit("embed", Swap(Source(gus)), tokens=6)  # what is asked
    + Edit("resid_post.3", Add(vector), tokens="last")
)

forwards, logits, gradients = [], {}, {}
handle = model.hf.register_forward_pre_hook(lambda module, inputs: forwards.append(1))
for worlds in (False, True):
    forwards.clear()
    logits[worlds] = model.forward(amos, edit=edit, worlds=worlds).logits
    logits[worlds][0, -1].max().backward()
    gradients[worlds] = vector.grad.clone()
    vector.grad = None
    print(f"worlds={worlds}: {len(forwards)} forwards, logits {list(logits[worlds].shape)}")
    assert len(forwards) == (1 if worlds else 3)
handle.remove()

assert logits[True].shape[0] == 1
torch.testing.assert_close(logits[True], logits[False], rtol=0, atol=1e-4)
torch.testing.assert_close(gradients[True], gradients[False], rtol=1e-4, atol=1e-6)
assert model.tokenizer.decode(logits[True][0, -1].argmax()) == facts.truth("elsa", "job")
