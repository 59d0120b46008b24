"""The denoising loop: one generator per picture, one run per unit.

Shape letters: B pictures of a unit, C latent channels, H W latent size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import Any

import torch

from ine.finite import NotFinite, made_again, with_redone
from ine.guidance.attempts import Due, all_again, noise_of
from ine.guidance.cfg import ClassifierFree
from ine.guidance.protocol import Again, Guidance, Notes, Prompts, QueryUNet, Step, UNetQuery
from ine.models.parts import DiffusionParts
from ine.sampling.schedulers import alpha_bar_at, make_scheduler
from ine.sampling.settings import SamplerSettings
from ine.sampling.start import Start, begin, generators_of, start_noise
from ine.sampling.unet import answer_queries
from ine.watch import Watch


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """The pictures of one unit."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    start: Start | None
    vectors: Mapping[str, tuple[torch.Tensor, ...]]
    """{trigger: vectors per text encoder} of the learned words in the prompts."""

    found: tuple[frozenset[str], ...] | None = None
    """Per picture, the concepts that earlier attempts found."""

    def of(self, pictures: list[int]) -> "_Batch":
        """Return some of the pictures."""
        return replace(
            self,
            prompts=tuple(self.prompts[i] for i in pictures),
            seeds=tuple(self.seeds[i] for i in pictures),
            start=self.start and self.start.of(pictures),
        )


@dataclass(frozen=True, kw_only=True)
class _Denoised:
    """What one run of the loop made of a batch."""

    latents: torch.Tensor
    notes: list[Notes]
    nfe: list[int]
    """U-Net evaluations, one number per picture."""

    again: Mapping[int, Again] = field(default_factory=dict)
    """Pictures to restart."""


@torch.no_grad()
def sample_latents(
    parts: DiffusionParts,
    prompts: Sequence[str],
    seeds: Sequence[int],
    guidance: Guidance | None = None,
    settings: SamplerSettings | None = None,
    on_step: Callable[[Step], None] | None = None,
    start: Start | None = None,
    vectors: Mapping[str, tuple[torch.Tensor, ...]] | None = None,
) -> tuple[torch.Tensor, list[Notes], list[int]]:
    """Denoise one unit.

    Args:
        parts: The model to sample from.
        prompts: B texts.
        seeds: B seeds; a picture depends on its own seed only.
        guidance: By default classifier-free guidance without a negative.
        settings: Of the sampler.
        on_step: Called with the `Step` before each prediction.
        start: What to begin from; by default pure noise.
        vectors: {trigger: vectors per text encoder} of the learned words in the prompts.

    Returns:
        (latents (B, C, H, W) scaled as the U-Net reads them, notes, U-Net evaluations), the last
        two one entry per picture. All latents are finite: where a narrower type overflows, the
        unit is computed again in float32, and its notes say so.

    Raises:
        NotFinite: Numbers are not finite in float32 either.
    """
    settings = settings or SamplerSettings()
    guidance = guidance or ClassifierFree()
    batch = _Batch(prompts=tuple(prompts), seeds=tuple(seeds), start=start, vectors=vectors or {})
    try:
        found = _sample(parts, batch, guidance, settings, on_step)
        return found.latents, found.notes, found.nfe
    except NotFinite as error:
        modules = (parts.unet, *parts.text_encoders)
        found = made_again(
            error, modules, lambda: _sample(parts, batch, guidance, settings, on_step)
        )
        return found.latents, with_redone(found.notes, [error.record()]), found.nfe


