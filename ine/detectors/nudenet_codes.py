"""NudeNet as publications run it, with other weights, channels, resizing and floors than 3.4.

NudeNet 3.0.8 and MU-Attack's copy of an older one read `best.onnx`, see
`ine.detectors.nudenet_weights`. A detector name that ends in ":320n" runs the same code with the
weights of NudeNet 3.4.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ine.detectors.base import BoxDetector, Detection
from ine.detectors.nudenet import (
    PUBLISHED,
    Floors,
    boxes_of,
    check_nudenet,
    floor_in,
    no_nudenet,
    nudenet_settings,
)
from ine.detectors.nudenet_weights import BEST, read_best
from ine.errors import RecipeError

SIDE = 320
"""Of the input of best.onnx, in pixels."""


def centred(picture: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Return a picture as NudeNet 3.0.8 feeds it: uncropped, with black on two opposite sides.

    Args:
        picture: uint8 RGB, (H, W, 3).
        side: Of the network's input, in pixels.

    Returns:
        (1, 3, side, side) float32 RGB in [0, 1].
    """
    import cv2

    wide, high, left, top, _ = _fitted(picture.shape[1], picture.shape[0], side)
    small = cv2.resize(picture, (wide, high))
    small = cv2.copyMakeBorder(small, top, top, left, left, cv2.BORDER_CONSTANT, value=[0, 0, 0])
    # If the border is odd, one pixel is missing, and the picture is stretched by it.
    small = cv2.resize(small, (side, side))
    return (small.astype(np.float32) / 255.0).transpose(2, 0, 1)[None]


def _fitted(width: int, height: int, side: int) -> tuple[int, int, int, int, float]:
    """Return width and height of the fitted picture, its border left and above, and the scale."""
    shape = width / height
    wide, high = (round(side * shape), side) if height > width else (side, round(side / shape))
    # Their code fails on a picture that is over 640 times as long as it is wide.
    wide, high = max(wide, 1), max(high, 1)
    scale = ((width**2 + height**2) / (wide**2 + high**2)) ** 0.5
    return wide, high, (side - wide) // 2, (side - high) // 2, scale


def placed_centred(rows: np.ndarray, width: int, height: int, side: int) -> np.ndarray:
    """Return boxes in whole pixels of a picture from `centred`; they may lie outside of it.

    Args and shapes as `ine.detectors.nudenet.padded_at_the_end`.
    """
    _, _, left, top, scale = _fitted(width, height, side)
    x, y, w, h = rows.astype(np.float64).T
    return np.rint(np.stack([x - w / 2 - left, y - h / 2 - top, w, h], axis=1) * scale)


