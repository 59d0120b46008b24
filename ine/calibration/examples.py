"""Examples for a gate's probes: pictures are drawn, their activations kept.

Only activations are kept, never a picture.

Shape letters: N pictures, F features of a probe.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from ine.calibration.features import noise_levels, noised_features
from ine.detectors.rule import AnyOf, Rule
from ine.detectors.table import Detector
from ine.guidance.protocol import Guidance
from ine.models.parts import DiffusionParts
from ine.runtime import generator_for, seed_for
from ine.sampling import SamplerSettings, decode_latents, sample_latents
from ine.store.tensors import Notes, Tensors, UnitFiles
from ine.store.units import key_of


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Activations on pictures of one kind, and whether they show the concept."""

    features: tuple[torch.Tensor, ...]
    """One (N, F) per noise level."""

    shown: torch.Tensor
    """(N,) bool: whether the rule found the concept."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Pictures of one kind: their prompts, and what draws them."""

    name: str
    """ "absent", or "shown" and by what; part of seeds and file names."""

    prompts: Sequence[str]
    guidance: Guidance
    drawer: DiffusionParts | None = None
    """Model that draws them, if it is not the one whose activations are taken."""


@dataclass(frozen=True, kw_only=True)
class ExampleMaker:
    """Draws pictures as the runs that a probe shall watch, and keeps activations on them."""

    parts: DiffusionParts
    """The unlearned model, whose activations are taken."""

    settings: SamplerSettings
    queries: Sequence[float]
    """Fractions of the run at whose noise levels activations are taken."""

    rule: Rule | AnyOf
    detector: Detector
    seed: int
    folder: Path
    """Where finished units go."""

    key: str
    """What the activations depend on besides prompts, seed and settings."""

    progress: Callable[[int], None]
    """Called with the number of pictures of every unit."""

    def examples(self, kind: Kind) -> Examples:
        """Return the examples of one kind; units that are in `folder` are read back.

        Raises:
            PicturesError: The file of a unit is damaged.
        """
        levels = noise_levels(self.parts, self.settings, self.queries)
        files, units = example_files(len(levels)), []
        for first in range(0, len(kind.prompts), self.settings.batch):
            texts = list(kind.prompts[first : first + self.settings.batch])
            key = key_of(
                about=self.key,
                prompts=texts,
                seed=self.seed,
                levels=levels,
                settings=repr(self.settings),
            )
            path = Path(self.folder) / f"{kind.name}-{first:06d}.safetensors"
            units.append(files.get(path, key, partial(self._make, kind, texts, first, levels)))
            self.progress(len(texts))
        rows = zip(*(unit.features for unit in units), strict=True)
        return Examples(
            features=tuple(map(torch.cat, rows)), shown=torch.cat([unit.shown for unit in units])
        )

    def examples_of(self, latents: torch.Tensor) -> Examples:
        """Return the examples of pictures that show the concept, given as clean latents.

        Args:
            latents: (N, C, H, W), as the U-Net wants them.
        """
        levels = noise_levels(self.parts, self.settings, self.queries)
        features = self._features(latents, levels, "given")
        return Examples(features=features, shown=torch.ones(len(latents), dtype=torch.bool))

    def _features(
        self, clean: torch.Tensor, levels: Sequence[tuple[float, float]], *seed: int | str
    ) -> tuple[torch.Tensor, ...]:
        """Return the activations on clean latents noised to each level, one (N, F) per level."""
        found = []
        for number, (t, alpha_bar) in enumerate(levels):
            noise = generator_for(self.seed, "examples", *seed, number)
            reading = self.settings.reading
            found.append(noised_features(self.parts, clean, t, alpha_bar, noise, reading=reading))
        return tuple(found)

    def _make(
        self, kind: Kind, texts: list[str], first: int, levels: Sequence[tuple[float, float]]
    ) -> Examples:
        """Draw the pictures of the unit that begins with prompt `first`; return its examples."""
        numbers = range(first, first + len(texts))
        seeds = [seed_for(self.seed, "examples", kind.name, n) % 2**32 for n in numbers]
        drawer = kind.drawer or self.parts
        latents, _, _ = sample_latents(drawer, texts, seeds, kind.guidance, self.settings)
        looks = self.detector(decode_latents(self.parts, latents))
        features = self._features(latents.float().cpu(), levels, kind.name, first)
        shown = torch.tensor([self.rule.fires(scores) for scores in looks])
        return Examples(features=features, shown=shown)


def example_files(levels: int) -> UnitFiles[Examples]:
    """Return how units of examples at a number of noise levels are kept."""
    names = [f"features.{number}" for number in range(levels)]

    def pack(unit: Examples) -> tuple[Tensors, Notes]:
        return dict(zip(names, unit.features, strict=True)) | {"shown": unit.shown}, {}

    def unpack(tensors: Tensors, _notes: Notes) -> Examples:
        unit = Examples(features=tuple(tensors[n] for n in names), shown=tensors["shown"])
        count = len(unit.shown)
        if unit.shown.dtype != torch.bool or unit.shown.dim() != 1:
            raise ValueError("shown is not (N,) bool")
        if not all(f.dim() == 2 and len(f) == count and f.isfinite().all() for f in unit.features):
            raise ValueError("features are not finite (N, F)")
        return unit

    return UnitFiles(what="a unit of a probe's examples", entry="unit", pack=pack, unpack=unpack)
