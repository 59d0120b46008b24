"""Restarting pictures of a pipeline, whose own loop cannot go back.

A picture in which the concept still shows at half the run is made once more beside the pipeline's
loop: from its own start, on a copy of the pipeline's scheduler, with the pipeline's own text
states, steered from the first step, as `ine.guidance.restart` has it; where the start is pure
noise, restarts after the first begin with other noise. Then
`ine.protection.second_look` leads the pipeline to where that ends.

The start, the prompts and what else the pipeline passes are those of its first call: what a
callback changes afterwards is not repeated.

Shape letters: b pictures that are restarted, C latent channels, H W latent size.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from ine.errors import IneError
from ine.files import sha256_of
from ine.guidance.attempts import Due, all_again, noise_of
from ine.guidance.cfg import classifier_free
from ine.guidance.protocol import (
    Again,
    Guidance,
    Notes,
    Point,
    QueryUNet,
    Session,
    Step,
    UNetQuery,
)
from ine.protection.call import Call
from ine.protection.parts import signal_power
from ine.protection.prompts import USER, PipelinePrompts

RESTARTABLE = {
    "StableDiffusionPipeline": True,
    "StableDiffusionImg2ImgPipeline": False,
    "StableDiffusionXLPipeline": True,
    "StableDiffusionXLImg2ImgPipeline": False,
    "StableDiffusionInpaintPipeline": False,
    "StableDiffusionXLInpaintPipeline": False,
}
"""{pipeline in which a run can be repeated from what its first call shows: whether it begins with
pure noise}. A ControlNet looks at every step's latents. What noise is in a noised picture, nothing
shows."""


def can_restart(pipe: DiffusionPipeline) -> bool:
    """Return whether pictures of a pipeline can be restarted.

    Inpainting takes a U-Net that reads mask and kept picture as channels: with any other the
    pipeline puts back what is kept after every step.
    """
    kind, channels = _kind(pipe), pipe.unet.config.in_channels
    reads_mask = channels > pipe.vae.config.latent_channels
    return kind in RESTARTABLE and (reads_mask or "Inpaint" not in kind)


def begins_with_noise(pipe: DiffusionPipeline) -> bool:
    """Return whether a pipeline that can restart begins with pure noise, not a noised picture."""
    return RESTARTABLE[_kind(pipe)]


def _kind(pipe: DiffusionPipeline) -> str:
    """Return the name of the class of diffusers that a pipeline is or derives from."""
    return next(c.__name__ for c in type(pipe).__mro__ if c.__module__.startswith("diffusers."))


def copied(scheduler: Any) -> Any:
    """Return a copy of a scheduler.

    Raises:
        IneError: It cannot be copied.
    """
    try:
        return deepcopy(scheduler)
    except Exception as error:
        raise IneError(
            f"protect: the scheduler {type(scheduler).__name__} cannot be copied ({error}), which "
            "restarts need; use a scheduler of diffusers, or protect(..., restart=False)"
        ) from error


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """The first call of a run, from which its pictures can be made again."""

    call: Call
    prompts: PipelinePrompts
    scheduler: Any
    """A copy, as it was at that call."""

    own_negative: bool
    rescale: float
    """The pipeline's `guidance_rescale`."""


@dataclass(frozen=True, kw_only=True)
class Remade:
    """Pictures that were made again."""

    latents: torch.Tensor
    """Where they end, (b, C, H, W)."""

    notes: list[Notes]
    nfe: list[int]
    again: Mapping[int, Again]
    """{place: attempt} of those in which the concept still shows."""


def remake(
    start: Beginning,
    attempt: Guidance,
    pictures: Sequence[int],
    found: tuple[frozenset[str], ...],
    left: int,
) -> Remade:
    """Make pictures again; the run ends early where all of them are restarted once more.

    Args:
        start: The run's first call.
        attempt: One of `Guidance.attempts`.
        pictures: Numbers in the batch.
        found: Per picture, the concepts that earlier attempts found.
        left: Attempts that may follow.
    """
    call, scheduler = start.call.of(pictures), deepcopy(start.scheduler)
    prompts, nfe = start.prompts.of(pictures, found), [0] * len(pictures)
    first = torch.as_tensor(call.given["timestep"]).flatten()[0]
    x = noise_of(_start_of(start, call, first), attempt.noise)
    draws = "generator" in signature(scheduler.step).parameters
    noise = {"generator": [_generator(row) for row in x]} if draws else {}
    times = scheduler.timesteps[_place(scheduler, first) :]
    with attempt.begin(prompts) as session:
        for index, t in enumerate(times):
            step = Step(
                index=index,
                count=len(times),
                t=t,
                x_t=scheduler.scale_model_input(x, t),
                alpha_bar=signal_power(scheduler, t).to(x.device, torch.float32),
                prediction_type=scheduler.config.get("prediction_type", "epsilon"),
            )
            output = _guided(start, prompts, session, step, _asking(call, step, start, nfe))
            x = scheduler.step(output.to(x.dtype), t, x, return_dict=False, **noise)[0]
            if all_again(session.again, len(pictures), left):
                break
        return Remade(latents=x, notes=session.notes(), nfe=nfe, again=session.again)