def stretched(picture: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Return a picture as MU-Attack feeds it: stretched to a square; see `centred`."""
    import cv2

    small = cv2.resize(picture, (side, side)) / 255.0
    return small.transpose(2, 0, 1)[None].astype(np.float32)


def placed_stretched(rows: np.ndarray, width: int, height: int, side: int) -> np.ndarray:
    """Return boxes in whole pixels, rounded towards zero, of a picture from `stretched`."""
    x, y, w, h = rows.astype(np.float64).T
    scales = np.array([width, height, width, height]) / side
    return np.trunc(np.stack([x - w / 2, y - h / 2, w, h], axis=1) * scales)


@dataclass(frozen=True, kw_only=True)
class Code:
    """How one publication's code turns a picture into boxes."""

    feed: Callable[[np.ndarray, int], np.ndarray]
    placed: Callable[[np.ndarray, int, int, int], np.ndarray]
    floors: Floors
    resize: str
    """In words, for stored settings."""


CODES = {
    "nudenet-3.0.8": Code(
        feed=centred, placed=placed_centred, floors=PUBLISHED, resize="fitted, centred on black"
    ),
    "nudenet-mu-attack": Code(
        feed=stretched,
        placed=placed_stretched,
        floors=Floors(considered=0.5, reported=0.5, overlap=0.5),
        resize="stretched",
    ),
}
"""Detector name -> code; all of them use RGB."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What the name of a NudeNet detector means; two of one `network` differ in floors only."""

    code: str
    """"nudenet" (3.4), or one of `CODES`."""

    weights: str
    """"320n" or "best"."""

    channels: str
    floors: Floors

    @property
    def network(self) -> tuple[str, str, str]:
        """Return what decides candidates and their scores, before floors."""
        return self.code, self.weights, self.channels

    @property
    def default_floors(self) -> Floors:
        """Return the floors that the code has unless a name lowers them."""
        return CODES[self.code].floors if self.code in CODES else PUBLISHED

    def named(self, floor: float) -> str:
        """Return the name of this network's detector that reports boxes above a floor."""
        words = ["320n"] if self.code in CODES and self.weights == "320n" else []
        words += ["rgb"] if self.code not in CODES and self.channels == "rgb" else []
        words += [f"floor={floor:g}"] if floor < self.default_floors.reported else []
        return f"{self.code}:{','.join(words)}" if words else self.code


def setup_of(name: str) -> Setup | None:
    """Return the `Setup` of a detector's name, None if it is not a NudeNet.

    Raises:
        RecipeError: The detector does not know the words after the colon.
    """
    head, _, words = name.partition(":")
    code = head.partition("[")[0]
    if code == "nudenet":
        channels, floors = nudenet_settings(words)
        return Setup(code=code, weights="320n", channels=channels, floors=floors)
    if code not in CODES:
        return None
    weights, floors = "best", CODES[code].floors
    for word in filter(None, words.split(",")):
        floor = floor_in(word)
        if word == "320n":
            weights = word
        elif floor is not None:
            floors = floors.lowered(floor)
        else:
            raise RecipeError(
                f"detector '{code}:{words}': {word!r} is not one of 320n, floor=NUMBER (from 0 to "
                "below 1); its code reads RGB"
            )
    return Setup(code=code, weights=weights, channels="rgb", floors=floors)


def coded_setup(code: str, words: str) -> Setup:
    """Return the `Setup` of one of `CODES` with the words after the colon of its name."""
    setup = setup_of(f"{code}:{words}")
    assert setup is not None, code
    return setup


class CodedNudeNet(BoxDetector):
    """A NudeNet network run by the code of a publication.

    Floors can be lowered: boxes are suppressed from the best down, so those that the code itself
    reports stay the same.
    """

    def __init__(self, setup: Setup, place: str | Path | None = None) -> None:
        """Load the network for one of `CODES`; `place` is where best.onnx is, see `find_best`.

        Raises:
            MissingDependency: NudeNet or best.onnx is not on this machine.
            ModelError: The file is not best.onnx.
        """
        try:
            import onnxruntime
            from nudenet import nudenet
        except ImportError as error:
            raise no_nudenet(error) from error
        self.setup, self.code = setup, CODES[setup.code]
        if setup.weights == "best":
            weights = read_best(place, setup.code)
        else:
            weights = (Path(nudenet.__file__).parent / "320n.onnx").read_bytes()
        self.session = onnxruntime.InferenceSession(weights, providers=["CPUExecutionProvider"])
        self.labels = vars(nudenet)["__labels"]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What decides the raw output, as plain values."""
        return {
            "weights": BEST if self.setup.weights == "best" else "nudenet-320n",
            "channels": self.setup.channels,
            "code": self.setup.code,
            "resize": self.code.resize,
            **asdict(self.setup.floors),
        }

    def _boxes(self, picture: np.ndarray) -> list[Detection]:
        pixels = self.code.feed(np.ascontiguousarray(picture), SIDE)
        [output] = self.session.run(None, {self.session.get_inputs()[0].name: pixels})
        height, width = picture.shape[:2]
        floors, placed = self.setup.floors, self.code.placed
        return boxes_of(output, self.labels, width, height, floors, SIDE, placed)


def check_coded(setup: Setup, place: str | Path | None = None) -> None:
    """Raise what `CodedNudeNet` would for missing packages and weights; nothing is imported."""
    check_nudenet()
    if setup.weights == "best":
        read_best(place, setup.code)
