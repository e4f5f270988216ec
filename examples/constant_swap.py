"""A constant in place of an activation: a vector that was read once replaces the state at one token.

The embedding of `gus` is put where `elsa` stands in `about elsa : which home ?`. Nothing else in the model has seen
which name it was. Asserted: the logits are, bit for bit, those of the question about gus, and gus' home is answered.

pyvene tutorial: pyvene_101, interventions with a constant source.
"""

import inlay
from inlay import Edit, Replace, span

world, model = inlay.world.tidepool(), inlay.load("tidepool")
elsa, gus = (world.facts.ask(name, "home").text for name in ("elsa", "gus"))

vector = model.read(gus, "embed", tokens=span("gus"))["embed"][0, 0]  # [width]
edit = Edit("embed", Replace(vector), tokens=span("elsa"))
edited = model.read(elsa, "logits", tokens="last", edit=edit)["logits"]
asked = model.read(gus, "logits", tokens="last")["logits"]
answer = model.generate(elsa, edit=edit, max_new_tokens=1, do_sample=False)
print(f"{elsa!r} with the embedding of gus is answered {answer!r}, without {world.facts.truth('elsa', 'home')!r}")

assert edited.equal(asked)
assert answer == world.facts.truth("gus", "home") != world.facts.truth("elsa", "home")
