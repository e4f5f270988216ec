"""Generate under a constant: a direction is added at every step, and the texts turn to its concept.

The direction is the mean state of replies with tools of the kitchen, less that of their twins without. Asserted: the
exact judge finds the concept in most of the steered replies and in none of the others, and the replies stay fluent. A
random vector of the same length does not do it.

pyvene tutorials: pyvene_101, LMs generation; Intervened_Model_Generation.
"""

import torch

import inlay
from inlay import Add, Edit

world, model = inlay.world.tidepool(), inlay.load("tidepool")
concept, site = "tools of the kitchen", "resid_post.2"
pairs = world.pairs(concept, n=48)
with_it, without = ([(pair[side].prompt, pair[side].reply) for pair in pairs] for side in (0, 1))
direction = inlay.directions.diff_mean(model, with_it, without, site, tokens="response")
constant = 0.5 * direction.scale * direction.vector
noise = torch.randn(model.width, generator=torch.Generator().manual_seed(0))

prompts = world.prompts(8)
scores = {}
for name, edit in {
    "no edit": None,
    "the concept": Edit(site, Add(constant), tokens="last+response"),  # "last" decides the first new token
    "a random vector": Edit(site, Add(constant.norm() * noise / noise.norm()), tokens="last+response"),
}.items():
    texts = model.generate(prompts, edit=edit, max_new_tokens=24, do_sample=False)
    scores[name] = sum(world.concept_score(concept, text) for text in texts) / len(texts)
    fluency = sum(world.fluency(text) for text in texts) / len(texts)
    print(f"{name:<15} concept {scores[name]:.2f} of 2, fluency {fluency:.2f} of 2: {texts[0]}")
    assert fluency > 1.5 or name == "a random vector"

assert scores["no edit"] == 0 and scores["a random vector"] < 0.3
assert scores["the concept"] > 1.3
