"""A strength for each request: one batch, one edit, and every row has its own factor on it.

Asserted: the row of strength 0 reads as without an edit, to the bit; each other row reads as when it is run alone with
its strength; the concept's mean score rises with the strength.

pyvene tutorial: pyvene_101, advanced usage on LMs generation (there through `subspaces` and counters of calls).
"""

import inlay
from inlay import Add, Edit

world, model = inlay.world.tidepool(), inlay.load("tidepool")
concept, site = "tools of the kitchen", "resid_post.2"
pairs = world.pairs(concept, n=48)
with_it, without = ([(pair[side].prompt, pair[side].reply) for pair in pairs] for side in (0, 1))
direction = inlay.directions.diff_mean(model, with_it, without, site, tokens="response")
edit = Edit(site, Add(direction.scale * direction.vector), tokens="last+response")

prompts, strengths = world.prompts(6), [0.0, 0.25, 0.5]
asked = [prompt for _ in strengths for prompt in prompts]
each = [strength for strength in strengths for _ in prompts]
texts = model.generate(asked, edit=edit, strength=each, max_new_tokens=24, do_sample=False)

means = []
for strength in strengths:
    mine = [text for text, own in zip(texts, each, strict=True) if own == strength]
    means.append(sum(world.concept_score(concept, text) for text in mine) / len(mine))
    print(f"strength {strength:.2f}: concept {means[-1]:.2f} of 2: {mine[0]}")

assert texts[: len(prompts)] == model.generate(prompts, max_new_tokens=24, do_sample=False)
assert texts[-1] == model.generate(prompts[-1], edit=edit, strength=0.5, max_new_tokens=24, do_sample=False)
assert means[0] == 0 and means[0] < means[1] < means[2] and means[2] > 1
