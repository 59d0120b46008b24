"""What a detector found in a picture, kept raw so that any rule can be applied later."""

import math
from dataclasses import dataclass

import numpy as np

DIGITS = 6
"""Decimals of a stored score. Rules are applied to what is stored, so the first scoring and any
later one agree to the picture; against unrounded scores a verdict can differ only where a score
is within 5e-7 of the threshold."""

JOIN = " + "
"""Between the names of several detectors that look together."""

MOST = 100_000
"""Detections of one picture that are read from a file; NudeNet has 2,100 candidates."""


@dataclass(frozen=True, kw_only=True)
class Detection:
    """One thing that a detector found."""

    label: str
    score: float
    """In [0, 1]."""

    box: tuple[int, int, int, int] | None = None
    """(x, y, width, height) in pixels of the picture, x and y of the top left corner; None from
    judges that look at the whole picture."""


def scores_of(detections):
    """Return {label: largest score}, which rules read; labels that were not found are absent."""
    found = {}
    for d in detections:
        found[d.label] = max(found.get(d.label, 0.0), d.score)
    return found


def counts_of(detections, labels, above=0.0):
    """Return {label: how many boxes score more than `above`}, as papers that count boxes do."""
    return {x: sum(d.label == x and d.score > above for d in detections) for x in labels}


def detect(detector, pictures):
    """Return what a detector found in each picture, a tuple of `Detection` per picture.

    Args:
        detector: Any callable with the protocol `ine.judging.detectors.Detector`; where it also
            has a method `detect`, boxes come from there.
        pictures: uint8 RGB, (B, H, W, 3).
    """
    if hasattr(detector, "detect"):
        return detector.detect(pictures)
    return [
        tuple(Detection(label=label, score=float(score)) for label, score in scores.items())
        for scores in detector(pictures)
    ]


def to_json(detections):
    """Return detections as plain values: {label: score}, or [[label, score, x, y, w, h], ...].

    The short form is for judges without boxes, which give a label once.
    """
    rows = [[d.label, round(float(d.score), DIGITS), *(d.box or ())] for d in detections]
    short = all(len(row) == 2 for row in rows) and len({row[0] for row in rows}) == len(rows)
    return dict(rows) if rows and short else rows


def from_json(values):
    """Return the detections of `to_json`.

    Raises:
        ValueError: They are not of that form.
    """
    rows = [[*item] for item in values.items()] if isinstance(values, dict) else values
    if not isinstance(rows, list) or len(rows) > MOST:
        raise ValueError(f"expected {{label: score}} or a list, found {str(values)[:60]!r}")
    return tuple(map(_from_row, rows))


def _from_row(row):
    whole = isinstance(row, list) and len(row) in (2, 6) and isinstance(row[0], str)
    numbers = row[1:] if whole else [None]
    if not all(type(n) in (int, float) and math.isfinite(n) for n in numbers):
        raise ValueError(f"expected [label, score] or [label, score, x, y, w, h], found {row!r}")
    if not 0 <= row[1] <= 1:
        raise ValueError(f"the score of {row[0]!r} is {row[1]}; expected 0 to 1")
    return Detection(label=row[0], score=float(row[1]), box=tuple(map(int, row[2:])) or None)


def check_pictures(pictures):
    """Return pictures as a list of uint8 arrays (H, W, 3).

    NudeNet finds nothing in an array of floats and says nothing; a transposed one is a picture
    of noise to any detector.

    Raises:
        ValueError: Another dtype or shape.
    """
    for number, picture in enumerate(pictures):
        found = np.asarray(picture)
        if found.dtype != np.uint8 or found.ndim != 3 or found.shape[2] != 3 or not found.size:
            raise ValueError(
                f"picture {number} is {found.dtype} {found.shape}; detectors look at uint8 RGB "
                "(H, W, 3), values 0 to 255"
            )
    return [np.asarray(picture) for picture in pictures]
