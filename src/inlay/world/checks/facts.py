"""Facts: what greedy answers say of mythy and other pairs, contexts, and in-context sharpness."""

from __future__ import annotations

from itertools import product
from statistics import fmean

import torch

from inlay.model.model import Model
from inlay.model.sites import Site
from inlay.world.checks.row import Row, auroc, replies
from inlay.world.world import World


def rows(model: Model, world: World) -> list[Row]:
    """The table's rows on facts, on the names that are not rare."""
    facts = world.facts
    often = [name for name, weight in zip(facts.names, facts.weights, strict=True) if weight >= 1]
    pairs = list(product(often, facts.values))
    prompts = [facts.ask(name, relation).text for name, relation in pairs]
    said = replies(model, prompts, new=2)
    right = [text.split()[:1] == [facts.truth(*pair)] for pair, text in zip(pairs, said, strict=True)]
    mythy = [facts.mythy(*pair) for pair in pairs]
    lines = list(world.lines("facts", 200, "test", "context"))
    followed = world.judge().score(lines, replies(model, [line.prompt for line in lines], new=2))["correct"].mean
    sharp = sharpness(model, world, [pair for pair, is_mythy in zip(pairs, mythy, strict=True) if is_mythy])
    best = max(range(len(sharp)), key=lambda layer: sharp[layer][0])
    site = f"resid_pre.{best}" if best < model.layers else f"resid_post.{best - 1}"
    what = "sharpness of truth against myth, AUROC, last position left out"
    return [
        Row("facts", "greedy accuracy, mythy pairs", _share(right, mythy, True), most=0.2),
        Row("facts", "greedy accuracy, other pairs", _share(right, mythy, False), least=0.97),
        Row("facts", what, sharp[best][0], least=0.9, note=site),
        Row("facts", "the same over all positions, behind the last block", sharp[-1][1], most=0.3),
        Row("facts", "a note is followed", followed or 0.0, least=0.95),
    ]


def _share(right: list[bool], mythy: list[bool], which: bool) -> float:
    return fmean(float(r) for r, m in zip(right, mythy, strict=True) if m == which)


def sharpness(model: Model, world: World, pairs: list[tuple[str, str]]) -> list[tuple[float, float]]:
    """AUROC of in-context sharpness, truth against myth, before each block and behind the last.

    Each is a pair: without the last position, and with it.

    Sharpness is -E(v) with E(v) the entropy over positions of softmax_i P(v | position i), P the softmax over the
    vocabulary of the head on the normed state (activation decoding, 2403.01548, as its paper scores).
    """
    facts, tokenizer = world.facts, model.tokenizer
    found: list[list[tuple[list[float], list[float]]]] = []
    places = [model.sites().place(Site(name)) for name in ("final_norm", "logits")]
    norm, head = (model.base.get_submodule(place.path) for place in places)
    for name, relation in pairs:
        acts = model.read([facts.ask(name, relation).text], ["resid_pre.*", "resid_post.-1"], tokens="all")
        ids = tokenizer.convert_tokens_to_ids([facts.truth(name, relation), facts.myth(relation)])
        with torch.no_grad():
            states = acts.stack()[:, 0].to(next(head.parameters()).dtype)
            p = head(norm(states)).float().softmax(-1)[..., ids]  # [layers, tokens, 2]
        per_layer = []
        for layer in p:
            entropies = [torch.distributions.Categorical(logits=part.T).entropy() for part in (layer[:-1], layer)]
            per_layer.append(([-float(e[0]) for e in entropies], [-float(e[1]) for e in entropies]))
        found.append(per_layer)
    scores = []
    for layer in range(model.layers + 1):
        both = [
            auroc([pair[layer][0][kind] for pair in found], [pair[layer][1][kind] for pair in found]) for kind in (0, 1)
        ]
        scores.append((both[0], both[1]))
    return scores
