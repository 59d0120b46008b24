"""Concept pictures made by the base model, kept where the recipe's rule finds the concept."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ine.errors import PicturesError
from ine.inversion.images import encode_pictures, load_pictures, save_pictures
from ine.judging.rules import find_rule
from ine.pictures import write_png
from ine.recipe import pairs
from ine.runtime import seed_for
from ine.sampling import PictureRequest, SamplerSettings, decode_latents, sample_latents

log = logging.getLogger("ine")


@dataclass(frozen=True, kw_only=True)
class Made:
    """Concept pictures and how they came about."""

    pictures: object
    """`ConceptPictures`."""

    tried: int
    kept: int


def concept_requests(recipe, seed):
    """Return (requests, nouns) for all pictures that may be tried, templates and nouns in turn."""
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


def picture_keys(key):
    """Return the keys of a unit that was made without PNGs, and of one made with them."""
    return key, f"{key}-images"


def make_pictures(
    base, recipe, detector, *, seed=0, folder=None, key="", keep_images=None, progress=None
):
    """Return `Made`: pictures by the base model in which the recipe's rule finds the concept.

    Args:
        base: The base model's parts, before unlearning.
        recipe: A `ConceptRecipe`.
        detector: A `Detector` that knows the rule's labels.
        seed: Where all randomness comes from.
        folder: Cache folder; finished units are kept as latents and not made again.
        key: What the pictures depend on.
        keep_images: A folder for PNGs of the kept pictures; by default none are written.
            Finished units that lack them are made again.
        progress: Called with (tried, kept, wanted) after every unit.

    Raises:
        PicturesError: Too few pictures show the concept.
    """
    from ine.guidance.cfg import ClassifierFree
    from ine.guidance.negative import Negative

    spec, rule = recipe.pictures, find_rule(recipe.pictures.rule)
    requests, nouns = concept_requests(recipe, seed)
    settings = SamplerSettings(
        scheduler=spec.scheduler,
        steps=spec.steps,
        guidance_scale=spec.guidance_scale,
        batch=spec.batch,
    )
    guidance = ClassifierFree(Negative(spec.negative_prompt))
    units, tried, kept = [], 0, 0
    for first in range(0, len(requests), spec.batch):
        if kept >= spec.count:
            break
        unit = requests[first : first + spec.batch]
        path = Path(folder) / f"unit-{first:06d}.safetensors" if folder else None
        found = _cached(path, key, keep_images) if path else None
        if found is None:
            latents, _, _ = sample_latents(
                base, [r.prompt for r in unit], [r.seed for r in unit], guidance, settings
            )
            arrays = decode_latents(base, latents)
            fires = [rule.fires(scores) for scores in detector(arrays)]
            keep = [i for i, yes in enumerate(fires) if yes]
            found = encode_pictures(
                base,
                arrays,
                tuple(nouns[first + i] for i in range(len(unit))),
                tuple(f"{first + i:06d}" for i in range(len(unit))),
                spec.batch,
            )
            found = found.of(keep)
            if keep_images:
                for i in keep:
                    write_png(Path(keep_images) / f"{first + i:06d}.png", arrays[i])
            if path:
                save_pictures(found, path, picture_keys(key)[bool(keep_images)])
        units.append(found)
        tried += len(unit)
        kept += found.count
        if progress:
            progress(tried, kept, spec.count)
    if kept < max(1, spec.count // 4):
        raise PicturesError(
            f"{recipe.name}: only {kept} of {tried} pictures made by {base.name} show the concept "
            f"by rule {rule.name}, {spec.count} are wanted; change pictures.prompts, or give "
            "pictures of your own with --images"
        )
    joined = _join(units).of(range(min(kept, spec.count)))
    return Made(pictures=joined, tried=tried, kept=kept)


def _cached(path, key, keep_images):
    """Return a finished unit, or None; with `keep_images` only one whose PNGs are there."""
    plain, pictured = picture_keys(key)
    if not keep_images:
        return load_pictures(path, plain) or load_pictures(path, pictured)
    found = load_pictures(path, pictured)
    whole = found and all((Path(keep_images) / f"{name}.png").is_file() for name in found.names)
    return found if whole else None


def _join(units):
    import torch

    return type(units[0])(
        mean=torch.cat([u.mean for u in units]),
        std=torch.cat([u.std for u in units]),
        captions=tuple(c for u in units for c in u.captions),
        names=tuple(n for u in units for n in u.names),
    )


def share_with(rule, detector, pictures):
    """Return the share of pictures in which the rule fires."""
    return float(np.mean([rule.fires(scores) for scores in detector(pictures)]))
