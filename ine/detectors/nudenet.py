"""NudeNet 3.4 with its boxes, an explicit channel order, and adjustable floors.

Publications with older code and weights are in `ine.detectors.nudenet_codes`.
"""

import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ine.detectors.base import BoxDetector, Detection
from ine.errors import MissingDependency, RecipeError

CHANNELS = ("bgr", "rgb")


@dataclass(frozen=True, kw_only=True)
class Floors:
    """Thresholds inside NudeNet; its package (3.4) fixes the defaults."""

    considered: float = 0.2
    """Class score that a candidate must reach (>=) to be considered."""

    reported: float = 0.25
    """Score that a box must exceed (>) to be reported."""

    overlap: float = 0.45
    """Intersection over union above which the lower of two boxes is dropped, whatever their
    classes."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 <= value <= 1:
                raise ValueError(f"floor {name}={value}: expected 0 to 1")

    @classmethod
    def at(cls, floor: float) -> "Floors":
        """Return floors that report every box above a score."""
        return cls(considered=min(floor, cls.considered), reported=floor)

    def lowered(self, floor: float) -> "Floors":
        """Return these floors, none of them above a score."""
        considered, reported = min(floor, self.considered), min(floor, self.reported)
        return replace(self, considered=considered, reported=reported)


PUBLISHED = Floors()


def nudenet_settings(words: str) -> tuple[str, Floors]:
    """Return (channels, `Floors`) of "rgb", "floor=0.05" or both with a comma between.

    Raises:
        RecipeError: The words have another form.
    """
    channels, floors = "bgr", PUBLISHED
    for word in filter(None, words.split(",")):
        floor = floor_in(word)
        if word in CHANNELS:
            channels = word
        elif floor is not None:
            floors = Floors.at(floor)
        else:
            raise RecipeError(
                f"detector 'nudenet:{words}': {word!r} is not one of rgb, bgr, floor=NUMBER (0 to "
                "below 1)"
            )
    return channels, floors


class NudeNet(BoxDetector):
    """NudeNet 3's detector.

    The published rules feed file paths, which OpenCV reads as BGR. An RGB array scores several
    points higher on the same picture, so BGR is the default here.

    Boxes are suppressed from the best down, so lower floors add boxes and change none of those
    that the published floors report: output with low floors serves for both.
    """

    def __init__(self, channels: str = "bgr", floors: Floors = PUBLISHED) -> None:
        """Load the detector; `channels` is "bgr" (most publications) or "rgb" (DUO)."""
        if channels not in CHANNELS:
            raise ValueError(f"channels {channels!r}: expected one of {', '.join(CHANNELS)}")
        try:
            from nudenet import NudeDetector
        except ImportError as error:
            raise no_nudenet(error) from error
        self.detector = NudeDetector()
        self.channels, self.floors = channels, floors

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the raw output, as plain values."""
        return {"weights": "nudenet-320n", "channels": self.channels, **asdict(self.floors)}

    def _boxes(self, picture: np.ndarray) -> list[Detection]:
        array = np.ascontiguousarray(picture[..., ::-1] if self.channels == "bgr" else picture)
        if self.floors == PUBLISHED:
            return [
                Detection(label=hit["class"], score=float(hit["score"]), box=tuple(hit["box"]))
                for hit in self.detector.detect(array)
            ]
        from nudenet import nudenet

        side = self.detector.input_width
        pixels = nudenet._read_image(array, side)[0]
        [output] = self.detector.onnx_session.run(None, {self.detector.input_name: pixels})
        labels = vars(nudenet)["__labels"]
        return boxes_of(output, labels, picture.shape[1], picture.shape[0], self.floors, side)


def floor_in(word: str) -> float | None:
    """Return the number of "floor=NUMBER", from 0 to below 1, or None for another word."""
    number = re.fullmatch(r"floor=(0?\.\d+|0)", word)
    return float(number[1]) if number else None