def restart(
    start: Beginning, attempts: Sequence[Guidance], again: Mapping[int, Again]
) -> tuple[dict[int, torch.Tensor], dict[int, list[Notes]], dict[int, int], set[int]]:
    """Restart pictures until the concept does not show any more, or the attempts run out.

    Args:
        start: The run's first call.
        attempts: Those of the guidance; the first was the pipeline's own run.
        again: {picture: attempt} that it asks for.

    Returns:
        ({picture: where it ends, (C, H, W)}, {picture: notes of its attempts}, {picture: U-Net
        evaluations}, pictures in which the concept still shows).
    """
    ends: dict[int, torch.Tensor] = {}
    notes: dict[int, list[Notes]] = {i: [] for i in again}
    nfe, left, due = dict.fromkeys(again, 0), set(again), Due()
    pictures = list(again)
    due.took(0, pictures, dict(enumerate(again.values())))
    for number, attempt, rows in due.turns(attempts, first=1):
        made = remake(start, attempt, rows, due.found(rows), len(attempts) - 1 - number)
        due.took(number, rows, made.again)
        for place, i in enumerate(rows):
            ends[i], nfe[i] = made.latents[place], nfe[i] + made.nfe[place]
            notes[i].append(made.notes[place])
            if place not in made.again:
                left.discard(i)
    return ends, notes, nfe, left


def _start_of(start: Beginning, call: Call, t: torch.Tensor) -> torch.Tensor:
    """Return the latents with which the pipeline began, (b, C, H, W), as its scheduler has them."""
    channels = start.prompts.parts.unet.config.out_channels
    seen = call.sample[: call.count, :channels]
    return seen / input_scale(start.scheduler, seen, t)


def input_scale(scheduler: Any, latents: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Return what a scheduler multiplies latents by for the U-Net, (1, 1, 1, 1)."""
    return deepcopy(scheduler).scale_model_input(torch.ones_like(latents[:1, :1, :1, :1]), t)


def _place(scheduler: Any, t: torch.Tensor) -> int:
    """Return where among a scheduler's timesteps a run began."""
    return int((scheduler.timesteps.cpu().float() - float(t)).abs().argmin())


def _generator(latents: torch.Tensor) -> torch.Generator:
    """Return a generator of a picture's own, for schedulers that add noise."""
    digest = sha256_of(latents.float().cpu().contiguous().numpy().tobytes())
    return torch.Generator().manual_seed(int(digest[:8], 16))


def _asking(call: Call, step: Step, start: Beginning, nfe: list[int]) -> QueryUNet:
    """Return what runs the U-Net at a step of a restarted run."""
    point = Point(x_t=step.x_t, t=step.t)
    current = {"positive": call.condition(1)}
    if call.halves == 2 and not start.own_negative:
        current["empty"] = call.condition(0)

    def query_unet(queries: Sequence[UNetQuery]) -> dict[str, torch.Tensor]:
        for query in queries:
            for i in range(len(nfe)) if query.pictures is None else query.pictures:
                nfe[i] += 1
        asked = [query if query.at else replace(query, at=point) for query in queries]
        return call.answer(asked, {}, current)

    return query_unet


def _guided(
    start: Beginning,
    prompts: PipelinePrompts,
    session: Session,
    step: Step,
    query_unet: Callable[[Sequence[UNetQuery]], Mapping[str, torch.Tensor]],
) -> torch.Tensor:
    """Return a prediction with the user's own negative and rescaling, (b, C, H, W) float32."""
    guided = session.predict(step, query_unet).float()
    if not start.own_negative and not start.rescale:
        return guided
    positive = query_unet([UNetQuery("positive", prompts.positive())])["positive"].float()
    if start.own_negative:
        out = query_unet([UNetQuery("empty", prompts.empty()), UNetQuery(*prompts.plain())])
        theirs = classifier_free(out[USER].float(), positive, prompts.scale)
        guided = guided + theirs - classifier_free(out["empty"].float(), positive, prompts.scale)
    if start.rescale:
        guided = rescale_noise_cfg(guided, positive, start.rescale)
    return guided
