"""A tour of inlay in under a minute, without a network: `make demo`.

It reads a model's activations, makes a steering vector of them, steers generation with it, gives every row of a batch
its own edit, swaps activations between two prompts, saves the edit and loads it, and checks that nothing stays behind.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

import inlay

BOY = [
    "Once upon a time, there was a boy named Tim. He",
    "Tom was a good boy. He",
    "The boy and his dad were happy because he",
    "Ben was a boy who loved his red car. One day, he",
]
GIRL = [
    "Once upon a time, there was a girl named Lily. She",
    "Mia was a good girl. She",
    "The girl and her mom were happy because she",
    "Sue was a girl who loved her red ball. One day, she",
]
BOY_WORDS = {"boy", "he", "his", "dad", "tim", "timmy", "tom", "ben"}
GIRL_WORDS = {"girl", "she", "her", "mom", "lily", "sue", "mia"}
WORD = r"\w+|[^\w\s]"
OPENINGS = ["Once upon a time", "One day, a", "The good"]


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the models are too small for a second thread to help
    logging.disable_progress_bar()
    model = stories() or storyteller()
    before = fingerprint(model)
    site = f"resid_post.{model.layers - 2}"

    title("1  Where it can be read and edited")
    print(f"{model!r}")
    for name, places in model.sites().places.items():
        place = next(iter(places.values()))
        heads = f", {place.heads} heads" if place.heads else ""
        print(f"  {name:<11} width {place.width if place.width > 0 else 'of the sequence'}{heads}")
    for name, why in model.sites().lacks.items():
        print(f"  it lacks {name}: {why}")

    title(f"2  Read {site} for two groups of prompts")
    boy, girl = model.read(BOY, site), model.read(GIRL, site)
    print(f"boy:  {boy}\ngirl: {girl}")
    print("A row is a prompt; rows are padded with zeros to the longest, and .rows() gives each its own length:")
    print(f"  {[list(row.shape) for row in boy.rows(site)]}")

    title("3  Steer: add the difference of the two means while the model writes")
    direction = torch.cat(boy.rows(site)).mean(0) - torch.cat(girl.rows(site)).mean(0)
    steer = inlay.Edit(site, inlay.Add(direction), tokens="all")
    print(f"{steer}\n\nstrength  boy words  girl words  the first text goes on")
    for strength in (-2.0, -1.0, 0.0, 1.0, 2.0, 3.0):
        texts = write(model, OPENINGS, edit=steer, strength=strength)
        shown = " ".join(texts[0].split())[:64]
        print(f"{strength:8.1f}  {count(texts, BOY_WORDS):9}  {count(texts, GIRL_WORDS):10}  {shown}")

    title("4  One batch, another edit for every row: a Bank")
    bank = inlay.Edit(site, inlay.Bank([inlay.Add(2 * direction), inlay.Add(-2 * direction)]))
    texts = write(model, [OPENINGS[0]] * 3, edit=bank, rows=[0, 1, 2])
    for row, text in enumerate(texts):
        print(
            f"row {row} of the Bank ({('no edit', 'towards boy', 'towards girl')[row]}): {' '.join(text.split())[:70]}"
        )

    title("5  Swap: take one prompt's activations into another prompt's run")
    base, source = "There was a little girl named Lily.", "There was a little boy named Tim."
    said_base, said_source = next_word(model, base), next_word(model, source)
    print(f"base   {base!r} is followed by {word(model, said_base)!r}")
    print(f"source {source!r} is followed by {word(model, said_source)!r}")
    print("The probabilities of the two, when the base's last token takes the source's state after one block:")
    swaps = {
        f"block {layer}": inlay.Edit(f"resid_post.{layer}", inlay.Swap(inlay.Source(source)), tokens="last")
        for layer in range(model.layers)
    }
    for name, prompt, edit in [
        ("base", base, None),
        *((n, base, e) for n, e in swaps.items()),
        ("source", source, None),
    ]:
        chance = model.forward(prompt, edit=edit).logits[0, -1].softmax(-1)
        print(f"  {name:<8} {word(model, said_base)!r} {chance[said_base]:.3f}  ", end="")
        print(f"{word(model, said_source)!r} {chance[said_source]:.3f}")
    print("After the last block the state is all there is, so the base answers as the source does.")

    title("6  Save the edit, load it, and get the same text")
    with tempfile.TemporaryDirectory() as temporary:
        folder = steer.save(Path(temporary) / "boy", model)
        files = ", ".join(f"{file.name} ({file.stat().st_size} bytes)" for file in sorted(folder.iterdir()))
        loaded = inlay.Edit.from_pretrained(folder, model)
    first, again = (write(model, OPENINGS, edit=edit, strength=2.0) for edit in (steer, loaded))
    print(f"{files}\nthe loaded edit writes the same text: {first == again}")
    assert first == again

    title("7  Nothing is left behind")
    after = fingerprint(model)
    for what, value in before.items():
        print(f"  {what}: {'the same, bit for bit' if after[what] == value else 'CHANGED'}")
    assert after == before


def stories() -> inlay.Model | None:
    """A small model trained on children's stories, where the shared data has it."""
    root = Path(__file__).resolve().parent.parent
    folder = root / os.environ.get("INLAY_SHARED", "../shared") / "data" / "models" / "stories260K"
    if not folder.is_dir():
        return None
    folder = folder.resolve()
    print(f"The model is stories260K (260,032 weights, trained on children's stories), from {folder}.")
    return inlay.load(folder)


