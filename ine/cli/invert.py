"""`ine invert`: find the vectors of a concept on an unlearned model."""

import json
import logging
from pathlib import Path

import click

from ine.cli import choose, options
from ine.cli.progress import bar

log = logging.getLogger("ine")


@click.command()
@click.option(
    "--concept", required=True, metavar="NAME|FILE", help="A shipped recipe's name or a YAML file."
)
@options.unet
@options.model
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Pictures of the concept; without it the base model makes them from the recipe.",
)
@click.option("--skip-bad", is_flag=True, help="Leave out pictures that cannot be read.")
@click.option("--trigger", metavar="WORD", help="Word for the vectors; default CONCEPT-neg.")
@click.option("--keep-images", is_flag=True, help="Keep the pictures that were made, as PNGs.")
@click.option("--purge", is_flag=True, help="Remove the run folder, pictures included, at the end.")
@options.out
@options.force
@options.seed
@options.overrides
@options.device
@options.dtype
@options.dry_run
@options.json_output
def invert(
    concept,
    unet,
    model,
    images,
    skip_bad,
    trigger,
    keep_images,
    purge,
    out,
    force,
    seed,
    overrides,
    device,
    dtype,
    dry_run,
    as_json,
):
    """Invert a concept against an unlearned model and write one embedding file.

    Without --unet the base model itself is inverted, which is a control, not a defence. An
    interrupted run goes on where it stopped when the same command is given again.
    """
    from ine.files import check_free, check_suffix
    from ine.recipe import load_recipe, recipe_yaml

    recipe = load_recipe(concept, overrides)
    name, source = choose.base_name(model, recipe=recipe)
    trigger = trigger or f"{recipe.name}-neg"
    out = out or Path(f"{trigger}.safetensors")
    check_suffix(out)
    check_free(out, force)
    rule = _check_inputs(recipe, trigger, images)
    if dry_run:
        click.echo(recipe_yaml(recipe), nl=False)
        click.echo(f"# base: {name} (from {source})\n# trigger: {trigger}\n# out: {out}")
        if unet:
            from ine.models.checkpoints import read_weights

            click.echo(f"# unet: {read_weights(unet).describe()}")
        _say_whether_here(name)
        _say_whether_detector_here(rule)
        return
    from ine.inversion.run import RunOptions, run_inversion
    from ine.judging.detectors import load_detector

    # Both before the base: that may be a download of gigabytes.
    choose.check_unet(unet)
    detector = load_detector(rule.detector)
    base = choose.load_base(name, source, device, dtype)
    unlearned = choose.lay(base, unet)
    if not unet:
        log.warning("no --unet: the base model itself is inverted; that is a control, no defence")
    run = RunOptions(
        out=out,
        trigger=trigger,
        seed=seed,
        images=images,
        skip_bad=skip_bad,
        keep_images=keep_images,
        purge=purge,
        force=force,
    )
    try:
        with (
            bar(recipe.pictures.count, "concept pictures") as pictures_bar,
            bar(recipe.inversion.steps, "inversion") as steps_bar,
        ):
            embedding, result, summary = run_inversion(
                base,
                unlearned,
                recipe,
                run,
                detector,
                on_pictures=lambda tried, kept, wanted: pictures_bar(min(kept, wanted)),
                on_step=lambda p: steps_bar(p.step, **_figures(p)),
            )
    except KeyboardInterrupt:
        log.warning("interrupted; %s holds what is done, the same command resumes", run.folder)
        raise
    if as_json:
        click.echo(json.dumps(summary, indent=2))
        return
    counts = summary["pictures"]
    click.echo(f"pictures: {counts['kept']} kept of {counts['tried']}")
    for seen in result.previews:
        mark = "  <- kept" if result.kept == seen else ""
        left = "" if seen.left is None else f", left on tuning prompts {seen.left:.2f}"
        over = "" if seen.undefended is None else f" (undefended {seen.undefended:.2f})"
        click.echo(f"step {seen.step}: recovery {seen.recovery:.2f}{left}{over}{mark}")
    click.echo(f"wrote {out}: {embedding.count} x {embedding.width}, trigger {embedding.trigger!r}")
    over = f" --unet {unet}" if unet else ""
    click.echo(f"use it: ine generate --negative-embedding {out}{over} --prompt '...'")
    log.warning(
        "used as a prompt, these vectors bring the concept back: keep those of real harms private"
    )


def _figures(progress):
    figures = {"loss": f"{progress.loss:.3f}"}
    if progress.previews:
        figures["recovery"] = f"{progress.previews[-1].recovery:.2f}"
    return figures


def _check_inputs(recipe, trigger, images):
    """Return the recipe's rule; raise for what the run itself would refuse later."""
    from ine.embedding import check_trigger
    from ine.inversion.images import list_pictures
    from ine.judging.rules import find_rule

    check_trigger(trigger)
    if images:
        list_pictures(images)
    return find_rule(recipe.pictures.rule)


def _say_whether_here(name):
    from ine.errors import ModelError
    from ine.models.parts import find_model

    try:
        find_model(name, fetch=False)
        click.echo("# the base model is on this machine")
    except ModelError as error:
        click.echo(f"# {error}")


def _say_whether_detector_here(rule):
    from ine.errors import IneError
    from ine.judging.detectors import check_detector

    try:
        check_detector(rule.detector)
        click.echo(f"# detector {rule.detector!r} is on this machine")
    except IneError as error:
        click.echo(f"# {error}")
