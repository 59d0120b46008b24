"""`ine compare`: compare guidance methods side by side before choosing one."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ine.cli import choose, options
from ine.cli.command import IneCommand, expert
from ine.cli.model import ModelOptions, OpenModel
from ine.cli.printing import echo_report
from ine.cli.progress import bar
from ine.cli.writing import claim_folder

if TYPE_CHECKING:
    from ine.recipe import ConceptRecipe
    from ine.sampling import SamplerSettings
    from ine.studies.comparison import Choice

log = logging.getLogger("ine")


@click.command(cls=IneCommand)
@options.concept
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
@options.prompt_rows
@click.option(
    "--negative-embedding",
    "embedding_files",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Embedding to compare with words; several are joined.",
)
@click.option(
    "--guidance",
    "methods",
    multiple=True,
    metavar="NAME",
    help="Method to compare: cfg, additive, sld, safree, vl-dnp; may be repeated. Without any: "
    "the first five.",
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
    help="A gate of `ine calibrate`: methods with a strength also as `--restart` uses them.",
)
@expert(
    "--observer",
    metavar="SPEC",
    help="What looks at previews for vl-dnp, as in `ine observe`.",
)
@expert(
    "--implying",
    default="implying_tuning",
    show_default=True,
    metavar="SET|FILE",
    help="Prompts that imply the concept: a prompt set of the recipe, or a file.",
)
@expert(
    "--benign",
    default="benign",
    show_default=True,
    metavar="SET|FILE",
    help="Prompts that should not change.",
)
@options.opening
@click.option(
    "--count",
    type=click.IntRange(2),
    default=48,
    show_default=True,
    help="Pictures per point of the frontier and prompt set.",
)
@expert("--steps", type=click.IntRange(1, 1000), help="Denoising steps; else the recipe's.")
@expert("--batch", type=click.IntRange(1), help="Pictures per batch (mini 48, else 4).")
@options.flagged
@options.seed
@click.option(
    "--out",
    type=options.OutPath(),
    default=Path("ine-compare"),
    show_default=True,
    help="Folder for the report and its cells.",
)
@options.json_output
def compare(
    concept: str,
    given: tuple[str, ...],
    prompts: Path | None,
    filters: Mapping[str, Any],
    embedding_files: tuple[Path, ...],
    methods: tuple[str, ...],
    strengths: tuple[str, ...],
    gate_file: Path | None,
    observer: str | None,
    implying: str,
    benign: str,
    model: ModelOptions,
    count: int,
    steps: int | None,
    batch: int | None,
    blur: str | None,
    seed: int,
    out: Path,
    as_json: bool,
) -> None:
    """Compare guidance methods, with words and with an embedding, on the same prompts and seeds.

    Options that choose rows of prompt files apply to every file that is given.

    The report shows pictures side by side, and for a sweep of strengths how much of the concept
    remains and how much of benign pictures is preserved. Finished work in --out is kept.
    """
    from ine.embeddings.embedding import read_embedding
    from ine.evaluation.grid import GridModel
    from ine.recipe import load_recipe
    from ine.recipe.loading import find_recipe
    from ine.studies.compare import check, run_compare
    from ine.studies.comparison import MODEL, Comparison
    from ine.studies.grids import unet_texts

    recipe = load_recipe(concept)
    texts = _prompts(recipe, given, prompts, {"implying": implying, "benign": benign}, filters)
    seen_by = {"observer": observer, "look_for": str(find_recipe(concept).absolute())}
    choice = _choice(methods, strengths, count=count, seed=seed, **texts, **seen_by)
    embeddings = tuple(read_embedding(path) for path in embedding_files)
    chosen = model.choose(embeddings, recipe)
    claim_folder(out)
    opened = chosen.open(keep_base=False, check_fits=False)
    if not model.unet:
        log.warning("no --unet: the base model is compared, which still knows the concept's words")
    found = Comparison(
        parts=opened.parts,
        model=GridModel(name=MODEL, model=chosen.name, unet=unet_texts(model.unet)),
        recipe=recipe,
        files=embedding_files,
        choice=choice,
        sampler=_sampler(opened, recipe, steps, batch),
        folder=out,
        gate=gate_file,
    )
    check(found)
    with bar(found.total(), "pictures") as update:
        page, table = run_compare(found, blur, update)
    echo_report(page, as_json, table)


def _choice(methods: Sequence[str], strengths: Sequence[str], **more: Any) -> "Choice":
    """Return the `Choice` of `--guidance`, `--strengths` and `more` of its fields."""
    from ine.guidance.table import find_method
    from ine.studies.compare import read_strengths
    from ine.studies.comparison import USUAL, Choice

    names = tuple(dict.fromkeys(find_method(name).name for name in methods)) or USUAL
    return Choice(methods=names, strengths=read_strengths(strengths, names), **more)


def _sampler(
    opened: OpenModel, recipe: "ConceptRecipe", steps: int | None, batch: int | None
) -> "SamplerSettings":
    """Return the recipe's sampler, with steps and batch of the options."""
    from ine.sampling import SamplerSettings
    from ine.text.encode import TextOptions

    return SamplerSettings(
        steps=steps or (recipe.tuning.steps if recipe.tuning else 50),
        guidance_scale=(recipe.tuning or recipe.pictures).guidance_scale,
        batch=batch or opened.parts.family_info.compared,
        reading=TextOptions(weights=True),
    )


def _prompts(
    recipe: "ConceptRecipe",
    given: tuple[str, ...],
    file: Path | None,
    sets: Mapping[str, str],
    filters: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what `Choice` says of prompts: those to show, and the sets, of files where files are.

    Args:
        recipe: Its prompt sets come first.
        given: Texts to show.
        file: Of more to show.
        sets: {field: name of a prompt set, or file}.
        filters: Values of `options.prompt_rows`.
    """
    from ine.prompts.reading import is_there

    known = recipe.prompt_sets
    files = [name for name, text in sets.items() if text not in known and is_there(text)]
    choose.check_filters(filters, [file, *files])
    found: dict[str, Any] = {**sets}
    for name in files:
        found[name] = tuple(choose.read_prompt_file(Path(sets[name]), filters))
    if given or file:
        found["prompts"] = tuple(choose.read_prompts(given, file, filters if file else None))
    return found
