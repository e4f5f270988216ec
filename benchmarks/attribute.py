"""What attribution costs: GIM beside a plain forward and backward, gradient x input, IG and Captum's IG, in one run.

    python benchmarks/attribute.py                                # prints the tables; about 20 minutes
    python benchmarks/attribute.py --only d64 --rounds 0.5
    python benchmarks/attribute.py --out benchmarks/results/attribute-cpu

Peers' rows need them in this environment: the dev extra has Captum, and attribute_inseq.py says how to get inseq. See
benchmarks/README.md for what the columns mean.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import attribute_sections as sections
import memory
import report
import torch
from interleaved import Row, measure

MB = 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run only the sections whose title holds this text")
    parser.add_argument("--rounds", type=float, default=1.0, help="a factor on the number of rounds")
    parser.add_argument("--out", type=Path, help="write FILE.json and FILE.md")
    parser.add_argument("--memory", nargs=3, metavar=("CASE", "SIZE", "TOKENS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory:
        return _held(options.memory[0], options.memory[1], int(options.memory[2]))
    rows: list[Row] = []
    missing = [peer for peer in (sections.CAPTUM, sections.INSEQ) if peer not in sections.peers()]
    notes = [f"left out, as it is not installed: {peer}" for peer in missing]
    for title, build in sections.plans():
        if options.only not in title:
            continue
        print(title, file=sys.stderr, flush=True)
        found = measure(build(title), scale=options.rounds)
        rows += found
        notes.append(_faster(found))
        print("\n".join([*report.table(found), notes[-1]]), flush=True)
        if options.out:  # after every section: a reading that is cut short keeps what it has
            report.write(options.out, rows, notes, {"inlay": report.versions()}, "benchmarks/attribute.py")
    for line in _memory(options.only):
        notes.append(line)
        print(line, flush=True)
    if options.out:
        report.write(options.out, rows, notes, {"inlay": report.versions()}, "benchmarks/attribute.py")


def _faster(rows: Sequence[Row]) -> str:
    """How many times faster GIM is than integrated gradients, against the aim."""
    row = next(row for row in rows if row.case == sections.IG)
    assert row.to_beside is not None
    met = "met" if row.to_beside.cpu >= sections.FASTER else "MISSED"
    return (
        f"{row.section}: gim is {row.to_beside.median:.1f} times faster than {sections.IG} "
        f"(CPU time {row.to_beside.cpu:.1f}); aim >= {sections.FASTER:g}: {met}"
    )


def _memory(only: str) -> list[str]:
    """Lines of what each way holds at each length, each in a process of its own."""
    lines = []
    for size, lengths in sections.SHAPES.items():
        if only and only not in size:
            continue
        for kind in (sections.FLOOR, sections.RULES, sections.GIM):
            told = []
            for length in lengths:
                command = [sys.executable, __file__, "--memory", kind, size, str(length)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found = json.loads(done.stdout.splitlines()[-1])
                told.append(f"{length} tokens {found['saved'] / MB:.1f} MB saved, peak {found['peak'] / MB:.0f} MB")
            lines.append(f"memory, {size}, {kind}: {'; '.join(told)}")
    return lines


def _held(kind: str, size: str, length: int) -> None:
    """Print the bytes that a forward saves for its backward, and the process's peak above the model, as JSON."""
    sections.case(kind, size, 8)()  # imports, and torch's own first use
    call = sections.case(kind, size, length)
    with memory.peak() as peak:
        call()
    with memory.saved() as saved:
        call()
    print(json.dumps({"saved": saved(), "peak": peak()}))


if __name__ == "__main__":
    main()
