"""Pictures from prompts and seeds, in units of fixed shape."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ine.decoding import decode
from ine.embeddings.embedding import ConceptEmbedding
from ine.finite import with_redone
from ine.guidance.protocol import Guidance, Notes
from ine.models.parts import DiffusionParts
from ine.sampling.loop import sample_latents
from ine.sampling.settings import SamplerSettings

GREY = 128
"""Of the picture in the place of one that is withheld, 0 to 255."""


@dataclass(frozen=True, kw_only=True)
class PictureRequest:
    """One picture to make."""

    prompt: str
    seed: int = 0
    embeddings: tuple[ConceptEmbedding, ...] = ()
    """What the triggers in the prompt stand for."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Pictures that were made together."""

    first: int
    """Position of the first picture in the run."""

    requests: tuple[PictureRequest, ...]
    pictures: np.ndarray
    """(B, H, W, 3) uint8 RGB."""

    notes: list[Notes]
    """What the guidance logged, one dict per picture; its `ine.finite.REDONE` says what was
    computed again in float32."""

    unet_calls: list[int]
    """U-Net evaluations, counted as (condition, step) pairs, one number per picture."""


def greyed(unit: Unit, places: Iterable[int]) -> Unit:
    """Return a unit with grey in the place of some of its pictures, which are withheld."""
    pictures = unit.pictures.copy()
    pictures[list(places)] = GREY
    return replace(unit, pictures=pictures)


def make_pictures(
    parts: DiffusionParts,
    requests: Sequence[PictureRequest],
    guidance: Guidance | None,
    settings: SamplerSettings | None,
) -> tuple[np.ndarray, list[Notes], list[int]]:
    """Return (pictures (B, H, W, 3) uint8, notes, U-Net evaluations) of one unit."""
    prompts, seeds = [r.prompt for r in requests], [r.seed for r in requests]
    vectors = {e.trigger: e.vectors for r in requests for e in r.embeddings}
    latents, notes, nfe = sample_latents(parts, prompts, seeds, guidance, settings, vectors=vectors)
    pictures, records = decode(parts, latents)
    return pictures, with_redone(notes, records), nfe


def generate(
    parts: DiffusionParts,
    requests: Sequence[PictureRequest],
    guidance: Guidance | None = None,
    settings: SamplerSettings | None = None,
    skip: Callable[[int], bool] = lambda first: False,
) -> Iterator[Unit]:
    """Yield pictures unit by unit, in the order of the requests.

    Args:
        parts: The model.
        requests: The pictures to make.
        guidance: By default classifier-free guidance without a negative.
        settings: Of the sampler; `settings.batch` pictures make a unit.
        skip: Called with the position of a unit's first picture; a unit for which it returns True
            is left out.
    """
    settings = settings or SamplerSettings()
    for first in range(0, len(requests), settings.batch):
        if skip(first):
            continue
        unit = tuple(requests[first : first + settings.batch])
        pictures, notes, nfe = make_pictures(parts, unit, guidance, settings)
        yield Unit(first=first, requests=unit, pictures=pictures, notes=notes, unet_calls=nfe)
