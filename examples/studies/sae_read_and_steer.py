"""What does a sparse autoencoder's latent stand for, and what happens when it is switched on?

pyvene's notebook on Gemma Scope. A small TopK autoencoder is trained on tidepool's states behind block 1. The latents
that are on at the words of a concept are picked on the replies it was trained on, and tried on others.

Asserted: the picked latents are on at the concept's words of unseen replies and hardly anywhere else; tidepool knows
which words these are, so that this is an exact F1. Exchanging all latents of a run with its own changes nothing, since
what the autoencoder does not reconstruct is kept; its reconstruction in the place of the state does change the answers.
And set to half of their greatest value, the picked latents make the model use the concept's words, in sentences that
are still right (tidepool's judge is exact, 0 to 2). As many other latents, set to half of theirs, do not.

    python examples/studies/sae_read_and_steer.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import inlay
from inlay import SAE, Edit, Function, LatentSet, LatentSwap, Source

CONCEPT, SITE = "tools of the kitchen", "resid_post.1"
LATENTS, ON, STEPS, BATCH = 512, 8, 600, 512
SPLITS = ((100, "train"), (40, "test"))


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    world, model = inlay.world.tidepool(), inlay.load("tidepool")
    chats = [line for line in world.lines("concepts", 600) if line.messages]
    seen, unseen = ([line for pair in world.pairs(CONCEPT, n, split) for line in pair] for n, split in SPLITS)
    sae = train(torch.cat([states(model, chats), states(model, seen)]))

    x, y = states(model, unseen), said(model, world, unseen)
    picked = (f1(sae, states(model, seen), said(model, world, seen)) > 0.8).nonzero().flatten()
    found, z = f1(sae, x, y)[picked], sae.encode(x)
    explained = 1 - (sae(x) - x).square().sum() / (x - x.mean(0)).square().sum()
    print(f"{int((z > 0).any(0).sum())} latents of {LATENTS} are in use, and explain {explained:.3f} of the variance")
    print(
        f"{CONCEPT!r}, words of unseen replies:",
        ", ".join(f"latent {i} F1 {v:.2f}" for i, v in zip(picked, found, strict=True)),
    )

    prompts = world.prompts(12)
    plain = model.forward(prompts)
    edits = (Edit(SITE, LatentSwap(Source(prompts), sae)), Edit(SITE, Function(sae)))
    moved = [(model.forward(prompts, edit=edit).logits - plain.logits)[plain.mask.bool()].abs().max() for edit in edits]
    print(
        f"logits move by {moved[0]:.1e} when latents are exchanged with themselves, by {moved[1]:.2f} without the error"
    )

    alive = (z > 0).any(0).nonzero().flatten()
    others = alive[~torch.isin(alive, picked)]
    results = {"as it is": judged(model, world, prompts, None)}
    for name, latents in (("picked", picked), ("others", others[torch.randperm(len(others))[: len(picked)]])):
        half = LatentSet(sae, latents, z[:, latents].amax(0) / 2)
        results[name] = judged(model, world, prompts, Edit(SITE, half))
    for name, (concept, fluency, text) in results.items():
        print(f"{name:<9} concept {concept:.2f}  fluency {fluency:.2f}  {text[:72]}")

    assert 1 <= len(picked) <= 8 and found.max() > 0.9 and found.min() > 0.7
    assert moved[0] < 1e-4 and moved[1] > 0.1
    assert results["as it is"][0] < 0.1 and results["others"][0] < 0.3
    assert results["picked"][0] > 1.2 and results["picked"][1] > 1.5


def train(x: Tensor) -> SAE:
    """A TopK autoencoder (2406.04093) of states [n, width]."""
    decoder = nn.functional.normalize(torch.randn(LATENTS, x.shape[1]), dim=-1)
    start = (decoder.T.clone(), torch.zeros(LATENTS), decoder, x.mean(0))
    sae = SAE(*(nn.Parameter(tensor) for tensor in start), k=ON)
    optimiser = torch.optim.Adam(sae.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, STEPS)
    for _ in range(STEPS):
        some = x[torch.randint(len(x), (BATCH,))]
        loss = (sae(some) - some).square().sum(-1).mean() / x.var(0).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return sae.requires_grad_(False)


def states(model: inlay.Model, lines: list[inlay.world.Line]) -> Tensor:
    """The states of all tokens of the replies, [n, width]."""
    replies = [line.reply for line in lines]
    acts = model.read([line.prompt for line in lines], SITE, responses=replies, tokens="response")
    return acts[SITE][acts.mask]


def said(model: inlay.Model, world: inlay.world.World, lines: list[inlay.world.Line]) -> Tensor:
    """Which of these tokens are words of the concept, bool [n]."""
    words = world.concept(CONCEPT).words
    return torch.tensor([token in words for line in lines for token in model.tokenizer.tokenize(line.reply)])


def f1(sae: SAE, x: Tensor, y: Tensor) -> Tensor:
    """How well it tells y that a latent is on, for each latent."""
    on = sae.encode(x) > 0
    return 2 * (on & y[:, None]).sum(0) / (on.sum(0) + y.sum())


def judged(
    model: inlay.Model, world: inlay.world.World, prompts: list[str], edit: Edit | None
) -> tuple[float, float, str]:
    """Mean concept and fluency of the likeliest replies, and the first of them."""
    texts = model.generate(prompts, edit=edit, max_new_tokens=36, do_sample=False)
    concept = [world.concept_score(CONCEPT, text) for text in texts]
    fluency = [world.fluency(text) for text in texts]
    return sum(concept) / len(texts), sum(fluency) / len(texts), texts[0]


if __name__ == "__main__":
    main()
