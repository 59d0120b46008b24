"""Pictures of prompts and seeds, made once and kept in a store, with what detectors saw in them.

Shape letters: B pictures, F features.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ine.detectors.base import detect, scores_of
from ine.detectors.clip import ClipJudge
from ine.errors import PicturesError
from ine.pictures import is_blank
from ine.refining.generators import Generator
from ine.sampling import PictureRequest
from ine.store.pictures import Store
from ine.store.units import Missing, key_of

Wanted = tuple[str, int]
"""(prompt, seed) of a picture."""

VERSION = 1
"""Raised when the same key would stand for other pixels."""


@dataclass(frozen=True)
class KeptPictures:
    """Pictures of a generator, each kept under a key of generator, prompt and seed."""

    generator: Generator
    store: Store
    tally: Counter[str] = field(default_factory=Counter)
    """"made" and "asked": how many pictures."""

    spent: dict[str, float] = field(default_factory=lambda: {"seconds": 0.0})
    """"seconds" of making pictures."""

    def key(self, wanted: Wanted) -> str:
        """Return the key of a picture."""
        prompt, seed = wanted
        return key_of(version=VERSION, generator=self.generator.name, prompt=prompt, seed=seed)

    def make(self, wanted: Sequence[Wanted]) -> None:
        """Make those of the pictures that are not kept yet.

        Raises:
            PicturesError: One is blank or was not made.
        """
        missing = [one for one in dict.fromkeys(wanted) if not self.store.sound(self.key(one))]
        self.tally.update(asked=len(wanted), made=len(missing))
        began = time.monotonic()
        for first in range(0, len(missing), self.generator.batch):
            some = missing[first : first + self.generator.batch]
            requests = [PictureRequest(prompt=prompt, seed=seed) for prompt, seed in some]
            pictures, notes, calls = self.generator(requests)
            self._check(some, pictures)
            about = {"by": self.generator.name}
            for k, one in enumerate(some):
                made = pictures[k : k + 1]
                self.store.write_unit(self.key(one), made, notes[k : k + 1], [calls[k]], about)
        self.spent["seconds"] += time.monotonic() - began

    def _check(self, some: Sequence[Wanted], made: np.ndarray) -> None:
        name = self.generator.name
        if len(made) != len(some):
            raise PicturesError(
                f"{name}: made {len(made)} pictures for {len(some)} prompts; repair it and run "
                "again"
            )
        blank = [seed for (_, seed), one in zip(some, is_blank(made), strict=True) if one]
        if blank:
            raise PicturesError(
                f"{name}: {len(blank)} of {len(some)} pictures are one colour, the first of seed "
                f"{blank[0]}, as failed pictures and those that a safety checker replaced are; "
                "they would count as harmless: switch the checker off or repair the generator, and "
                "run again"
            )

    def pictures(self, wanted: Sequence[Wanted]) -> np.ndarray:
        """Return kept pictures, uint8 (B, H, W, 3)."""
        return np.concatenate([self.store.pictures(self.key(one)) for one in wanted])

    def scores(self, name: str, detector: Any, wanted: Sequence[Wanted]) -> list[dict[str, float]]:
        """Return {label: score} per kept picture, from its reading or by looking now.

        Args:
            name: The detector's.
            detector: See `ine.detectors.table.Detector`.
            wanted: The pictures.
        """
        settings = getattr(detector, "settings", {})
        unread = [one for one in dict.fromkeys(wanted) if not self._has(one, name, settings)]
        if unread:
            found = detect(detector, self.pictures(unread))
            for one, seen in zip(unread, found, strict=True):
                self.store.write_look(self.key(one), name, settings, [seen])
        looks = [self.store.look(self.key(one), name, settings)[1][0] for one in wanted]
        return [scores_of(look) for look in looks]

    def _has(self, one: Wanted, name: str, settings: dict[str, Any]) -> bool:
        try:
            self.store.look(self.key(one), name, settings)
        except Missing:
            return False
        return True

    def features(self, name: str, clip: ClipJudge, wanted: Sequence[Wanted]) -> np.ndarray:
        """Return unit CLIP features per kept picture, (B, F) float32."""
        about = f"features:{name}"
        unread = []
        for one in dict.fromkeys(wanted):
            try:
                self.store.numbers(self.key(one), about)
            except Missing:
                unread.append(one)
        if unread:
            found = clip.features(self.pictures(unread))
            for one, row in zip(unread, found, strict=True):
                self.store.write_numbers(self.key(one), about, row[None])
        return np.concatenate([self.store.numbers(self.key(one), about) for one in wanted])
