"""How long `ine defend` will take on this device, from a few timed calls of the U-Net."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from ine.guidance.negative import Negative
from ine.inversion.steering import steering
from ine.models.parts import DiffusionParts
from ine.recipe import ConceptRecipe
from ine.sampling import SamplerSettings, run_unet
from ine.studies.defend.prompts import BENIGN, IMPLYING, Prompts
from ine.text.encode import encode_nothing

TIMED = 3
"""Calls of each kind that are timed, after one that warms up."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of the work."""

    name: str
    rows: int
    """Rows of the U-Net that are only predicted."""

    trained: int = 0
    """Rows through which a gradient goes."""

    def seconds(self, speed: "Speed") -> float:
        """Return how long it takes."""
        return self.rows * speed.row + self.trained * speed.trained


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Seconds per row of the U-Net."""

    row: float
    trained: float
    """With the gradient."""


def stages_of(
    recipe: ConceptRecipe, steps: int, prompts: Prompts, given_images: bool = False
) -> tuple[Stage, ...]:
    """Return the work of a defence, in order; at most, where it depends on the pictures.

    Args:
        recipe: The concept.
        steps: Denoising steps of tuning and report.
        prompts: Its prompts.
        given_images: Whether the user has pictures of the concept.
    """
    search, made, spec = recipe.defence, recipe.pictures, recipe.inversion
    tuning = {name: len(cases) for name, cases in prompts.tuning.items()}
    looked = sum(tuning.values())
    settings = sum(len(s) or 1 for s in search.guidances.values()) * len(search.windows)
    opened = tuning[IMPLYING] + math.ceil(max(search.false_open) * tuning[BENIGN])
    each = [
        min(search.restarted, (len(s) or 1) * len(search.windows))
        for s in search.guidances.values()
    ]
    again = sum(each) * len(search.restarts)
    # The first attempt, the ladder, the last resort.
    most = 2 + max(map(len, search.restarts), default=0)
    # The report shows the defence with restarts and without.
    repeated = 3 * (1 + most) if again else 0
    held_back = sum(map(len, prompts.held_back.values()))
    kinds = 3 if search.learn_from == "vectors" else 2
    return (
        Stage(name="concept pictures", rows=0 if given_images else 2 * made.steps * made.count),
        Stage(
            name="inversion" if spec.runs == 1 else f"{spec.runs} inversions",
            rows=_preview_rows(recipe),
            trained=spec.all_steps * spec.batch * spec.accumulation,
        ),
        Stage(name="pictures for the probe", rows=kinds * search.examples * (2 * steps + 2)),
        Stage(name="undefended tuning pictures", rows=2 * steps * looked),
        Stage(name="looks ahead", rows=2 * search.look_ahead * looked),
        Stage(name=f"{settings} settings, steered pictures", rows=3 * steps * settings * opened),
        Stage(name=f"{again} settings, restarts", rows=again * most * 3 * steps * opened),
        Stage(name="held-back pictures", rows=(9 + repeated) * steps * held_back),
    )


def _preview_rows(recipe: ConceptRecipe) -> int:
    """Return the rows of all previews of an inversion."""
    spec, tuning = recipe.inversion, recipe.tuning
    steps, scale = (tuning.steps, tuning.guidance_scale) if tuning else (20, 7.5)
    guided = steering(spec, Negative()).cost(scale, steps).nfe
    previews = spec.runs * math.ceil(spec.steps / spec.preview_every)
    # Both kinds of prompts undefended, and the recovery of what is kept, under plain guidance.
    return math.ceil(spec.preview_pictures * (3 * 2 * steps + 2 * previews * guided))


def measure_speed(parts: DiffusionParts, sampler: SamplerSettings, batch: int) -> Speed:
    """Return how fast a model's U-Net is here.

    Args:
        parts: The model.
        sampler: How pictures are made; two rows per picture of a batch.
        batch: Pictures of an inversion step.
    """
    rows = 2 * sampler.batch
    with torch.no_grad():
        row = _timed(lambda: _call(parts, rows, False)) / rows
    trained = _timed(lambda: _call(parts, batch, True)) / batch
    return Speed(row=row, trained=trained)


def _call(parts: DiffusionParts, rows: int, gradient: bool) -> None:
    latents = torch.zeros((rows, *parts.latent_shape), device=parts.device, dtype=parts.dtype)
    condition = encode_nothing(parts).repeat(rows)
    if gradient:
        states = condition.states.detach().clone().requires_grad_(True)
        condition = replace(condition, states=states)
    t = torch.full((), 500.0, device=parts.device)
    output = run_unet(parts.unet, latents, t, condition)
    if gradient:
        output.float().pow(2).mean().backward()
    output.flatten()[0].item()  # waits for a GPU


def _timed(work: Callable[[], None]) -> float:
    """Return the median seconds of a call."""

    def once() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    once()
    return statistics.median(once() for _ in range(TIMED))
