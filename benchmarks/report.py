"""Rows of a reading as JSON and as a Markdown table, with what they were measured on."""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from interleaved import Ratio, Row

PACKAGES = ("inlay", "torch", "transformers", "pyvene", "nnsight", "transformer-lens")


def versions() -> dict[str, str]:
    """The version of every package of interest that is installed beside this interpreter."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str | int]:
    """The processor, the GPU where there is one, and the number of threads in use."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = dict(
            (part.strip() for part in line.split(":", 1)) for line in info.read_text().splitlines() if ":" in line
        )
        name = lines.get("model name", name)
        if "cpu family" in lines:
            name += f" (family {lines['cpu family']}, model {lines.get('model', '?')})"
    here: dict[str, str | int] = {"cpu": name, "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        here["gpu"] = torch.cuda.get_device_name()
    return here


def write(
    out: Path,
    rows: Sequence[Row],
    notes: Sequence[str],
    packages: dict[str, dict[str, str]],
    command: str = "benchmarks/engine.py",
) -> None:
    """Write `out.json` and `out.md`."""
    facts = {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": packages,
        "notes": list(notes),
        "rows": [row.as_json() for row in rows],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")
    out.with_suffix(".md").write_text(_page(facts, rows))


def _page(facts: dict[str, object], rows: Sequence[Row]) -> str:
    here = facts["machine"]
    assert isinstance(here, dict)
    lines = [
        f"# {facts['command']}: a reading",
        "",
        f"{facts['date']}, {here['cpu']}, {here['threads']} thread"
        + (f", {here['gpu']}" if "gpu" in here else "")
        + ".",
        "",
    ]
    packages = facts["versions"]
    assert isinstance(packages, dict)
    for tool, found in packages.items():
        lines.append(f"- process of {tool}: " + ", ".join(f"{name} {number}" for name, number in found.items()))
    notes = facts["notes"]
    assert isinstance(notes, list)
    lines += [f"- {note}" for note in notes]
    return "\n".join([*lines, "", *table(rows), ""])


def table(rows: Sequence[Row]) -> list[str]:
    """One Markdown table a section, the peers' rows behind inlay's own."""
    lines: list[str] = []
    for title in dict.fromkeys(row.section for row in rows):
        mine = [row for row in rows if row.section == title]
        lines += [
            f"## {title}",
            "",
            "| case | median | to the first [quartiles] | its CPU time, least | beside | aim | |",
        ]
        lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
        lines += [_line(row) for row in mine]
        lines.append("")
    return lines


def _line(row: Row) -> str:
    name = row.case if row.tool in ("inlay", row.case.split(",")[0]) else f"{row.case} (in {row.tool}'s process)"
    took = f"{row.ms:.3g} ms" if row.ms >= 1 else f"{row.ms * 1e3:.0f} us"
    first = _ratio(row.to_plain)
    cpu = f"{row.to_plain.cpu:.3f}, {row.to_plain.best:.3f}" if row.to_plain else ""
    aims, met = _aims(row)
    return f"| {name} | {took} | {first} | {cpu} | {_beside(row)} | {aims} | {met} |"


def _ratio(ratio: Ratio | None) -> str:
    return f"{ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]" if ratio else ""


def _beside(row: Row) -> str:
    found = row.to_beside
    return f"{_ratio(found)}, CPU {found.cpu:.3f}, {found.best:.3f}, to {row.beside}" if found else ""


def _aims(row: Row) -> tuple[str, str]:
    """What was aimed at, and whether the medians keep to it."""
    aims = []
    if row.limit is not None and row.to_plain:
        aims.append((f"<= {row.limit} of the first", row.to_plain.median <= row.limit))
    if row.beside_limit is not None and row.to_beside:
        aims.append((f"<= {row.beside_limit} of the hook", row.to_beside.median <= row.beside_limit))
    if row.limit_ms is not None:
        aims.append((f"<= {row.limit_ms:g} ms", row.ms <= row.limit_ms))
    return "; ".join(text for text, _ in aims), "; ".join("met" if ok else "MISSED" for _, ok in aims)
