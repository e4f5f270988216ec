"""What is paid outside of the forward: entering and leaving a context, and importing."""

from __future__ import annotations

import functools
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from statistics import median

from interleaved import Case, Plan, Row, Section
from random_llama import ALL, ONE, adding, hooked, llama, vectors

IMPORT = "import, in a fresh interpreter"


def plans() -> Iterator[Plan]:
    """Making, entering and leaving a context with no forward inside."""
    for name, layers in (("one layer", ONE), ("all 12 layers", ALL)):
        yield f"make, enter and leave a context, no forward: {name}", functools.partial(_context, layers)


def _context(layers: list[int], title: str) -> Section:
    import inlay

    hf = llama("d64")
    model, vector = inlay.load(hf), vectors("d64", 1)[0]
    edit = inlay.Edit("resid_post.*" if layers == ALL else f"resid_post.{layers[0]}", inlay.Add(vector))
    hook = adding(vector)

    def by_hook() -> None:
        with hooked(hf, layers, hook):
            pass

    def by_edit() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that no forward ran under the edit
            with model.edited(edit):
                pass

    return Section(title, (Case("bare register_forward_hook", by_hook), Case("inlay, model.edited", by_edit)), 501)


def imports(statements: Sequence[tuple[str, float | None]], rounds: int, tool: str = "inlay") -> list[Row]:
    """Statements timed inside fresh interpreters, by turns; each with the most milliseconds that are aimed at."""
    times: dict[str, list[float]] = {statement: [] for statement, _ in statements}
    for turn in range(rounds + 1):
        for statement, seen in times.items():
            code = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            if turn:  # the first one may have to compile bytecode
                seen.append(float(done.stdout.split()[-1]) * 1e3)
    return [
        Row(IMPORT, statement, median(times[statement]), rounds, limit_ms=most, tool=tool)
        for statement, most in statements
    ]
