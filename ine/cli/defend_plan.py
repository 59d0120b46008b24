"""`ine defend --dry-run`: what would be made, and how long it takes on this device."""

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from ine.cli.model import ChosenModel
from ine.cli.sampling import SamplingOptions

if TYPE_CHECKING:
    from ine.recipe import ConceptRecipe
    from ine.sampling import SamplerSettings
    from ine.studies.defend.estimate import Speed


def sampler_for(
    sampling: SamplingOptions, recipe: "ConceptRecipe", parts: Any
) -> "SamplerSettings":
    """Return the sampler of tuning and report: the options', else the recipe's for tuning."""
    tuning = recipe.tuning
    if tuning is not None:
        sampling = replace(
            sampling,
            scheduler=sampling.scheduler or tuning.scheduler,
            steps=sampling.steps or tuning.steps,
            guidance_scale=sampling.guidance_scale or tuning.guidance_scale,
        )
    return sampling.settings(parts)


def print_plan(
    recipe: "ConceptRecipe",
    chosen: ChosenModel,
    sampling: SamplingOptions,
    given: dict[str, Any],
    as_json: bool,
) -> None:
    """Print what would be made, and how long it takes here if the model is on this machine."""
    from ine.cli.generate_plan import look_up
    from ine.errors import ModelError
    from ine.models.parts import find_model
    from ine.studies.defend.estimate import stages_of
    from ine.studies.defend.job import work_folder
    from ine.studies.defend.prompts import prompts_for
    from ine.weights.read import read_weights

    steps = sampling.steps or (recipe.tuning.steps if recipe.tuning else 20)
    prompts = prompts_for(recipe, given["seed"])
    stages = stages_of(recipe, steps, prompts, given["images"] is not None)
    try:
        find_model(chosen.name, fetch=False)
        speed: Speed | None = _speed(recipe, chosen, sampling)
    except ModelError:
        speed = None
    seconds = [None if speed is None else round(s.seconds(speed), 1) for s in stages]
    unet = chosen.options.unet
    plan = {
        "model": f"{chosen.name} (from {chosen.origin}), {look_up(chosen.name).place}",
        "unet": read_weights(unet).describe() if unet else None,
        "out": str(given["out"]),
        "folder": str(work_folder(given["out"])),
        "target_preservation": given["target"],
        "search": recipe.defence.model_dump(mode="json"),
        "held_back": dict(prompts.sources),
        "stages": [
            {"stage": s.name, "unet_rows": s.rows, "trained_rows": s.trained, "seconds": t}
            for s, t in zip(stages, seconds, strict=True)
        ],
    }
    click.echo(json.dumps(plan, indent=2) if as_json else "\n".join(_plan_lines(plan)))


def _speed(recipe: "ConceptRecipe", chosen: ChosenModel, sampling: SamplingOptions) -> "Speed":
    from ine.studies.defend.estimate import measure_speed

    parts = chosen.open(keep_base=False).parts
    return measure_speed(parts, sampler_for(sampling, recipe, parts), recipe.inversion.batch)


def _plan_lines(plan: dict[str, Any]) -> list[str]:
    """Return a plan as lines for a person."""
    found = [
        f"model      {plan['model']}",
        f"unet       {plan['unet'] or 'the model itself'}",
        f"out        {plan['out']}, its gate beside it; work and report in {plan['folder']}",
        f"target     {plan['target_preservation']:g} of benign pictures preserved",
        f"held back  {'; '.join(plan['held_back'].values())}",
    ]
    total = 0.0
    for stage in plan["stages"]:
        rows = stage["unet_rows"] + stage["trained_rows"]
        took = "" if stage["seconds"] is None else f", {_time(stage['seconds'])}"
        total += stage["seconds"] or 0.0
        found.append(f"- {stage['stage']}: {rows} U-Net rows at most{took}")
    known = plan["stages"][0]["seconds"] is not None
    found.append(
        f"time       about {_time(total)} on this device, from timed calls of the U-Net; finished "
        "parts are not made again"
        if known
        else "time       not known: the model is not on this machine"
    )
    return found


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
