"""The model card of a world's model: data, training, and the acceptance table as it was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inlay.errors import FolderError
from inlay.world.acceptance import Report

_LIMITS = """\
## What a result on this model says, and what it does not

It says that an implementation is right, that a method recovers what was planted and does not find what was not, what it
costs, and how it fails as one knob turns.

It does not say how strong a method is on a real model, nor how methods rank there: a model of this size has
near-orthogonal, lexical concepts, and a difference of means looks better on it than on Gemma. It says nothing of a
guard's safety against people, and nothing of gains in factuality. Judges of lexicons reward dropping words. Word-level
tokens hide tokenizer trouble. Greedy "myths" are a caricature of misconceptions, and a window is a planted bottleneck
that real chat models lack.

It must not be used as a language model, as a guard, or as evidence about people's requests: it knows about a thousand
words and no world but its own.
"""


def write_card(folder: str | Path, report: Report) -> Path:
    """Write `README.md` beside the weights, from `training.json`, a report, and two files where they are there.

    `misses.json` holds the cause of every bound that is missed, by phenomenon; `seeds.json` what the same recipe gave
    from other seeds: for each seed the records of its report.

    Raises:
        FolderError: the folder has no `training.json`.
    """
    folder = Path(folder)
    path = folder / "training.json"
    if not path.exists():
        raise FolderError(f"{folder} has no training.json: a card is written for a model that `inlay world train` made")
    facts = json.loads(path.read_text())
    card = folder / "README.md"
    causes, seeds = ({} if not (folder / n).exists() else json.loads((folder / n).read_text()) for n in _BESIDE)
    card.write_text(card_text(facts, report, causes, seeds))
    return card


_BESIDE = ("misses.json", "seeds.json")


def _other_seeds(seeds: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A table of other seeds' values, in the rows of the first; empty without any."""
    if not seeds:
        return ""
    names = list(seeds)
    lines = [
        "## The same recipe from other seeds, measured the same way",
        "",
        f"| phenomenon | accepted | {' | '.join(f'seed {name}' for name in names)} |",
        f"| --- | --- |{' --- |' * len(names)}",
    ]
    for row in zip(*seeds.values(), strict=True):
        values = " | ".join(f"{one['value']:.3f}" + (", missed" if one["met"] is False else "") for one in row)
        lines.append(f"| {row[0]['phenomenon']} | {row[0]['accepted']} | {values} |")
    return "\n".join([*lines, "", ""])


def card_text(
    facts: dict[str, Any],
    report: Report,
    causes: Mapping[str, str],
    seeds: Mapping[str, Sequence[Mapping[str, Any]]],
) -> str:
    """The card, in Markdown."""
    config, world = facts["config"], facts["world"]
    shape = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in config["architecture"].items())
    mixture = ", ".join(f"{key} {value:g}" for key, value in config["mixture"].items())
    recipe = {key: config[key] for key in ("steps", "batch_tokens", "lr", "betas", "weight_decay", "clip", "weights")}
    why = {row.what: causes.get(row.what, "The cause is not known.") for row in report.missed}
    missed = [f"- missed: {r.what}, {r.value:.3f}, accepted {r.bound}. {why[r.what]}" for r in report.missed]
    verdict = "\n".join(missed) or "Every bound is met."
    curve = [row for index, row in enumerate(facts["curve"]) if index % max(1, len(facts["curve"]) // 12) == 0]
    return f"""\
---
license: apache-2.0
library_name: inlay
---

# {config["name"]}

A chat model of the micro-world {world["version"]}, trained from scratch on that world's lines and on nothing
else. It ships with inlay, to test methods against ground truth.

- world: {world["version"]}, hash `{world["hash"]}`
- model: {shape}
- lines: {mixture}; split train, seed {config["seed"]}
- training: {facts["tokens"]:,} tokens in {facts["seconds"]:,} s on {facts["machine"]}
- recipe: {json.dumps(recipe)}
- loss by step: {", ".join(f"{step}: {loss:.3f}" for step, loss in curve)}

## Acceptance, measured on lines of a seed that no training has

{verdict}

{report.markdown()}

{_other_seeds(seeds)}{_LIMITS}"""
