"""What causal analysis costs: interchange, a causal trace and DAS, beside plain HF and pyvene in the same run.

    python benchmarks/causal.py                                   # prints the tables; about 9 minutes
    python benchmarks/causal.py --only d64 --rounds 0.5
    python benchmarks/causal.py --out benchmarks/results/causal-cpu

pyvene's rows need it in this environment (`make peers`). See benchmarks/README.md for what the columns mean.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import causal_sections
import report
import torch
from causal_pyvene import missing
from interleaved import Row, measure

AIM = 3.0  # times faster than pyvene


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run only the sections whose title holds this text")
    parser.add_argument("--rounds", type=float, default=1.0, help="a factor on the number of rounds")
    parser.add_argument("--out", type=Path, help="write FILE.json and FILE.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    reason = missing()
    notes = [f"pyvene's rows are left out: {reason}"] if reason else []
    for title, build in causal_sections.plans():
        if options.only not in title:
            continue
        print(title, file=sys.stderr, flush=True)
        found = measure(build(title), scale=options.rounds)
        rows += found
        more = faster(found)
        notes += more
        print("\n".join([*report.table(found), *more]), flush=True)
        if options.out:  # after every section: a reading that is cut short keeps what it has
            report.write(options.out, rows, notes, {"inlay": report.versions()}, "benchmarks/causal.py")


def faster(rows: Sequence[Row]) -> list[str]:
    """How many times longer each of pyvene's ways takes than inlay's, against the aim."""
    return [
        f"{row.section}: {row.beside} is {row.to_beside.median:.2f} times faster than {row.case} "
        f"(CPU time {row.to_beside.cpu:.2f}); aim >= {AIM:g}: {'met' if row.to_beside.cpu >= AIM else 'MISSED'}"
        for row in rows
        if row.to_beside and row.case.startswith("pyvene")
    ]


if __name__ == "__main__":
    main()
