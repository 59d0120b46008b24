"""One unit of pictures for DUO's pairs: made by the base, or read back from a file."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ine.detectors.rules import find_rule
from ine.detectors.table import Detector
from ine.guidance.cfg import ClassifierFree
from ine.guidance.negative import Negative, PerPicture
from ine.inversion.concept import sampler_of
from ine.inversion.images import PICTURES, ConceptPictures, encode_pictures
from ine.models.parts import DiffusionParts
from ine.recipe import ConceptRecipe
from ine.runtime import seed_for
from ine.sampling import decode_latents, edit_latents, sample_latents
from ine.store.units import key_of
from ine.unlearning.pairs import pair_prompts
from ine.weights.fingerprint import exact_digest

UNITS = re.compile(r"(concept|edit)-\d{6}\.safetensors|\..+\.part")
"""Names of unit files, and of the temporary files that a kill leaves."""


@dataclass(frozen=True)
class Pending:
    """A picture with the concept that still needs an edit without it."""

    picture: ConceptPictures
    """One picture."""

    attempt: int = 0

    @property
    def number(self) -> int:
        """Position of the picture among all that may be tried."""
        return int(self.picture.names[0])


class PairMaker:
    """Makes one unit, or reads it back."""

    def __init__(
        self,
        base: DiffusionParts,
        recipe: ConceptRecipe,
        detector: Detector,
        strength: float,
        scale: float,
        seed: int,
        folder: Path | None,
    ) -> None:
        spec = recipe.pictures
        self.base, self.detector, self.seed = base, detector, seed
        self.rule = find_rule(spec.rule)
        self.batch, self.avoided = spec.batch, spec.negative_prompt
        self.strength = strength
        self.folder = Path(folder) if folder else None
        self.sampler = sampler_of(spec)
        self.editor = replace(self.sampler, guidance_scale=scale)
        options = pair_prompts(recipe)
        # A fixed shuffle: the first units must not all show one template.
        self.options = sorted(options, key=lambda pair: seed_for(seed, "duo-order", *pair))
        digest = exact_digest([base.unet, base.vae, *base.text_encoders])
        about = {
            "model": digest,
            "prompts": self.options,
            "sampler": repr(self.sampler),
            "avoided": self.avoided,
            "rule": self.rule.name,
            "seed": seed,
        }
        self.key = key_of(**about)
        self.edit_key = key_of(**about, editor=repr(self.editor), strength=strength)

    def prompts(self, numbers: Iterable[int]) -> tuple[list[str], list[str]]:
        """Return the prompts (with the concept, without it) of pictures by their numbers."""
        chosen = [self.options[n % len(self.options)] for n in numbers]
        return [concept for concept, _ in chosen], [target for _, target in chosen]

    def concept(self, first: int) -> ConceptPictures:
        """Return the pictures of a unit in which the rule fires; picture `first` is its first."""
        numbers = range(first, first + self.batch)

        def make() -> ConceptPictures:
            latents, _, _ = sample_latents(
                self.base,
                self.prompts(numbers)[0],
                [seed_for(self.seed, "duo-concept", n) for n in numbers],
                ClassifierFree(Negative(self.avoided)),
                self.sampler,
            )
            return self._kept(latents, list(numbers), wanted=True)

        return self._cached(f"concept-{first // self.batch:06d}", self.key, make)

    def edit(self, unit: int, pending: list[Pending]) -> ConceptPictures:
        """Return the edits in which the rule does not fire; `unit` is the number of the file."""
        about = [(w.number, w.attempt) for w in pending]

        def make() -> ConceptPictures:
            rows = [*pending, *pending[-1:] * (self.batch - len(pending))]
            concepts, targets = self.prompts([w.number for w in rows])
            negatives = [", ".join(filter(None, (c, self.avoided))) for c in concepts]
            latents = edit_latents(
                self.base,
                torch.cat([w.picture.mean for w in rows]),
                self.strength,
                targets,
                [seed_for(self.seed, "duo-edit", w.number, w.attempt) for w in rows],
                ClassifierFree(PerPicture(tuple(negatives))),  # type: ignore[arg-type]
                self.editor,
            )
            return self._kept(latents, [w.number for w in pending], wanted=False)

        return self._cached(f"edit-{unit:06d}", key_of(edit=self.edit_key, pending=about), make)

    def _kept(self, latents: torch.Tensor, numbers: list[int], wanted: bool) -> ConceptPictures:
        """Return the pictures in which the rule fires, or with `wanted` off, those in which not."""
        arrays = decode_latents(self.base, latents)
        scores = self.detector(arrays[: len(numbers)])
        keep = [i for i, found in enumerate(scores) if self.rule.fires(found) == wanted]
        names = [f"{n:06d}" for n in numbers]
        names += ["filler"] * (len(arrays) - len(names))
        return encode_pictures(self.base, arrays, None, names, self.batch).of(keep)

    def _cached(self, name: str, key: str, make: Callable[[], ConceptPictures]) -> ConceptPictures:
        path = self.folder and self.folder / f"{name}.safetensors"
        return PICTURES.get(path, key, make)


def remove_units(folder: Path) -> None:
    """Remove the units in a folder, and the folder if it is empty then."""
    folder = Path(folder)
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if UNITS.fullmatch(path.name):
            path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()
