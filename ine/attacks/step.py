"""The noise prediction that an attacker sees, of the bare model or through its defence.

One step of the denoising loop on its own, at one timestep of the sampler, with gradients into the
learned words of the prompts. Through a defence it is what the sampler would use there: an attack
on it knows the defence, its negatives and its strengths.

A single step has no history: momentum begins at zero, and a gate counts as open, because a whole
run decides whether it opens (`ine.attacks.through_gate` goes through that). Either can favour the
attacker or not.

Shape letters: B pictures, C latent channels, H W latent size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ine.finite import check_finite
from ine.guidance.protocol import Guidance, Prompts, Step, UNetQuery
from ine.inversion.objective import noised
from ine.models.parts import DiffusionParts
from ine.sampling import SamplerSettings, alpha_bar_at, answer_queries, make_scheduler, run_unet


@dataclass(frozen=True)
class Victim:
    """What is attacked: a model, how it samples, and its defence as far as the attacker knows."""

    parts: DiffusionParts
    """The model; its weights do not require gradients."""

    sampler: SamplerSettings
    guidance: Guidance | None = None
    """The defence to attack through; None is the bare model's prediction for the prompt alone, for
    an attacker who does not know the defence."""

    def timesteps(self) -> torch.Tensor:
        """Return the sampler's timesteps, first to last, (steps,)."""
        return self._scheduler().timesteps

    def noise(self, x_0: torch.Tensor, eps: torch.Tensor, index: int) -> torch.Tensor:
        """Return clean latents as the sampler has them at a step, (B, C, H, W).

        Args:
            x_0: Clean latents, scaled as the U-Net wants them, (B, C, H, W).
            eps: Unit Gaussian noise, (B, C, H, W).
            index: Which step of the sampler, from 0.
        """
        return noised(x_0, eps, self._alpha_bar(index).expand(len(x_0)))

    def noise_of(self, output: torch.Tensor, x_t: torch.Tensor, index: int) -> torch.Tensor:
        """Return the noise prediction that a U-Net output at a step stands for, (B, C, H, W)."""
        return self.step(x_t, index).noise(output).float()

    def predict(
        self,
        texts: Sequence[str],
        x_t: torch.Tensor,
        index: int,
        vectors: Mapping[str, tuple[torch.Tensor, ...]] | None = None,
    ) -> tuple[torch.Tensor, int]:
        """Return (noise predictions (B, C, H, W), U-Net evaluations they took).

        Args:
            texts: B prompts.
            x_t: From `noise`.
            index: Which step of the sampler.
            vectors: {trigger: vectors per text encoder} of learned words; may require gradients.

        Raises:
            NotFinite: The prediction is not finite; an attack on NaN would find nothing.
        """
        step, prompts = self.step(x_t, index), self.prompts(texts, vectors)
        if self.guidance is None:
            output = run_unet(self.parts.unet, step.x_t, step.t, prompts.positive())
            nfe = len(texts)
        else:
            output, nfe = self._guided(self.guidance, prompts, step)
        check_finite(output, "U-Net", index, step.count)
        return step.noise(output).float(), nfe

    def _guided(self, guidance: Guidance, prompts: Prompts, step: Step) -> tuple[torch.Tensor, int]:
        """Return (what a guidance makes of the U-Net's outputs, U-Net evaluations)."""
        nfe = 0

        def query_unet(queries: Sequence[UNetQuery]) -> dict[str, torch.Tensor]:
            nonlocal nfe
            nfe += sum(len(prompts.texts if q.pictures is None else q.pictures) for q in queries)
            return answer_queries(self.parts.unet, step.x_t, step.t, queries)

        with guidance.innermost.begin(prompts) as session:
            output = session.predict(step, query_unet)
        return output, nfe

    def prompts(
        self, texts: Sequence[str], vectors: Mapping[str, tuple[torch.Tensor, ...]] | None = None
    ) -> Prompts:
        """Return texts and learned words as a guidance is given them, see `predict`."""
        return Prompts(
            parts=self.parts,
            texts=tuple(texts),
            scale=self.sampler.guidance_scale,
            reading=self.sampler.reading,
            vectors=vectors or {},
        )

    def step(self, x_t: torch.Tensor, index: int) -> Step:
        """Return a step of the sampler at latents from `noise`, (B, C, H, W)."""
        device, scheduler = self.parts.device, self._scheduler()
        return Step(
            index=index,
            count=len(scheduler.timesteps),
            t=scheduler.timesteps[index].to(device),
            x_t=x_t.to(device, self.parts.dtype),
            alpha_bar=self._alpha_bar(index).to(device).float(),
            prediction_type=self.parts.prediction_type,
        )

    def _scheduler(self) -> Any:
        return make_scheduler(
            self.sampler.scheduler, self.parts.scheduler_config, self.sampler.steps
        )

    def _alpha_bar(self, index: int) -> torch.Tensor:
        scheduler = self._scheduler()
        return alpha_bar_at(scheduler, index, scheduler.timesteps[index])
