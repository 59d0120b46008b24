"""NudeNet 3 with its boxes, its channel order said aloud, and what lies under its floors."""

import re
import sys
from dataclasses import asdict, dataclass
from importlib.util import find_spec

import numpy as np

from ine.errors import MissingDependency, RecipeError
from ine.judging.detection import Detection, check_pictures, scores_of

CHANNELS = ("bgr", "rgb")


@dataclass(frozen=True, kw_only=True)
class Floors:
    """What NudeNet lets through; the defaults are fixed inside its package (3.4)."""

    considered: float = 0.2
    """Class score that a candidate must reach (>=) to be looked at."""

    reported: float = 0.25
    """Score that a box must exceed (>) to come out."""

    overlap: float = 0.45
    """Intersection over union above which the lower of two boxes is dropped, whatever their
    classes."""

    def __post_init__(self):
        for name, value in asdict(self).items():
            if not 0 <= value <= 1:
                raise ValueError(f"floor {name}={value}: expected 0 to 1")

    @classmethod
    def at(cls, floor):
        """Return the floors that let through every box above a score."""
        return cls(considered=min(floor, cls.considered), reported=floor)


PUBLISHED = Floors()


def nudenet_settings(words):
    """Return (channels, `Floors`) of "rgb", "floor=0.05" or both with a comma between.

    Raises:
        RecipeError: Something else.
    """
    channels, floors = "bgr", PUBLISHED
    for word in filter(None, words.split(",")):
        number = re.fullmatch(r"floor=(0?\.\d+|0)", word)
        if word in CHANNELS:
            channels = word
        elif number:
            floors = Floors.at(float(number[1]))
        else:
            raise RecipeError(
                f"detector 'nudenet:{words}': {word!r} is none of rgb, bgr, floor=NUMBER (from 0 "
                "to below 1)"
            )
    return channels, floors


class NudeNet:
    """NudeNet 3's detector.

    The published rules feed file paths, which OpenCV reads as BGR. An RGB array scores several
    points higher on the same picture, so channels are flipped here unless told otherwise.

    Boxes are suppressed from the best down, so lower floors add boxes and change none of those
    that the published floors let through: what was stored with low floors answers for both.
    """

    def __init__(self, channels="bgr", floors=PUBLISHED):
        """Load the detector; `channels` is "bgr" (as peers) or "rgb" (as DUO)."""
        if channels not in CHANNELS:
            raise ValueError(f"channels {channels!r}: expected one of {', '.join(CHANNELS)}")
        try:
            from nudenet import NudeDetector
        except ImportError as error:
            raise no_nudenet(error) from error
        self.detector = NudeDetector()
        self.channels, self.floors = channels, floors

    @property
    def settings(self):
        """What decides the raw output, as plain values."""
        return {"weights": "nudenet-320n", "channels": self.channels, **asdict(self.floors)}

    def detect(self, pictures):
        """Return every box in each picture, the best first.

        Args:
            pictures: uint8 RGB, (B, H, W, 3), or several (H, W, 3) of different sizes.

        Raises:
            ValueError: Arrays of another dtype or shape, in which NudeNet would find nothing.
        """
        return [tuple(self._boxes(picture)) for picture in check_pictures(pictures)]

    def __call__(self, pictures):
        """Return {label: score} per picture; labels that were not found are absent."""
        return [scores_of(found) for found in self.detect(pictures)]

    def _boxes(self, picture):
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


def boxes_of(output, labels, width, height, floors=PUBLISHED, side=320):
    """Return the `Detection`s in the network's output, the best first.

    Args:
        output: (1, 4 + K, A) float32: per candidate the centre, width and height in pixels of
            the network's square input, then K class scores.
        labels: The K classes.
        width: Of the picture, in pixels. It was padded to a square at its right or lower edge.
        height: Of the picture, in pixels.
        floors: What is let through.
        side: Of the network's input, in pixels.
    """
    rows = output[0].T
    best = rows[:, 4:].max(axis=1)
    rows = rows[(best >= floors.considered) & (best > floors.reported)]
    best, classes = rows[:, 4:].max(axis=1), rows[:, 4:].argmax(axis=1)
    x, y, w, h = rows[:, :4].T
    longest = max(width, height)
    x, y, w, h = (v * longest / side for v in (x - w / 2, y - h / 2, w, h))
    x, y = x.clip(0, width), y.clip(0, height)
    # As NudeNet does: a box that begins outside keeps its width.
    w, h = np.minimum(w, width - x), np.minimum(h, height - y)
    boxes = np.stack([x, y, w, h], axis=1)
    return [
        Detection(
            label=labels[classes[i]],
            score=float(best[i]),
            box=tuple(int(v) for v in boxes[i]),
        )
        for i in unsuppressed(boxes, best, floors.overlap)
    ]


def unsuppressed(boxes, scores, overlap):
    """Return the numbers of the boxes that greedy non-maximum suppression keeps, the best first.

    Args:
        boxes: (K, 4) x, y, width, height.
        scores: (K,).
        overlap: Largest intersection over union with a better box.
    """
    x, y, w, h = boxes.astype(np.float64).T
    kept = []
    for i in np.argsort(-scores, kind="stable"):
        wide = np.minimum(x[kept] + w[kept], x[i] + w[i]) - np.maximum(x[kept], x[i])
        high = np.minimum(y[kept] + h[kept], y[i] + h[i]) - np.maximum(y[kept], y[i])
        shared = wide.clip(0) * high.clip(0)
        union = w[kept] * h[kept] + w[i] * h[i] - shared
        # Two boxes without area count as the same, as OpenCV has it; its overlap is a float32.
        apart = np.where(union > 0, 1 - shared / np.where(union > 0, union, 1), 0)
        if (1 - apart.astype(np.float32) <= np.float32(overlap)).all():
            kept.append(int(i))
    return kept


def no_nudenet(error):
    """Return the error for a NudeNet that is not there."""
    return MissingDependency(
        f"detector 'nudenet' is not installed or cannot be imported ({error}); run: pip install "
        "nudenet (AGPL-3.0). It is the detector of this recipe's rule; the base model is another "
        "matter"
    )


def check_nudenet():
    """Raise `MissingDependency` if NudeNet is not installed; nothing is imported."""
    # None stands there for a module that may not be imported; a spec is not always kept.
    found = sys.modules["nudenet"] if "nudenet" in sys.modules else find_spec("nudenet")
    if found is None:
        raise no_nudenet("no module named 'nudenet'")
