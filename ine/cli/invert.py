"""`ine invert`: find the vectors of a concept on an unlearned model."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ine.cli import options
from ine.cli.command import IneCommand, expert
from ine.cli.model import ChosenModel, ModelOptions, OpenModel
from ine.cli.progress import bar
from ine.cli.writing import claim_file

if TYPE_CHECKING:
    from ine.detectors.rule import AnyOf, Rule
    from ine.detectors.table import Detector
    from ine.embeddings.embedding import ConceptEmbedding
    from ine.inversion.history import Inversion, Preview
    from ine.inversion.invert import Progress
    from ine.inversion.sources import RunOptions
    from ine.recipe import ConceptRecipe

log = logging.getLogger("ine")


@click.command(cls=IneCommand)
@options.concept
@options.opening
@options.images
@options.skip_bad
@click.option("--trigger", metavar="WORD", help="Word for the vectors; default CONCEPT-neg.")
@expert("--keep-images", is_flag=True, help="Keep the generated pictures, as PNGs.")
@expert("--purge", is_flag=True, help="Remove the run folder, pictures included, at the end.")
@options.out
@options.force
@options.seed
@options.overrides
@options.dry_run
@options.json_output
def invert(
    concept: str,
    model: ModelOptions,
    images: Path | None,
    skip_bad: bool,
    trigger: str | None,
    keep_images: bool,
    purge: bool,
    out: Path | None,
    force: bool,
    seed: int,
    overrides: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Invert a concept against an unlearned model and write one embedding file.

    Without --unet the base model itself is inverted, which is a control, not a defence. How good
    vectors are differs between seeds: --set inversion.runs=3 makes three inversions and keeps the
    best by their previews. Give an interrupted command again to resume it.
    """
    from ine.files import check_free, check_suffix
    from ine.inversion.sources import RunOptions
    from ine.recipe import load_recipe

    recipe = load_recipe(concept, overrides)
    trigger = trigger or f"{recipe.name}-neg"
    run = RunOptions(
        out=out or Path(f"{trigger}.safetensors"),
        trigger=trigger,
        seed=seed,
        images=images,
        skip_bad=skip_bad,
        keep_images=keep_images,
        purge=purge,
        force=force,
    )
    check_suffix(run.out)
    check_free(run.out, force)
    rule = _check_inputs(recipe, trigger, images)
    chosen = model.choose(recipe=recipe)
    if dry_run:
        _print_plan(recipe, chosen, run, rule)
        return
    embedding, result, summary = _invert(recipe, chosen, run, rule)
    if as_json:
        click.echo(json.dumps(summary, indent=2))
        return
    counts = summary["pictures"]
    click.echo(f"pictures: {counts['kept']} kept of {counts['tried']}")
    _print_result(run.out, embedding, result)
    over = f" --unet {model.unet}" if model.unet else ""
    click.echo(f"use it: ine generate --negative-embedding {run.out}{over} --prompt '...'")
    log.warning(
        "used as a prompt, these vectors bring the concept back: keep those of real harms private"
    )


def _print_plan(
    recipe: "ConceptRecipe", chosen: ChosenModel, run: "RunOptions", rule: "Rule | AnyOf"
) -> None:
    """Print the recipe and what a run would use."""
    from ine.recipe import recipe_yaml

    click.echo(recipe_yaml(recipe), nl=False)
    click.echo(f"# base: {chosen.name} (from {chosen.origin})")
    click.echo(f"# trigger: {run.trigger}\n# out: {run.out}")
    spec = recipe.inversion
    if spec.runs > 1:
        taken = spec.all_steps * spec.batch * spec.accumulation
        click.echo(f"# runs: {spec.runs} x {spec.steps} steps, {taken} pictures; the best is kept")
    if chosen.options.unet:
        from ine.weights.read import read_weights

        click.echo(f"# unet: {read_weights(chosen.options.unet).describe()}")
    _print_whether_base_is_here(chosen.name)
    _print_whether_detector_is_here(rule)


