"""One colour and one label a method, the same in every chart, table and text of a report."""

from __future__ import annotations

from dataclasses import dataclass

from inlay.bench.result import BenchResult

# The first eight are told apart with any common colour blindness (after Okabe and Ito); all are of a lightness that
# shows on white and on near-black.
_METHODS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E0A100",
    "#3FA9E0",
    "#8A63D2",
    "#A0703C",
    "#0E9AA7",
    "#C2476B",
    "#7C9A2E",
    "#5B78D6",
    "#B5651D",
    "#A05AA8",
    "#C2A14D",
)
_BASELINES = ("#6B7280", "#8A919D", "#7B8794", "#9AA1AB")
_PROMPT = "#77818F"
_CONTROL = "#9AA1AB"


@dataclass(frozen=True)
class Entry:
    """A method as the report shows it.

    Attributes:
        method: its name.
        kind: `"method"`, `"baseline"` or `"control"`.
        colour: `#rrggbb`; baselines and controls are grey.
    """

    method: str
    kind: str
    colour: str

    @property
    def label(self) -> str:
        """The name, and what kind of row it is where it is no method."""
        return self.method if self.kind == "method" else f"{self.method} ({self.kind})"


def palette(result: BenchResult) -> dict[str, Entry]:
    """Every method of a result by name: first those that steer, then those that only detect, each in table order."""
    kinds: dict[str, str] = {}
    for frame in (result.steering_summary, result.detection_summary):
        if not frame.is_empty():
            for method, kind in frame.select("method", "kind").iter_rows():
                kinds.setdefault(method, kind)
    met = {"method": 0, "baseline": 0, "control": 0}
    entries = {}
    for method, kind in kinds.items():
        entries[method] = Entry(method, kind, _colour(method, kind, met[kind]))
        met[kind] += 1
    return entries


def _colour(method: str, kind: str, place: int) -> str:
    if kind == "control":
        return _CONTROL
    if method == "prompt":
        return _PROMPT
    colours = _METHODS if kind == "method" else _BASELINES
    return colours[place % len(colours)]
