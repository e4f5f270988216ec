"""How well Edits steer tidepool to its concepts, by its exact judge, at the factor that half of the prompts choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import torch

import inlay
import inlay.world
from inlay.bench.metrics import overall
from inlay.judges.judge import Reply
from inlay.judges.world import WorldJudge
from inlay.train.examples import Example

CONCEPTS = 12
PROMPTS = 16


def concepts(n: int = CONCEPTS) -> list[str]:
    """Names of concepts, spread over the world's."""
    every = [concept.description for concept in inlay.world.tidepool().concepts()]
    return every[:: len(every) // n][:n]


def pairs(name: str, n: int = 36) -> list[Example]:
    """Replies with a concept, and what the model itself says to the same instruction without it."""
    return [
        Example(list(one.prompt), one.reply, other.reply)
        for one, other in inlay.world.tidepool().pairs(name, n, "train")
    ]


def scores(
    model: inlay.Model, edit: inlay.Edit, names: Sequence[str], factors: Sequence[float], rows: Mapping[str, int]
) -> torch.Tensor:
    """Overall scores, harmonic means of concept, instruction and fluency from 0 to 2, [concepts, factors, prompts]."""
    world = inlay.world.tidepool()
    prompts = world.prompts(PROMPTS)
    cells = [(name, factor, prompt) for name in names for factor in factors for prompt in prompts]
    judge, replies = WorldJudge(world), []
    for start in range(0, len(cells), 192):
        some = cells[start : start + 192]
        texts = model.generate(
            [prompt for _, _, prompt in some],
            edit=edit,
            rows=[rows[name] for name, _, _ in some],
            strength=[factor for _, factor, _ in some],
            max_new_tokens=36,
            do_sample=False,
        )
        replies += [Reply(prompt, text, name) for (name, _, prompt), text in zip(some, texts, strict=True)]
    rated = judge.score(replies)
    axes = zip(*(rated[axis].values for axis in ("concept", "instruction", "fluency")), strict=True)
    return torch.tensor([overall(*row) for row in axes]).view(len(names), len(factors), len(prompts))


def chosen(found: torch.Tensor) -> torch.Tensor:
    """Each concept's mean on the second half of the prompts, at the factor that is best on the first, [concepts]."""
    half = found.shape[2] // 2
    best = found[:, :, :half].mean(2).argmax(1)
    return torch.stack([found[i, factor, half:].mean() for i, factor in enumerate(best.tolist())])


def interval(values: Sequence[float], resamples: int = 2000) -> tuple[float, float]:
    """The 95 % bootstrap interval of a mean."""
    draws = torch.Generator().manual_seed(0)
    sample = torch.tensor(values)
    means = sample[torch.randint(len(values), (resamples, len(values)), generator=draws)].mean(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high


def mean(values: torch.Tensor) -> float:
    return fmean(values.tolist())
