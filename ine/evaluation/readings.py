"""Readings of stored pictures: which ones a grid needs, which are there, and how one is taken.

A reading is what a detector saw, the features of pictures ("features:NAME"), or the cosines of
pictures and prompts ("alignment:CLIP").

Shape letter: B pictures of a unit.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ine.detectors.base import detect
from ine.detectors.clip import ClipJudge
from ine.detectors.features import PictureFeatures, is_bare_clip, load_extractor
from ine.detectors.table import load_detector
from ine.evaluation.cells import Cell
from ine.evaluation.grid import PIXEL_MEASURE
from ine.evaluation.metrics.table import METRICS
from ine.evaluation.plan import Plan
from ine.evaluation.units import UnitOfWork
from ine.store.pictures import Store
from ine.store.units import Missing
from ine.text.syntax import read_weights


def needs_of(plan: Plan) -> dict[str, tuple[str, ...]]:
    """Return {unit key: names of the readings that it needs}, in the order of work."""
    found: dict[str, dict[str, None]] = {}
    for cell, units in plan.units_of.items():
        names = _needs_of_cell(plan, cell)
        for unit in units:
            found.setdefault(unit.key, {}).update(dict.fromkeys(names))
    return {key: tuple(names) for key, names in found.items()}


def _needs_of_cell(plan: Plan, cell: Cell) -> list[str]:
    """Return the names of what looks at a cell's pictures: detectors, then features."""
    needed = [name for metric in METRICS for name in metric.needs(plan, cell.prompts)]
    # Alignments use the features that are stored, so they come last.
    needed.sort(key=lambda name: name.startswith("alignment:"))
    return [*plan.detectors_of(cell.prompts), *needed]


@dataclass(frozen=True)
class Readers:
    """Detectors and extractors, each loaded once, and the store that they write to."""

    store: Store
    loaded: dict[str, Any] = field(default_factory=dict)

    def detector(self, name: str) -> Any:
        """Return a detector or an extractor by name."""
        if name not in self.loaded:
            load = load_extractor if is_bare_clip(name) else load_detector
            self.loaded[name] = load(name)
        return self.loaded[name]

    def has(self, key: str, name: str) -> bool:
        """Return whether a reading of a unit is there, whole, and of the detector as it is set."""
        try:
            if name.startswith(("features:", "alignment:")):
                self.store.numbers(key, name)
            else:
                detector = self.loaded.get(name)
                settings = None if detector is None else getattr(detector, "settings", {})
                self.store.look(key, name, settings)
        except Missing:
            return False
        return True

    def read(self, unit: UnitOfWork, name: str, pictures: np.ndarray) -> None:
        """Take a reading of a unit's pictures, uint8 (B, H, W, 3), and store it."""
        kind, _, measure = name.partition(":")
        if kind == "alignment":
            clip = self.detector(measure)
            try:
                features = self.store.numbers(unit.key, f"features:{measure}")
            except Missing:
                features = clip.features(pictures)
            self.store.write_numbers(unit.key, name, aligned(clip, unit, features))
        elif kind == "features":
            detector = None if measure == PIXEL_MEASURE else self.detector(measure)
            features = PictureFeatures(detector).features(pictures)
            self.store.write_numbers(unit.key, name, features)
        else:
            detector = self.detector(name)
            settings = getattr(detector, "settings", {})
            self.store.write_look(unit.key, name, settings, detect(detector, pictures))


def aligned(clip: ClipJudge, unit: UnitOfWork, features: np.ndarray) -> np.ndarray:
    """Return 100 cos of each picture and its prompt, and the tokens beyond the context, (B, 2).

    The prompt is what the user wrote, without the weights where the sampler reads them; the
    negative has no part in it. All of it is in the unit's key.
    """
    texts = [request.prompt for request in unit.requests]
    if unit.sampler.reading.weights:
        texts = ["".join(piece.text for piece in read_weights(text)) for text in texts]
    scores = 100 * clip.alignment(features, texts)
    return np.stack([scores, np.asarray(clip.unread(texts), dtype=np.float64)], axis=1)
