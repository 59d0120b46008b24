"""The frontier: how much of the concept is left against how much else is kept, as a picture.

A drawing in SVG without any plotting library: it scales, prints, is read aloud, and follows the
reader's dark mode. Colour tells methods apart and so does the marker's shape; a dashed line with
hollow markers is a negative in words. The figures stand in a table beside it, with intervals.
"""

import math
from dataclasses import dataclass
from html import escape

from ine.evaluation.metrics import Estimate

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
    """Which marker, where it tells something else than the colour."""


def frontier_svg(curves, undefended=None, concept="concept", ident="frontier"):
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
    x_axis = _Axis(min(0.9, *(p.kept.value for p in points)), 1.0, LEFT, RIGHT)
    y_axis = _Axis(0.0, max(0.1, *tops), BOTTOM, TOP)
    # Fourteen curves fit beside the plot; the drawing grows with more.
    height = max(HEIGHT, TOP + 60 + 22 * len(curves))
    body = [
        f'<svg class="frontier" xmlns="http://www.w3.org/2000/svg" role="img" '
        f'viewBox="0 0 {WIDTH} {height}" aria-labelledby="{ident}-title {ident}-desc">',
        f'<title id="{ident}-title">Share with {escape(concept)} against preservation</title>',
        f'<desc id="{ident}-desc">{escape(_spoken(curves, undefended, concept))}</desc>',
        f"<style>{_style()}</style>",
        *_frame(x_axis, y_axis, concept),
        *([_undefended(undefended, y_axis)] if undefended else []),
        *(_line(c, x_axis, y_axis) for c in curves),
        *(mark for c in curves for mark in _marks(c, x_axis, y_axis)),
        *_legend(curves),
        "</svg>",
    ]
    return "\n".join(body)


