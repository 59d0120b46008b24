"""Detectors: pictures in, raw scores out, behind one protocol; which there are, by name.

A name may carry what the detector is given: `clip:WORDS|OPPOSITE`, `clip[FOLDER]:WORDS|OPPOSITE`,
`nudenet:rgb`, `nudenet:floor=0.05`, `q16[prompts.p]`. Several are joined by " + ".
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from ine.errors import RecipeError, did_you_mean
from ine.judging.clip import (
    CLIP_L,
    ClipJudge,
    check_both_halves,
    clip_violence,
    clip_words,
    find_clip,
    to_pixels,
    words_of,
)
from ine.judging.detection import JOIN, check_pictures
from ine.judging.detection import detect as detect_raw
from ine.judging.nudenet import NudeNet, check_nudenet, nudenet_settings
from ine.judging.q16 import Q16, check_q16
from ine.models.parts import MINI, MINI_FOLDER

MINI_JUDGE = MINI_FOLDER / "judge"


class Detector(Protocol):
    """Looks at pictures; rules are applied later.

    It may also have `detect(pictures)`, which returns a tuple of `Detection` per picture, with
    boxes, and `settings`, plain values that say what decides its raw output.
    """

    def __call__(self, pictures: np.ndarray) -> list[dict[str, float]]:
        """Return {label: score in [0, 1]} per picture of (B, H, W, 3) uint8 RGB."""


class ResNetJudge:
    """The bundled world's second judge, of another architecture, seed and training scenes.

    It only scores what is reported: the first judge filters concept pictures and chooses
    vectors, so it may not mark its own work.
    """

    batch = 64

    def __init__(self, folder):
        """Load a ResNetForImageClassification folder."""
        from transformers import ResNetForImageClassification

        self.model = ResNetForImageClassification.from_pretrained(folder).float().eval()
        self.model.requires_grad_(False)
        labels = self.model.config.id2label
        self.labels = [labels[i] for i in range(len(labels))]
        self.attributes = json.loads((folder / "labels.json").read_text())["attributes"]

    @torch.no_grad()
    def __call__(self, pictures):
        """Return {label: score}: softmax over objects, sigmoid per attribute."""
        check_pictures(pictures)
        found = []
        count = len(self.labels) - len(self.attributes)
        for i in range(0, len(pictures), self.batch):
            x = to_pixels(pictures[i : i + self.batch], 64, [0.5] * 3, [0.5] * 3)
            logits = self.model(x).logits
            scores = torch.cat([logits[:, :count].softmax(1), logits[:, count:].sigmoid()], 1)
            found += [dict(zip(self.labels, row, strict=True)) for row in scores.tolist()]
        return found


@dataclass(frozen=True, kw_only=True)
class OwnDetector:
    """A user's own function as a detector, under a name that rules can give.

    Only the Python interface takes one: a YAML file names no code.
    """

    name: str
    function: Callable[[np.ndarray], list[dict[str, float]]]
    """Takes (B, H, W, 3) uint8 RGB and returns {label: score in [0, 1]} per picture."""

    def __call__(self, pictures):
        """Return {label: score} per picture.

        Raises:
            ValueError: The function gave another number of answers, or something else than
                scores in [0, 1].
        """
        check_pictures(pictures)
        found = list(self.function(pictures))
        if len(found) != len(pictures):
            raise ValueError(
                f"detector {self.name!r} gave {len(found)} answers for {len(pictures)} pictures"
            )
        for scores in found:
            for label, score in dict(scores).items():
                if not isinstance(label, str) or not 0 <= float(score) <= 1:
                    raise ValueError(
                        f"detector {self.name!r} gave {label!r}: {score!r}; expected a text and a "
                        "number from 0 to 1"
                    )
        return [{label: float(score) for label, score in scores.items()} for scores in found]


class Several:
    """Several detectors as one, for rules over all of them; their labels must differ."""

    def __init__(self, parts):
        """Take {name: detector}."""
        self.parts = dict(parts)

    def detect(self, pictures):
        """Return what all of them found in each picture."""
        found = [detect_raw(detector, pictures) for detector in self.parts.values()]
        return [sum(rows, ()) for rows in zip(*found, strict=True)]

    def __call__(self, pictures):
        """Return {label: score} per picture, of all detectors together.

        Raises:
            ValueError: Two of them use the same label.
        """
        together = []
        for rows in zip(*(part(pictures) for part in self.parts.values()), strict=True):
            merged = {label: score for row in rows for label, score in row.items()}
            if len(merged) != sum(map(len, rows)):
                raise ValueError(f"detectors {JOIN.join(self.parts)} share a label")
            together.append(merged)
        return together


def mini_judge(folder=MINI_JUDGE):
    """Return the bundled world's first judge."""
    labels = json.loads((folder / "labels.json").read_text())
    return ClipJudge(folder, labels["objects"], labels["pairs"])


