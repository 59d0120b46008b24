"""The denoising loop: one generator per picture, work in units of fixed shape.

Shape letters: B pictures of a unit, C latent channels, H W latent size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from inspect import signature

import numpy as np
import torch

from ine.embedding import ConceptEmbedding
from ine.errors import IneError, did_you_mean
from ine.guidance.cfg import ClassifierFree
from ine.guidance.protocol import Prompts, Step
from ine.text import LITERAL, Reading, join_conditions

SCHEDULERS = {
    # Its own default clips x_0 to [-1, 1], which is meant for pixels and ruins latents.
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "dpm++": ("DPMSolverMultistepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    # What models of few steps are made for; both add noise at every step.
    "lcm": ("LCMScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
}
"""Name -> (diffusers class, settings that differ from the model's own)."""


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """How pictures are made; the same for all pictures of a run."""

    scheduler: str = "ddim"
    steps: int = 50
    guidance_scale: float = 7.5
    batch: int = 4
    """Pictures per unit. Within one shape results are exact; across shapes they agree to 1e-4."""

    reading: Reading = LITERAL
    """How prompts are read."""

    def __repr__(self):
        """Return the fields, an ordinary `reading` left out.

        Cache keys are made of this, and those of runs before there was the field stay good.
        """
        shown = [f.name for f in fields(self) if f.name != "reading" or self.reading != LITERAL]
        return f"SamplerSettings({', '.join(f'{n}={getattr(self, n)!r}' for n in shown)})"


@dataclass(frozen=True, kw_only=True, eq=False)
class Start:
    """Where denoising begins in the place of pure noise; see `edit_latents`."""

    latents: torch.Tensor
    """Clean latents, scaled as the U-Net wants them, (B, C, H, W)."""

    strength: float
    """Share of the steps that are taken, in [0, 1]."""

    def of(self, pictures):
        """Return the start of some pictures, a list of their numbers."""
        return replace(self, latents=self.latents[pictures])

    def taken(self, steps):
        """Return how many of a run's steps are taken; rounded as diffusers' pipelines do."""
        return min(int(steps * self.strength), steps)


@dataclass(frozen=True, kw_only=True)
class PictureRequest:
    """One picture to make."""

    prompt: str
    seed: int = 0
    embeddings: tuple[ConceptEmbedding, ...] = ()
    """What the triggers in the prompt stand for."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Pictures that were made together."""

    first: int
    """Position of the first picture in the run."""

    requests: tuple[PictureRequest, ...]
    pictures: np.ndarray
    """(B, H, W, 3) uint8 RGB."""

    notes: list
    """What the guidance logged, one dict per picture."""

    unet_calls: list
    """U-Net evaluations, counted as (condition, step) pairs, one number per picture."""


def make_scheduler(name, config, steps, device="cpu"):
    """Return a diffusers scheduler of the table `SCHEDULERS`, set to `steps` steps."""
    import diffusers

    if name not in SCHEDULERS:
        hint = did_you_mean(name, SCHEDULERS)
        raise IneError(f"scheduler {name!r} is unknown{hint}; known: {', '.join(SCHEDULERS)}")
    kind, settings = SCHEDULERS[name]
    try:
        scheduler = getattr(diffusers, kind).from_config({**config, **settings})
        scheduler.set_timesteps(steps, device=device)
    except Exception as error:  # whatever a library makes of settings that are not its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise IneError(
            f"scheduler {name!r}: cannot take {steps} steps with the model's settings ({reason}); "
            "give another --scheduler or number of --steps"
        ) from error
    return scheduler


