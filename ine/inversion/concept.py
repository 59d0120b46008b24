"""Concept pictures made by the base model, kept where the recipe's rule finds the concept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ine.detectors.rule import AnyOf, Rule
from ine.detectors.rules import find_rule
from ine.detectors.table import Detector
from ine.errors import PicturesError
from ine.guidance.cfg import ClassifierFree
from ine.guidance.negative import Negative
from ine.inversion.images import PICTURES, ConceptPictures, encode_pictures, join_pictures
from ine.models.parts import DiffusionParts
from ine.pictures import write_png
from ine.recipe import ConceptRecipe, PictureSettings, pairs
from ine.runtime import seed_for
from ine.sampling import PictureRequest, SamplerSettings, decode_latents, sample_latents


@dataclass(frozen=True, kw_only=True)
class Made:
    """Concept pictures, and how many had to be made for them."""

    pictures: ConceptPictures
    tried: int
    kept: int


def concept_requests(recipe: ConceptRecipe, seed: int) -> tuple[list[PictureRequest], list[str]]:
    """Return (requests, nouns) of all pictures that may be tried, templates and nouns in turn."""
    spec = recipe.pictures
    options = pairs(spec.prompts, spec.nouns)
    # A fixed shuffle: the first batches must not all show one template.
    order = sorted(range(len(options)), key=lambda i: seed_for(seed, "order", i))
    total = spec.count * spec.tries
    chosen = [options[order[i % len(order)]] for i in range(total)]
    requests = [
        PictureRequest(prompt=recipe.fill(template, noun), seed=seed_for(seed, "concept", i))
        for i, (template, noun) in enumerate(chosen)
    ]
    return requests, [noun for _, noun in chosen]


def sampler_of(spec: PictureSettings) -> SamplerSettings:
    """Return how a recipe's concept pictures are sampled."""
    return SamplerSettings(
        scheduler=spec.scheduler,
        steps=spec.steps,
        guidance_scale=spec.guidance_scale,
        batch=spec.batch,
    )


def picture_keys(key: str) -> tuple[str, str]:
    """Return the keys of a unit that was made without PNGs, and of one made with them."""
    return key, f"{key}-images"


def make_pictures(
    base: DiffusionParts,
    recipe: ConceptRecipe,
    detector: Detector,
    *,
    seed: int = 0,
    folder: Path | None = None,
    key: str = "",
    keep_images: Path | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> Made:
    """Make pictures with the base model; return those in which the recipe's rule finds the concept.

    Args:
        base: The base model's parts, before unlearning.
        recipe: The concept.
        detector: A detector with the rule's labels.
        seed: Seed of all random numbers.
        folder: Cache folder; finished units are kept as latents and not made again.
        key: What the pictures depend on.
        keep_images: A folder for PNGs of the kept pictures; by default none are written.
            Finished units without their PNGs are made again.
        progress: Called with (tried, kept, wanted) after every unit.

    Raises:
        PicturesError: Too few pictures show the concept.
    """
    spec = recipe.pictures
    requests, nouns = concept_requests(recipe, seed)
    maker = _Maker(
        base=base,
        spec=spec,
        rule=find_rule(spec.rule),
        detector=detector,
        requests=requests,
        nouns=nouns,
        keep_images=keep_images,
    )
    units: list[ConceptPictures] = []
    tried = kept = 0
    while kept < spec.count and tried < len(requests):
        path = Path(folder) / f"unit-{tried:06d}.safetensors" if folder else None
        found = maker.unit(tried, path, key)
        units.append(found)
        tried += len(requests[tried : tried + spec.batch])
        kept += found.count
        if progress:
            progress(tried, kept, spec.count)
    if kept < max(1, spec.count // 4):
        raise PicturesError(
            f"{recipe.name}: only {kept} of {tried} pictures made by {base.name} show the concept "
            f"by rule {maker.rule.name}, {spec.count} are wanted; change pictures.prompts, or give "
            "pictures of your own with --images"
        )
    joined = join_pictures(units).of(range(min(kept, spec.count)))
    return Made(pictures=joined, tried=tried, kept=kept)


@dataclass(frozen=True, kw_only=True)
class _Maker:
    """Makes one unit of pictures, or reads it back."""

    base: DiffusionParts
    spec: PictureSettings
    rule: Rule | AnyOf
    detector: Detector
    requests: Sequence[PictureRequest]
    nouns: Sequence[str]
    """One per request."""

    keep_images: Path | None
    """Where PNGs go."""

    @property
    def settings(self) -> SamplerSettings:
        """How pictures are made."""
        return sampler_of(self.spec)

    def unit(self, first: int, path: Path | None, key: str) -> ConceptPictures:
        """Return the kept pictures of the unit that begins with request `first`."""
        found = self._read(path, key) if path else None
        if found is None:
            found = self._make(first)
            if path:
                PICTURES.write(found, path, picture_keys(key)[bool(self.keep_images)])
        return found

    def _read(self, path: Path, key: str) -> ConceptPictures | None:
        """Return a finished unit, or None; with `keep_images` only one that has its PNGs."""
        plain, pictured = picture_keys(key)
        if not self.keep_images:
            return PICTURES.read(path, plain) or PICTURES.read(path, pictured)
        found = PICTURES.read(path, pictured)
        whole = found and all(self._png(name).is_file() for name in found.names)
        return found if whole else None

    def _make(self, first: int) -> ConceptPictures:
        requests = self.requests[first : first + self.spec.batch]
        latents, _, _ = sample_latents(
            self.base,
            [r.prompt for r in requests],
            [r.seed for r in requests],
            ClassifierFree(Negative(self.spec.negative_prompt)),
            self.settings,
        )
        arrays = decode_latents(self.base, latents)
        keep = [i for i, found in enumerate(self.detector(arrays)) if self.rule.fires(found)]
        names = tuple(f"{first + i:06d}" for i in range(len(requests)))
        nouns = tuple(self.nouns[first : first + len(requests)])
        if self.keep_images:
            for i in keep:
                write_png(self._png(names[i]), arrays[i])
        return encode_pictures(self.base, arrays, nouns, names, self.spec.batch).of(keep)

    def _png(self, name: str) -> Path:
        assert self.keep_images is not None
        return Path(self.keep_images) / f"{name}.png"


def share_with(rule: Rule | AnyOf, detector: Detector, pictures: np.ndarray) -> float:
    """Return the share of pictures in which the rule fires, of uint8 (B, H, W, 3)."""
    return float(np.mean([rule.fires(scores) for scores in detector(pictures)]))