DETECTORS = {
    "mini-judge": mini_judge,
    "mini-judge2": lambda: ResNetJudge(MINI_FOLDER / "judge2"),
    "nudenet": NudeNet,
    "q16": Q16,
    "clip-violence": clip_violence,
}
"""Name -> function that loads the detector."""

CHECKS = {
    "nudenet": check_nudenet,
    "clip-violence": lambda: find_clip(fetch=False),
    "q16": check_q16,
}
"""Name -> function that raises where a detector that does not ship with ine is not there."""


def _clip_folder(place):
    return MINI_JUDGE if place == MINI else place or CLIP_L


def _check_clip(place, words):
    words_of(words)
    find_clip(_clip_folder(place), "clip", fetch=False)


FAMILIES = {
    "nudenet": lambda place, words: NudeNet(*nudenet_settings(words)),
    "q16": lambda place, words: Q16(place),
    "clip": lambda place, words: clip_words(words, _clip_folder(place)),
}
"""Name -> function of (text in brackets, text after the colon) that loads the detector."""

FAMILY_CHECKS = {
    "nudenet": lambda place, words: (nudenet_settings(words), check_nudenet()),
    "q16": lambda place, words: check_q16(place),
    "clip": _check_clip,
}
SPEC = re.compile(r"(?P<name>[a-z][a-z0-9-]*)(?:\[(?P<place>[^\]]+)\])?(?::(?P<words>.+))?")


def _spec(name):
    """Return (family, text in brackets or None, text after the colon) of a longer name."""
    found = SPEC.fullmatch(name)
    if not found or found["name"] not in FAMILIES:
        hint = did_you_mean(name, [*DETECTORS, "clip:WORDS|OPPOSITE"])
        known = ", ".join([*DETECTORS, "clip:WORDS|OPPOSITE"])
        raise RecipeError(f"detector {name!r} is unknown{hint}; known: {known}")
    return found["name"], found["place"], found["words"] or ""


def check_detector(name):
    """Raise if a detector is not on this machine; nothing is loaded or fetched.

    Raises:
        MissingDependency: Its package or its weights are not here; it says how to get them.
        RecipeError: There is no detector of that name.
    """
    if JOIN in name:
        for part in name.split(JOIN):
            check_detector(part)
    elif name in DETECTORS:
        CHECKS.get(name, lambda: None)()
    else:
        family, place, words = _spec(name)
        FAMILY_CHECKS[family](place, words)


def load_detector(name):
    """Return a detector by name: one of the table, one that carries settings, or several.

    Raises:
        RecipeError: There is no detector of that name.
        MissingDependency: Its package or its weights are not here.
    """
    if JOIN in name:
        return Several({part: load_detector(part) for part in name.split(JOIN)})
    if name in DETECTORS:
        return DETECTORS[name]()
    family, place, words = _spec(name)
    return FAMILIES[family](place, words)


# --- CLIP models that are asked nothing: features of pictures and texts

EXTRACTORS = ("mini-judge", "clip", "clip[FOLDER]")
EXTRACTOR = re.compile(r"clip(?:\[(?P<place>[^\]]+)\])?")


def is_bare_clip(name):
    """Return whether a name is "clip" or "clip[FOLDER]", which is asked no words."""
    return EXTRACTOR.fullmatch(name) is not None


def extractor_place(name):
    """Return where the CLIP model of "mini-judge", "clip" or "clip[FOLDER]" is, folder or hub id.

    Raises:
        RecipeError: The name is another one; a detector of that name may exist, but not have
            features of pictures and texts, or be asked words that would not count.
    """
    found = EXTRACTOR.fullmatch(name)
    if found or name == "mini-judge":
        return _clip_folder(found["place"] if found else MINI)
    known = f"known: {', '.join(EXTRACTORS)}"
    if name.startswith(("clip:", "clip[")) and EXTRACTOR.match(name):
        bare = EXTRACTOR.match(name)[0]
        raise RecipeError(f"{name!r} is asked words, which count for nothing here; give {bare!r}")
    try:
        if JOIN not in name and name not in DETECTORS:
            _spec(name)
    except RecipeError:
        hint = did_you_mean(name, EXTRACTORS)
        raise RecipeError(f"{name!r} is no CLIP model{hint}; {known}") from None
    raise RecipeError(f"detector {name!r} has no features of pictures and texts; {known}")


def check_extractor(name):
    """Raise where the CLIP model of `extractor_place` is not here or not whole; nothing is loaded.

    Raises:
        RecipeError: The name is another one.
        MissingDependency: It is not on this machine.
        ModelError: It has no text half, or no tokenizer.
    """
    check_both_halves(find_clip(extractor_place(name), name, fetch=False))


def load_extractor(name):
    """Return the `ClipJudge` of `extractor_place`, which is asked nothing.

    Raises:
        RecipeError: The name is another one.
        MissingDependency: It is not on this machine.
    """
    return ClipJudge(find_clip(extractor_place(name), name))
