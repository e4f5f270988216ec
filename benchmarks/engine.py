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
from collections.abc import Callable, Iterable
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

    rows: list[Row] = []
    notes: list[str] = []
    packages = {"inlay": report.versions()}

    def keep(more: list[Row]) -> None:
        rows.extend(more)
        print("\n".join(report.table(more)), flush=True)
        if options.out:  # after every section: a reading that is cut short keeps what it has
            report.write(options.out, rows, notes, packages)

    _run(_own_plans(options, notes), options, "inlay", keep)
    for peer in options.peers:
        name, _, python = peer.partition("=")
        found, failed = _ask(name, python, options)
        packages[name] = found["versions"]
        notes += [failed] if failed else []
        keep([Row.from_json(row) for row in found["rows"]])
    print("\n".join(notes))


def _own_plans(options: argparse.Namespace, notes: list[str]) -> list[Plan]:
    import compiled_decode
    import inlay_sections
    import overheads

    if reason := compiled_decode.why_not():
        notes.append(f"GPU, compiled decode: skipped: {reason}")
    gpu = [] if reason else list(compiled_decode.plans())
    return [*overheads.plans(), *inlay_sections.plans(), *gpu]


def _run(plans: Iterable[Plan], options: argparse.Namespace, tool: str, keep: Callable[[list[Row]], None]) -> None:
    """Measure the sections that were asked for, and hand their rows over one section at a time."""
    import overheads

    if options.only in overheads.IMPORT:
        keep(overheads.imports(IMPORTS[tool], max(3, round(15 * options.rounds)), tool))
    for title, build in plans:
        if options.only in title:
            print(f"{tool}: {title}", file=sys.stderr, flush=True)
            keep(measure(build(title), tool, options.rounds))


def _be_peer(options: argparse.Namespace) -> None:
    import peer_sections
    import report

    rows: list[Row] = []

    def keep(more: list[Row]) -> None:
        rows.extend(more)
        found = {"rows": [row.as_json() for row in rows], "versions": report.versions()}
        options.peer_out.write_text(json.dumps(found))

    keep([])
    _run(peer_sections.plans(options.peer), options, options.peer, keep)


def _ask(name: str, python: str, options: argparse.Namespace) -> tuple[dict[str, Any], str | None]:
    """A peer's rows, from a process of its own interpreter; and, where that broke off, a note of it."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        more = ["--only", options.only, "--rounds", str(options.rounds)]
        done = subprocess.run([python, __file__, "--peer", name, "--peer-out", str(out), *more])
        found: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"rows": [], "versions": {}}
        return found, f"{name}: broke off with exit code {done.returncode}" if done.returncode else None


if __name__ == "__main__":
    main()