def storyteller() -> inlay.Model:
    """A Llama with a word-level tokenizer, trained here for some seconds on sentences of one small grammar."""
    draw = random.Random(0)
    told = [tell(draw) for _ in range(2000)]
    words = ["<pad>", *sorted(set(re.findall(WORD, " ".join([*told, *BOY, *GIRL, *OPENINGS]))))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>")
    hf = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words),
            hidden_size=64,
            intermediate_size=172,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=4,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    size = sum(weight.numel() for weight in hf.parameters())
    print(f"Training a Llama of {size:,} weights and {len(words)} words on {len(told)} made-up stories ...", flush=True)
    started = time.perf_counter()
    optimizer = torch.optim.AdamW(hf.parameters(), lr=5e-3)
    with torch.enable_grad():
        for _ in range(110):
            batch = tokenizer(draw.sample(told, 24), padding=True, padding_side="right", return_tensors="pt")
            labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
            loss = hf(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    print(f"... {time.perf_counter() - started:.0f} s, loss {float(loss):.2f}. It is frozen from here on.")
    return inlay.load(hf.eval().requires_grad_(False), tokenizer=tokenizer)


def tell(draw: random.Random) -> str:
    """A story of a boy or a girl, whose names, pronouns and parents agree."""
    boy = draw.random() < 0.4
    who, name = ("boy", draw.choice(["Tim", "Tom", "Ben"])) if boy else ("girl", draw.choice(["Lily", "Sue", "Mia"]))
    he, his, dad = ("he", "his", "dad") if boy else ("she", "her", "mom")
    how, felt = draw.choice(["little", "good", "happy"]), draw.choice(["happy", "sad", "proud"])
    thing = f"{draw.choice(['red', 'big', 'old'])} {draw.choice(['ball', 'car', 'box'])}"
    first = draw.choice(
        [
            f"Once upon a time, there was a {how} {who} named {name}.",
            f"There was a {how} {who} named {name}.",
            f"{name} was a {how} {who}.",
            f"The {how} {who} and {his} {dad} were {felt} because {he} found a {thing}.",
            f"{name} was a {who} who loved {his} {thing}.",
            f"One day, a {how} {who} lost a {thing}.",
        ]
    )
    rest = [
        f"{he.title()} loved {his} {dad}.",
        f"One day, {he} saw a {thing}.",
        f"{he.title()} was {felt}.",
        f"{he.title()} gave the {thing} to {his} {dad}.",
    ]
    return " ".join([first, *draw.sample(rest, 3)])


def write(model: inlay.Model, prompts: list[str], **edit: Any) -> list[str]:
    """The likeliest 40 tokens after each prompt."""
    found: list[str] = model.generate(prompts, max_new_tokens=40, do_sample=False, **edit)
    return found


def count(texts: list[str], words: set[str]) -> int:
    """How often the words occur."""
    return sum(found in words for text in texts for found in re.findall(r"\w+", text.lower()))


def next_word(model: inlay.Model, prompt: str) -> int:
    """The id of the likeliest next token."""
    return int(model.forward(prompt).logits[0, -1].argmax())


def word(model: inlay.Model, token: int) -> str:
    return str(model.tokenizer.decode([token])).strip()


def fingerprint(model: inlay.Model) -> dict[str, object]:
    """What must be as it was: weights, what the model computes, its hooks, and the attributes of its modules."""
    weights = hashlib.sha256()
    for tensor in model.hf.state_dict().values():
        weights.update(tensor.contiguous().numpy().tobytes())
    modules = list(model.hf.modules())
    return {
        "weights": weights.hexdigest(),
        "logits": model.forward(OPENINGS[0]).logits.numpy().tobytes(),
        "hooks": sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules),
        "attributes of the modules": [sorted(vars(module)) for module in modules],
        "attention implementation": model.hf.config._attn_implementation,
    }


def title(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}")


if __name__ == "__main__":
    with torch.no_grad():
        main()
