"""Refine prompts batch by batch, every round kept in the store, so that a killed run resumes.

A round of a batch is a unit of the store. Its key is that of the round before, with who answered
and what was asked; that of round 0 names the generator, the prompts and the seeds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ine.display import blur
from ine.refining.asking import Rewriter
from ine.refining.generators import Generator
from ine.refining.rounds import NOTE, Batch, Generate, refine_once
from ine.refining.settings import RefineSettings
from ine.refining.table import rewriter_name
from ine.refining.trained import settings_for
from ine.runtime import library_versions
from ine.sampling import PictureRequest, Unit
from ine.store.pictures import Store
from ine.store.units import Missing, key_of

STATUS = "refine_status"
"""Key of a picture's note that says how its prompt ended."""

VERSION = 1
"""Raised when the same key would stand for other pictures or verdicts."""


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """A refinement as it is planned: nothing is loaded."""

    observer: str
    """Who looks, see `ine.refining.table`."""

    name: str
    """What tells its answers from those of others."""

    settings: RefineSettings


def refinement_of(observer: str, protocol: str = "ine", **changes: Any) -> Refinement:
    """Return a refinement by the names of who looks and of a preset.

    Args:
        observer: See `ine.refining.table`.
        protocol: A name of `ine.refining.settings.PRESETS`.
        changes: Fields of `RefineSettings`; None leaves those that an adapter was trained with, and
            else the preset's.

    Raises:
        ObserverError: The observer has another form, or there is no such model.
        RecipeError: The preset or a teacher's concept is unknown.
    """
    settings = settings_for(observer, protocol, **changes)
    return Refinement(observer=observer, name=rewriter_name(observer, settings), settings=settings)


def first_key(generator: str, batch: int, requests: Sequence[PictureRequest]) -> str:
    """Return the key of round 0 of a batch, 64 hex digits."""
    wanted = [[request.prompt, request.seed] for request in requests]
    return key_of(version=VERSION, generator=generator, batch=batch, requests=wanted)


def round_key(before: str, rewriter: str, settings: RefineSettings) -> str:
    """Return the key of the round after another, 64 hex digits."""
    return key_of(version=VERSION, before=before, rewriter=rewriter, settings=settings.deciding)


def read_batch(store: Store, key: str, requests: Sequence[PictureRequest]) -> Batch:
    """Return a stored round of a batch.

    Raises:
        Missing: It is not there or broken.
    """
    about = store.about(key)
    return Batch(
        requests=tuple(requests),
        pictures=store.pictures(key),
        notes=list(about.notes),
        calls=list(about.unet_calls),
    )


@dataclass(frozen=True, kw_only=True)
class Refined:
    """A batch whose rounds are all stored."""

    requests: tuple[PictureRequest, ...]
    keys: tuple[str, ...]
    """Of its rounds, from round 0; it ends early where every picture was kept."""

    def key(self, number: int) -> str:
        """Return the key of a round; after the last one nothing changes."""
        return self.keys[min(number, len(self.keys) - 1)]


@dataclass(frozen=True, kw_only=True)
class Refiner:
    """Who generates, who looks, how, and where rounds are kept."""

    generator: Generator
    rewriter: Rewriter
    settings: RefineSettings
    store: Store

    def __call__(
        self,
        requests: Sequence[PictureRequest],
        progress: Callable[[int], object] | None = None,
    ) -> list[Refined]:
        """Return all batches, in the order of the requests.

        Args:
            requests: The prompts with their seeds.
            progress: Called with how many prompts are finished.

        Raises:
            ObserverError: An answer did not come.
            IneError: A picture did not come, or the store cannot be written.
        """
        found = []
        size = self.generator.batch
        for first in range(0, len(requests), size):
            found.append(self.batch(requests[first : first + size]))
            if progress:
                progress(min(first + size, len(requests)))
        return found

    def batch(self, requests: Sequence[PictureRequest]) -> Refined:
        """Return one batch, each of its rounds read from the store or made."""
        keys = [first_key(self.generator.name, self.generator.batch, requests)]
        batch = self._stored(keys[0], requests) or self._kept(keys[0], self._first(requests))
        for _ in range(self.settings.rounds):
            if not any(chain.is_open for chain in batch.chains):
                break
            keys.append(round_key(keys[-1], self.rewriter.name, self.settings))
            stored = self._stored(keys[-1], requests)
            batch = stored or self._kept(
                keys[-1], refine_once(batch, self.rewriter, self.generator, self.settings)
            )
        return Refined(requests=tuple(requests), keys=tuple(keys))

    def _first(self, requests: Sequence[PictureRequest]) -> Batch:
        pictures, notes, calls = self.generator(requests)
        return Batch(requests=tuple(requests), pictures=pictures, notes=notes, calls=calls)

    def _stored(self, key: str, requests: Sequence[PictureRequest]) -> Batch | None:
        try:
            return read_batch(self.store, key, requests)
        except Missing:
            return None

    def _kept(self, key: str, batch: Batch) -> Batch:
        """Store a round and return it."""
        made = {"versions": library_versions()}
        self.store.write_unit(key, batch.pictures, batch.notes, batch.calls, made)
        return batch


def refine_unit(
    unit: Unit, generate: Generate, rewriter: Rewriter, settings: RefineSettings
) -> Unit:
    """Return a unit of generated pictures after its rounds; nothing is stored.

    A picture to which the answer was unusable becomes a coarse mosaic: nobody said that it is safe.

    Raises:
        ObserverError: An answer did not come.
    """
    batch = Batch(
        requests=unit.requests, pictures=unit.pictures, notes=unit.notes, calls=unit.unet_calls
    )
    for _ in range(settings.rounds):
        if any(chain.is_open for chain in batch.chains):
            batch = refine_once(batch, rewriter, generate, settings)
    pictures = batch.pictures.copy()
    for place, chain in enumerate(batch.chains):
        if chain.status == "unusable answer":
            pictures[place] = blur(pictures[place])
    notes = [
        {**note, NOTE: chain.record(), STATUS: chain.status}
        for note, chain in zip(batch.notes, batch.chains, strict=True)
    ]
    return replace(unit, pictures=pictures, notes=notes, unet_calls=batch.calls)
