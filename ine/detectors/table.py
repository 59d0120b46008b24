"""Detectors by name: pictures in, raw scores out, behind one protocol.

A name may carry the detector's input: `clip:WORDS|OPPOSITE`, `clip[FOLDER]:WORDS|OPPOSITE`,
`nudenet:rgb`, `nudenet:floor=0.05`, `nudenet-3.0.8[best.onnx]`, `nudenet-3.0.8:320n`,
`q16[prompts.p]`, `vlm@SPEC:CONCEPT`. Several are joined by " + ".
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ine.detectors.base import JOIN, Detection, check_pictures
from ine.detectors.base import detect as detect_raw
from ine.detectors.clip import clip_violence, clip_words, words_of
from ine.detectors.clip_weights import CLIP_L, find_clip
from ine.detectors.mhsc import MultiHeaded, check_mhsc
from ine.detectors.mini import MINI_JUDGE, ResNetJudge, mini_judge
from ine.detectors.nudenet import NudeNet, check_nudenet, nudenet_settings
from ine.detectors.nudenet_codes import CODES, CodedNudeNet, check_coded, coded_setup
from ine.detectors.observed import START
from ine.detectors.q16 import Q16, check_q16
from ine.errors import RecipeError, did_you_mean
from ine.models.parts import MINI, MINI_FOLDER


class Detector(Protocol):
    """Scores pictures; rules are applied later.

    It may also have `detect(pictures)`, which returns a tuple of `Detection` per picture, with
    boxes, and `settings`, plain values that decide its raw output.
    """

    def __call__(self, pictures: np.ndarray) -> list[dict[str, float]]:
        """Return {label: score in [0, 1]} per picture of (B, H, W, 3) uint8 RGB."""


@dataclass(frozen=True, kw_only=True)
class OwnDetector:
    """A user's own function as a detector, with a name for rules.

    Only the Python interface takes one: YAML files cannot name code.
    """

    name: str
    function: Callable[[np.ndarray], list[dict[str, float]]]
    """Takes (B, H, W, 3) uint8 RGB and returns {label: score in [0, 1]} per picture."""

    def __call__(self, pictures: np.ndarray) -> list[dict[str, float]]:
        """Return {label: score} per picture.

        Raises:
            ValueError: The function returned another number of results, or anything but scores
                in [0, 1].
        """
        check_pictures(pictures)
        found = list(self.function(pictures))
        if len(found) != len(pictures):
            raise ValueError(
                f"detector {self.name!r} gave {len(found)} results for {len(pictures)} pictures"
            )
        for scores in found:
            for label, score in dict(scores).items():
                if not isinstance(label, str) or not 0 <= float(score) <= 1:
                    raise ValueError(
                        f"detector {self.name!r} gave {label!r}: {score!r}; expected a text and a "
                        "number from 0 to 1"
                    )
        return [{label: float(score) for label, score in scores.items()} for scores in found]


class JoinedDetectors:
    """Several detectors as one, for rules over all of them; their labels must differ."""

    def __init__(self, parts: Mapping[str, Detector]) -> None:
        """Join detectors, {name: detector}."""
        self.parts = dict(parts)

    def detect(self, pictures: np.ndarray) -> list[tuple[Detection, ...]]:
        """Return the detections of all detectors in each picture."""
        found = [detect_raw(detector, pictures) for detector in self.parts.values()]
        return [tuple(chain(*rows)) for rows in zip(*found, strict=True)]

    def __call__(self, pictures: np.ndarray) -> list[dict[str, float]]:
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


def clip_place(place: str | None) -> str | Path:
    """Return the folder or hub id of the CLIP that brackets name; "mini" is the bundled one."""
    return MINI_JUDGE if place == MINI else place or CLIP_L


@dataclass(frozen=True, kw_only=True)
class Form:
    """A detector whose name may carry its weights and more: NAME[PLACE]:WORDS."""

    load: Callable[[str | None, str], Detector]
    """Takes (text in brackets, text after the colon)."""

    check: Callable[[str | None, str], None]
    """Raises what `load` would if something is missing; nothing is loaded."""


def _check_nudenet(place: str | None, words: str) -> None:
    nudenet_settings(words)
    check_nudenet()


def _check_clip(place: str | None, words: str) -> None:
    words_of(words)
    find_clip(clip_place(place), "clip", fetch=False)


def _coded(code: str) -> Form:
    return Form(
        load=lambda place, words: CodedNudeNet(coded_setup(code, words), place),
        check=lambda place, words: check_coded(coded_setup(code, words), place),
    )


ALONE = {
    "nudenet": Form(
        load=lambda place, words: NudeNet(*nudenet_settings(words)), check=_check_nudenet
    ),
    **{code: _coded(code) for code in CODES},
    "q16": Form(load=lambda place, words: Q16(place), check=lambda place, words: check_q16(place)),
    "mhsc": Form(
        load=lambda place, words: MultiHeaded(place), check=lambda place, words: check_mhsc(place)
    ),
}
"""Those whose name is a detector by itself too."""

CLIP = Form(load=lambda place, words: clip_words(words, clip_place(place)), check=_check_clip)
FORMS = {**ALONE, "clip": CLIP}

DETECTORS: dict[str, Callable[[], Detector]] = {
    "mini-judge": mini_judge,
    "mini-judge2": lambda: ResNetJudge(MINI_FOLDER / "judge2"),
    **{name: partial(form.load, None, "") for name, form in ALONE.items()},
    "clip-violence": clip_violence,
}
"""Name -> function that loads the detector."""

CHECKS: dict[str, Callable[[], object]] = {
    **{name: partial(form.check, None, "") for name, form in ALONE.items()},
    "clip-violence": lambda: find_clip(fetch=False),
}
"""Name -> function that raises if a detector that does not ship with ine is missing."""

OBSERVED = "ine.observers.detector"
"""Module whose `load` and `check` take names that begin with `vlm@`. Observers stand on detectors,
so it is named here and imported when one is used, as commands are."""

SPEC = re.compile(r"(?P<name>[a-z][a-z0-9.-]*)(?:\[(?P<place>[^\]]+)\])?(?::(?P<words>.+))?")


def parse_name(name: str) -> tuple[str, str | None, str]:
    """Return (detector, text in brackets or None, text after the colon) of a longer name.

    Raises:
        RecipeError: No detector has that name.
    """
    found = SPEC.fullmatch(name)
    if not found or found["name"] not in FORMS:
        hint = did_you_mean(name, [*DETECTORS, "clip:WORDS|OPPOSITE"])
        known = ", ".join([*DETECTORS, "clip:WORDS|OPPOSITE"])
        raise RecipeError(f"detector {name!r} is unknown{hint}; known: {known}")
    return found["name"], found["place"], found["words"] or ""


def with_place(name: str, places: Mapping[str, str | Path] | None) -> str:
    """Return a detector's name with the file or folder of its weights in brackets, if any.

    Args:
        name: Of one detector.
        places: {detector: place}, such as {"q16": "prompts.p"}.
    """
    family, colon, words = name.partition(":")
    place = (places or {}).get(family)
    return f"{family}[{place}]{colon}{words}" if place and "320n" not in words else name


def check_detector(name: str) -> None:
    """Raise if a detector is not on this machine; nothing is loaded or fetched.

    Raises:
        MissingDependency: Its package or weights are missing; the message says how to get them.
        RecipeError: No detector has that name.
    """
    if JOIN in name:
        for part in name.split(JOIN):
            check_detector(part)
    elif name in DETECTORS:
        if name in CHECKS:
            CHECKS[name]()
    elif name.startswith(START):
        import_module(OBSERVED).check(name)
    else:
        family, place, words = parse_name(name)
        FORMS[family].check(place, words)


def load_detector(name: str) -> Any:
    """Return a detector by name: one of the table, one with settings in its name, or several.

    Raises:
        RecipeError: No detector has that name.
        MissingDependency: Its package or weights are missing.
    """
    if JOIN in name:
        return JoinedDetectors({part: load_detector(part) for part in name.split(JOIN)})
    if name in DETECTORS:
        return DETECTORS[name]()
    if name.startswith(START):
        return import_module(OBSERVED).load(name)
    family, place, words = parse_name(name)
    return FORMS[family].load(place, words)
