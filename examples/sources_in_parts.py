"""Several sources, each for its own part of one state: groups of dimensions, and groups of columns of a rotation.

The states at tokens 3 and 6 (the name and what is asked) are handed over side by side as one of twice the width, so
that its two halves are two variables. Asserted: with one half from each of two sources every answer is the second
name's job; groups of a rotation commute, together are the swap of the subspace they span, and leave the rest alone.

pyvene tutorials: pyvene_101, multi-source interchange with subspaces (parallel and serial mode);
Subspace_Partition_with_Intervention.
"""

from itertools import permutations

import torch

import inlay
from inlay import Edit, LowRank, Rotate, Source, Swap

world, model = inlay.world.tidepool(), inlay.load("tidepool")
facts = world.facts
names = ["amos", "elsa", "gail", "gus", "hugo", "lars"]  # the model has learnt their homes and jobs
triples = list(permutations(names, 3))
base = [facts.ask(first, "home").text for first, _, _ in triples]
name = Source([facts.ask(second, "home").text for _, second, _ in triples])
asked = Source([facts.ask(third, "job").text for _, _, third in triples])

width = model.width
halves = Edit("embed", Swap(name, dims=slice(0, width)), tokens=[3, 6], joint=True)
halves += Edit("embed", Swap(asked, dims=slice(width, 2 * width)), tokens=[3, 6], joint=True)
logits = model.read(base, "logits", tokens="last", edit=halves)["logits"]
said = model.tokenizer.convert_ids_to_tokens(logits.argmax(-1).tolist())
right = sum(word == facts.truth(row[1], "job") for word, row in zip(said, triples, strict=True)) / len(triples)
print(f"halves of a joint state: {right:.3f} of {len(triples)} rows answer with the second name's job")

parts = Rotate(None, width, parts=[16, 32])  # one rotation, two groups of orthogonal columns
first, second = parts.part(0).basis(), parts.part(1).basis()
both = torch.cat([first, second], 1)
site, tokens = "resid_post.1", "last"
one, two = Edit(site, parts.part(0, name), tokens), Edit(site, parts.part(1, asked), tokens)
there = {
    key: model.read(base, site, tokens, edit=edit)[site]
    for key, edit in {
        "plain": None,
        "one, two": one + two,
        "two, one": two + one,
        "both of one source": one + Edit(site, parts.part(1, name), tokens),
        "whole": Edit(site, LowRank.of(both, name), tokens),
    }.items()
}
near = {"rtol": 0, "atol": 1e-4}
torch.testing.assert_close(there["one, two"], there["two, one"], **near)
torch.testing.assert_close(there["both of one source"], there["whole"], **near)
for basis, source in ((first, name), (second, asked)):  # each group has its own source's coordinates
    own = model.read(source.prompts, site, tokens)[site]
    torch.testing.assert_close(there["one, two"] @ basis, own @ basis, **near)
rest = torch.linalg.qr(both, mode="complete").Q[:, 48:]
torch.testing.assert_close(there["one, two"] @ rest, there["plain"] @ rest, **near)

assert right == 1.0
assert (there["one, two"] - there["plain"]).norm(dim=1).min() > 1
