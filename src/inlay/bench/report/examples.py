"""Which replies a report shows side by side, and the concept's words marked in them."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from inlay.bench.report.palette import Entry, palette
from inlay.bench.result import BenchResult

PROMPTS = 2
"""Prompts shown a concept."""
BUDGET = 700_000
"""Characters of all replies shown, so that a page stays small: concepts beyond it are left out."""


@dataclass(frozen=True)
class Reply:
    """One judged reply: who made it, its text as safe HTML, and its scores (`None` where judging failed)."""

    entry: Entry
    factor: float
    html: str
    scores: dict[str, float | None]


@dataclass(frozen=True)
class Example:
    """One concept's replies.

    Attributes:
        concept_id, name, lexicon: the concept.
        rank: 1 is the concept that the best method steers best.
        role: `"best"`, `"median"` or `"worst"` for the three shown first, else empty.
        prompts: each prompt with its replies, one a method.
    """

    concept_id: int
    name: str
    lexicon: list[str]
    rank: int
    role: str
    prompts: list[tuple[str, list[Reply]]]


def examples(result: BenchResult, budget: int = BUDGET) -> list[Example]:
    """Replies on the reporting half at each method's chosen factor, best concept first.

    Concepts are ranked by the overall score of the best method. The best, the median and the worst come in always;
    the others, evenly over the ranks, while their texts fit in the budget (characters).
    """
    if result.steering.is_empty() or result.generations.is_empty():
        return []
    ranked = _ranked(result)
    roles = {len(ranked) // 2: "median", len(ranked) - 1: "worst", 0: "best"}
    shown = _shown(result)
    about = {row["concept_id"]: row for row in result.concepts.to_dicts()}
    entries = palette(result)
    order = list(roles) + [place for place in _spread(len(ranked)) if place not in roles]
    made: dict[int, Example] = {}
    spent = 0
    for place in order:
        rows = shown.get(ranked[place], [])
        spent += sum(len(row["text"] or "") for row in rows)
        if place not in roles and spent > budget:
            break
        concept = about[ranked[place]]
        lexicon = list(concept["lexicon"] or [])
        prompts = _prompts(rows, entries, lexicon)
        if prompts:
            role = roles.get(place, "")
            made[place] = Example(ranked[place], concept["name"], lexicon, place + 1, role, prompts)
    return [made[place] for place in sorted(made)]


def mark(text: str, words: Sequence[str]) -> str:
    """A text as safe HTML with each of the words in `<mark>`: whole words, in any case, longest first."""
    known = [re.escape(word) for word in sorted(words, key=len, reverse=True) if word.strip()]
    if not known:
        return html.escape(text)
    found = re.compile(rf"(?<!\w)(?:{'|'.join(known)})(?!\w)", re.IGNORECASE)
    parts, last = [], 0
    for match in found.finditer(text):
        parts += [html.escape(text[last : match.start()]), f"<mark>{html.escape(match[0])}</mark>"]
        last = match.end()
    return "".join([*parts, html.escape(text[last:])])


def _ranked(result: BenchResult) -> list[int]:
    """Concepts by the overall score of the method that is best on average, best first."""
    methods = result.steering.filter(pl.col("kind") == "method")
    known = methods if not methods.is_empty() else result.steering
    means = known.group_by("method", maintain_order=True).agg(pl.col("overall").mean())
    best = means.sort("overall", descending=True, nulls_last=True, maintain_order=True)["method"][0]
    mine = known.filter(pl.col("method") == best)
    ranked = mine.sort("overall", descending=True, nulls_last=True, maintain_order=True)
    return [int(concept) for concept in ranked["concept_id"]]


def _shown(result: BenchResult) -> dict[int, list[dict[str, Any]]]:
    """The rows to show, by concept: what is no control, on the reporting half, at the chosen factor."""
    kept = result.generations.filter((pl.col("half") == "report") & (pl.col("kind") != "control"))
    on = ["method", "concept_id", "site", "factor"]
    rows = kept.join(result.steering.select(on), on=on, how="semi", nulls_equal=True).sort("row")
    first = rows.select("concept_id", "prompt_id").unique(maintain_order=True).sort("prompt_id")
    first = first.group_by("concept_id", maintain_order=True).head(PROMPTS)
    by_concept: dict[int, list[dict[str, Any]]] = {}
    for row in rows.join(first, on=["concept_id", "prompt_id"], how="semi").iter_rows(named=True):
        by_concept.setdefault(row["concept_id"], []).append(row)
    return by_concept


def _spread(count: int) -> list[int]:
    """All of 0 .. count-1, in an order whose every beginning covers the range evenly (bit reversal)."""
    bits = max(1, (count - 1).bit_length())
    places = (int(f"{index:0{bits}b}"[::-1], 2) for index in range(2**bits))
    return [place for place in places if place < count]


def _prompts(
    rows: list[dict[str, Any]], entries: dict[str, Entry], lexicon: list[str]
) -> list[tuple[str, list[Reply]]]:
    first = ["unsteered", "prompt"]
    places = {method: place for place, method in enumerate([*first, *(m for m in entries if m not in first)])}
    prompts: dict[int, tuple[str, list[Reply]]] = {}
    for row in sorted(rows, key=lambda row: (row["prompt_id"], places[row["method"]])):
        scores = {axis: row[axis] for axis in ("overall", "concept", "instruction", "fluency")}
        reply = Reply(entries[row["method"]], row["factor"], mark(row["text"] or "", lexicon), scores)
        prompts.setdefault(row["prompt_id"], (row["prompt"], []))[1].append(reply)
    return list(prompts.values())
