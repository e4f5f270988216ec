"""A BenchResult made up from a seed: every table in its shape, none of it measured."""

from __future__ import annotations

import random
from typing import Any

import polars as pl

from inlay.bench.result import BenchResult

METHODS = ("diff_mean", "pca", "lat", "probe", "reft_r1", "reps", "lora", "loreft", "hypersteer", "ssv", "sae", "lang")
WORDS = ("the", "a", "small", "grey", "boat", "sails", "past", "my", "red", "house", "while", "old", "friends", "talk")
FACTORS = (0.2, 0.5, 1.0, 1.5, 2.0, 3.0)
AXES = ("overall", "concept", "instruction", "fluency")
NAMES = ("harbour", "kitchen", "orchard", "weather", "music", "chess", "gold", "winter", "garden", "railway")


def _within(value: float, low: float = 0.0, high: float = 2.0) -> float:
    return min(high, max(low, value))


def _interval(name: str, value: float, half: float, high: float = 2.0) -> dict[str, float]:
    low, top = _within(value - half, high=high), _within(value + half, high=high)
    return {name: value, f"{name}_lo": low, f"{name}_hi": top}


def _mean(rows: list[dict[str, Any]], name: str) -> float:
    return sum(row[name] for row in rows) / len(rows)


def _detection(dice: random.Random, kinds: dict[str, str], concepts: int) -> tuple[list[Any], list[Any]]:
    detection, summary = [], []
    for place, (method, kind) in enumerate(kinds.items()):
        centre = {"method": 0.95 - 0.03 * place, "baseline": 0.68, "control": 0.5}[kind]
        rows = []
        for concept in range(concepts):
            value = _within(dice.gauss(centre, 0.05), high=1)
            rows.append(
                {
                    "method": method,
                    "kind": kind,
                    "site": "resid_post.3" if kind == "method" else None,
                    "concept_id": concept,
                    "auroc": value,
                    "auroc_hard": None if concept == 0 else _within(value - dice.uniform(0, 0.3), high=1),
                    "auroc_all": _within(value - 0.05, high=1),
                    "accuracy": _within(value - 0.1, high=1),
                    "f1": _within(value - 0.08, high=1),
                }
            )
        hard = [row for row in rows if row["auroc_hard"] is not None]
        row = {"method": method, "kind": kind, "site": rows[0]["site"], "n": concepts}
        row |= _interval("auroc", _mean(rows, "auroc"), 0.02, 1)
        none: dict[str, Any] = {"auroc_hard": None, "auroc_hard_lo": None, "auroc_hard_hi": None}
        row |= _interval("auroc_hard", _mean(hard, "auroc_hard"), 0.03, 1) if hard else none
        row |= {"n_hard": len(hard)} | _interval("auroc_all", _mean(rows, "auroc_all"), 0.02, 1)
        summary.append(row | {name: _mean(rows, name) for name in ("accuracy", "f1")})
        detection += rows
    return detection, summary


def _overall(scores: list[float]) -> float:
    return 0.0 if min(scores) <= 0 else len(scores) / sum(1 / score for score in scores)


def _centre(kind: str, method: str, place: int, factor: float) -> float:
    """How strongly a concept shows at a factor."""
    if method in ("prompt", "unsteered"):
        return {"prompt": 1.3, "unsteered": 0.1}[method]
    return _within((1.7 - 0.15 * place if kind == "method" else 0.2) * factor / 1.5)


def _text(dice: random.Random, name: str, strength: float) -> str:
    words = dice.choices(WORDS, k=40)
    for _ in range(round(3 * strength)):
        words[dice.randrange(40)] = dice.choice([name, f"{name}s", "lane"])
    return " ".join(words) + "."


