"""`ine generate --dry-run`: what would be made, as far as it is known without weights."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from ine.cli.guiding import DefenceOptions
from ine.cli.model import ChosenModel
from ine.cli.printing import printable
from ine.cli.sampling import Configured, SamplingOptions

if TYPE_CHECKING:
    from ine.families import Family
    from ine.models.few_steps import FewSteps
    from ine.sampling import PictureRequest, SamplerSettings

SHOWN = 3
"""Prompts that are shown."""

SAMPLER_KEYS = ("scheduler", "steps", "guidance_scale", "batch")


@dataclass(frozen=True, kw_only=True)
class NotLoaded:
    """What a model's configuration says; `SamplingOptions` takes it in place of the parts."""

    name: str
    place: str
    """Where the model is, or how to get it."""

    family_info: "Family | None" = None
    """None if only the weights can tell."""

    few_steps: "FewSteps | None" = None


def look_up(name: str) -> NotLoaded:
    """Return what is known about a model without its weights and without the network."""
    from ine.errors import ModelError
    from ine.families import family_of
    from ine.models.few_steps import few_steps_of
    from ine.models.parts import find_model
    from ine.weights.source import read_json

    try:
        folder = find_model(name, fetch=False)
    except ModelError as error:
        return NotLoaded(name=name, place=str(error))
    here = "on this machine"
    unet = read_json(folder / "unet") if folder.is_dir() else {}
    width = unet.get("cross_attention_dim")
    if not isinstance(width, int):
        return NotLoaded(name=name, place=here)
    scheduler = read_json(folder / "scheduler", "scheduler_config.json")
    few = few_steps_of(unet, scheduler)
    return NotLoaded(name=name, place=here, family_info=family_of(width), few_steps=few)


def plan_of(
    chosen: ChosenModel,
    defence: DefenceOptions,
    sampling: SamplingOptions,
    size: tuple[int | None, int | None],
    requests: Sequence["PictureRequest"],
    out: Path,
) -> dict[str, Any]:
    """Return what would be made as plain values; None where only the model itself can tell.

    `size` is what `--width` and `--height` say.

    Raises:
        IneError: What the run would refuse before the model is loaded.
    """
    from ine.gallery.index import file_name

    check_folder(out)
    found = plan_of_model(chosen, defence, sampling)
    found["sampler"] |= {"width": size[0], "height": size[1]}
    batch = found["sampler"]["batch"]
    files = (out / file_name(i, r.seed) for i, r in enumerate(requests))
    return {
        **found,
        "prompts": list(dict.fromkeys(r.prompt for r in requests)),
        "pictures": len(requests),
        "units": -(-len(requests) // batch) if batch else None,
        "there": sum(file.is_file() for file in files),
        "out": str(out),
    }


def check_folder(out: Path) -> None:
    """Raise `OutputError` if something else than a folder stands there."""
    from ine.errors import OutputError

    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: is not a folder; choose another --out")


def plan_of_model(
    chosen: ChosenModel, defence: DefenceOptions, sampling: SamplingOptions
) -> dict[str, Any]:
    """Return model, weights, negative, guidance and sampler of a run as plain values.

    Raises:
        IneError: What the run would refuse before the model is loaded.
    """
    from ine.guidance.table import describe, name_of
    from ine.weights.read import read_weights

    model = look_up(chosen.name)
    sampler = _sampler(model, sampling)
    method = defence.build(None, sampler, chosen.embeddings)
    source = sampler if model.family_info else sampling
    unet = chosen.options.unet
    return {
        "model": {"name": chosen.name, "from": chosen.origin, "place": model.place},
        "unet": read_weights(unet).describe() if unet else None,
        "negative": method.negative.prompt(),
        "guidance": {"method": name_of(method), "settings": describe(method)},
        "sampler": {key: getattr(source, key) for key in SAMPLER_KEYS},
    }


def _sampler(model: NotLoaded, sampling: SamplingOptions) -> "SamplerSettings":
    """Return the settings of a run; if the family is not known, those of most models."""
    from ine.families import Family

    usual = Family(name="", width=0, title="")
    known = replace(model, family_info=model.family_info or usual)
    return sampling.settings(cast(Configured, known))


def print_plan(plan: dict[str, Any], as_json: bool) -> None:
    """Print a plan, as lines for a person or as JSON."""
    if as_json:
        click.echo(json.dumps(plan, indent=2, ensure_ascii=False))
        return
    batch = plan["sampler"]["batch"]
    units = "" if plan["units"] is None else f" in {plan['units']} units of {batch}"
    there = f", {plan['there']} of them have a file already" if plan["there"] else ""
    prompts = plan["prompts"]
    rows = {
        **model_rows(plan),
        "prompts": f"{len(prompts)} different",
        "pictures": f"{plan['pictures']}{units}{there}",
        "out": plan["out"],
    }
    print_rows(rows, prompts)


def model_rows(plan: dict[str, Any]) -> dict[str, str]:
    """Return what `plan_of_model` found as lines for a person."""
    model, sampler = plan["model"], plan["sampler"]
    said = {k: v for k, v in sampler.items() if v is not None or k not in ("width", "height")}
    own = [f"{key} {'as usual for it' if v is None else v}" for key, v in said.items()]
    return {
        "model": f"{model['name']} (from {model['from']})",
        "": model["place"],
        "unet": plan["unet"] or "the model's own",
        "negative": plan["negative"] or "none",
        "guidance": f"{plan['guidance']['method']}: {plan['guidance']['settings']}",
        "sampler": ", ".join(own),
    }


def print_rows(rows: dict[str, str], prompts: Sequence[str]) -> None:
    """Print lines of a plan; the first prompts stand below theirs."""
    for key, value in rows.items():
        click.echo(f"{key:<10}{printable(value)}")
        if key == "prompts":
            for prompt in prompts[:SHOWN]:
                click.echo(f"{'':<10}- {printable(prompt)}")
