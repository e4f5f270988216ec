"""Inference-time intervention: shift the heads that tell a true answer coming from a false one.

For some names tidepool has learnt to tell a myth though it knows the truth. At the last token of a question each head
is scored by how far apart its outputs for the two kinds of names lie, in standard deviations. The twelve best of 24
heads are shifted by three standard deviations, along the line between the two means. Asserted on names that were not
used: the truth is told at least three times as often; the other names' answers hardly suffer; random directions of the
same lengths gain, on the mean, less than half as much.

pyvene tutorial: pyvene_101, inference-time intervention (Li et al. 2023, arXiv 2306.03341).
"""

from itertools import product

import torch
from torch import Tensor

import inlay
from inlay import Add, Edit

world, model = inlay.world.tidepool(), inlay.load("tidepool")
facts = world.facts
asked = list(product(facts.names[:40], facts.values))  # the model has often seen these names
mythical, honest = ([pair for pair in asked if facts.mythy(*pair) == myth] for myth in (True, False))


def questions(pairs: list[tuple[str, str]]) -> list[str]:
    """What is asked of a name."""
    return [facts.ask(name, relation).text for name, relation in pairs]


def told(pairs: list[tuple[str, str]], edit: Edit | None = None) -> float:
    """The share of questions that are answered with the truth."""
    logits = model.read(questions(pairs), "logits", tokens="last", edit=edit)["logits"]
    said = model.tokenizer.convert_ids_to_tokens(logits.argmax(-1).tolist())
    return sum(word == facts.truth(*pair) for word, pair in zip(said, pairs, strict=True)) / len(pairs)


states = [model.read(questions(pairs[::2]), "z.*", tokens="last").stack() for pairs in (honest, mythical)]
heads = []
for layer, head in product(range(model.layers), range(4)):
    true, false = (acts[layer, :, head] for acts in states)  # [questions, width of a head]
    line = true.mean(0) - false.mean(0)
    line = line / line.norm()
    along = torch.cat([true @ line - (true @ line).mean(), false @ line - (false @ line).mean()])
    apart = float(((true @ line).mean() - (false @ line).mean()) / along.std())
    heads.append((apart, f"z.{layer}.h{head}", line * torch.cat([true @ line, false @ line]).std()))
best = sorted(heads, key=lambda one: one[0], reverse=True)[:12]


def shift(steps: list[tuple[str, Tensor]]) -> Edit:
    """Three times each head's step, at the token that decides the answer."""
    first, *others = [Edit(site, Add(3 * step), tokens="last") for site, step in steps]
    return sum(others, first)


def random(seed: int) -> list[tuple[str, Tensor]]:
    """Steps of the same lengths in directions of no meaning."""
    draws = torch.Generator().manual_seed(seed)
    noise = [torch.randn(step.shape, generator=draws) for _, _, step in best]
    return [(site, step.norm() * n / n.norm()) for (_, site, step), n in zip(best, noise, strict=True)]


edits = {"no edit": None, "shifted": shift([(site, step) for _, site, step in best])}
edits |= {f"random {seed}": shift(random(seed)) for seed in range(3)}
share = {name: (told(mythical[1::2], edit), told(honest[1::2], edit)) for name, edit in edits.items()}
for name, (myths, others) in share.items():
    print(f"{name:<9} true answers: {myths:.2f} for names with a myth, {others:.2f} for others")

assert share["shifted"][0] >= 3 * share["no edit"][0] and share["shifted"][0] > 0.3
assert share["shifted"][1] > 0.85
gains = [share[f"random {seed}"][0] - share["no edit"][0] for seed in range(3)]
assert sum(gains) / 3 < 0.5 * (share["shifted"][0] - share["no edit"][0])
