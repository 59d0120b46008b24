"""`ine unlearn`: make an unlearned model where none is published."""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ine.cli import options
from ine.cli.choices import ERASERS
from ine.cli.command import IneCommand
from ine.cli.erasing import erasing, method_settings
from ine.cli.model import ChosenModel, ModelOptions
from ine.cli.progress import bar
from ine.cli.writing import claim_file

if TYPE_CHECKING:
    from ine.detectors.table import Detector
    from ine.recipe import ConceptRecipe

log = logging.getLogger("ine")


@click.command(cls=IneCommand)
@options.concept
@click.option(
    "--method",
    type=click.Choice(ERASERS),
    default="uce",
    show_default=True,
    help="uce: closed form, seconds. esd: fine-tuning, minutes and more. duo: a LoRA that learns "
    "to prefer pictures without the concept.",
)
@options.opening_base
@options.out
@options.force
@options.seed
@options.overrides
@erasing
@options.dry_run
@options.json_output
def unlearn(
    concept: str,
    method: str,
    model: ModelOptions,
    out: Path | None,
    force: bool,
    seed: int,
    overrides: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Erase a recipe's concept from its base model; write the weights that changed.

    Settings that are not given come from the recipe's `erase` section if it has them, else from
    the method's defaults: for ESD and DUO those of the published scripts, for UCE those of the
    variant.
    """
    from ine.files import check_free
    from ine.recipe import load_recipe
    from ine.unlearning.pairs import erase_texts
    from ine.unlearning.run import check_settings

    recipe = load_recipe(concept, overrides)
    chosen = model.choose(recipe=recipe)
    out = Path(out or f"{recipe.name}-{method}.safetensors")
    check_free(out, force)
    settings = method_settings(method, recipe, given)
    pairs_dir = settings.pop("pairs_dir", None)
    resolved = asdict(check_settings(recipe, method, settings))
    prompts = {what: len(texts) for what, texts in asdict(erase_texts(recipe)).items()}
    if dry_run:
        plan = {"base": chosen.name, "out": str(out), method: resolved, "prompts": prompts}
        more = _plan_of_pairs(recipe) if method == "duo" else {}
        click.echo(json.dumps(plan | more, indent=2))
        return
    claim_file(out)
    summary = _erase(
        chosen,
        recipe,
        method,
        settings,
        out,
        seed=seed,
        force=force,
        lengths=(resolved.get("pairs", 0), resolved.get("iterations", 1)),
        pairs_dir=pairs_dir,
    )
    if as_json:
        click.echo(json.dumps(summary, indent=2))
        return
    on = f" --model {model.model}" if model.model else ""
    _print(summary, f"go on: ine invert --concept {concept}{on} --unet {out}")


def _print(summary: dict[str, Any], advice: str) -> None:
    """Print what was written and what to do with it."""
    if "pairs" in summary:
        click.echo(
            f"pairs: {summary['pairs']}, found with {summary['pictures']} pictures and "
            f"{summary['edits']} edits"
        )
    click.echo("wrote {out}: {tensors} tensors changed by {method}".format_map(summary))
    click.echo(advice)


def _erase(
    chosen: ChosenModel,
    recipe: "ConceptRecipe",
    method: str,
    settings: dict[str, Any],
    out: Path,
    *,
    seed: int,
    force: bool,
    lengths: tuple[int, int],
    pairs_dir: Path | None,
) -> dict[str, Any]:
    """Unlearn with progress bars of these lengths (pairs, steps); return the summary."""
    from ine.unlearning.run import unlearn_concept

    of_pairs = method == "duo"
    base = chosen.open().base
    with (
        bar(lengths[0], "pairs", quiet=not of_pairs) as found,
        bar(lengths[1], method) as update,
    ):
        return unlearn_concept(
            base,
            recipe,
            method,
            settings,
            out,
            seed=seed,
            force=force,
            on_step=lambda step, loss: update(step, loss=f"{loss:.4f}"),
            on_pairs=lambda count, wanted, made: found(count, pictures=made),
            detector=_detector(recipe) if of_pairs else None,
            pairs_dir=pairs_dir if of_pairs else None,
        )


def _detector(recipe: "ConceptRecipe") -> "Detector":
    """Return the detector of the recipe's rule."""
    from ine.detectors.rules import find_rule
    from ine.detectors.table import load_detector

    return load_detector(find_rule(recipe.pictures.rule).detector)


def _plan_of_pairs(recipe: "ConceptRecipe") -> dict[str, Any]:
    """Return what a dry run prints about the pairs of DUO."""
    from ine.detectors.rules import find_rule
    from ine.detectors.table import check_detector
    from ine.errors import IneError
    from ine.unlearning.pairs import pair_prompts

    rule = find_rule(recipe.pictures.rule)
    try:
        check_detector(rule.detector)
        here = f"{rule.detector!r} is on this machine"
    except IneError as error:
        here = str(error)
    return {"pairs": {"prompts": len(pair_prompts(recipe)), "rule": rule.name, "detector": here}}
