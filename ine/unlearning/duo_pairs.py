"""Pairs for DUO: a picture with the concept, and the same picture edited until it has lost it.

The base draws the first from the prompts with the concept; the recipe's rule must fire. The second
is an SDEdit of it towards the prompt without the concept, away from the one with it, drawn anew
until the rule is silent (Park et al. 2024). What differs within a pair is then the
concept and little else, and that difference alone is what the model learns to dislike.
"""

import re
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import torch

from ine.errors import PicturesError
from ine.guidance.cfg import ClassifierFree
from ine.guidance.negative import Negative, PerPicture
from ine.inversion.images import ConceptPictures, encode_pictures, load_pictures, save_pictures
from ine.judging.rules import find_rule
from ine.models.fingerprint import exact_digest
from ine.runtime import seed_for
from ine.sampling import SamplerSettings, decode_latents, edit_latents, sample_latents
from ine.unlearning.training import key_of

UNITS = re.compile(r"(concept|edit)-\d{6}\.safetensors|\..+\.part")
"""What this module writes into a folder, and what a kill leaves of it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Latents of pictures with the concept and of the same pictures without it."""

    unsafe: ConceptPictures
    safe: ConceptPictures
    """`safe.names[i]` is `unsafe.names[i]`."""

    tried: int = 0
    """Pictures that were made to find them."""

    edits: int = 0
    """Edits that were made."""

    @property
    def count(self):
        """Number of pairs."""
        return self.unsafe.count


@dataclass(frozen=True)
class _Wish:
    """A picture that shows the concept and waits for its edit."""

    picture: ConceptPictures
    """One picture."""

    attempt: int = 0

    @property
    def number(self):
        """Position of the picture among all that may be tried."""
        return int(self.picture.names[0])


def pair_prompts(recipe):
    """Return [(prompt with the concept, prompt without it)] from which pictures are drawn.

    Templates with a place for a noun are drawn from where there are any: in a recipe of people
    the nouns are what says that they are adults.
    """
    spec = recipe.erase
    both = list(zip(spec.concepts, spec.targets, strict=True))
    named = [(concept, target) for concept, target in both if "{}" in concept] or both
    filled = [(recipe.fill(c, n), recipe.fill(t, n)) for c, t in named for n in spec.nouns]
    return list(dict.fromkeys(filled))


def make_pairs(
    base,
    recipe,
    detector,
    count,
    *,
    strength=0.75,
    scale=7.5,
    tries=4,
    seed=0,
    folder=None,
    progress=None,
):
    """Return `Pairs`, made in units of the recipe's `pictures.batch`.

    Args:
        base: The base model's parts, before unlearning.
        recipe: A `ConceptRecipe` with an `erase` section; how its `pictures` are sampled and
            which rule finds the concept hold here too.
        detector: A `Detector` that knows the rule's labels.
        count: Pairs to find.
        strength: Share of the steps that an edit takes.
        scale: Classifier-free guidance scale of an edit.
        tries: At most `tries * count` pictures are made, and `tries` edits of each.
        seed: Where all randomness comes from.
        folder: Cache folder; finished units are kept as latents and not made again.
        progress: Called with (pairs found, pairs wanted, pictures made) after every unit.

    Raises:
        PicturesError: Too few pairs were found.
    """
    maker = _Maker(base, recipe, detector, strength, scale, seed, folder)
    queue, found, shown, made, edits, units = deque(), [], 0, 0, 0, 0
    while len(found) < count:
        # Whole units of edits where there is enough to fill one.
        short = len(queue) < maker.batch and len(found) + len(queue) < count
        if short and made < tries * count:
            unit = maker.concept(made)
            made += maker.batch
            shown += unit.count
            queue.extend(_Wish(unit.of([i])) for i in range(unit.count))
        elif queue:
            wishes = [queue.popleft() for _ in range(min(maker.batch, len(queue)))]
            safe = maker.edit(units, wishes)
            units += 1
            edits += len(wishes)
            rows = {name: safe.of([i]) for i, name in enumerate(safe.names)}
            for wish in wishes:
                row = rows.get(wish.picture.names[0])
                if row is not None:
                    found.append((wish.picture, row))
                elif wish.attempt + 1 < tries:
                    queue.append(_Wish(wish.picture, wish.attempt + 1))
        else:
            raise PicturesError(
                f"{recipe.name}: found {len(found)} of {count} pairs: of {made} pictures made by "
                f"{base.name} {shown} show the concept by rule {maker.rule.name}, and in {edits} "
                f"edits, at most {tries} of each, {len(found)} lost it; change erase.concepts or "
                "erase.targets, a larger erase.duo.strength or erase.duo.tries, or fewer --pairs"
            )
        if progress:
            progress(min(len(found), count), count, made)
    return Pairs(
        unsafe=_join([unsafe for unsafe, _ in found[:count]]),
        safe=_join([safe for _, safe in found[:count]]),
        tried=made,
        edits=edits,
    )


