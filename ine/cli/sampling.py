"""The sampler that a command works with, where options leave much to the model."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ine.families import Family
    from ine.models.few_steps import FewSteps
    from ine.sampling import SamplerSettings

log = logging.getLogger("ine")


class Configured(Protocol):
    """What a sampler has to know of a model: `DiffusionParts`, or `planned.NotLoaded`."""

    @property
    def name(self) -> str:
        """The model's name."""

    @property
    def family_info(self) -> "Family":
        """The usual settings of its family."""

    @property
    def few_steps(self) -> "FewSteps | None":
        """The settings of a few-step model; None for others."""


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """What `--steps`, `--scheduler`, `--guidance-scale`, `--batch` and `--clip-skip` say.

    None leaves what suits the model.
    """

    steps: int | None = None
    scheduler: str | None = None
    guidance_scale: float | None = None
    batch: int | None = None
    clip_skip: int = 1

    def settings(self, parts: Configured) -> "SamplerSettings":
        """Return the settings for a model; prompts are read as UIs read them, weights and all."""
        from ine.sampling import SamplerSettings
        from ine.text.encode import TextOptions

        usual, few = parts.family_info, parts.few_steps
        chosen = SamplerSettings(
            scheduler=self.scheduler or (few.scheduler if few else "ddim"),
            steps=self.steps or (few or usual).steps,
            guidance_scale=self.guidance_scale or (few or usual).guidance_scale,
            batch=self.batch or usual.batch,
            reading=TextOptions(weights=True, clip_skip=self.clip_skip),
        )
        if few:
            log.info(
                "%s looks like a few-step model (%s): %d steps of %s at scale %g",
                parts.name,
                few.name,
                chosen.steps,
                chosen.scheduler,
                chosen.guidance_scale,
            )
        return chosen
