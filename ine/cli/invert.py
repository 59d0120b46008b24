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
@click.option(
    "--clusters",
    type=click.IntRange(1, 26),
    metavar="K",
    help="Part the pictures by what the judge sees; an embedding for each, NAME-a, NAME-b, ...",
)
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
    clusters,
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

    --clusters is for a concept whose members look nothing alike: each group of pictures gets an
    embedding of its own, for a negative that is matched picture by picture.
    """
    from ine.files import check_free, check_suffix
    from ine.recipe import load_recipe, recipe_yaml

    recipe = load_recipe(concept, overrides)
    name, source = choose.base_name(model, recipe=recipe)
    trigger = trigger or f"{recipe.name}-neg"
    out = out or Path(f"{trigger}.safetensors")
    targets = _targets(out, trigger, clusters)
    for file in targets.values():
        check_suffix(file)
        check_free(file, force)
    for name_of_one in targets:
        rule = _check_inputs(recipe, name_of_one, images)
    if dry_run:
        click.echo(recipe_yaml(recipe), nl=False)
        click.echo(f"# base: {name} (from {source})")
        for name_of_one, file in targets.items():
            click.echo(f"# trigger: {name_of_one}\n# out: {file}")
        if unet:
            from ine.models.checkpoints import read_weights

            click.echo(f"# unet: {read_weights(unet).describe()}")
        _say_whether_here(name)
        _say_whether_detector_here(rule)
        return
    from ine.inversion.run import RunOptions
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
        made, summary = _run(base, unlearned, recipe, run, detector, clusters)
    except KeyboardInterrupt:
        log.warning("interrupted; %s holds what is done, the same command resumes", run.folder)
        raise
    if as_json:
        click.echo(json.dumps(summary, indent=2))
        return
    counts = summary["pictures"]
    click.echo(f"pictures: {counts['kept']} kept of {counts['tried']}")
    for title, file, embedding, result in made:
        if title:
            click.echo(title)
        _tell(file, embedding, result)
    over = f" --unet {unet}" if unet else ""
    negative = " ".join(f"--negative-embedding {file}" for _, file, _, _ in made)
    click.echo(f"use it: ine generate {negative}{over} --prompt '...'")
    log.warning(
        "used as a prompt, these vectors bring the concept back: keep those of real harms private"
    )


def _targets(out, trigger, clusters):
    """Return {trigger: file} of what will be written."""
    if clusters is None:
        return {trigger: out}
    from ine.inversion.clusters import cluster_targets
    from ine.inversion.run import RunOptions

    return cluster_targets(RunOptions(out=out, trigger=trigger), clusters)


def _run(base, unlearned, recipe, run, detector, clusters):
    """Return ([(title, file, embedding, result)], summary), bars on the terminal meanwhile."""
    from ine.inversion.clusters import run_clustered
    from ine.inversion.run import run_inversion

    steps = recipe.inversion.steps
    with (
        bar(recipe.pictures.count, "concept pictures") as pictures_bar,
        bar(steps * (clusters or 1), "inversion") as steps_bar,
    ):

        def on_pictures(tried, kept, wanted):
            pictures_bar(min(kept, wanted))

        def on_step(number, progress):
            steps_bar(number * steps + progress.step, **_figures(progress))

        if clusters is None:
            embedding, result, summary = run_inversion(
                base,
                unlearned,
                recipe,
                run,
                detector,
                on_pictures=on_pictures,
                on_step=lambda progress: on_step(0, progress),
            )
            return [("", run.out, embedding, result)], summary
        made, summary = run_clustered(
            base,
            unlearned,
            recipe,
            run,
            clusters,
            detector,
            on_pictures=on_pictures,
            on_step=on_step,
        )
    titles = [f"cluster {one.letter} of {clusters}: {one.size} pictures" for one in made]
    found = [(t, m.out, m.embedding, m.result) for t, m in zip(titles, made, strict=True)]
    return found, summary


def _tell(file, embedding, result):
    """Say what an inversion came to."""
    for seen in result.previews:
        mark = "  <- kept" if result.kept == seen else ""
        left = "" if seen.left is None else f", left on tuning prompts {seen.left:.2f}"
        over = "" if seen.undefended is None else f" (undefended {seen.undefended:.2f})"
        click.echo(f"step {seen.step}: recovery {seen.recovery:.2f}{left}{over}{mark}")
    click.echo(
        f"wrote {file}: {embedding.count} x {embedding.width}, trigger {embedding.trigger!r}"
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
