"""What detectors find in pictures, stored raw so that any rule can score it later."""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

DIGITS = 6
"""Decimals of a stored score. Rules read stored scores, so the first scoring and any later one
agree on every picture; a verdict differs from that of unrounded scores only within 5e-7 of the
threshold."""

JOIN = " + "
"""Joins the names of several detectors that run together."""

RESIZE = "resize"
"""Key of a detector's settings: how pictures are resized to its input."""

CUT = "shorter side, then the middle, 8 bits"
"""How `ine.detectors.clip.to_pixels` resizes pictures, for stored settings."""

MOST = 100_000
"""Largest number of detections of one picture read from a file; NudeNet has 2,100 candidates."""


@dataclass(frozen=True, kw_only=True)
class Detection:
    """One thing that a detector found."""

    label: str
    score: float
    """In [0, 1]."""

    box: tuple[int, int, int, int] | None = None
    """(x, y, width, height) in pixels of the picture, x and y of the top left corner; None from
    detectors that score the whole picture."""


def scores_of(detections: Iterable[Detection]) -> dict[str, float]:
    """Return {label: largest score}, which rules read; labels that were not found are absent."""
    found: dict[str, float] = {}
    for d in detections:
        found[d.label] = max(found.get(d.label, 0.0), d.score)
    return found


def last_scores_of(detections: Iterable[Detection]) -> dict[str, float]:
    """Return {label: lowest score}, as in code that overwrites a dictionary entry with each box."""
    return {d.label: d.score for d in sorted(detections, key=lambda d: -d.score)}


def counts_of(
    detections: Iterable[Detection],
    labels: Iterable[str],
    above: float = 0.0,
    reached: float = 0.0,
) -> dict[str, int]:
    """Return {label: number of boxes that score more than `above` and at least `reached`}."""
    found = [d.label for d in detections if d.score > above and d.score >= reached]
    return {label: found.count(label) for label in labels}


def looks_through_clip(name: str) -> bool:
    """Return whether a detector, or a reading such as "features:clip", uses a CLIP model.

    The bundled judges do not count: pictures of `mini` have the size of their input.
    """
    detector = re.sub("^(features|alignment):", "", name)
    return re.split(r"[:\[]", detector)[0] in ("q16", "mhsc", "clip", "clip-violence")


def detect(detector: Any, pictures: np.ndarray) -> list[tuple[Detection, ...]]:
    """Return what a detector found in each picture, a tuple of `Detection` per picture.

    Args:
        detector: A callable with the protocol `ine.detectors.table.Detector`; if it also has a
            method `detect`, that gives the boxes.
        pictures: uint8 RGB, (B, H, W, 3).
    """
    if hasattr(detector, "detect"):
        return detector.detect(pictures)
    return [
        tuple(Detection(label=label, score=float(score)) for label, score in scores.items())
        for scores in detector(pictures)
    ]


def to_json(detections: Iterable[Detection]) -> dict[str, float] | list[list[Any]]:
    """Return detections as plain values: {label: score}, or [[label, score, x, y, w, h], ...].

    The short form is for detectors without boxes, which give each label once.
    """
    rows = [[d.label, round(float(d.score), DIGITS), *(d.box or ())] for d in detections]
    short = all(len(row) == 2 for row in rows) and len({row[0] for row in rows}) == len(rows)
    return dict(rows) if rows and short else rows


def from_json(values: Any) -> tuple[Detection, ...]:
    """Return the detections of `to_json`.

    Raises:
        ValueError: The values have another form.
    """
    rows = [[*item] for item in values.items()] if isinstance(values, dict) else values
    if not isinstance(rows, list) or len(rows) > MOST:
        raise ValueError(f"expected {{label: score}} or a list, found {str(values)[:60]!r}")
    return tuple(map(_from_row, rows))


def _from_row(row: Any) -> Detection:
    whole = isinstance(row, list) and len(row) in (2, 6) and isinstance(row[0], str)
    if not whole or not all(type(n) in (int, float) and math.isfinite(n) for n in row[1:]):
        raise ValueError(f"expected [label, score] or [label, score, x, y, w, h], found {row!r}")
    if not 0 <= row[1] <= 1:
        raise ValueError(f"the score of {row[0]!r} is {row[1]}; expected 0 to 1")
    box = (int(row[2]), int(row[3]), int(row[4]), int(row[5])) if len(row) == 6 else None
    return Detection(label=row[0], score=float(row[1]), box=box)


def check_pictures(pictures: Iterable[np.ndarray]) -> list[np.ndarray]:
    """Return pictures as a list of uint8 arrays (H, W, 3).

    NudeNet silently finds nothing in an array of floats, and any detector sees noise in a
    transposed one.

    Raises:
        ValueError: A picture has another dtype or shape.
    """
    pictures = list(pictures)
    for number, picture in enumerate(pictures):
        found = np.asarray(picture)
        if found.dtype != np.uint8 or found.ndim != 3 or found.shape[2] != 3 or not found.size:
            raise ValueError(
                f"picture {number} is {found.dtype} {found.shape}; detectors take uint8 RGB "
                "(H, W, 3), values 0 to 255"
            )
    return [np.asarray(picture) for picture in pictures]


class BoxDetector(ABC):
    """A detector that finds boxes in one picture at a time."""

    @abstractmethod
    def _boxes(self, picture: np.ndarray) -> Iterable[Detection]:
        """Return every box in a picture, uint8 RGB (H, W, 3), the best first."""

    def detect(self, pictures: Iterable[np.ndarray]) -> list[tuple[Detection, ...]]:
        """Return every box in each picture, the best first.

        Args:
            pictures: uint8 RGB, (B, H, W, 3), or several (H, W, 3) of different sizes.

        Raises:
            ValueError: A picture has another dtype or shape; NudeNet would find nothing in it.
        """
        return [tuple(self._boxes(picture)) for picture in check_pictures(pictures)]

    def __call__(self, pictures: Iterable[np.ndarray]) -> list[dict[str, float]]:
        """Return {label: score} per picture; labels that were not found are absent."""
        return [scores_of(found) for found in self.detect(pictures)]
