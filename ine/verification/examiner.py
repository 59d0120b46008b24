"""Noised pictures of a concept, and how a U-Net reacts to a condition on them."""

from dataclasses import dataclass, replace

import torch

from ine.finite import NotFinite, check_finite, made_again
from ine.guidance.cfg import ClassifierFree
from ine.guidance.negative import Negative
from ine.guidance.protocol import Step
from ine.inversion.objective import noised
from ine.models.parts import DiffusionParts
from ine.runtime import generator_for, seed_for
from ine.sampling import SamplerSettings, make_scheduler, run_unet, sample_latents
from ine.text.condition import Condition
from ine.text.encode import encode, encode_nothing
from ine.verification.subject import Subject

TIMES = (0.7, 0.55, 0.4)
"""Where in [0, 1] of the noise schedule predictions are compared."""

NOTHING = 1e-4
"""Norm of a change, beside that of what is missing, below which it counts as no change."""


@dataclass(frozen=True, kw_only=True)
class Reaction:
    """How the U-Net reacts to one condition."""

    move: float
    """Root mean square of eps(condition) - eps(""), over that of eps(word) - eps("")."""

    recall: float
    """Cosine in [-1, 1] of what it changes in the prediction and what is missing there, on pictures
    of the concept, less the same on innocent pictures.

    A cosine and not a share of the error: vectors without meaning move predictions far, and how far
    differs more than where to.
    """


@dataclass(frozen=True, kw_only=True)
class Examiner:
    """Noised pictures, and the U-Net's predictions on them without the embedding."""

    parts: DiffusionParts
    steps: tuple[Step, ...]
    """One per timestep; `x_t` holds P pictures of the concept, then as many innocent ones."""

    noise: tuple[torch.Tensor, ...]
    """eps of each step, (2P, C, H, W)."""

    empty: tuple[torch.Tensor, ...]
    """eps("") of each step, (2P, C, H, W)."""

    plain: tuple[torch.Tensor, ...]
    """eps("a") of each step, (2P, C, H, W), beside which recall is measured."""

    batch: int
    """Rows of one call of the U-Net; on a CPU smaller calls take longer per row."""

    @classmethod
    def prepare(
        cls,
        base: DiffusionParts,
        parts: DiffusionParts,
        subject: Subject,
        settings: SamplerSettings,
        seed: int = 0,
    ) -> "Examiner":
        """Make the pictures on the base and noise them; a pair shares its seeds."""
        steps, noise = _noised(base, parts, _pictures(base, subject, settings, seed), seed)
        rows = 2 * settings.batch
        bare = cls(parts=parts, steps=steps, noise=noise, empty=(), plain=(), batch=rows)
        conditions = (encode_nothing(parts), encode(parts, ["a"]))
        empty, plain = (tuple(bare.predict(condition)) for condition in conditions)
        return replace(bare, empty=empty, plain=plain)

    def predict(self, condition: Condition) -> list[torch.Tensor]:
        """Return the noise predictions under one condition, [(2P, C, H, W), ...] by step.

        Raises:
            NotFinite: They are not finite, in float32 either, so there is no verdict.
        """
        try:
            return self._predicted(condition)
        except NotFinite as error:
            return made_again(error, [self.parts.unet], lambda: self._predicted(condition))

    def _predicted(self, condition: Condition) -> list[torch.Tensor]:
        found = []
        for step in self.steps:
            rows = []
            for x_t in step.x_t.to(self.parts.dtype).split(self.batch):
                output = run_unet(self.parts.unet, x_t, step.t, condition.repeat(len(x_t)))
                check_finite(output, "U-Net")
                rows.append(replace(step, x_t=x_t).noise(output).float())
            found.append(torch.cat(rows))
        return found

    def react(self, condition: Condition, unit: float = 1.0) -> Reaction:
        """Return the `Reaction` to one condition; `unit` is the move that counts as 1."""
        moves, cosines = [], []
        for k, predicted in enumerate(self.predict(condition)):
            moves.append((predicted - self.empty[k]).square().mean())
            cosines.append(_alignment(predicted - self.plain[k], self.noise[k] - self.plain[k]))
        shown, innocent = torch.stack(cosines).mean(0).chunk(2)
        return Reaction(
            move=float(torch.stack(moves).mean().sqrt()) / (unit or 1.0),
            recall=float(shown.mean() - innocent.mean()),
        )


def _alignment(changed: torch.Tensor, missing: torch.Tensor) -> torch.Tensor:
    """Return the cosines (B,) of two (B, C, H, W); a change by rounding alone counts as 0."""
    changed, missing = changed.flatten(1), missing.flatten(1)
    moves = changed.norm(dim=1) > NOTHING * missing.norm(dim=1)
    return torch.cosine_similarity(changed, missing) * moves


def _pictures(
    base: DiffusionParts, subject: Subject, settings: SamplerSettings, seed: int
) -> torch.Tensor:
    """Return latents of the concept, then innocent ones, (2P, C, H, W)."""
    guidance = ClassifierFree(Negative(subject.avoid))
    count = len(subject.shown)
    prompts = [*subject.shown, *subject.innocent]
    seeds = [seed_for(seed, "verify", i % count) for i in range(2 * count)]
    return torch.cat(
        [
            sample_latents(
                base,
                prompts[i : i + settings.batch],
                seeds[i : i + settings.batch],
                guidance,
                settings,
            )[0]
            for i in range(0, len(prompts), settings.batch)
        ]
    )


def _noised(
    base: DiffusionParts, parts: DiffusionParts, latents: torch.Tensor, seed: int
) -> tuple[tuple[Step, ...], tuple[torch.Tensor, ...]]:
    """Return (steps, noises): the latents noised to each of `TIMES`."""
    scheduler = make_scheduler("ddim", base.scheduler_config, 10)
    total = len(scheduler.alphas_cumprod)
    steps, noises = [], []
    for index, time in enumerate(TIMES):
        t = round(time * (total - 1))
        alpha_bar = scheduler.alphas_cumprod[t].to(latents.device)
        half = (len(latents) // 2, *latents.shape[1:])
        eps = torch.randn(half, generator=generator_for(seed, "verify", "noise", index))
        eps = eps.repeat(2, 1, 1, 1).to(latents.device)
        x_t = noised(latents.float(), eps, alpha_bar)
        steps.append(
            Step(
                index=index,
                count=len(TIMES),
                t=torch.tensor(t, device=latents.device),
                x_t=x_t.to(latents.dtype),
                alpha_bar=alpha_bar,
                prediction_type=parts.prediction_type,
            )
        )
        noises.append(eps)
    return tuple(steps), tuple(noises)