def generators_of(seeds):
    """Return one generator per picture, on the CPU."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def start_noise(shape, seeds, generators=None):
    """Return unit Gaussian latents, each row from its own seed, (B, C, H, W) on the CPU.

    `generators`, where given, are those of the seeds, and are drawn from.
    """
    generators = generators or generators_of(seeds)
    return torch.cat([torch.randn((1, *shape), generator=g) for g in generators])


def alpha_bar_at(scheduler, index, t):
    """Return the signal power of the latents that the U-Net sees at a step, a scalar."""
    if hasattr(scheduler, "sigmas") and scheduler.__class__.__name__.startswith("Euler"):
        return 1 / (1 + scheduler.sigmas[index] ** 2)
    return scheduler.alphas_cumprod[t.long().cpu()]


@torch.no_grad()
def sample_latents(
    parts, prompts, seeds, guidance=None, settings=None, on_step=None, start=None, vectors=None
):
    """Denoise one unit.

    Args:
        parts: The `DiffusionParts` to sample from.
        prompts: B texts.
        seeds: B seeds; a picture depends on its own seed only.
        guidance: A `Guidance`; plain classifier-free guidance by default.
        settings: `SamplerSettings`.
        on_step: Called with the `Step` before each prediction.
        start: A `Start` for all of them; pure noise by default.
        vectors: {trigger: vectors per text encoder} of the learned words in the prompts.

    Returns:
        (latents (B, C, H, W) scaled as the U-Net wants them, notes, U-Net calls), the last two
        one entry per picture.
    """
    settings = settings or SamplerSettings()
    guidance = guidance or ClassifierFree()
    attempts = getattr(guidance, "attempts", None)
    if attempts is None:
        latents, notes, asked, _ = _denoise(
            parts, prompts, seeds, guidance, settings, on_step, start, vectors
        )
        return latents, notes, asked
    rows = list(range(len(prompts)))
    latents, notes, asked = None, [{"attempts": []} for _ in rows], [0] * len(rows)
    for attempt in attempts:
        found, told, calls, again = _denoise(
            parts,
            [prompts[i] for i in rows],
            [seeds[i] for i in rows],
            attempt,
            settings,
            on_step,
            start and start.of(rows),
            vectors,
            finish=attempt is attempts[-1],
        )
        if latents is None:
            latents = found
        else:
            latents[rows] = found
        for place, i in enumerate(rows):
            notes[i]["attempts"].append(told[place])
            asked[i] += calls[place]
        rows = [rows[place] for place in again]
        if not rows:
            break
    for i, note in enumerate(notes):
        # What is still recognised after the last attempt is for the operator to know.
        note["left"] = i in rows
    return latents, notes, asked


def edit_latents(parts, x_0, strength, prompts, seeds, guidance=None, settings=None):
    """Change pictures towards prompts and keep their layout: SDEdit.

    The clean latents get the noise of the time at which `strength` of the steps are left,

        x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps,

    and are denoised from there, with any guidance and any scheduler. Strength 0 returns them as
    they are; strength 1 takes all steps, and of x_0 what the first one's abar_t leaves remains.

    Args:
        parts: The `DiffusionParts` to sample from.
        x_0: Clean latents, scaled as the U-Net wants them, (B, C, H, W).
        strength: Share of the steps that are taken, in [0, 1].
        prompts: B texts.
        seeds: B seeds of the noise.
        guidance: A `Guidance`; plain classifier-free guidance by default.
        settings: `SamplerSettings`; `steps` are those of a whole trajectory.

    Returns:
        Latents, (B, C, H, W).

    Sources:
        Meng et al. 2022, algorithm 1; steps are counted as diffusers' image-to-image does.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength {strength}: expected a number in [0, 1]")
    start = Start(latents=x_0, strength=strength)
    return sample_latents(parts, prompts, seeds, guidance, settings, start=start)[0]


def _begin(scheduler, noise, start, steps):
    """Return (latents to denoise, number of timesteps left out); `noise` is unit Gaussian."""
    if start is None:
        return noise * scheduler.init_noise_sigma, 0
    latents, taken = start.latents.to(noise), start.taken(steps)
    if not taken:
        return latents, len(scheduler.timesteps)
    first = steps - taken
    if hasattr(scheduler, "set_begin_index"):
        # Otherwise they would look for the place of a timestep, of which there may be two.
        scheduler.set_begin_index(first)
    times = scheduler.timesteps[first : first + 1].repeat(len(latents))
    return scheduler.add_noise(latents, noise, times), first


