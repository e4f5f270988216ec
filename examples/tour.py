"""A tour of inlay in under a minute, without a network: `make tour`.

On tidepool, the chat model that ships with inlay and whose language has a known truth: read activations, find the
direction of a concept, steer with it and let the exact judge score the texts, give every row of a batch its own
concept, patch a fact from one prompt into another, save the edit and load it, and check that nothing stays behind.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

import inlay

CONCEPT = "tools of the kitchen"
SITE = "resid_post.2"


def main() -> None:
    torch.set_num_threads(1)  # the model is too small for a second thread to help
    logging.disable_progress_bar()
    world, model = inlay.world.tidepool(), inlay.load("tidepool")
    before = fingerprint(model)

    title("1  Where it can be read and edited")
    print(f"{model!r}, {sum(p.numel() for p in model.hf.parameters()):,} weights; {world!r}")
    for name, places in model.sites().places.items():
        place = next(iter(places.values()))
        heads = f", {place.heads} heads" if place.heads else ""
        print(f"  {name:<11} width {place.width if place.width > 0 else 'of the sequence'}{heads}")
    for name, why in model.sites().lacks.items():
        print(f"  it lacks {name}: {why}")

    title(f"2  Read {SITE} on pairs with and without {CONCEPT!r}, and take the difference of the means")
    pairs = world.pairs(CONCEPT, n=72)
    print(f"with:    {pairs[0][0].reply}\nwithout: {pairs[0][1].reply}")
    direction = direction_of(model, world, CONCEPT)
    print(f"{len(pairs)} pairs; strengths count in the mean length of a state there, {direction.scale:.1f}")

    title("3  Steer: add it while the model talks, and score what it says")
    steer = direction.add()
    lines = list(world.lines("concepts", 20, "test", "talk"))
    print(f"{steer}\n\nstrength  concept  fluency  instruction   (0 to 2 each, exact)   the first text")
    for strength in (0.0, 0.2, 0.3, 0.4, 0.5, 0.7):
        texts = write(model, [line.prompt for line in lines], edit=steer, strength=strength)
        scores = judged(world, lines, texts)
        print(f"{strength:8.1f}  {scores[0]:7.2f}  {scores[1]:7.2f}  {scores[2]:11.2f}   {texts[0][:70]}")

    title("4  One batch, another concept for every row: a Bank")
    names = [CONCEPT, "sounds of the sea", "wildly gloomy words"]
    each = [direction_of(model, world, name) for name in names]
    bank = inlay.Edit(SITE, inlay.Bank([inlay.Add(0.5 * d.scale * d.vector) for d in each]))
    prompt = world.prompts(1)[0]
    for row, text in enumerate(write(model, [prompt] * 4, edit=bank, rows=[0, 1, 2, 3])):
        print(f"row {row} of the Bank ({['no edit', *names][row]}): {text}")

    title("5  Swap: take a fact from one prompt's run into another's")
    base, source = (world.facts.ask(name, "home").text for name in ("arlo", "cora"))
    words = [write(model, [text])[0] for text in (base, source)]
    print(f"{base!r} is answered {words[0]!r}, {source!r} {words[1]!r}; both are tokens of one kind:")
    print("The probabilities of the two, when the name's token takes the source's state after one block:")
    ids = model.tokenizer.convert_tokens_to_ids([text.split()[0] for text in words])
    runs: list[tuple[str, Any]] = [("no edit", None)]
    for layer in range(model.layers):
        swap = inlay.Swap(inlay.Source(source, tokens=3))
        runs.append((f"block {layer}", inlay.Edit(f"resid_post.{layer}", swap, tokens=3)))
    for name, edit in runs:
        chance = model.forward(base, edit=edit).logits[0, -1].softmax(-1)
        print(f"  {name:<8} {words[0]} {chance[ids[0]]:.3f}  {words[1]} {chance[ids[1]]:.3f}")

    title("6  Save the edit, load it, and get the same text")
    with tempfile.TemporaryDirectory() as temporary:
        folder = steer.save(Path(temporary) / "kitchen", model)
        files = ", ".join(f"{file.name} ({file.stat().st_size} bytes)" for file in sorted(folder.iterdir()))
        loaded = inlay.Edit.from_pretrained(folder, model)
    first, again = (write(model, [prompt], edit=edit, strength=0.4) for edit in (steer, loaded))
    print(f"{files}\nthe loaded edit writes the same text: {first == again}")
    assert first == again

    title("7  Nothing is left behind")
    after = fingerprint(model)
    for what, value in before.items():
        print(f"  {what}: {'the same, bit for bit' if after[what] == value else 'CHANGED'}")
    assert after == before


def direction_of(model: inlay.Model, world: inlay.world.World, concept: str) -> inlay.directions.Direction:
    """The mean state of replies that have the concept, less that of their twins without."""
    with_it, without = (
        [(pair[side].prompt, pair[side].reply) for pair in world.pairs(concept, n=72)] for side in (0, 1)
    )
    return inlay.directions.diff_mean(model, with_it, without, SITE, concept=concept, tokens="response")


def judged(world: inlay.world.World, lines: list[inlay.world.Line], texts: list[str]) -> tuple[float, ...]:
    """Mean concept, fluency and instruction scores."""
    found = world.judge().score(lines, texts)
    by_concept = [world.concept_score(CONCEPT, text) for text in texts]
    return sum(by_concept) / len(texts), found["fluency"].mean or 0.0, found["instruction"].mean or 0.0


def write(model: inlay.Model, prompts: list[Any], **edit: Any) -> list[str]:
    """The likeliest reply to each prompt."""
    found: list[str] = model.generate(prompts, max_new_tokens=40, do_sample=False, **edit)
    return found


def fingerprint(model: inlay.Model) -> dict[str, object]:
    """What must be as it was: weights, what the model computes, its hooks, and the attributes of its modules."""
    weights = hashlib.sha256()
    for tensor in model.hf.state_dict().values():
        weights.update(tensor.contiguous().numpy().tobytes())
    modules = list(model.hf.modules())
    return {
        "weights": weights.hexdigest(),
        "logits": model.forward("tell me about the cat .").logits.numpy().tobytes(),
        "hooks": sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules),
        "attributes of the modules": [sorted(vars(module)) for module in modules],
        "attention implementation": model.hf.config._attn_implementation,
    }


def title(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}")


if __name__ == "__main__":
    with torch.no_grad():
        main()