def _replies(
    dice: random.Random, kinds: dict[str, str], names: list[str], factors: tuple[float, ...]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for place, (method, kind) in enumerate(kinds.items()):
        for concept, name in enumerate(names):
            for factor in (0.0,) if method in ("prompt", "unsteered") else factors:
                for prompt in range(4):
                    strength = _within(dice.gauss(_centre(kind, method, place, factor), 0.2))
                    scores: list[Any] = [strength, _within(2 - factor / 3), _within(2.1 - factor / 2)]
                    known = dice.random() > 0.01
                    row = {"row": len(rows), "method": method, "kind": kind, "concept_id": concept}
                    row |= {"site": None if method in ("prompt", "unsteered") else "resid_post.3"}
                    row |= {"prompt_id": prompt, "half": "choose" if prompt < 2 else "report", "factor": factor}
                    row |= {"prompt": f"tell me about day {prompt} .", "text": _text(dice, name, strength)}
                    judged = [_overall(scores), *scores] if known else [None] * 4
                    rows.append(row | dict(zip(AXES, judged, strict=True)))
    return rows


def _means(frame: pl.DataFrame, by: list[str]) -> pl.DataFrame:
    return frame.group_by(by, maintain_order=True).agg([pl.col(axis).mean().fill_null(0.0) for axis in AXES])


def _summary(steering: pl.DataFrame, generations: pl.DataFrame) -> list[dict[str, Any]]:
    rows = []
    for (method, kind), part in steering.group_by(["method", "kind"], maintain_order=True):
        overall = float(part["overall"].mean())  # type: ignore[arg-type]
        row: dict[str, Any] = {"method": method, "kind": kind, "n": part.height}
        row |= _interval("overall", overall, 0.08)
        row |= {axis: part[axis].mean() for axis in AXES[1:]}
        none = method in ("prompt", "unsteered")
        row |= {"factor_global": None if none else part["factor"].mode().sort()[0], "site_global": part["site"][0]}
        row |= _interval("overall_global", overall * 0.9, 0.07)
        row |= {"gain_unsteered": overall - 0.1, "gain_unsteered_lo": overall - 0.2, "gain_unsteered_hi": overall}
        gain = None if method == "random" else overall - 0.2
        row |= {"gain_random": gain, "gain_random_lo": gain and gain - 0.1, "gain_random_hi": gain and gain + 0.1}
        mine = generations.filter(pl.col("method") == method)
        rate = None if method == "prompt" else part["win_rate"].mean()
        rows.append(row | {"win_rate": rate, "failed": mine["overall"].null_count()})
    return rows


def result(
    concepts: int = 6, methods: int = 4, detection: bool = True, steering: bool = True, seed: int = 0, steps: int = 6
) -> BenchResult:
    """A whole result; `steps` factors a method, and a part left out has tables without rows."""
    dice = random.Random(seed)
    named = dict.fromkeys(METHODS[:methods], "method")
    names = [NAMES[i % len(NAMES)] + (f" {i // len(NAMES)}" if i >= len(NAMES) else "") for i in range(concepts)]
    about = [
        {"concept_id": i, "name": name, "genre": "text", "lexicon": [name.split()[0], "lane"]}
        | {"n_positive": 36, "n_negative": 36, "n_hard": 0 if i == 0 else 12}
        for i, name in enumerate(names)
    ]
    kinds = named | dict.fromkeys(["length_chars", "length_tokens", "bow", "style"], "baseline")
    found, found_summary = _detection(dice, kinds | dict.fromkeys(["random", "mean"], "control"), concepts)
    kinds = named | {"unsteered": "baseline", "prompt": "baseline", "random": "control"}
    generations = pl.DataFrame(_replies(dice, kinds, names, FACTORS[:steps]), infer_schema_length=None)
    chosen = _chosen(generations)
    effects = chosen.drop_nulls("site").with_columns(kl=pl.col("factor") * 0.7, logprob_drop=pl.col("factor") * 0.9)
    measured = {"detection": found, "detection_summary": found_summary} if detection else {}
    steered = {
        # A reply at the chosen factor and another Site, as a shared choice makes them: not to be shown.
        "generations": generations.to_dicts() + _elsewhere(generations).to_dicts(),
        "steering": chosen.to_dicts(),
        "steering_summary": _summary(chosen, generations),
        "dose": _dose(generations).to_dicts(),
        "side_effects": effects.to_dicts(),
    }
    tables: dict[str, Any] = measured | (steered if steering else {})
    return BenchResult.of(_info(), concepts=about, **tables)


def _chosen(generations: pl.DataFrame) -> pl.DataFrame:
    reported = generations.filter(pl.col("half") == "report")
    means = _means(reported, ["method", "kind", "site", "concept_id", "factor"])
    best = means.sort("overall", descending=True, maintain_order=True)
    return best.unique(["method", "concept_id"], keep="first", maintain_order=True).with_columns(
        overall_global=pl.col("overall") * 0.9,
        win_rate=pl.when(pl.col("method") == "prompt").then(None).otherwise(pl.col("overall") / 2),
    )


def _dose(generations: pl.DataFrame) -> pl.DataFrame:
    """Two curves a method: one at the Site it steers at, one at another."""
    rows = generations.filter(pl.col("half") == "choose").drop_nulls("site")
    rows = pl.concat([_elsewhere(rows), rows])
    return _means(rows, ["method", "kind", "site", "factor"]).with_columns(
        overall_lo=(pl.col("overall") - 0.1).clip(0), overall_hi=(pl.col("overall") + 0.1).clip(0, 2)
    )


def _elsewhere(generations: pl.DataFrame) -> pl.DataFrame:
    return generations.drop_nulls("site").with_columns(
        site=pl.lit("resid_post.5"), text=pl.lit("elsewhere"), overall=pl.col("overall") * 0.5
    )


def _info() -> dict[str, Any]:
    return {
        "title": "Tidepool bench",
        "model": {"name": "tidepool", "revision": None, "family": "llama", "layers": 6, "width": 128},
        "concept_set": "tidepool",
        "config": {"methods": ["diff_mean", "pca"], "site": "resid_post.3", "steering": {"factors": [0.2, 0.5]}},
        "judge": {
            "identity": {"name": "WorldJudge", "version": 1},
            "axes": {
                "concept": "0 absent, 1 one word of the lexicon, 2 two or more",
                "instruction": "0 off the subject, 1 names it, 2 does what was asked",
                "fluency": "0 not of the language, 1 half of it is, 2 nearly all of it is",
            },
        },
        "seconds": {"fit": 12.3456, "detect": 4.2, "generate": 311.0},
        "versions": {"inlay": "0.1.0", "torch": "2.13.0", "python": "3.11"},
        "machine": "2 CPU cores",
        "created": "2026-11-25T07:00:00+00:00",
        "units": "factor x mean length of a training state",
        "warnings": ["Positives are longer than negatives: 61 against 40 tokens.", "A text has <b>markup</b>."],
        "limits": "Tidepool is a small made-up language: numbers on it rank methods only on it.",
    }