def _invert(
    recipe: "ConceptRecipe", chosen: ChosenModel, run: "RunOptions", rule: "Rule | AnyOf"
) -> tuple["ConceptEmbedding", "Inversion", dict[str, Any]]:
    """Open the model and run the inversion; say how to resume if it is interrupted."""
    from ine.detectors.table import load_detector

    claim_file(run.out)
    detector = load_detector(rule.detector)  # before the base, which may be a long download
    opened = chosen.open()
    if not chosen.options.unet:
        log.warning("no --unet: the base model itself is inverted; that is a control, no defence")
    try:
        return _run(opened, recipe, run, detector)
    except KeyboardInterrupt:
        log.warning("interrupted; %s holds the finished part, the same command resumes", run.folder)
        raise


def _run(
    opened: OpenModel, recipe: "ConceptRecipe", run: "RunOptions", detector: "Detector"
) -> tuple["ConceptEmbedding", "Inversion", dict[str, Any]]:
    """Return (embedding, result, summary), with progress bars on the terminal."""
    from ine.inversion.run import run_inversion

    with (
        bar(recipe.pictures.count, "concept pictures") as pictures_bar,
        bar(recipe.inversion.all_steps, "inversion") as steps_bar,
    ):
        return run_inversion(
            opened.base,
            opened.parts,
            recipe,
            run,
            detector,
            on_pictures=lambda tried, kept, wanted: pictures_bar(min(kept, wanted)),
            on_step=lambda progress: steps_bar(progress.done, **_figures(progress)),
        )


def _print_result(file: Path, embedding: "ConceptEmbedding", result: "Inversion") -> None:
    """Print the previews of an inversion and the file."""
    for one in result.runs or (result,):
        run = f"run {one.run}, " if result.runs else ""
        for seen in one.previews:
            kept = one.run == result.run and result.kept and result.kept.step == seen.step
            mark = "  <- kept" if kept else ""
            click.echo(f"{run}step {seen.step}: {_preview_text(seen)}{mark}")
    if result.kept and result.kept.left is not None:
        click.echo(f"recovery, with the vectors as the prompt: {result.kept.recovery:.2f}")
    click.echo(
        f"wrote {file}: {embedding.count} x {embedding.width}, trigger {embedding.trigger!r}"
    )


def _preview_text(seen: "Preview") -> str:
    """Return the figures of a preview."""
    if seen.left is None:
        return f"recovery {seen.recovery:.2f}"
    text = f"left on tuning prompts {seen.left:.2f} (undefended {seen.undefended:.2f})"
    kept = seen.preservation
    return text if kept is None else f"{text}, preservation on benign ones {kept:.2f}"


def _figures(progress: "Progress") -> dict[str, str]:
    figures = {"loss": f"{progress.loss:.3f}"}
    if progress.previews:
        last = progress.previews[-1]
        shares = {"left": last.left, "kept": last.preservation, "recovery": last.recovery}
        figures |= {name: f"{share:.2f}" for name, share in shares.items() if share is not None}
    return figures


def _check_inputs(recipe: "ConceptRecipe", trigger: str, images: Path | None) -> "Rule | AnyOf":
    """Return the recipe's rule; raise now for what the run would refuse later."""
    from ine.detectors.rules import find_rule
    from ine.embeddings.names import check_trigger
    from ine.inversion.picture_folder import list_pictures
    from ine.inversion.steering import check_steering

    check_trigger(trigger)
    check_steering(recipe.inversion)
    if images:
        list_pictures(images)
    return find_rule(recipe.pictures.rule)


def _print_whether_base_is_here(name: str) -> None:
    from ine.errors import ModelError
    from ine.models.parts import find_model

    try:
        find_model(name, fetch=False)
        click.echo("# the base model is on this machine")
    except ModelError as error:
        click.echo(f"# {error}")


def _print_whether_detector_is_here(rule: "Rule | AnyOf") -> None:
    from ine.detectors.table import check_detector
    from ine.errors import IneError

    try:
        check_detector(rule.detector)
        click.echo(f"# detector {rule.detector!r} is on this machine")
    except IneError as error:
        click.echo(f"# {error}")
