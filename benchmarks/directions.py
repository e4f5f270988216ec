"""What finding directions costs: all concepts from one pass over their texts, against one concept at a time.

    python benchmarks/directions.py                                   # prints the tables
    python benchmarks/directions.py --only d64 --rounds 0.5
    python benchmarks/directions.py --out benchmarks/results/directions-cpu

K concepts, each with its own texts as positives and every other concept's as negatives. One at a time reads all texts K
times. See benchmarks/README.md for what the columns mean.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import report
import torch
from interleaved import Case, Row, Section, measure
from random_llama import ids, llama

import inlay
from inlay.directions import Contrast, Direction, Text, find

CONCEPTS, SITE = 50, "resid_post.5"
SHAPES = {"d64": (6, 32, 7), "d768": (3, 32, 3)}  # texts a concept, tokens a text, rounds
AIM = 0.8  # of K times faster


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run only the sections whose title holds this text")
    parser.add_argument("--rounds", type=float, default=1.0, help="a factor on the number of rounds")
    parser.add_argument("--out", type=Path, help="write FILE.json and FILE.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    rows: list[Row] = []
    notes: list[str] = []
    for size in SHAPES:
        section = plan(size)
        if options.only not in section.title:
            continue
        found = measure(section, scale=options.rounds)
        rows += found
        faster = found[2].to_plain
        assert faster is not None
        share = faster.median / CONCEPTS
        notes.append(
            f"{section.title}: all at once is {faster.median:.1f} times faster than one at a time, {share:.2f} K; aim "
            f">= {AIM} K: {'met' if share >= AIM else 'MISSED'}"
        )
        print("\n".join([*report.table(found), notes[-1]]), flush=True)
        if options.out:
            report.write(options.out, rows, notes, {"inlay": report.versions()}, "benchmarks/directions.py")


def plan(size: str) -> Section:
    """The section of one model; before it is timed both ways are compared."""
    texts, tokens, rounds = SHAPES[size]
    model = inlay.Model(llama(size))
    each = ids(size, CONCEPTS * texts, tokens).view(CONCEPTS, texts, tokens).tolist()
    groups = [[Text(row) for row in rows] for rows in each]
    contrasts = [
        Contrast(str(k), tuple(mine), tuple(text for j, other in enumerate(groups) if j != k for text in other))
        for k, mine in enumerate(groups)
    ]

    def together() -> list[Direction]:
        return find(model, contrasts, site=SITE)

    def apart() -> list[Direction]:
        return [find(model, [contrast], site=SITE)[0] for contrast in contrasts]

    for one, other in zip(together(), apart(), strict=True):
        torch.testing.assert_close(one.vector, other.vector, rtol=0, atol=1e-6)
        assert abs(one.scale / other.scale - 1) < 1e-6
    title = f"{size}: difference of means at {SITE}, {CONCEPTS} concepts of {texts} texts of {tokens} tokens"
    cases = [Case("all at once", together), Case("all at once, again", together), Case("one concept at a time", apart)]
    return Section(title, cases, rounds)


if __name__ == "__main__":
    main()
