"""From rows to tables: means over concepts with bootstrap intervals, gains, win rates, dose-response curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from inlay.bench.config import PLAIN
from inlay.bench.metrics import interval, mean
from inlay.bench.plan import Picked
from inlay.bench.steering import AXES
from inlay.directions.methods import METHODS

Table = list[dict[str, Any]]
TIE = 1e-6  # overall scores nearer than this are a tie (AxBench, section 3.3)
_SCORES = ("overall", *AXES)


def kind_of(method: str) -> str:
    """`method`, `baseline` or `control`."""
    return METHODS[method].kind if method in METHODS else "baseline"


def detection_summary(rows: Sequence[Mapping[str, Any]], seed: int) -> Table:
    """One row a detector, best first: means over concepts and their 95 % intervals."""
    found: Table = []
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        sites = list(dict.fromkeys(row["site"] for row in mine))
        made: dict[str, Any] = {
            "method": method,
            "kind": mine[0]["kind"],
            "site": sites[0] if len(sites) == 1 else f"{len(sites)} sites",
            "n": len(mine),
        }
        for name in ("auroc", "auroc_hard", "auroc_all"):
            values = [row[name] for row in mine if row[name] is not None]
            low, high = interval(values, seed)
            made |= {name: mean(values), f"{name}_lo": low, f"{name}_hi": high}
        made["n_hard"] = sum(row["auroc_hard"] is not None for row in mine)
        for name in ("accuracy", "f1"):
            made[name] = mean([row[name] for row in mine])
        found.append(made)
    return sorted(found, key=lambda row: -row["auroc"])


def steering_table(choose: Table, report: Table, picked: Picked, by_choice: str = "concept") -> Table:
    """One row a method and concept: its means on the reporting prompts at its own choice, and at the shared one.

    Args:
        choose, report: rows of the two halves.
        picked: the choices.
        by_choice: `"concept"` fills the scores at each concept's own choice, `"global"` at the shared one.
    """
    by: dict[tuple[str, int, str, float], Table] = {}
    for row in report:
        by.setdefault((row["method"], row["concept_id"], row["site"], row["factor"]), []).append(row)
    against = {(r["concept_id"], r["prompt_id"]): r["overall"] for r in report if r["method"] == "prompt"}
    keys = dict.fromkeys((row["method"], row["concept_id"]) for row in report)
    found: Table = []
    for method, concept in keys:
        own = picked.own.get((method, concept))
        at = (own.site, own.factor) if own else ("", 0.0)
        shared = picked.shared.get(method)
        at_shared = (shared.site, shared.factor) if shared else ("", 0.0)
        at = at_shared if by_choice == "global" else at
        mine = by[method, concept, *at]
        made = {"method": method, "kind": kind_of(method), "concept_id": concept, "site": at[0] or None}
        made |= {"factor": at[1]} | {name: mean([row[name] for row in mine]) for name in _SCORES}
        made["overall_global"] = mean([row["overall"] for row in by[method, concept, *at_shared]])
        made["win_rate"] = None if method == "prompt" else _wins(mine, against)
        made["failed"] = sum(row["overall"] is None for rows in (choose, report) for row in _of(rows, method, concept))
        found.append(made)
    return found


def _of(rows: Table, method: str, concept: int) -> Table:
    return [row for row in rows if row["method"] == method and row["concept_id"] == concept]


def _wins(rows: Table, against: Mapping[tuple[int, int], float | None]) -> float | None:
    """The share of prompts on which a method does better than prompting; a tie is half a win."""
    pairs = [(row["overall"], against[row["concept_id"], row["prompt_id"]]) for row in rows]
    known = [(ours, theirs) for ours, theirs in pairs if ours is not None and theirs is not None]
    if not known:
        return None
    return fmean(0.5 if abs(ours - theirs) < TIE else float(ours > theirs) for ours, theirs in known)


def steering_summary(table: Table, picked: Picked, seed: int) -> Table:
    """One row a method, best first: means over concepts with 95 % intervals, and paired gains over two controls."""
    by = {(row["method"], row["concept_id"]): row for row in table}
    found: Table = []
    for method in dict.fromkeys(row["method"] for row in table):
        mine = [row for row in table if row["method"] == method]
        known = [row for row in mine if row["overall"] is not None]
        made: dict[str, Any] = {"method": method, "kind": mine[0]["kind"], "n": len(known)}
        for name in ("overall", "overall_global"):
            values = [row[name] for row in known if row[name] is not None]
            low, high = interval(values, seed)
            made |= {name: mean(values), f"{name}_lo": low, f"{name}_hi": high}
        made |= {axis: mean([row[axis] for row in known]) for axis in AXES}
        shared = picked.shared.get(method)
        made |= {"factor_global": shared.factor if shared else None, "site_global": shared.site if shared else None}
        for control in ("unsteered", "random"):
            pairs = [(row["overall"], by[control, row["concept_id"]]["overall"]) for row in known]
            gains = [ours - theirs for ours, theirs in pairs if theirs is not None] if method != control else []
            low, high = interval(gains, seed)
            made |= {f"gain_{control}": mean(gains), f"gain_{control}_lo": low, f"gain_{control}_hi": high}
        made["win_rate"] = mean([row["win_rate"] for row in known])
        made["failed"] = sum(row["failed"] for row in mine)
        found.append(made)
    return sorted(found, key=lambda row: -(row["overall"] or 0.0))


def dose(choose: Table, seed: int) -> Table:
    """One row a method, Site and factor: means over concepts on the choosing prompts, which is the method's curve."""
    by: dict[tuple[str, str, float], dict[int, Table]] = {}
    for row in choose:
        if row["method"] not in PLAIN:
            each = by.setdefault((row["method"], row["site"], row["factor"]), {})
            each.setdefault(row["concept_id"], []).append(row)
    found: Table = []
    for (method, site, factor), concepts in sorted(by.items()):
        made: dict[str, Any] = {"method": method, "kind": kind_of(method), "site": site, "factor": factor}
        for name in _SCORES:
            means = [known for rows in concepts.values() if (known := mean([row[name] for row in rows])) is not None]
            made[name] = mean(means)
            if name == "overall":
                low, high = interval(means, seed)
                made |= {"overall_lo": low, "overall_hi": high}
        found.append(made)
    return found
