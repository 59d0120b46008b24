"""`ine refine --dry-run`: what would be asked and made, as far as it is known without weights."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ine.cli.generate import DEFAULT_MODEL
from ine.cli.generate_plan import check_folder, model_rows, plan_of_model, print_rows
from ine.cli.guiding import DefenceOptions
from ine.cli.model import ModelOptions
from ine.cli.refine_generator import GeneratorOptions, check_alone
from ine.cli.refining_options import check_negative
from ine.cli.sampling import SamplingOptions

if TYPE_CHECKING:
    from ine.refining.settings import RefineSettings
    from ine.sampling import PictureRequest

SHOWN_SETTINGS = ("rounds", "query", "picture", "exact_keep", "max_words", "fresh_noise", "padding")


def plan_of_generator(
    generating: GeneratorOptions,
    defence: DefenceOptions,
    model: ModelOptions,
    sampling: SamplingOptions,
    settings: "RefineSettings",
) -> dict[str, Any]:
    """Return who would make the pictures, as plain values; no command is run, no server asked.

    Raises:
        IneError: What the run would refuse before a model is loaded.
    """
    from ine.refining.endpoint import check_generator

    if generating.generator:
        check_alone(defence, model)
        check_negative(settings, "")
        check_generator(generating.generator)
        return {"generator": generating.generator}
    chosen = model.choose(defence.embeddings(), default=DEFAULT_MODEL)
    found = plan_of_model(chosen, defence, sampling)
    check_negative(settings, found["negative"])
    return {"generator": None, **found}


def plan_of_refining(
    generator: dict[str, Any],
    observer: str,
    settings: "RefineSettings",
    requests: Sequence["PictureRequest"],
    rules: Sequence[str],
    out: Path,
) -> dict[str, Any]:
    """Return what would be asked and made at most, as plain values.

    Raises:
        IneError: What the run would refuse before anything is loaded.
    """
    from ine.detectors.rules import find_rule
    from ine.detectors.table import check_detector
    from ine.refining.folder import ABOUT
    from ine.refining.table import rewriter_place

    check_folder(out)
    for rule in rules:
        check_detector(find_rule(rule).detector)
    count = len(requests)
    return {
        **generator,
        "observer": {"name": observer, "place": rewriter_place(observer, settings)},
        "settings": {name: getattr(settings, name) for name in SHOWN_SETTINGS},
        "prompts": [one.prompt for one in requests],
        "pictures_at_most": count * (settings.rounds + 1),
        "looks_at_most": count * settings.rounds,
        "rules": list(rules),
        "there": (out / ABOUT).is_file(),
        "out": str(out),
    }


def print_refining(plan: dict[str, Any], as_json: bool) -> None:
    """Print a plan, as lines for a person or as JSON."""
    if as_json:
        click.echo(json.dumps(plan, indent=2, ensure_ascii=False))
        return
    made = {"generator": plan["generator"]} if plan["generator"] else model_rows(plan)
    observer, settings = plan["observer"], plan["settings"]
    there = ", which holds a refinement already: it is resumed if nothing else changed"
    rows = {
        **made,
        "observer": observer["name"],
        " ": observer["place"],
        "settings": ", ".join(f"{name} {value}" for name, value in settings.items()),
        "rules": ", ".join(plan["rules"]) or "none",
        "pictures": f"{len(plan['prompts'])} to {plan['pictures_at_most']}",
        "looks": f"at most {plan['looks_at_most']}",
        "prompts": str(len(plan["prompts"])),
        "out": f"{plan['out']}{there if plan['there'] else ''}",
    }
    print_rows(rows, plan["prompts"])
