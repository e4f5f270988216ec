"""Mean ablation: replace a state by its mean over many prompts, which keeps what these have in common.

Behind block 2, the last token of `about gus : which home ?` knows whose home is asked for. The mean over the questions
about all names says that a home is asked for, and not whose. Asserted: with the mean the model still answers with a
home, but seldom with the right one; with zero it does not even answer with a home.

pyvene tutorial: pyvene_101, set activations to a constant, here the mean.
"""

import torch

import inlay
from inlay import Edit, Mean, Source, Zero

world, model = inlay.world.tidepool(), inlay.load("tidepool")
facts = world.facts
asked = ["amos", "elsa", "gail", "gus", "hugo", "lars"]
questions = [facts.ask(name, "home").text for name in asked]
everyone = Source([facts.ask(name, "home").text for name in facts.names])
homes = model.tokenizer.convert_tokens_to_ids(facts.values["home"])
true = model.tokenizer.convert_tokens_to_ids([facts.truth(name, "home") for name in asked])


def chances(edit: Edit | None = None) -> tuple[float, float]:
    """The probabilities of the true home and of any home, means over the questions."""
    chance = model.read(questions, "logits", tokens="last", edit=edit)["logits"].softmax(-1)
    return float(chance[torch.arange(len(true)), true].mean()), float(chance[:, homes].sum(1).mean())


plain = chances()
mean = chances(Edit("resid_post.2", Mean(everyone), tokens="last"))
zero = chances(Edit("resid_post.2", Zero(), tokens="last"))
for name, (right, any_home) in {"no edit": plain, "mean": mean, "zero": zero}.items():
    print(f"{name:<8} P(the true home) {right:.3f}  P(a home) {any_home:.3f}")

assert plain[0] > 0.95
assert mean[0] < 0.3 and mean[1] > 0.95
assert zero[0] < 0.3 and zero[1] < 0.7
