"""What the HTML pictures share: style sheet, colour bar, and the page around them. No script, nothing fetched."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from inlay.attribute.pictures.colours import DARK, LIGHT, STEPS, Scheme
from inlay.attribute.pictures.panels import number

# All rules hang on .inlay-scores, so that a picture in a notebook changes nothing around it, and it brings its own
# background: a notebook's dark theme need not be the browser's.
_STYLE = """
.inlay-scores{background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif;padding:1rem;max-width:100%;
box-sizing:border-box;print-color-adjust:exact;-webkit-print-color-adjust:exact}
.inlay-scores *{box-sizing:border-box}
.inlay-scores h1{font-size:1rem;font-weight:600;margin:0 0 .5rem}
.inlay-scores .legend,.inlay-scores .facts{color:var(--muted);font-size:.8125rem;margin:0}
.inlay-scores .legend{max-width:60rem;margin-bottom:1rem}
.inlay-scores .panels{display:grid;gap:.5rem 2rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));
margin-bottom:1.75rem}
.inlay-scores figure{margin:0;min-width:0}
.inlay-scores .panels figure{display:grid;grid-row:span 2;grid-template-rows:subgrid;row-gap:.5rem;align-content:start}
.inlay-scores figcaption{border-top:1px solid var(--line);padding-top:.5rem}
.inlay-scores .name{display:flex;flex-wrap:wrap;gap:.25rem 1rem;align-items:baseline;justify-content:space-between}
.inlay-scores .method{font-weight:600;overflow-wrap:anywhere}
.inlay-scores .scale{display:inline-flex;gap:.5rem;align-items:center;font-size:.8125rem;color:var(--muted);
font-variant-numeric:tabular-nums;white-space:nowrap}
.inlay-scores .bar{display:inline-block;width:7rem;height:.75rem;border-radius:2px;background:var(--bar)}
.inlay-scores .facts{display:flex;flex-wrap:wrap;gap:0 1rem;margin:.125rem 0 0;font-variant-numeric:tabular-nums}
.inlay-scores .facts div{display:flex;gap:.375rem;min-width:0}
.inlay-scores dt,.inlay-scores dd{margin:0}
.inlay-scores dd{color:var(--ink);overflow-wrap:anywhere;min-width:0}
.inlay-scores .tokens{margin:0;line-height:1.85;max-width:75rem;overflow-wrap:anywhere}
.inlay-scores .t{padding:.125em 1px;margin-inline-end:1px;border-radius:2px;-webkit-box-decoration-break:clone;
box-decoration-break:clone;cursor:default}
.inlay-scores [dir=rtl] .t{padding-inline:0}
.inlay-scores .words .t{padding-inline:.2em;margin-inline-end:.2em}
.inlay-scores .t:hover,.inlay-scores td:hover{outline:2px solid var(--ink)}
.inlay-scores .down{text-decoration:underline dotted 1px;text-underline-offset:.25em}
.inlay-scores .special{font-family:ui-monospace,monospace;font-size:.85em;border:1px solid var(--line)}
.inlay-scores .unscored{background:repeating-linear-gradient(135deg,transparent 0 3px,var(--line) 3px 4px)}
.inlay-scores .wide{overflow-x:auto;max-width:100%}
.inlay-scores table{border-collapse:separate;border-spacing:1px;font-size:.8125rem;line-height:1.1}
.inlay-scores th{font-weight:400;color:var(--muted);white-space:nowrap}
.inlay-scores tbody th{text-align:end;padding-inline-end:.5rem;position:sticky;left:0;background:var(--page)}
.inlay-scores thead th div{writing-mode:vertical-rl;transform:rotate(180deg);margin:auto;padding-top:.25rem;
line-height:1.3}
.inlay-scores thead th{vertical-align:bottom;padding:0}
.inlay-scores td{min-width:1.25rem;height:1.25rem;padding:0;border-radius:2px}
"""
_ROOT = (
    ".inlay-scores{{color-scheme:{name};--page:{page};--ink:{ink};--muted:{muted};--line:{line};"
    "--bar:linear-gradient(to right,{stops})}}\n"
)
_LINES = {"light": "#cfd4da", "dark": "#474e57"}
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>html,body{{margin:0}}body{{background:{light}}}@media(prefers-color-scheme:dark){{body{{background:{dark}}}}}</style>
</head>
<body>
{body}
</body>
</html>
"""


def page(title: str, body: str) -> str:
    """A page of its own around a picture."""
    return _PAGE.format(title=escape(title), body=body, light=LIGHT.page, dark=DARK.page)


def picture(content: str, steps: Iterable[int]) -> str:
    """A picture with its style sheet: what a notebook shows.

    Args:
        content: HTML.
        steps: the steps of the colour scale that it uses.
    """
    used = sorted(set(steps))
    light, dark = (_rules(name, scheme, used) for name, scheme in (("light", LIGHT), ("dark", DARK)))
    style = f"{_STYLE}{light}@media (prefers-color-scheme:dark){{\n{dark}}}\n"
    return f'<div class="inlay-scores">\n<style>{style}</style>\n{content}\n</div>'


def shade(step: int) -> str:
    """The class of a step of the colour scale."""
    return f"up{step}" if step > 0 else f"down down{-step}" if step < 0 else "zero"


def bar(limit: float) -> str:
    """The colour bar with the numbers at its ends."""
    if limit <= 0:
        return '<span class="scale">all 0</span>'
    return f'<span class="scale">{number(-limit)} <span class="bar"></span> {number(limit)}</span>'


def _rules(name: str, scheme: Scheme, steps: Iterable[int]) -> str:
    """The rules of one scheme: its colours, and those of the steps that are used."""
    stops = ",".join(scheme.colour(tenth / 10) for tenth in range(-10, 11, 2))
    root = _ROOT.format(name=name, page=scheme.page, ink=scheme.ink, muted=scheme.muted, line=_LINES[name], stops=stops)
    return root + "".join(
        f".inlay-scores .{shade(step).split()[-1]}{{background:{scheme.colour(step / STEPS)};color:{scheme.ink}}}\n"
        for step in steps
    )
