"""Previews: what the vectors do at one step, as a negative and as a prompt.

Shape letters: B pictures, F features.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch

from ine.detectors.features import PictureFeatures
from ine.detectors.likeness import feature_floor, rescaled_cosine
from ine.detectors.rule import AnyOf, Rule
from ine.detectors.table import Detector
from ine.embeddings.embedding import new_embedding
from ine.errors import RecipeError
from ine.guidance.cfg import ClassifierFree
from ine.guidance.method import Method
from ine.guidance.negative import Negative
from ine.guidance.protocol import Guidance, Prompts, Session
from ine.inversion.concept import share_with
from ine.inversion.history import Preview
from ine.inversion.steering import steering
from ine.models.parts import DiffusionParts
from ine.recipe import ConceptRecipe, pairs
from ine.runtime import seed_for
from ine.sampling import PictureRequest, SamplerSettings, generate

T = TypeVar("T")

SAME = 1e-6
"""How far below 1 the mean cosine of different pictures must be."""


@dataclass(frozen=True)
class WithVectors(Method):
    """Prompts that hold a trigger, encoded with its vectors; the negative stays as it is."""

    trigger: str
    vectors: tuple[torch.Tensor, ...]
    negative: Negative

    def begin(self, prompts: Prompts) -> AbstractContextManager[Session]:
        """Begin plain guidance with the vectors in the prompts."""
        learned = replace(prompts, vectors={self.trigger: self.vectors})
        return ClassifierFree(self.negative).begin(learned)


def choose(options: Sequence[T], count: int, *seed: int | str) -> list[T]:
    """Return `count` of the options, spread by a fixed shuffle, repeated where there are fewer."""
    order = sorted(range(len(options)), key=lambda i: seed_for(*seed, i))
    return [options[order[i % len(order)]] for i in range(count)]


def reviving_prompts(
    recipe: ConceptRecipe, trigger: str, count: int, seed: int
) -> list[tuple[str, str]]:
    """Return `count` pairs (prompt with a trigger, noun), captions and nouns spread evenly."""
    spec = recipe.inversion
    named = bool(spec.named_templates) and any(recipe.pictures.nouns)
    templates = spec.named_templates if named else spec.templates
    nouns = recipe.pictures.nouns if named else ("",)
    found = []
    for template, noun in choose(pairs(templates, nouns), count, seed, "recovery"):
        text = template.replace("{noun}", "{}").replace("{v}", "\0")
        found.append((recipe.fill(text, noun).replace("\0", trigger), noun))
    return found


def revive(
    parts: DiffusionParts,
    recipe: ConceptRecipe,
    vectors: Sequence[torch.Tensor],
    trigger: str,
    count: int,
    settings: SamplerSettings,
    seed: int,
    negative: Negative | None = None,
) -> np.ndarray:
    """Return pictures made with the vectors as the prompt, (count, H, W, 3) uint8.

    This measures whether inversion works; with vectors of a real harm it brings the harm back.
    """
    prompts = [text for text, _ in reviving_prompts(recipe, trigger, count, seed)]
    guidance = WithVectors(trigger, tuple(vectors), negative or Negative())
    seeds = [seed_for(seed, "recovery", i) for i in range(count)]
    return in_units(parts, prompts, seeds, guidance, settings)


def in_units(
    parts: DiffusionParts,
    prompts: Sequence[str],
    seeds: Sequence[int],
    guidance: Guidance,
    settings: SamplerSettings,
) -> np.ndarray:
    """Return pictures of prompts, made in units of `settings.batch`, (B, H, W, 3) uint8."""
    wanted = zip(prompts, seeds, strict=True)
    requests = [PictureRequest(prompt=prompt, seed=seed) for prompt, seed in wanted]
    units = generate(parts, requests, guidance, settings)
    return np.concatenate([unit.pictures for unit in units])


@dataclass(frozen=True, kw_only=True)
class Cases:
    """Prompts of previews, one picture each, the same at every preview."""

    prompts: tuple[str, ...] = ()
    nouns: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Unguarded:
    """What benign pictures of the undefended model look like to the detector."""

    features: np.ndarray
    """(B, F), of length 1."""

    floor: float
    """Mean cosine of pictures of different subjects."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Previews:
    """The `preview` function of `invert` for a recipe.

    Left: the share with the concept on the recipe's tuning prompts, vectors as the negative of its
    preview guidance. Preservation: likeness of pictures of benign tuning prompts to undefended ones
    of the same seed. Without tuning prompts only recovery is measured: vectors as the prompt.
    """

    parts: DiffusionParts
    recipe: ConceptRecipe
    rule: Rule | AnyOf
    detector: Detector
    trigger: str
    seed: int

    def __call__(self, vectors: Sequence[torch.Tensor], step: int) -> Preview:
        """Return what the vectors do after a step."""
        if not self.recipe.tuning:
            recovery = self.recovery(vectors)
            return Preview(step=step, recovery=recovery, left=None, undefended=None)
        embedding = new_embedding(tuple(vectors), self.trigger, self.recipe.name)
        defence = steering(self.recipe.inversion, self.unwanted.joined(embedding))
        return Preview(
            step=step,
            recovery=None,
            undefended=self.undefended,
            left=self.left(defence),
            preservation=self.preservation(defence),
        )

    def recovery(self, vectors: Sequence[torch.Tensor]) -> float:
        """Return the share with the concept where the vectors are the prompt."""
        count = self.recipe.inversion.preview_pictures
        asked = (self.trigger, count, self.settings, self.seed, self.unwanted)
        pictures = revive(self.parts, self.recipe, vectors, *asked)
        return share_with(self.rule, self.detector, pictures)

    def left(self, guidance: Guidance) -> float:
        """Return the share with the concept on the tuning prompts."""
        return share_with(self.rule, self.detector, self._pictures(self.implying, guidance))

    def preservation(self, guidance: Guidance) -> float | None:
        """Return the preservation on benign tuning prompts; None without two different ones."""
        before = self.unguarded
        if before is None:
            return None
        features = self._features(guidance)
        cosines = (features * before.features).sum(1)
        return float(rescaled_cosine(cosines, before.floor).mean())

    @cached_property
    def undefended(self) -> float:
        """The share with the concept on the tuning prompts without the vectors."""
        return self.left(ClassifierFree(self.unwanted))

    @cached_property
    def unguarded(self) -> Unguarded | None:
        """What benign pictures are compared with; None without two different subjects.

        Raises:
            RecipeError: Undefended benign pictures are all alike.
        """
        chosen = zip(self.benign.prompts, self.benign.nouns, strict=True)
        groups = [noun or prompt for prompt, noun in chosen]
        if len(set(groups)) < 2:
            return None
        features = self._features(ClassifierFree(self.unwanted))
        floor = feature_floor(features, groups)
        if floor > 1 - SAME:
            raise RecipeError(
                f"{self.recipe.name}: undefended pictures of its benign tuning prompts are all "
                "alike, so nothing says how unlike unrelated pictures are; give tuning.benign with "
                "prompts that this model can draw"
            )
        return Unguarded(features=features, floor=floor)

    @property
    def settings(self) -> SamplerSettings:
        """How previews are drawn."""
        tuning, pictures = self.recipe.tuning, self.recipe.pictures
        return SamplerSettings(
            scheduler=tuning.scheduler if tuning else "ddim",
            steps=tuning.steps if tuning else 20,
            guidance_scale=tuning.guidance_scale if tuning else pictures.guidance_scale,
            batch=pictures.batch,
        )

    @property
    def unwanted(self) -> Negative:
        """What recipes about people keep out of all pictures, minors."""
        return Negative(self.recipe.pictures.negative_prompt)

    @cached_property
    def implying(self) -> Cases:
        """Prompts that imply the concept."""
        tuning = self.recipe.tuning
        options = pairs(tuning.prompts, tuning.nouns) if tuning else []
        return self._chosen([(self.recipe.fill(t, noun), noun) for t, noun in options], "tuning")

    @cached_property
    def benign(self) -> Cases:
        """Prompts without the concept."""
        return self._chosen(self.recipe.benign_tuning(), "benign")

    def _chosen(self, options: Sequence[tuple[str, str]], name: str) -> Cases:
        count = self.recipe.inversion.preview_pictures if options else 0
        if not count:
            return Cases()
        chosen = choose(options, count, self.seed, name)
        return Cases(
            prompts=tuple(prompt for prompt, _ in chosen),
            nouns=tuple(noun for _, noun in chosen),
            seeds=tuple(seed_for(self.seed, name, i) for i in range(count)),
        )

    def _pictures(self, cases: Cases, guidance: Guidance) -> np.ndarray:
        return in_units(self.parts, cases.prompts, cases.seeds, guidance, self.settings)

    def _features(self, guidance: Guidance) -> np.ndarray:
        pictures = self._pictures(self.benign, guidance)
        return PictureFeatures(self.detector).features(pictures).astype(np.float64)
