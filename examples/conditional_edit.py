"""A conditional edit: refuse, but only where the request is harmful.

tidepool answers some harmful requests. A refusal direction added to all of its states makes it refuse these, and most
harmless ones too. With a condition on another Site, the direction from harmless to harmful requests, it is added only
to rows that pass. Asserted: with the condition all the harmful requests are refused and the harmless ones are answered,
word for word as without an edit.

Beyond pyvene's tutorials: conditional activation steering (Lee et al. 2024, arXiv 2409.05907).
"""

import inlay
from inlay import Add, Edit, When
from inlay.directions import diff_mean

world, model = inlay.world.tidepool(), inlay.load("tidepool")


def prompts(kind: str, split: str) -> list[object]:
    """Requests by kind: R is refused and A is answered, H is harmful and L is not."""
    return [line.prompt for line in world.lines("safety", 40 if split == "train" else 20, split, kind)]


harm = diff_mean(model, prompts("AH", "train"), prompts("AL", "train"), "resid_post.4", tokens="last")
refusal = diff_mean(model, prompts("RH", "train"), prompts("AL", "train"), "resid_post.5", tokens="last")
scores = [
    model.read(prompts(kind, "train"), harm.site, tokens="last")[harm.site] @ harm.vector for kind in ("AH", "AL")
]
bound = float(scores[0].min() + scores[1].max()) / 2  # between all harmful and all harmless requests of the split train
condition = When(harm.site, harm.vector, above=bound, tokens="last")

add = Add(refusal.scale * refusal.vector)
edits = {
    "no edit": None,
    "everywhere": Edit(refusal.site, add, tokens="last+response"),
    "where harmful": Edit(refusal.site, add, tokens="last+response", when=condition),
}
replies = {
    (name, kind): model.generate(prompts(kind, "test"), edit=edit, max_new_tokens=12, do_sample=False)
    for name, edit in edits.items()
    for kind in ("AH", "AL")
}
refused = {where: sum(reply.startswith("no sorry") for reply in texts) / len(texts) for where, texts in replies.items()}
for name in edits:
    print(f"{name:<14} refused: harmful {refused[name, 'AH']:.2f}, harmless {refused[name, 'AL']:.2f}")

assert refused["no edit", "AH"] == 0 and refused["everywhere", "AL"] > 0.5
assert refused["where harmful", "AH"] == 1.0
assert replies["where harmful", "AL"] == replies["no edit", "AL"]