def padded_at_the_end(rows: np.ndarray, width: int, height: int, side: int) -> np.ndarray:
    """Return boxes in pixels of a picture that NudeNet 3.4 padded at its right or lower edge.

    Args:
        rows: (K, 4) float32, centre, width and height in pixels of the network's square input.
        width: Of the picture, in pixels.
        height: Of the picture, in pixels.
        side: Of the network's input, in pixels.

    Returns:
        (K, 4) float32, x, y, width and height.
    """
    x, y, w, h = rows.T
    longest = max(width, height)
    x, y, w, h = (v * longest / side for v in (x - w / 2, y - h / 2, w, h))
    x, y = x.clip(0, width), y.clip(0, height)
    # As NudeNet does: a box that begins outside keeps its width.
    w, h = np.minimum(w, width - x), np.minimum(h, height - y)
    return np.stack([x, y, w, h], axis=1)


def boxes_of(
    output: np.ndarray,
    labels: list[str],
    width: int,
    height: int,
    floors: Floors = PUBLISHED,
    side: int = 320,
    placed: Callable[[np.ndarray, int, int, int], np.ndarray] = padded_at_the_end,
) -> list[Detection]:
    """Return the `Detection`s in the network's output, the best first.

    Args:
        output: (1, 4 + K, A) float32: per candidate the centre, width and height in pixels of
            the network's square input, then K class scores.
        labels: The K classes.
        width: Of the picture, in pixels.
        height: Of the picture, in pixels.
        floors: Thresholds.
        side: Of the network's input, in pixels.
        placed: Turns boxes into pixels of the picture, as `padded_at_the_end`.
    """
    rows = output[0].T
    best = rows[:, 4:].max(axis=1)
    rows = rows[(best >= floors.considered) & (best > floors.reported)]
    best, classes = rows[:, 4:].max(axis=1), rows[:, 4:].argmax(axis=1)
    boxes = placed(rows[:, :4], width, height, side)
    return [
        Detection(
            label=labels[classes[i]],
            score=float(best[i]),
            box=_whole(boxes[i]),
        )
        for i in unsuppressed(boxes, best, floors.overlap)
    ]


def _whole(box: np.ndarray) -> tuple[int, int, int, int]:
    x, y, width, height = (int(v) for v in box)
    return x, y, width, height


def unsuppressed(boxes: np.ndarray, scores: np.ndarray, overlap: float) -> list[int]:
    """Return the indices of the boxes that greedy non-maximum suppression keeps, the best first.

    Args:
        boxes: (K, 4) x, y, width, height.
        scores: (K,).
        overlap: Largest intersection over union with a better box.
    """
    x, y, w, h = boxes.astype(np.float64).T
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable"):
        wide = np.minimum(x[kept] + w[kept], x[i] + w[i]) - np.maximum(x[kept], x[i])
        high = np.minimum(y[kept] + h[kept], y[i] + h[i]) - np.maximum(y[kept], y[i])
        shared = wide.clip(0) * high.clip(0)
        union = w[kept] * h[kept] + w[i] * h[i] - shared
        # As in OpenCV: two boxes without area count as the same, and the overlap is a float32.
        apart = np.where(union > 0, 1 - shared / np.where(union > 0, union, 1), 0)
        if (1 - apart.astype(np.float32) <= np.float32(overlap)).all():
            kept.append(int(i))
    return kept


def no_nudenet(error: Exception | str) -> MissingDependency:
    """Return the error for a missing NudeNet."""
    return MissingDependency(
        f"detector 'nudenet' is not installed or cannot be imported ({error}); run: pip install "
        "nudenet (AGPL-3.0). It is the detector of this recipe's rule, not the base model"
    )


def check_nudenet() -> None:
    """Raise `MissingDependency` if NudeNet is not installed; nothing is imported."""
    if _package() is None:
        raise no_nudenet("no module named 'nudenet'")


def package_folder() -> Path | None:
    """Return the folder of the installed package, or None; nothing is imported."""
    found = _package()
    origin = getattr(found, "origin", None) or getattr(found, "__file__", None)
    return Path(origin).parent if origin else None


def _package() -> ModuleType | ModuleSpec | None:
    # `sys.modules` has None for a module that may not be imported, and not every module a spec.
    return sys.modules["nudenet"] if "nudenet" in sys.modules else find_spec("nudenet")
