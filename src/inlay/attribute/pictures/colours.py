"""The one colour scale of all pictures: orange above 0, blue below, pale at 0, in a light and a dark scheme.

A colour is a point of OKLCH (Ottosson 2020): hue by sign, lightness and chroma linear in the size. So the two sides are
alike in lightness and chroma, each step looks as large as the next, and no two hues are used that a colour-blind eye
confuses. The range of lightness is one on which a single ink reads: black in the light scheme, white in the dark one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

STEPS = 24
"""The steps on each side of 0 in which a score is shown."""
_POSITIVE, _NEGATIVE = 48.0, 252.0  # hues, in degrees


@dataclass(frozen=True)
class Scheme:
    """A scale on one kind of background.

    Attributes:
        ink: the colour of text, `#rrggbb`, of contrast 4.5 or more (WCAG 2.2, 1.4.3) on every colour of the scale.
        page: the background.
        muted: the colour of what is less important, of the same contrast on the page.
        middle, end: (lightness, chroma) in OKLCH at 0 and at the ends.
    """

    ink: str
    page: str
    muted: str
    middle: tuple[float, float]
    end: tuple[float, float]

    def colour(self, part: float) -> str:
        """The colour `#rrggbb` of a part of the scale, from -1 to 1; what lies beyond has the colour of the end."""
        size = min(abs(part), 1.0)
        lightness, chroma = (low + size * (high - low) for low, high in zip(self.middle, self.end, strict=True))
        red, green, blue = _srgb(lightness, chroma, math.radians(_POSITIVE if part > 0 else _NEGATIVE))
        return f"#{red:02x}{green:02x}{blue:02x}"


LIGHT = Scheme("#000000", "#ffffff", "#5f6876", middle=(0.985, 0.0), end=(0.62, 0.16))
DARK = Scheme("#ffffff", "#14171b", "#9aa3af", middle=(0.255, 0.0), end=(0.55, 0.125))


def step(score: float, limit: float) -> int:
    """The step of a score, from -`STEPS` to `STEPS`, where the scale ends at +-`limit`."""
    if limit <= 0:
        return 0
    return round(STEPS * max(-1.0, min(1.0, score / limit)))


def _srgb(lightness: float, chroma: float, hue: float) -> tuple[int, int, int]:
    """OKLCH as 8-bit sRGB."""
    a, b = chroma * math.cos(hue), chroma * math.sin(hue)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return (
        _byte(4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short),
        _byte(-1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short),
        _byte(-0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short),
    )


def _byte(linear: float) -> int:
    """A linear channel as a byte, by the transfer curve of sRGB (IEC 61966-2-1)."""
    inside = min(max(linear, 0.0), 1.0)
    return round(255 * (12.92 * inside if inside <= 0.0031308 else 1.055 * inside ** (1 / 2.4) - 0.055))
