"""Who makes the pictures that are refined: our sampler, a pipeline, a server, any command.

A generator is a frozen value with a name, which tells its pictures from those of others, and a
batch, how many it makes at a time.

Shape letters: B pictures.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from ine.errors import PicturesError
from ine.guidance.protocol import Guidance
from ine.guidance.table import describe
from ine.models.parts import DiffusionParts
from ine.refining.rounds import Made
from ine.sampling import PictureRequest, SamplerSettings, make_pictures
from ine.store.units import key_of
from ine.weights.fingerprint import exact_digest

log = logging.getLogger("ine")


class Generator(Protocol):
    """Makes pictures of prompts."""

    @property
    def name(self) -> str:
        """Return what tells its pictures from those of others, settings and all; holds no key."""

    @property
    def batch(self) -> int:
        """Return how many pictures it makes at a time."""

    def __call__(self, requests: Sequence[PictureRequest]) -> Made:
        """Return (pictures, uint8 RGB (B, H, W, 3), notes, U-Net evaluations) of B requests.

        Raises:
            IneError: A picture did not come.
        """


@dataclass(frozen=True, kw_only=True)
class SamplerGenerator:
    """Our sampler, with any guidance."""

    parts: DiffusionParts
    guidance: Guidance | None
    sampler: SamplerSettings
    name: str

    @property
    def batch(self) -> int:
        """Return the sampler's."""
        return self.sampler.batch

    def __call__(self, requests: Sequence[PictureRequest]) -> Made:
        """Return the pictures; a batch is filled by repetition, so its shape is always the same."""
        made = [
            self._unit(requests[first : first + self.batch])
            for first in range(0, len(requests), self.batch)
        ]
        notes = [note for _, own, _ in made for note in own]
        calls = [count for _, _, own in made for count in own]
        return np.concatenate([pictures for pictures, _, _ in made]), notes, calls

    def _unit(self, requests: Sequence[PictureRequest]) -> Made:
        count = len(requests)
        padded = [requests[i % count] for i in range(self.batch)]
        pictures, notes, calls = make_pictures(self.parts, padded, self.guidance, self.sampler)
        return pictures[:count], notes[:count], calls[:count]


@dataclass(frozen=True, kw_only=True)
class PipelineGenerator:
    """A text-to-image pipeline of diffusers, or anything that is called like one.

    It is called as `pipeline(prompt=[...], generator=[...], output_type="np", **settings)` and
    returns an object with `images`, (B, H, W, 3) in [0, 1].
    """

    pipeline: Callable[..., Any]
    name: str
    """Names the model and all that decides its pictures; rounds that are stored under the same name
    are not made again."""

    settings: dict[str, Any] = field(default_factory=dict)
    batch: int = 1

    def __call__(self, requests: Sequence[PictureRequest]) -> Made:
        """Return the pictures, each from a generator of its own seed on the CPU.

        Raises:
            PicturesError: The pipeline gave other than one finite picture per prompt, or found one
                unsafe and replaced it.
        """
        own = [torch.Generator().manual_seed(request.seed) for request in requests]
        prompts = [request.prompt for request in requests]
        done = self.pipeline(prompt=prompts, generator=own, output_type="np", **self.settings)
        images = np.asarray(done.images)
        if images.ndim != 4 or images.shape[0] != len(requests) or images.shape[3] != 3:
            raise PicturesError(
                f"{self.name}: gave an array {images.shape} for {len(requests)} prompts; expected "
                f"({len(requests)}, height, width, 3)"
            )
        if not np.isfinite(images).all():
            raise PicturesError(
                f"{self.name}: gave pictures with numbers that are not finite; run the pipeline in "
                "float32"
            )
        blocked = sum(map(bool, getattr(done, "nsfw_content_detected", None) or ()))
        if blocked:
            log.warning(
                "%s: its own safety checker replaced %d of %d pictures by black ones, of which "
                "an observer cannot say what they would have shown",
                *(self.name, blocked, len(requests)),
            )
        pictures = (images.clip(0, 1) * 255).round().astype(np.uint8)
        return pictures, [{} for _ in requests], [0] * len(requests)


def sampler_generator(
    parts: DiffusionParts, guidance: Guidance | None, sampler: SamplerSettings
) -> SamplerGenerator:
    """Return our sampler under a name that says all that decides its pictures."""
    about = {
        "model": exact_digest([parts.unet, parts.vae, *parts.text_encoders]),
        "guidance": describe(guidance),
        "sampler": repr(sampler),
        "size": list(parts.latent_shape),
    }
    name = f"ine:{parts.name}+{parts.unet_name} {key_of(**about)[:16]}"
    return SamplerGenerator(parts=parts, guidance=guidance, sampler=sampler, name=name)