def _denoise(
    parts, prompts, seeds, guidance, settings, on_step, start=None, vectors=None, finish=False
):
    """Return (latents, notes, U-Net calls, pictures to be begun anew) of one run of the loop.

    Once all pictures are to be begun anew the run is left, unless `finish`: nothing of it is kept.
    """
    device, dtype = parts.device, parts.dtype
    scheduler = make_scheduler(settings.scheduler, parts.scheduler_config, settings.steps, device)
    generators = generators_of(seeds)
    # Schedulers that add noise draw it as diffusers' pipelines let them, picture by picture.
    draws = "generator" in signature(scheduler.step).parameters
    noise = {"generator": generators} if draws else {}
    eps = start_noise(parts.latent_shape, seeds, generators).to(device, dtype)
    latents, first = _begin(scheduler, eps, start, settings.steps)
    scale = settings.guidance_scale
    if parts.scale_input is not None:
        # An LCM is told the scale, and makes in one prediction what guidance makes of two.
        parts, scale = replace(parts, embedded_scale=scale), 1.0
    asked = [0] * len(prompts)
    again: tuple[int, ...] = ()
    x_t = t = None

    def ask(wanted):
        for wish in wanted:
            for i in range(len(asked)) if wish.pictures is None else wish.pictures:
                asked[i] += 1
        return answer(parts.unet, x_t, t, wanted)

    request = Prompts(
        parts=parts,
        texts=tuple(prompts),
        scale=scale,
        reading=settings.reading,
        vectors=vectors or {},
    )
    with guidance.begin(request) as session:
        for index, t in enumerate(scheduler.timesteps[first:], first):
            x_t = scheduler.scale_model_input(latents, t)
            step = Step(
                index=index,
                count=len(scheduler.timesteps),
                t=t,
                x_t=x_t,
                alpha_bar=alpha_bar_at(scheduler, index, t).to(device, torch.float32),
                prediction_type=parts.prediction_type,
            )
            if on_step:
                on_step(step)
            output = session.predict(step, ask)
            latents = scheduler.step(output, t, latents, return_dict=False, **noise)[0]
            again = getattr(session, "again", ())
            if len(again) == len(prompts) and not finish:
                break
        notes = session.notes()
    return latents, notes, asked, again


def answer(unet, x_t, t, wanted):
    """Return the U-Net's outputs for all that is wanted of a step, by name, in one call.

    Args:
        unet: The U-Net.
        x_t: Latents of the batch as the U-Net sees them, (B, C, H, W).
        t: The timestep, a scalar.
        wanted: `Wanted`s.
    """
    inputs = [x_t if w.pictures is None else x_t[list(w.pictures)] for w in wanted]
    conditions = [w.condition.repeat(len(x)) for w, x in zip(wanted, inputs, strict=True)]
    outputs = run_unet(unet, torch.cat(inputs), t, join_conditions(conditions))
    counts = [len(x) for x in inputs]
    return dict(zip([w.name for w in wanted], outputs.split(counts), strict=True))


def run_unet(unet, x_t, t, condition):
    """Return the U-Net's output for latents and conditions of equal row count."""
    extra = None
    if condition.pooled is not None and condition.time_ids is not None:
        extra = {"text_embeds": condition.pooled, "time_ids": condition.time_ids}
    states = condition.states.to(x_t.dtype)
    if condition.beside is not None:
        x_t = torch.cat([x_t, condition.beside.to(x_t)], dim=1)
    return unet(
        x_t,
        t,
        encoder_hidden_states=states,
        timestep_cond=condition.scale_input,
        added_cond_kwargs=extra,
    ).sample


@torch.no_grad()
def decode_latents(parts, latents):
    """Return pictures of latents, (B, H, W, 3) uint8 RGB."""
    latents = latents.to(parts.vae.dtype)
    pixels = parts.vae.decode(latents / parts.vae.config.scaling_factor).sample
    pixels = (pixels.float() / 2 + 0.5).clamp(0, 1) * 255
    return pixels.round().permute(0, 2, 3, 1).byte().cpu().numpy()


def sample_requests(parts, requests, guidance, settings):
    """Denoise one unit of `PictureRequest`s; what is returned is that of `sample_latents`."""
    vectors = {e.trigger: e.vectors for r in requests for e in r.embeddings}
    prompts, seeds = [r.prompt for r in requests], [r.seed for r in requests]
    return sample_latents(parts, prompts, seeds, guidance, settings, vectors=vectors)


def generate(
    parts,
    requests: Sequence[PictureRequest],
    guidance=None,
    settings: SamplerSettings | None = None,
    skip=lambda first: False,
) -> Iterator[Unit]:
    """Yield pictures unit by unit, in the order of the requests.

    Args:
        parts: The model.
        requests: What to make.
        guidance: A `Guidance`.
        settings: Sampler settings; `settings.batch` pictures make a unit.
        skip: `skip(first)` says that the unit starting there exists already; it is left out.
    """
    settings = settings or SamplerSettings()
    for first in range(0, len(requests), settings.batch):
        if skip(first):
            continue
        unit = tuple(requests[first : first + settings.batch])
        latents, notes, calls = sample_requests(parts, unit, guidance, settings)
        yield Unit(
            first=first,
            requests=unit,
            pictures=decode_latents(parts, latents),
            notes=notes,
            unet_calls=calls,
        )
