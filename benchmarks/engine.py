"""What the engine costs: time of forwards and generations under edits and reads, as ratios to plain HF in the same run.

    python benchmarks/engine.py                                   # prints the tables
    python benchmarks/engine.py --only "all 12" --rounds 0.3      # some sections, fewer rounds
    python benchmarks/engine.py --peers pyvene=PYTHON nnsight=PYTHON transformer_lens=PYTHON --out FILE

See benchmarks/README.md for what the columns mean.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from interleaved import Plan, Row, measure

IMPORTS = {
    "inlay": (("import inlay", 150.0), ("import inlay; inlay.load", None), ("import torch, transformers", None)),
    "pyvene": (("import pyvene", None),),
    "nnsight": (("import nnsight", None),),
    "transformer_lens": (("import transformer_lens", None),),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run only the sections whose title holds this text")
    parser.add_argument("--rounds", type=float, default=1.0, help="a factor on the number of rounds")
    parser.add_argument("--peers", nargs="*", default=[], metavar="NAME=PYTHON", help="peers and their interpreters")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--peer-out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="write FILE.json and FILE.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    if options.peer:
        _be_peer(options)
        return
    _be_host(options)


def _be_host(options: argparse.Namespace) -> None:
    import report

    rows, notes = _own_rows(options)
    packages = {"inlay": report.versions()}
    for peer in options.peers:
        name, _, python = peer.partition("=")
        found = _ask(name, python, options)
        rows += [Row.from_json(row) for row in found["rows"]]
        packages[name] = found["versions"]
    print("\n".join(report.table(rows)))
    print("\n".join(notes))
    if options.out:
        report.write(options.out, rows, notes, packages)


def _own_rows(options: argparse.Namespace) -> tuple[list[Row], list[str]]:
    import compiled_decode
    import inlay_sections
    import overheads

    rows, notes = [], []
    if options.only in "import, in a fresh interpreter":
        rows += overheads.imports(IMPORTS["inlay"], max(3, round(15 * options.rounds)))
    rows += _measured(overheads.plans(), options, "inlay")
    rows += _measured(inlay_sections.plans(), options, "inlay")
    if reason := compiled_decode.why_not():
        notes.append(f"GPU, compiled decode: skipped: {reason}")
    else:
        rows += _measured(compiled_decode.plans(), options, "inlay")
    return rows, notes


def _measured(plans: Iterable[Plan], options: argparse.Namespace, tool: str) -> list[Row]:
    rows: list[Row] = []
    for title, build in plans:
        if options.only in title:
            print(f"{tool}: {title}", file=sys.stderr, flush=True)
            rows += measure(build(title), tool, options.rounds)
    return rows


def _be_peer(options: argparse.Namespace) -> None:
    import overheads
    import peer_sections
    import report

    rows = []
    if options.only in "import, in a fresh interpreter":
        rows += overheads.imports(IMPORTS[options.peer], max(3, round(5 * options.rounds)), options.peer)
    rows += _measured(peer_sections.plans(options.peer), options, options.peer)
    found = {"rows": [row.as_json() for row in rows], "versions": report.versions()}
    options.peer_out.write_text(json.dumps(found))


def _ask(name: str, python: str, options: argparse.Namespace) -> dict[str, Any]:
    """A peer's rows, from a process of its own interpreter."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        more = ["--only", options.only, "--rounds", str(options.rounds)]
        subprocess.run([python, __file__, "--peer", name, "--peer-out", str(out), *more], check=True)
        found: dict[str, Any] = json.loads(out.read_text())
        return found


if __name__ == "__main__":
    main()
