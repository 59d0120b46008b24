"""Units of a grid: pictures of one fixed shape that are made together, under one key.

A unit always has `sampler.batch` pictures; where a cell ends sooner, its own are repeated and what
was made of the repetitions is thrown away. So a unit's pixels do not depend on what else is made.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ine.evaluation.cells import Configuration
from ine.evaluation.models import PICTURE_VERSION, ModelFacts
from ine.evaluation.prompt_sets import Item
from ine.guidance.protocol import Guidance, Notes
from ine.guidance.table import describe
from ine.models.parts import DiffusionParts
from ine.posi.batches import rewritten_key
from ine.posi.table import Rewriting
from ine.refining.run import Refinement, round_key
from ine.runtime import library_versions
from ine.sampling import PictureRequest, SamplerSettings, make_pictures
from ine.store.units import key_of


@dataclass(frozen=True, kw_only=True)
class UnitOfWork:
    """One unit, planned."""

    key: str
    configuration: Configuration
    """The one that needs it first; its guidance makes it."""

    requests: tuple[PictureRequest, ...]
    places: tuple[int, ...]
    """Position of each picture among the items of its cell."""

    sampler: SamplerSettings
    size: tuple[int | None, int | None] = (None, None)
    before: "UnitOfWork | None" = None
    """The unit that it is made from: the round before of one whose prompts are refined, and the
    user's prompts of one whose prompts are rewritten."""

    refinement: Refinement | None = None
    """Who looks at the round before, and how."""

    rewriting: Rewriting | None = None
    """Who rewrites the prompts of the unit before."""


def unit_key(
    digest: str,
    guidance: Guidance | None,
    sampler: SamplerSettings,
    requests: Sequence[PictureRequest],
    size: tuple[int | None, int | None] = (None, None),
) -> str:
    """Return the key of a unit, 64 hex digits.

    Args:
        digest: From `model_digest`.
        guidance: A `Guidance`, None for the undefended model.
        sampler: `SamplerSettings`; its batch is the unit's shape.
        requests: The pictures, without repetitions.
        size: Width and height in pixels where they are not the model's own.
    """
    return key_of(
        version=PICTURE_VERSION,
        model=digest,
        guidance=describe(guidance),
        sampler=repr(sampler),
        requests=[_named(request) for request in requests],
        size=list(size),
    )


def _named(request: PictureRequest) -> list[Any]:
    """Return what names a request in a key; without embeddings as it was before there were any."""
    learned = [[e.trigger, e.digest] for e in request.embeddings]
    return [request.prompt, request.seed, *([learned] if learned else [])]


def plan_units(
    configuration: Configuration,
    guidance: Guidance | None,
    items: Sequence[Item],
    sampler: SamplerSettings,
    facts: ModelFacts,
) -> list[UnitOfWork]:
    """Return the units of a cell, in order; their `places` cover its items once.

    Args:
        configuration: The cell's `Configuration`.
        guidance: Its `Guidance`, or None.
        items: The cell's `Item`s.
        sampler: `SamplerSettings` of the model.
        facts: `ModelFacts`: its digest, and its own size.
    """
    groups: dict[tuple[SamplerSettings, tuple[int | None, int | None]], list[int]] = {}
    for place, item in enumerate(items):
        own = sampler if item.guidance is None else replace(sampler, guidance_scale=item.guidance)
        groups.setdefault((own, facts.other_size(item.size)), []).append(place)
    found = []
    for (own, size), places in groups.items():
        for first in range(0, len(places), own.batch):
            some = tuple(places[first : first + own.batch])
            requests = tuple(items[place].request for place in some)
            found.append(
                UnitOfWork(
                    key=unit_key(facts.digest, guidance, own, requests, size),
                    configuration=configuration,
                    requests=requests,
                    places=some,
                    sampler=own,
                    size=size,
                )
            )
    return found


def refined_unit(unit: UnitOfWork, refinement: Refinement) -> UnitOfWork:
    """Return a unit after the rounds of a refinement, each of which is a unit too."""
    for _ in range(refinement.settings.rounds):
        key = round_key(unit.key, refinement.name, refinement.settings)
        unit = replace(unit, key=key, before=unit, refinement=refinement, rewriting=None)
    return unit


def rewritten_unit(unit: UnitOfWork, rewriting: Rewriting) -> UnitOfWork:
    """Return a unit after its prompts were rewritten."""
    key = rewritten_key(unit.key, rewriting.name)
    return replace(unit, key=key, before=unit, rewriting=rewriting)


def make_unit(
    parts: DiffusionParts, guidance: Guidance | None, unit: UnitOfWork
) -> tuple[np.ndarray, list[Notes], list[int]]:
    """Return (pictures (B, H, W, 3) uint8, notes, U-Net calls) of a unit, repetitions left out."""
    parts = parts.of_size(*unit.size)
    count, batch = len(unit.requests), unit.sampler.batch
    padded = [unit.requests[i % count] for i in range(batch)]
    pictures, notes, calls = make_pictures(parts, padded, guidance, unit.sampler)
    return pictures[:count], notes[:count], calls[:count]


def made_by(device: str | torch.device) -> dict[str, Any]:
    """Return what besides the key may move the last bits, as plain values."""
    threads = torch.get_num_threads() if torch.device(device).type == "cpu" else None
    name = torch.device(device).type
    return {"device": name, "threads": threads, "versions": library_versions()}