def _sample(
    parts: DiffusionParts,
    batch: _Batch,
    guidance: Guidance,
    settings: SamplerSettings,
    on_step: Callable[[Step], None] | None,
) -> _Denoised:
    """Run the loop, and again for the pictures that the guidance restarts."""
    attempts = guidance.attempts
    if len(attempts) == 1:
        return _denoise(parts, batch, guidance, settings, on_step)
    count = len(batch.prompts)
    due, latents, nfe = Due.first(range(count)), None, [0] * count
    notes: list[Notes] = [{"attempts": []} for _ in range(count)]
    for number, attempt, rows in due.turns(attempts):
        left = len(attempts) - 1 - number
        own = batch.of(rows)
        if number:
            own = replace(own, found=due.found(rows))
        found = _denoise(parts, own, attempt, settings, on_step, left)
        if latents is None:
            latents = found.latents
        else:
            latents[rows] = found.latents
        for place, i in enumerate(rows):
            notes[i]["attempts"].append(found.notes[place])
            nfe[i] += found.nfe[place]
            # The operator has to know which pictures still open the gate after their last attempt.
            notes[i]["left"] = place in found.again
        due.took(number, rows, found.again)
    assert latents is not None  # there is at least one attempt
    return _Denoised(latents=latents, notes=notes, nfe=nfe)


def _denoise(
    parts: DiffusionParts,
    batch: _Batch,
    guidance: Guidance,
    settings: SamplerSettings,
    on_step: Callable[[Step], None] | None,
    left: int = 0,
) -> _Denoised:
    """Run the loop once; `left` attempts may follow.

    If every picture is to be restarted and can be, end early: nothing of it is kept.
    """
    device, dtype, count = parts.device, parts.dtype, len(batch.prompts)
    scheduler = make_scheduler(settings.scheduler, parts.scheduler_config, settings.steps, device)
    generators = generators_of(batch.seeds)
    # Schedulers that add noise draw it as diffusers' pipelines let them, picture by picture.
    draws = "generator" in signature(scheduler.step).parameters
    noise = {"generator": generators} if draws else {}
    eps = noise_of(start_noise(parts.latent_shape, batch.seeds, generators), guidance.noise)
    latents, first = begin(scheduler, eps.to(device, dtype), batch.start, settings.steps)
    nfe = [0] * count
    again: Mapping[int, Again] = {}
    watch = Watch(count, len(scheduler.timesteps), device, dtype)
    with guidance.begin(_prompts_of(parts, batch, settings)) as session, watch:
        for index, t in enumerate(scheduler.timesteps[first:], first):
            step = _step_at(parts, scheduler, index, t, latents)
            if on_step:
                on_step(step)
            output = session.predict(step, _counted(parts.unet, step, watch, nfe))
            latents = scheduler.step(output, t, latents, return_dict=False, **noise)[0]
            watch.stepped(index, latents)
            again = session.again
            if all_again(again, count, left):
                break
        notes = session.notes()
    return _Denoised(latents=latents, notes=notes, nfe=nfe, again=again)


def _step_at(
    parts: DiffusionParts, scheduler: Any, index: int, t: torch.Tensor, latents: torch.Tensor
) -> Step:
    return Step(
        index=index,
        count=len(scheduler.timesteps),
        t=t,
        x_t=scheduler.scale_model_input(latents, t),
        alpha_bar=alpha_bar_at(scheduler, index, t).to(parts.device, torch.float32),
        prediction_type=parts.prediction_type,
    )


def _prompts_of(parts: DiffusionParts, batch: _Batch, settings: SamplerSettings) -> Prompts:
    scale = settings.guidance_scale
    if parts.timestep_cond is not None:
        # An LCM reads the scale, and predicts in one call what guidance makes of two.
        parts, scale = replace(parts, embedded_scale=scale), 1.0
    return Prompts(
        parts=parts,
        texts=batch.prompts,
        scale=scale,
        reading=settings.reading,
        vectors=batch.vectors,
        found=batch.found,
    )


def _counted(unet: torch.nn.Module, step: Step, watch: Watch, nfe: list[int]) -> QueryUNet:
    """Return what runs the U-Net at a step, counts per picture and looks for bad numbers."""

    def query_unet(queries: Sequence[UNetQuery]) -> dict[str, torch.Tensor]:
        for query in queries:
            for i in range(len(nfe)) if query.pictures is None else query.pictures:
                nfe[i] += 1
        out = answer_queries(unet, step.x_t, step.t, queries)
        watch.answered(step.index, queries, out)
        return out

    return query_unet