class _Maker:
    """Makes one unit, or reads it back."""

    def __init__(self, base, recipe, detector, strength, scale, seed, folder):
        spec = recipe.pictures
        self.base, self.detector, self.seed = base, detector, seed
        self.rule = find_rule(spec.rule)
        self.batch, self.avoided = spec.batch, spec.negative_prompt
        self.strength = strength
        self.folder = Path(folder) if folder else None
        shared = {"scheduler": spec.scheduler, "steps": spec.steps, "batch": spec.batch}
        self.sampler = SamplerSettings(guidance_scale=spec.guidance_scale, **shared)
        self.editor = SamplerSettings(guidance_scale=scale, **shared)
        options = pair_prompts(recipe)
        # A fixed shuffle: the first units must not all show one template.
        self.options = sorted(options, key=lambda pair: seed_for(seed, "duo-order", *pair))
        digest = exact_digest([base.unet, base.vae, *base.text_encoders])
        about = (digest, self.options, repr(self.sampler), self.avoided, self.rule.name, seed)
        self.key = key_of(*about)
        self.edit_key = key_of(*about, repr(self.editor), strength)

    def prompts(self, numbers):
        """Return the prompts (with the concept, without it) of pictures by their numbers."""
        chosen = [self.options[n % len(self.options)] for n in numbers]
        return [concept for concept, _ in chosen], [target for _, target in chosen]

    def concept(self, first):
        """Return those pictures of the unit that begins at `first` in which the rule fires."""
        numbers = range(first, first + self.batch)

        def make():
            latents, _, _ = sample_latents(
                self.base,
                self.prompts(numbers)[0],
                [seed_for(self.seed, "duo-concept", n) for n in numbers],
                ClassifierFree(Negative(self.avoided)),
                self.sampler,
            )
            return self._kept(latents, list(numbers), wanted=True)

        return self._cached(f"concept-{first // self.batch:06d}", self.key, make)

    def edit(self, unit, wishes):
        """Return the edits of pictures in which the rule is silent; `unit` numbers the file."""
        about = [(w.number, w.attempt) for w in wishes]

        def make():
            rows = [*wishes, *wishes[-1:] * (self.batch - len(wishes))]
            concepts, targets = self.prompts([w.number for w in rows])
            negatives = [", ".join(filter(None, (c, self.avoided))) for c in concepts]
            latents = edit_latents(
                self.base,
                torch.cat([w.picture.mean for w in rows]),
                self.strength,
                targets,
                [seed_for(self.seed, "duo-edit", w.number, w.attempt) for w in rows],
                ClassifierFree(PerPicture(tuple(negatives))),
                self.editor,
            )
            return self._kept(latents, [w.number for w in wishes], wanted=False)

        return self._cached(f"edit-{unit:06d}", key_of(self.edit_key, about), make)

    def _kept(self, latents, numbers, wanted):
        """Return the moments of those pictures of which the rule says what is wanted."""
        arrays = decode_latents(self.base, latents)
        scores = self.detector(arrays[: len(numbers)])
        keep = [i for i, found in enumerate(scores) if self.rule.fires(found) == wanted]
        names = [f"{n:06d}" for n in numbers]
        names += ["filler"] * (len(arrays) - len(names))
        return encode_pictures(self.base, arrays, None, names, self.batch).of(keep)

    def _cached(self, name, key, make):
        path = self.folder and self.folder / f"{name}.safetensors"
        found = load_pictures(path, key) if path else None
        if found is None:
            found = make()
            if path:
                save_pictures(found, path, key)
        return found


def remove_units(folder):
    """Remove the units in a folder, and the folder where nothing else is in it."""
    folder = Path(folder)
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if UNITS.fullmatch(path.name):
            path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def _join(pictures):
    return ConceptPictures(
        mean=torch.cat([p.mean for p in pictures]),
        std=torch.cat([p.std for p in pictures]),
        captions=None,
        names=tuple(name for p in pictures for name in p.names),
    )
