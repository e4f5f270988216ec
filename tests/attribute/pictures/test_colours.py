from __future__ import annotations

import itertools
import math

import pytest

from inlay.attribute.pictures.colours import DARK, LIGHT, STEPS, Scheme, step

PARTS = [place / STEPS for place in range(STEPS + 1)]
BOTH = pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
# What dichromats see, of linear RGB (Machado, Oliveira, Fernandes 2009, severity 1).
EYES = {
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritan": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}
Colour = tuple[float, ...]


def _linear(colour: str) -> Colour:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return tuple(c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)


def _times(matrix: tuple[Colour, ...], colour: Colour) -> Colour:
    return tuple(sum(a * c for a, c in zip(line, colour, strict=True)) for line in matrix)


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, relative luminance and contrast ratio."""
    light = [sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), _linear(x), strict=True)) for x in (one, other)]
    return (max(light) + 0.05) / (min(light) + 0.05)


def _oklab(linear: Colour) -> Colour:
    """Ottosson's forward transform, the published matrices."""
    first = ((0.4122214708, 0.5363325363, 0.0514459929), (0.2119034982, 0.6806995451, 0.1073969566),
             (0.0883024619, 0.2817188376, 0.6299787005))  # fmt: skip
    second = ((0.2104542553, 0.7936177850, -0.0040720468), (1.9779984951, -2.4285922050, 0.4505937099),
              (0.0259040371, 0.7827717662, -0.8086757660))  # fmt: skip
    return _times(second, tuple(math.cbrt(c) for c in _times(first, linear)))


@BOTH
def test_text_reads_on_every_colour(scheme: Scheme) -> None:
    for part in PARTS:
        assert min(contrast(scheme.ink, scheme.colour(part)), contrast(scheme.ink, scheme.colour(-part))) >= 4.5
    assert contrast(scheme.muted, scheme.page) >= 4.5
    assert contrast(scheme.ink, scheme.page) >= 7


@BOTH
def test_a_larger_score_is_farther_from_the_middle_and_alike_on_both_sides(scheme: Scheme) -> None:
    above = [_oklab(_linear(scheme.colour(part))) for part in PARTS]
    below = [_oklab(_linear(scheme.colour(-part))) for part in PARTS]
    lightness = [one[0] for one in above]
    steps = [b - a for a, b in itertools.pairwise(lightness)]
    even = (scheme.end[0] - scheme.middle[0]) / STEPS
    assert all(one == pytest.approx(even, abs=0.004) for one in steps)  # 8 bits a channel leave 0.004
    assert all(one * even > 0 for one in steps)
    for up, down, part in zip(above, below, PARTS, strict=True):
        assert up[0] == pytest.approx(down[0], abs=0.004)
        for found in (up, down):  # chroma as asked for: nothing was cut off at the edge of sRGB
            assert math.hypot(*found[1:]) == pytest.approx(part * scheme.end[1], abs=0.005)
    assert len({scheme.colour(sign * part) for part in PARTS for sign in (1, -1)}) == 2 * STEPS + 1


@BOTH
@pytest.mark.parametrize("eye", EYES)
def test_signs_differ_for_colour_blind_eyes(scheme: Scheme, eye: str) -> None:
    for part in PARTS[STEPS // 4 :]:
        seen = [
            _oklab(tuple(min(max(c, 0.0), 1.0) for c in _times(EYES[eye], _linear(scheme.colour(sign * part)))))
            for sign in (1, -1)
        ]
        # 0.02 in OKLab is a difference that is just seen.
        assert math.dist(*seen) > 0.04 * (1 + part)


def test_steps_are_odd_in_the_score_and_stop_at_the_ends() -> None:
    assert [step(x, 2.0) for x in (0.0, 1.0, 2.0, 5.0, math.inf)] == [0, STEPS // 2, STEPS, STEPS, STEPS]
    for x in (0.01, 0.3, 1.7, 9.0):
        assert step(-x, 2.0) == -step(x, 2.0)
    assert step(3.0, 0.0) == 0
    assert LIGHT.colour(7.0) == LIGHT.colour(1.0)
