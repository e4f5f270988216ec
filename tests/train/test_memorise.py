"""What one edited token can hold: stories260K made to go on from a prompt with a text of ours, and with noise.

Each kind of ReFT acts on the prompt's last token alone, and every target has an Edit of its own in one `train_bank`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import inlay
from inlay.train.examples import Example
from inlay.train.fit import fit, train_bank
from inlay.train.parameterise import reft

PROMPT = "Once upon a time, there was a little girl named"
STORY = "Once upon a time, there was a big bear. He lived in a forest with his mom and dad."
PIECES = range(259, 512)  # below are bytes that the model has never seen
STEPS, RATE = 400, 4e-3


@pytest.fixture(scope="module")
def model(shared: Path) -> inlay.Model:
    return inlay.load(shared / "data/models/stories260K")


@pytest.fixture(scope="module")
def prompt(model: inlay.Model) -> list[int]:
    found: list[int] = model.tokenizer(PROMPT)["input_ids"]
    assert len(found) == 14 and found[0] == model.tokenizer.bos_token_id
    return found


@pytest.fixture(scope="module")
def targets(model: inlay.Model) -> dict[str, list[int]]:
    """The beginning of a story, 8 and 16 ids, and draws of 1 and of 4 ids."""
    story = model.tokenizer(STORY, add_special_tokens=False)["input_ids"]

    def noise(count: int, seed: int) -> list[int]:
        draws = torch.Generator().manual_seed(seed)
        return torch.randint(PIECES.start, PIECES.stop, (count,), generator=draws).tolist()

    found = {"8": story[:8], "16": story[:16]}
    found |= {f"one {seed}": noise(1, seed) for seed in range(2)}
    return found | {f"four {seed}": noise(4, 100 + seed) for seed in range(2)}


def said(model: inlay.Model, edit: inlay.Edit | None, prompt: Sequence[int], count: int, row: int = 1) -> list[int]:
    """What it goes on with, greedily."""
    options = {"max_new_tokens": count, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    ids = torch.tensor([list(prompt)])
    with nullcontext() if edit is None else model.edited(edit, rows=[row]):
        found = model.hf.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return found[0, len(prompt) :].tolist()


def matching(found: Sequence[int], wanted: Sequence[int]) -> int:
    """How many ids are right before the first that is not."""
    pairs = zip(found, wanted, strict=True)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(wanted))


CASES = [(kind, rank, layer) for kind, rank in (("consreft", 1), ("loreft", 4), ("direft", 4)) for layer in (1, 3)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "rank", "layer"), CASES)
def test_one_token_holds_a_text_the_model_finds_likely_and_no_noise(
    model: inlay.Model, prompt: list[int], targets: dict[str, list[int]], kind: str, rank: int, layer: int
) -> None:
    edit = reft(model, kind, rank, layer, "prompt[-1:]")
    data = {name: [Example(prompt, target)] for name, target in targets.items()}
    trained = train_bank(model, edit, "lm", data, lr=RATE, epochs=STEPS, batch=1)
    last = {row["concept"]: row["loss"] for row in trained.log.rows if row["step"] == STEPS - 1 and "loss" in row}
    counts = {
        name: matching(said(model, trained.edit, prompt, len(target), trained.row(name)), target)
        for name, target in targets.items()
    }
    print(f"{kind} rank {rank}, layer {layer}:", {name: (counts[name], round(last[name], 3)) for name in targets})

    assert sum(p.numel() for p in edit.parameters()) == {"consreft": 65, "loreft": 516, "direft": 516}[kind]
    assert matching(said(model, None, prompt, 8), targets["8"]) == 0
    assert counts["8"] == 8 and last["8"] < 0.1
    assert counts["16"] == 8  # behind these it tells its own story
    assert all(counts[name] == 1 for name in targets if name.startswith("one"))
    assert all(counts[name] < 4 and last[name] > 1 for name in targets if name.startswith("four"))


@pytest.mark.slow
def test_the_loop_and_the_edit_are_those_written_by_hand(
    model: inlay.Model, prompt: list[int], targets: dict[str, list[int]]
) -> None:
    """ConsReFT through a forward hook, a normalised column, and torch's AdamW behind a clipped gradient."""
    edit, target, steps = reft(model, "consreft", 1, 3, "prompt[-1:]"), targets["8"], 60
    intervention = edit.parts[0].intervention
    raw, bias = (nn.Parameter(intervention.state()[name].detach().clone()) for name in ("raw", "bias"))
    trained = fit(model, edit, "lm", [Example(prompt, target)], lr=RATE, epochs=steps, batch=1)
    ours = [row["loss"] for row in trained.log.rows if "loss" in row]

    def hook(module: nn.Module, args: object, out: Tensor) -> Tensor:
        basis, h = nn.functional.normalize(raw, dim=0), out[:, len(prompt) - 1]
        return torch.cat(
            [out[:, : len(prompt) - 1], (h + (bias - h @ basis) @ basis.T)[:, None], out[:, len(prompt) :]], 1
        )

    ids = torch.tensor([[*prompt, *target]])
    optimiser = torch.optim.AdamW([raw, bias], lr=RATE, weight_decay=0.0)
    theirs = []
    handle = model.hf.model.layers[3].register_forward_hook(hook)
    try:
        for step in range(steps):
            logits = model.hf(ids).logits[0, len(prompt) - 1 : -1]
            loss = nn.functional.cross_entropy(logits, ids[0, len(prompt) :])
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_([raw, bias], 1.0)
            optimiser.param_groups[0]["lr"] = RATE * (1 - step / steps)
            optimiser.step()
            theirs.append(float(loss.detach()))
    finally:
        handle.remove()
        model.hf.zero_grad(set_to_none=True)

    assert ours[-1] < 0.7 * ours[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(intervention.basis(), nn.functional.normalize(raw.detach(), dim=0), rtol=0, atol=1e-3)
    torch.testing.assert_close(intervention.state()["bias"].detach(), bias.detach(), rtol=0, atol=1e-3)
