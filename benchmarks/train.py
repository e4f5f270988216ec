"""What training costs: a LoReFT step, many concepts at once, and resuming, beside the floor and the peers.

    python benchmarks/train.py                                   # prints the tables; about 12 minutes
    python benchmarks/train.py --only "d64" --rounds 0.5
    python benchmarks/train.py --out benchmarks/results/train-cpu

pyreft's and peft's rows need them in this environment. See benchmarks/README.md for what the columns mean.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from itertools import chain
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import report
import torch
import train_many
import train_memory
import train_peers
import train_resume
import train_step
from interleaved import Row, measure

PEERS = ("pyreft", "peft")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run only the sections whose title holds this text, or 'memory'")
    parser.add_argument("--rounds", type=float, default=1.0, help="a factor on the number of rounds")
    parser.add_argument("--out", type=Path, help="write FILE.json and FILE.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    reasons = [train_peers.missing(package) for package in PEERS]
    held = [f"left out: {reason}" for reason in reasons if reason]
    if options.only in "memory":
        held += train_memory.notes()
        print("\n".join(held), flush=True)
    for title, build in chain(train_step.plans(), train_resume.plans(), train_many.plans()):
        if options.only not in title:
            continue
        print(title, file=sys.stderr, flush=True)
        found = measure(build(title), scale=options.rounds)
        rows += found
        print("\n".join(report.table(found)), flush=True)
        if options.out:  # after every section: a reading that is cut short keeps what it has
            report.write(options.out, rows, [*held, *notes(rows)], {"inlay": versions()}, "benchmarks/train.py")
    print("\n".join(notes(rows)), flush=True)


def versions() -> dict[str, str]:
    """Those of every reading, and the peers' of this one."""
    return report.versions() | {package: version(package) for package in PEERS if not train_peers.missing(package)}


def notes(rows: Sequence[Row]) -> list[str]:
    """What the sections say together: each step beside its aim and its peers, then the other sections' own lines."""
    lines = []
    for row in rows:
        if row.limit is not None and row.to_plain:
            took = row.to_plain.cpu
            met = "met" if took <= row.limit else "MISSED"
            lines.append(
                f"{row.section}: {row.case} takes {took:.3f} of the floor's CPU time; aim <= {row.limit}: {met}"
            )
        if row.to_beside and row.case.startswith(PEERS):
            lines.append(f"{row.section}: {row.case} takes {row.to_beside.cpu:.2f} of the CPU time of {row.beside}")
    return [*lines, *train_resume.notes(rows), *train_many.notes(rows)]


if __name__ == "__main__":
    main()
