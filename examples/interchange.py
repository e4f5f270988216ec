"""Interchange: where in the model is the name of a question, layer by layer?

The state of one token, behind one block, is taken from the run of a question about another name. Asserted over pairs
of names: the name is at its own token below block 0 and at the last token from block 1 on, where its swap makes the
model answer for the other name each time; later swaps at the name's token change no answer.

pyvene tutorial: pyvene_101, interchange interventions.
"""

from itertools import pairwise

import inlay
from inlay import Edit, Source, Swap

world, model = inlay.world.tidepool(), inlay.load("tidepool")
facts = world.facts
names = [name for name in facts.names[:40] if not facts.mythy(name, "home")]  # the 40 that the model has often seen
pairs = [(a, b) for a, b in pairwise(names) if facts.truth(a, "home") != facts.truth(b, "home")]
base, other = ([facts.ask(pair[side], "home").text for pair in pairs] for side in (0, 1))
mine, theirs = ([facts.truth(pair[side], "home") for pair in pairs] for side in (0, 1))
source = Source(other)


def answers(edit: Edit) -> list[str]:
    """The likeliest word behind each question."""
    logits = model.read(base, "logits", tokens="last", edit=edit)["logits"]
    found: list[str] = model.tokenizer.convert_ids_to_tokens(logits.argmax(-1).tolist())
    return found


share = {}
for site in ["embed", *(f"resid_post.{layer}" for layer in range(model.layers))]:
    for where, tokens in {"name": 3, "last": "last"}.items():
        said = answers(Edit(site, Swap(source), tokens=tokens))
        share[site, where] = sum(a == b for a, b in zip(said, theirs, strict=True)) / len(pairs)
        share[site, where, "kept"] = sum(a == b for a, b in zip(said, mine, strict=True)) / len(pairs)
    print(
        f"{site:<13} answers for the other name: swapped at the name {share[site, 'name']:.2f}, "
        f"at the last token {share[site, 'last']:.2f}"
    )

assert share["embed", "name"] == 1.0 and share["embed", "last"] == 0.0
assert all(share[f"resid_post.{layer}", "last"] == 1.0 for layer in range(1, 6))
assert all(share[f"resid_post.{layer}", "name", "kept"] == 1.0 for layer in range(2, 6))
