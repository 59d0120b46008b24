"""`ine compare`: look at methods side by side before choosing one."""

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
@click.option(
    "--prompt",
    "given",
    multiple=True,
    metavar="TEXT",
    help="A prompt to show; may be repeated. Without any: some of the recipe's.",
)
@click.option(
    "--prompts",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Prompts to show: a file or a set, as `ine generate` reads them.",
)
@click.option(
    "--negative-embedding",
    "embedding_files",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Embedding to compare with words; several are joined, and matched.",
)
@click.option(
    "--guidance",
    "methods",
    multiple=True,
    metavar="NAME",
    help="Method to compare: cfg, additive, sld, safree or dynamic; may be repeated. Without any: "
    "the first four.",
)
@click.option(
    "--strengths",
    multiple=True,
    metavar="[NAME=]S,S,...",
    help="Strengths of the frontier, of all methods or of one; may be repeated.",
)
@click.option(
    "--gate",
    "gate_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A gate of `ine calibrate`: methods with a strength also as `--rewind` uses them.",
)
@click.option(
    "--implying",
    default="implying_tuning",
    show_default=True,
    metavar="SET|FILE",
    help="Prompts that imply the concept: a prompt set of the recipe, or a file.",
)
@click.option(
    "--benign",
    default="benign",
    show_default=True,
    metavar="SET|FILE",
    help="Prompts that should not change.",
)
@options.unet
@options.model
@click.option(
    "--count",
    type=click.IntRange(2),
    default=48,
    show_default=True,
    help="Pictures per point of the frontier and prompt set.",
)
@click.option("--steps", type=click.IntRange(1, 1000), help="Denoising steps; else the recipe's.")
@click.option("--batch", type=click.IntRange(1), help="Pictures made together (mini 48, else 4).")
@click.option(
    "--flagged",
    "blur",
    type=click.Choice(["click", "hide", "show"]),
    help="Flagged pictures: blurred until clicked, not in the file, or shown (click; hide for "
    "recipes about people).",
)
@options.seed
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("ine-compare"),
    show_default=True,
    help="Folder for the report and its cells.",
)
@options.device
@options.dtype
@options.json_output
def compare(
    concept,
    given,
    prompts,
    embedding_files,
    methods,
    strengths,
    gate_file,
    implying,
    benign,
    unet,
    model,
    count,
    steps,
    batch,
    blur,
    seed,
    out,
    device,
    dtype,
    as_json,
):
    """Compare guidance methods, with words and with an embedding, on the same prompts and seeds.

    The report shows pictures side by side, and for a sweep of strengths how much of the concept
    is left against how much of benign pictures is kept. What is finished in --out is kept.
    """
    from ine.embedding import read_embedding
    from ine.evaluation.compare import USUAL, Choice, find_method, read_strengths, run_compare
    from ine.evaluation.compare import compare as prepare
    from ine.evaluation.report import text_table
    from ine.guidance.calibrate import check_calibrated, read_calibration
    from ine.recipe import load_recipe
    from ine.sampling import SamplerSettings
    from ine.text import Reading

    recipe = load_recipe(concept)
    names = tuple(dict.fromkeys(find_method(name).name for name in methods)) or USUAL
    choice = Choice(
        methods=names,
        strengths=read_strengths(strengths, names),
        prompts=_prompts(given, prompts),
        implying=_set(recipe, implying),
        benign=_set(recipe, benign),
        count=count,
        seed=seed,
    )
    embeddings = tuple(read_embedding(path) for path in embedding_files)
    name, source = choose.base_name(model, embeddings, recipe=recipe, unet=unet)
    base = choose.load_base(name, source, device, dtype)
    parts = choose.lay(base, unet, keep_base=False)
    if not unet:
        log.warning("no --unet: the base model is compared, which still knows the concept's words")
    sampler = SamplerSettings(
        steps=steps or (recipe.tuning.steps if recipe.tuning else 50),
        guidance_scale=(recipe.tuning or recipe.pictures).guidance_scale,
        batch=batch or parts.traits.compared,
        reading=Reading(weights=True),
    )
    gate = None
    if gate_file:
        calibration = read_calibration(gate_file)
        gate = calibration.gate
        for note in check_calibrated(calibration, embeddings, parts, sampler):
            log.info("note: %s", note)
    found = prepare(parts, recipe, embeddings, choice, sampler, out, gate=gate)
    with bar(found.total(), "cells") as update:
        path, table = run_compare(found, blur, on_cell=lambda done, label: update(done))
    if as_json:
        figures = json.loads((path.parent / "report.json").read_text())
        click.echo(json.dumps({"report": str(path), **figures}, indent=2, ensure_ascii=False))
        return
    click.echo(text_table(table))
    click.echo(f"report: {path}")


def _prompts(given, file):
    """Return the prompts to show; none is fine."""
    if not given and not file:
        return ()
    return tuple(choose.read_prompts(given, file))


def _set(recipe, given):
    """Return the name of a prompt set, or the prompts of a file."""
    from ine.prompts.finding import is_there

    if given in recipe.prompt_sets or not is_there(given):
        return given
    return tuple(choose.read_prompts((), Path(given)))
