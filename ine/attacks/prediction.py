"""The noise prediction that an attacker sees, of the bare model or through its defence.

One step of the denoising loop on its own, at one timestep of the sampler, with gradients into the
learned words of the prompts. Through a defence it is what the sampler would use there: an attack
on it knows the defence, its negatives and its strengths.

What a single step cannot hold is left out, in the attacker's favour or not: a momentum begins at
zero, and a gate is taken to be open, since whether it opens is decided by a whole run.

Shape letters: B pictures, C latent channels, H W latent size.
"""

from dataclasses import dataclass

from ine.guidance.gates import Gated
from ine.guidance.protocol import Prompts, Step
from ine.guidance.rewind import Rewind
from ine.inversion.objective import noised
from ine.sampling import SamplerSettings, alpha_bar_at, answer, make_scheduler, run_unet


def always_acting(guidance):
    """Return a guidance without its gates: the method that acts where they are open."""
    while isinstance(guidance, Gated | Rewind):
        guidance = guidance.guidance
    return guidance


@dataclass(frozen=True)
class Victim:
    """What is attacked: a model, how it samples, and its defence as far as the attacker knows."""

    parts: object
    """`DiffusionParts`, frozen."""

    sampler: SamplerSettings
    guidance: object = None
    """A `Guidance` to attack through; None is the bare model's answer to the prompt alone, which
    is what an attacker optimises who does not know the defence."""

    def timesteps(self):
        """Return the sampler's timesteps, first to last, (steps,)."""
        return self._scheduler().timesteps

    def noise(self, x_0, eps, index):
        """Return clean latents as the sampler has them at a step, (B, C, H, W).

        Args:
            x_0: Clean latents, scaled as the U-Net wants them, (B, C, H, W).
            eps: Unit Gaussian noise, (B, C, H, W).
            index: Which step of the sampler, from 0.
        """
        return noised(x_0, eps, self._alpha_bar(index).expand(len(x_0)))

    def noise_of(self, output, x_t, index):
        """Return the noise prediction that a U-Net output at a step stands for, (B, C, H, W)."""
        return self._step(x_t, index).noise(output).float()

    def predict(self, texts, x_t, index, vectors=None):
        """Return (noise predictions (B, C, H, W), U-Net evaluations they took).

        Args:
            texts: B prompts.
            x_t: From `noise`.
            index: Which step of the sampler.
            vectors: {trigger: vectors per text encoder} of learned words; may require gradients.
        """
        parts = self.parts
        step = self._step(x_t, index)
        prompts = Prompts(
            parts=parts,
            texts=tuple(texts),
            scale=self.sampler.guidance_scale,
            reading=self.sampler.reading,
            vectors=vectors or {},
        )
        method = always_acting(self.guidance)
        if method is None:
            output = run_unet(parts.unet, step.x_t, step.t, prompts.positive())
            asked = len(texts)
        else:
            asked = 0

            def ask(wanted):
                nonlocal asked
                asked += sum(len(texts if w.pictures is None else w.pictures) for w in wanted)
                return answer(parts.unet, step.x_t, step.t, wanted)

            with method.begin(prompts) as session:
                output = session.predict(step, ask)
        return step.noise(output).float(), asked

    def _step(self, x_t, index):
        device, scheduler = self.parts.device, self._scheduler()
        return Step(
            index=index,
            count=len(scheduler.timesteps),
            t=scheduler.timesteps[index].to(device),
            x_t=x_t.to(device, self.parts.dtype),
            alpha_bar=self._alpha_bar(index).to(device).float(),
            prediction_type=self.parts.prediction_type,
        )

    def _scheduler(self):
        return make_scheduler(
            self.sampler.scheduler, self.parts.scheduler_config, self.sampler.steps
        )

    def _alpha_bar(self, index):
        scheduler = self._scheduler()
        return alpha_bar_at(scheduler, index, scheduler.timesteps[index])
