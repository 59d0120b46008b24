"""Features of pictures, for measures that compare two pictures or a picture and its prompt.

Shape letters: P pictures, F features.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ine.detectors.base import JOIN
from ine.detectors.clip import ClipJudge
from ine.detectors.clip_weights import check_both_halves, find_clip
from ine.detectors.table import DETECTORS, clip_place, parse_name
from ine.errors import RecipeError, did_you_mean
from ine.models.parts import MINI

PIXEL_SIDE = 16

ATTRIBUTES = ("fire", "snow", "flowers")
"""Labels of the bundled judges that are attributes of an object; all their others are objects."""


def top_object(scores: dict[str, float], attributes: Sequence[str] = ATTRIBUTES) -> str:
    """Return the label with the largest score that is no attribute."""
    return max((label for label in scores if label not in attributes), key=scores.__getitem__)


class PictureFeatures:
    """Scores of a detector, and features of pictures even if the detector has none.

    Without features of the detector, a picture's feature is a unit vector of its `PIXEL_SIDE` x
    `PIXEL_SIDE` grey means, minus their own mean: crude, but it changes wherever a picture changes.
    """

    def __init__(self, detector: Any) -> None:
        self.detector = detector
        self.measure = "judge-cosine"
        if not hasattr(detector, "features"):
            self.measure = f"pixel-cosine@{PIXEL_SIDE}"

    def __call__(self, pictures: np.ndarray) -> Any:
        """Return {label: score} per picture."""
        return self.detector(pictures)

    def features(self, pictures: np.ndarray) -> np.ndarray:
        """Return unit features, (P, F)."""
        if hasattr(self.detector, "features"):
            return self.detector.features(pictures)
        grey = torch.from_numpy(np.asarray(pictures, dtype=np.float32).mean(3))[:, None]
        small = torch.nn.functional.interpolate(grey, (PIXEL_SIDE,) * 2, mode="area").flatten(1)
        # A picture of one colour has no direction; any fixed one will do.
        small = small - small.mean(1, keepdim=True)
        small[small.norm(dim=1) < 1e-6, 0] = 1.0
        return torch.nn.functional.normalize(small, dim=1).numpy()

    def scores_of(self, features: np.ndarray) -> list[dict[str, float]]:
        """Return no scores: choices are made by `__call__`."""
        return [{} for _ in features]


def has_features(name: str) -> bool:
    """Return whether a detector of this name gives picture features."""
    return name in ("mini-judge", "clip") or name.startswith(("clip:", "clip[", "clip-"))


# --- CLIP models without words: features of pictures and texts

EXTRACTORS = ("mini-judge", "clip", "clip[FOLDER]")
EXTRACTOR = re.compile(r"clip(?:\[(?P<place>[^\]]+)\])?")


def is_bare_clip(name: str) -> bool:
    """Return whether a name is "clip" or "clip[FOLDER]", which takes no words."""
    return EXTRACTOR.fullmatch(name) is not None


def extractor_place(name: str) -> str | Path:
    """Return where the CLIP model of "mini-judge", "clip" or "clip[FOLDER]" is, folder or hub id.

    Raises:
        RecipeError: The name is another one: unknown, of a detector without features of pictures
            and texts, or with words, which would not count.
    """
    found = EXTRACTOR.fullmatch(name)
    if found or name == "mini-judge":
        return clip_place(found["place"] if found else MINI)
    known = f"known: {', '.join(EXTRACTORS)}"
    bare = EXTRACTOR.match(name)
    if bare and name.startswith(("clip:", "clip[")):
        raise RecipeError(f"{name!r}: words do not count here; give {bare[0]!r}")
    try:
        if JOIN not in name and name not in DETECTORS:
            parse_name(name)
    except RecipeError:
        hint = did_you_mean(name, EXTRACTORS)
        raise RecipeError(f"{name!r} is not a CLIP model{hint}; {known}") from None
    raise RecipeError(f"detector {name!r} has no features of pictures and texts; {known}")


def check_extractor(name: str) -> None:
    """Raise if the CLIP model of `extractor_place` is missing or incomplete; nothing is loaded.

    Raises:
        RecipeError: The name is another one.
        MissingDependency: The model is not on this machine.
        ModelError: It has no text half, or no tokenizer.
    """
    check_both_halves(find_clip(extractor_place(name), name, fetch=False))


def load_extractor(name: str) -> ClipJudge:
    """Return the `ClipJudge` of `extractor_place`, without words.

    Raises:
        RecipeError: The name is another one.
        MissingDependency: The model is not on this machine.
    """
    return ClipJudge(find_clip(extractor_place(name), name))
