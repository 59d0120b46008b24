"""`ine defend`: make a defence from a recipe and an unlearned model, in one command."""

import json
import logging
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ine.cli import options
from ine.cli.command import IneCommand, expert
from ine.cli.defend_plan import print_plan, sampler_for
from ine.cli.model import ChosenModel, ModelOptions
from ine.cli.progress import bar
from ine.cli.sampling import SamplingOptions
from ine.cli.writing import claim_file

if TYPE_CHECKING:
    from ine.recipe import ConceptRecipe
    from ine.studies.defend.run import Defence

log = logging.getLogger("ine")


@click.command(cls=IneCommand)
@options.concept
@options.opening
@click.option(
    "--target-preservation",
    "target",
    type=options.FiniteRange(0, 1),
    default=0.97,
    show_default=True,
    metavar="SHARE",
    help="Least mean preservation of benign pictures.",
)
@options.images
@options.skip_bad
@expert(
    "--below-target",
    is_flag=True,
    help="If no setting reaches the target, recommend the one that preserves most.",
)
@expert(
    "--purge",
    is_flag=True,
    help="Remove all pictures and latents at the end, and leave them out of the report.",
)
@options.seed
@options.sampler
@options.out
@options.force
@options.overrides
@options.dry_run
@options.json_output
def defend(
    concept: str,
    model: ModelOptions,
    target: float,
    images: Path | None,
    skip_bad: bool,
    below_target: bool,
    purge: bool,
    seed: int,
    sampling: SamplingOptions,
    out: Path | None,
    force: bool,
    overrides: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make a defence: an embedding, the gate beside it, and how to use both.

    Inverts the concept, learns a probe that recognises it, and chooses guidance, strength, part of
    the run and threshold on the recipe's tuning prompts: of the settings that preserve enough of
    benign pictures, one that leaves least of the concept. What it does on prompts that were held
    back is in the file's header and in OUT.defend/report.html. `ine generate --negative-embedding
    OUT` and `ine.protect` then use it as recommended.

    What is tried and on how many pictures is in the recipe's section `defence`: --set
    defence.pictures=48. Give an interrupted command again to resume it; --dry-run estimates the
    time on this device.
    """
    from ine.embeddings.names import check_trigger
    from ine.files import check_free, check_suffix
    from ine.inversion.steering import check_steering
    from ine.recipe import load_recipe
    from ine.studies.defend.prompts import prompts_for
    from ine.studies.defend.settings import check_search

    recipe = load_recipe(concept, overrides)
    out = out or Path(f"{recipe.name}-neg.safetensors")
    check_suffix(out)
    check_trigger(out.stem)
    check_free(out, force)
    check_search(recipe.defence)
    check_steering(recipe.inversion)
    prompts_for(recipe, seed)
    chosen = model.choose(recipe=recipe)
    given = {"target": target, "images": images, "skip_bad": skip_bad, "seed": seed, "out": out}
    if dry_run:
        print_plan(recipe, chosen, sampling, given, as_json)
        return
    if not model.unet:
        log.warning("no --unet: the base model itself is defended, which knows the concept's words")
    claim_file(out)
    command = _command(concept, model, target, overrides)
    ending = {"below_target": below_target, "force": force, "purge": purge, "command": command}
    found = _run(recipe, chosen, sampling, {**given, **ending})
    _print_result(found, recipe, model, as_json)


def _command(concept: str, model: ModelOptions, target: float, overrides: tuple[str, ...]) -> str:
    """Return the command for the report, which states sampler and seed besides."""
    unets = ["--unet", str(model.unet)] if model.unet else []
    changes = [word for text in overrides for word in ("--set", text)]
    kept = ("--target-preservation", f"{target:g}")
    return shlex.join(["ine", "defend", "--concept", concept, *unets, *kept, *changes])


def _run(
    recipe: "ConceptRecipe", chosen: ChosenModel, sampling: SamplingOptions, given: dict[str, Any]
) -> "Defence":
    """Open the model and make the defence; say how to resume if it is interrupted."""
    from ine.evaluation.grid import GridModel
    from ine.studies.defend.job import MODEL, Job, Watch, work_folder
    from ine.studies.defend.run import run_defend
    from ine.studies.grids import unet_texts

    opened = chosen.open()
    job = Job(
        recipe=recipe,
        base=opened.base,
        parts=opened.parts,
        model=GridModel(name=MODEL, model=chosen.name, unet=unet_texts(chosen.options.unet)),
        sampler=sampler_for(sampling, recipe, opened.parts),
        watch=Watch(tell=log.info, bar=bar),
        **given,
    )
    try:
        return run_defend(job)
    except KeyboardInterrupt:
        log.warning(
            "interrupted; %s holds the finished part, the same command resumes",
            work_folder(given["out"]),
        )
        raise


def _print_result(
    found: "Defence", recipe: "ConceptRecipe", model: ModelOptions, as_json: bool
) -> None:
    """Print what was made, what it does, and how to use it."""
    log.warning(
        "used as a prompt, these vectors bring the concept back: keep those of real harms private"
    )
    if as_json:
        figures = json.loads((found.report.parent / "report.json").read_text())
        made = {
            "embedding": str(found.embedding),
            "gate": str(found.gate),
            "report": str(found.report),
            "recommended": found.recommendation.metadata(),
            "figures": dict(found.figures),
        }
        click.echo(json.dumps({**made, **figures}, indent=2, ensure_ascii=False))
        return
    held_back = found.held_back
    click.echo(f"recommended: {found.recommendation}")
    for what, value in (
        (f"{recipe.name} left", held_back.left),
        ("undefended", held_back.undefended),
        ("benign preservation", held_back.kept),
    ):
        click.echo(f"held-back prompts, {what}: {value.value:.3f} (N {value.count})")
    click.echo(f"wrote {found.embedding} and {found.gate}; report: {found.report}")
    over = f" --unet {model.unet}" if model.unet else ""
    click.echo(f"use it: ine generate --negative-embedding {found.embedding}{over} --prompt '...'")