class _Axis:
    """A scale from numbers to pixels, its ends moved out to a round tick."""

    def __init__(self, low, high, start, end):
        span = high - low
        self.step = next((s for s in (0.02, 0.05, 0.1, 0.2, 0.25, 0.5) if span / s <= 6), 1.0)
        first, last = (round(f / self.step, 6) for f in (low, high))
        self.low, self.high = math.floor(first) * self.step, math.ceil(last) * self.step
        self.start, self.end = start, end

    def at(self, value):
        """Return the pixel of a number."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self):
        """Return the numbers that are marked."""
        count = round((self.high - self.low) / self.step)
        return [self.low + n * self.step for n in range(count + 1)]


def _style():
    light, dark = (
        "".join(f"--c{n}:{colour};" for n, colour in enumerate(colours))
        for colours in (LIGHT, DARK)
    )
    return (
        f".frontier{{{light}--back:#fff;--text:#1c1f23;--soft:#5c646d;--grid:#e3e6ea;"
        "font:13px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;"
        "font-variant-numeric:tabular-nums}"
        f"@media (prefers-color-scheme:dark){{.frontier{{{dark}--back:#15171a;--text:#e6e8ea;"
        "--soft:#9aa3ad;--grid:#2b3036}}"
        f"@media print{{.frontier{{{light}--back:#fff;--text:#000;--soft:#444;--grid:#ddd}}}}"
        ".frontier text{fill:var(--text);paint-order:stroke;stroke:var(--back);stroke-width:3px}"
        ".frontier .soft{fill:var(--soft);font-size:11.5px}"
        ".frontier .end{text-anchor:end}.frontier .middle{text-anchor:middle}"
        ".frontier .grid{stroke:var(--grid)}.frontier .axis{stroke:var(--text)}"
        ".frontier .line{fill:none;stroke-width:2}.frontier .dashed{stroke-dasharray:5 4}"
        ".frontier .mark{stroke-width:2}"
    )


def _number(value):
    return f"{value:.2f}".replace("-", "\N{MINUS SIGN}")


def _text(kind, x, y, words):
    return f'<text class="{kind}" x="{x:g}" y="{y:g}">{escape(words)}</text>'


def _stroke(kind, x_1, x_2, y_1, y_2, more=""):
    return f'<line class="{kind}" x1="{x_1}" x2="{x_2}" y1="{y_1}" y2="{y_2}"{more}/>'


def _frame(x_axis, y_axis, concept):
    """Yield grid, ticks and what the axes mean."""
    for value in x_axis.ticks():
        x = x_axis.at(value)
        yield _stroke("grid", x, x, TOP, BOTTOM)
        yield _text("soft middle", x, BOTTOM + 18, _number(value))
    for value in y_axis.ticks():
        y = y_axis.at(value)
        yield _stroke("grid", LEFT, RIGHT, y, y)
        yield _text("soft end", LEFT - 8, y + 4, _number(value))
    yield _stroke("axis", LEFT, RIGHT, BOTTOM, BOTTOM)
    yield _stroke("axis", LEFT, LEFT, TOP, BOTTOM)
    middle = (LEFT + RIGHT) / 2
    yield _text("middle", middle, BOTTOM + 40, "preservation of benign pictures")
    yield _text("soft middle", middle, BOTTOM + 57, "better: down and to the right")
    turned = f"translate(16 {(TOP + BOTTOM) / 2:g}) rotate(-90)"
    words = escape(f"share of pictures with {concept}")
    yield f'<text class="middle" transform="{turned}">{words}</text>'


def _undefended(undefended, y_axis):
    y = y_axis.at(undefended.value)
    line = _stroke("axis dashed", LEFT, RIGHT, y, y, ' opacity=".6"')
    return line + _text("soft", LEFT + 6, y - 5, f"undefended {_number(undefended.value)}")


def _colour(curve):
    return f"var(--c{curve.colour % len(LIGHT)})"


def _dashed(curve):
    return "line dashed" if curve.hollow else "line"


def _line(curve, x_axis, y_axis):
    pairs = [f"{x_axis.at(p.kept.value)},{y_axis.at(p.left.value)}" for p in curve.points]
    style = f"stroke:{_colour(curve)}"
    return f'<polyline class="{_dashed(curve)}" points="{" ".join(pairs)}" style="{style}"/>'


def _marker(curve, x, y):
    number = curve.colour if curve.marker is None else curve.marker
    shape = MARKERS[number % len(MARKERS)]
    inside = "var(--back)" if curve.hollow else _colour(curve)
    style = f"stroke:{_colour(curve)};fill:{inside}"
    return f'<path class="mark" transform="translate({x} {y})" d="{shape}" style="{style}"/>'


def _marks(curve, x_axis, y_axis):
    """Yield the points of a curve; those at its ends carry their strength."""
    for number, point in enumerate(curve.points):
        x, y = x_axis.at(point.kept.value), y_axis.at(point.left.value)
        at_end = point.label and number in (0, len(curve.points) - 1)
        label = _text("soft", x + 8, y - 6, point.label) if at_end else ""
        about = escape(_point_text(curve, point))
        yield f"<g><title>{about}</title>{_marker(curve, x, y)}{label}</g>"


def _point_text(curve, point):
    name = f"{curve.name}, {point.label}" if point.label else curve.name
    return f"{name}: {_number(point.left.value)} left, {_number(point.kept.value)} preserved"


def _legend(curves):
    x = RIGHT + 24
    for number, curve in enumerate(curves):
        y = TOP + 14 + 22 * number
        style = f' style="stroke:{_colour(curve)}"'
        yield _stroke(_dashed(curve), x, x + 28, y, y, style)
        yield _marker(curve, x + 14, y)
        yield _text("name", x + 36, y + 4, curve.name)


def _spoken(curves, undefended, concept):
    """Return the drawing in words."""
    words = [f"Vertical: share of pictures with {concept}. Horizontal: preservation."]
    if undefended:
        words.append(f"Undefended: {_number(undefended.value)}.")
    for curve in curves:
        words += [f"{_point_text(curve, p)}." for p in curve.points]
    return " ".join(words)
