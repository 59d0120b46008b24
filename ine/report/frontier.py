"""The frontier: how much of the concept is left against how much else is kept, as a picture.

A drawing in SVG without any plotting library: it scales, prints, is read aloud, and follows the
reader's dark mode. Colour tells methods apart and so does the marker's shape; a dashed line with
hollow markers is a negative in words. The figures stand in a table beside it, with intervals.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ine.evaluation.stats import Estimate
from ine.report.templates import MINUS, page_template

LIGHT = ("#0072b2", "#c44e00", "#00795a", "#a0408a", "#6b5500", "#444b54")
DARK = ("#56b4e9", "#f0883e", "#2cc79a", "#e39cc6", "#e6c84f", "#b9c2cc")
"""Colours after Okabe and Ito 2008, darker on white and lighter on black: contrast 4.5 or more."""

MARKERS = (
    "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z",
    "M-4.5 -4.5h9v9h-9z",
    "M0 -5.8L5.4 4.2H-5.4z",
    "M0 -6L6 0L0 6L-6 0z",
    "M-5.5 -3.5h11L0 6z",
    "M-2 -6h4v4h4v4h-4v4h-4v-4h-4v-4h4z",
)
WIDTH, HEIGHT = 760, 440
LEFT, TOP, RIGHT, BOTTOM = 62, 22, 500, 372


@dataclass(frozen=True, kw_only=True)
class Point:
    """One strength of one method."""

    label: str
    """The strength, "7"; "" for a method without one."""

    kept: Estimate
    """Preservation, at most 1; the horizontal axis."""

    left: Estimate
    """Share of pictures with the concept, in [0, 1]; the vertical axis."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One method with one negative over its strengths."""

    name: str
    points: tuple[Point, ...]
    """At least one, in the order of strength."""

    colour: int = 0
    """Which colour and marker; those of a method are the same for all its negatives."""

    hollow: bool = False
    """Dashed with hollow markers: the negative is words."""

    marker: int | None = None
    """Which marker, where it stands for something else than the colour."""

    @property
    def stroke(self) -> str:
        """Its colour, as CSS has it."""
        return f"var(--c{self.colour % len(LIGHT)})"

    @property
    def shape(self) -> str:
        """Its marker, as a path."""
        return MARKERS[(self.colour if self.marker is None else self.marker) % len(MARKERS)]

    def text_of(self, point: Point) -> str:
        """Return what a point says, to be read aloud."""
        name = f"{self.name}, {point.label}" if point.label else self.name
        return f"{name}: {_number(point.left.value)} left, {_number(point.kept.value)} preserved"


class _Axis:
    """A scale from numbers to pixels, its ends moved out to a round tick."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        span = high - low
        self.step = next((s for s in (0.02, 0.05, 0.1, 0.2, 0.25, 0.5) if span / s <= 6), 1.0)
        first, last = (round(f / self.step, 6) for f in (low, high))
        self.low, self.high = math.floor(first) * self.step, math.ceil(last) * self.step
        self.start, self.end = start, end
        count = round((self.high - self.low) / self.step)
        self.ticks = [self.low + n * self.step for n in range(count + 1)]

    def at(self, value: float) -> float:
        """Return the pixel of a number."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)


def _number(value: float) -> str:
    return f"{value:.2f}".replace("-", MINUS)


def frontier_svg(
    curves: Sequence[Curve],
    undefended: Estimate | None = None,
    concept: str = "concept",
    ident: str = "frontier",
) -> str:
    """Return the drawing, an `<svg>` element that needs nothing from outside.

    Args:
        curves: At least one `Curve`; more than `len(LIGHT)` methods share colours again.
        undefended: Share of the concept without any defence, an `Estimate`; a dashed line.
        concept: What the share is of.
        ident: Prefix of the ids in the element, for several drawings in one page.

    Raises:
        ValueError: There is no point to draw, or one that is not a finite number.
    """
    points = [p for c in curves for p in c.points]
    numbers = [n for p in points for n in (p.kept.value, p.left.value)]
    if not points or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{len(points)} points, not all finite: a frontier needs some that are")
    tops = [p.left.value for p in points] + ([undefended.value] if undefended else [])
    return page_template("frontier.svg.j2", number=_number).render(
        curves=curves,
        undefended=undefended,
        concept=concept,
        ident=ident,
        x_axis=_Axis(min(0.9, *(p.kept.value for p in points)), 1.0, LEFT, RIGHT),
        y_axis=_Axis(0.0, max(0.1, *tops), BOTTOM, TOP),
        # Fourteen curves of short names fit beside the plot; the drawing grows with more.
        height=max(HEIGHT, TOP + 60 + 22 * len(curves)),
        width=max(WIDTH, RIGHT + 70 + 8 * max(len(c.name) for c in curves)),
        **{"left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM},
        **{"light": LIGHT, "dark": DARK},
    )
