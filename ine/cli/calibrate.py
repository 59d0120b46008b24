"""`ine calibrate`: train a gate and set its threshold from benign prompts."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ine.cli import choose, options
from ine.cli.calibrate_pictures import (
    Pictures,
    benign_pictures,
    implying_pictures,
    recipe_for,
)
from ine.cli.command import IneCommand, expert
from ine.cli.model import ModelOptions, OpenModel
from ine.cli.progress import bar
from ine.cli.sampling import SamplingOptions
from ine.cli.writing import claim_file

if TYPE_CHECKING:
    from ine.calibration.gates import Gates
    from ine.embeddings.embedding import ConceptEmbedding
    from ine.guidance.gate_file import Calibration
    from ine.recipe import ConceptRecipe
    from ine.sampling import SamplerSettings

log = logging.getLogger("ine")

LOOK_AHEAD_STEPS = 5
"""`ine.guidance.look_ahead.STEPS`, written out since reading that imports torch."""


@click.command(cls=IneCommand)
@click.argument(
    "embedding_files",
    metavar="EMBEDDING...",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path),
)
@options.opening
@click.option(
    "--prompts",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Benign prompts: a file or a set, as `ine generate` reads them; without it, the recipe's "
    "benign prompts and those that erasers preserve.",
)
@options.prompt_rows
@click.option(
    "--concept",
    metavar="NAME|FILE",
    help="Recipe with benign and tuning prompts; default: the one that the embedding names.",
)
@click.option(
    "--false-open",
    type=options.FiniteRange(0, 1, min_open=True, max_open=True),
    default=0.01,
    show_default=True,
    metavar="RATE",
    help="Largest share of benign pictures for which the gate may open.",
)
@click.option(
    "--pictures",
    type=click.IntRange(1),
    metavar="N",
    help="Benign pictures to generate (default: twice what the rate needs, 200 for 0.01).",
)
@click.option(
    "--examples",
    type=click.IntRange(64),
    metavar="N",
    default=512,
    show_default=True,
    help="Pictures of each kind to learn from.",
)
@expert(
    "--base-examples",
    is_flag=True,
    help="Learn from the base model's pictures of the concept too, for a concept whose members "
    "look different.",
)
@expert(
    "--look-ahead",
    "ahead_steps",
    type=click.IntRange(1, 50),
    metavar="K",
    default=LOOK_AHEAD_STEPS,
    show_default=True,
    help="Coarse steps of the look-ahead.",
)
@options.seed
@options.sampler_and_clip_skip
@options.out
@options.force
@options.json_output
def calibrate(
    embedding_files: tuple[Path, ...],
    model: ModelOptions,
    prompts: Path | None,
    filters: Mapping[str, Any],
    concept: str | None,
    false_open: float,
    pictures: int | None,
    examples: int,
    base_examples: bool,
    ahead_steps: int,
    seed: int,
    sampling: SamplingOptions,
    out: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Train a probe gate that recognises the concept, set its threshold, and write it.

    The gate asks its probe after a look ahead of K coarse steps, before a picture's first step,
    and for --restart at half the run. The probe learns from pictures that the unlearned model
    draws with the embedding in the prompt, without it, and of the recipe's tuning prompts, which
    imply the concept, labelled by the recipe's detector.
    Activations are kept in OUT.run, so an interrupted run is resumed. The thresholds of both looks
    are then set on benign pictures, undefended: the gate opens for at most the wanted share of
    them. The command also prints how often it opens on the recipe's tuning prompts, which imply
    the concept: a gate that stays closed there defends nothing. Calibrate with the sampler
    settings that you will use.
    """
    from ine.calibration.gates import calibrate_gates, looks_at
    from ine.embeddings.embedding import read_embedding
    from ine.guidance.gate_file import write_calibration

    count, out = _checked(embedding_files, false_open, pictures, out, force)
    embeddings = tuple(read_embedding(path) for path in embedding_files)
    recipe = recipe_for(concept, embeddings)
    choose.check_filters(filters, [prompts])
    benign = benign_pictures(prompts, recipe, count, seed, filters)
    implying = implying_pictures(recipe, min(count, 100), seed)
    chosen = model.choose(embeddings, recipe)
    claim_file(out)
    opened = chosen.open(keep_base=base_examples)
    sampler = sampling.settings(opened.parts)
    gates, taught = _teach(
        *(opened, recipe, embeddings, sampler),
        ahead_steps=ahead_steps,
        count=examples,
        seed=seed,
        folder=out.with_name(out.name + ".run"),
        base=opened.base if base_examples else None,
    )
    about = {"prompts": _prompts_record(prompts, recipe, benign), **taught, "seed": seed}
    record = about | _run_record(opened, sampler, embeddings)
    with bar(looks_at(gates, benign, implying), "pictures") as update:
        found = calibrate_gates(
            opened.parts, gates, sampler, benign, implying, false_open, record, update
        )
    write_calibration(found, out, force)
    _print_result(found, out, as_json)


def _checked(
    embedding_files: Sequence[Path],
    false_open: float,
    pictures: int | None,
    out: Path | None,
    force: bool,
) -> tuple[int, Path]:
    """Return (benign pictures, the gate's file); what makes no sense is refused before any work."""
    from ine.calibration.thresholds import fewest_pictures, threshold_for
    from ine.files import check_free
    from ine.guidance.gate_file import check_gate_path, gate_path

    count = pictures or 2 * (fewest_pictures(false_open) + 1)
    threshold_for([0.0] * count, false_open)
    out = out or gate_path(embedding_files)
    check_gate_path(out)
    check_free(out, force)
    return count, out


def _run_record(
    opened: OpenModel, sampler: "SamplerSettings", embeddings: Sequence["ConceptEmbedding"]
) -> dict[str, Any]:
    """Return what the gate's file states about sampler, model and embeddings."""
    from ine.calibration.check import provenance, sampler_record

    return {"sampler": sampler_record(sampler), **provenance(opened.parts, embeddings)}


def _prompts_record(file: Path | None, recipe: "ConceptRecipe", benign: Pictures) -> dict[str, Any]:
    """Return what the gate's file states about the benign prompts."""
    from ine.calibration.check import prompts_hash

    return {
        "source": file.name if file else f"recipe {recipe.name}, benign and preserved",
        "distinct": len(set(benign[0])),
        "hash": prompts_hash(*benign),
    }


def _teach(
    opened: OpenModel,
    recipe: "ConceptRecipe",
    embeddings: Sequence["ConceptEmbedding"],
    sampler: "SamplerSettings",
    **examples: Any,
) -> tuple["Gates", dict[str, Any]]:
    """Return what `teach_gates` does, with a progress bar."""
    from ine.calibration.gates import teach_gates
    from ine.calibration.prompts import implying_prompts

    kinds = 2 + (examples["base"] is not None) + bool(implying_prompts(recipe))
    done = 0
    with bar(kinds * examples["count"], "examples") as update:

        def advance(pictures: int) -> None:
            nonlocal done
            done += pictures
            update(done)

        return teach_gates(opened.parts, recipe, embeddings, sampler, progress=advance, **examples)


def _print_result(found: "Calibration", out: Path, as_json: bool) -> None:
    """Print the threshold and how often the gate opens."""
    if as_json:
        from ine.guidance.gate_file import summary

        click.echo(json.dumps({"out": str(out), **summary(found)}, indent=2))
        return
    benign, tuning = found.record["false_open"], found.record["open_on_tuning"]
    click.echo(f"threshold {found.threshold:g}")
    click.echo(
        f"open on {benign['opened']} of {benign['pictures']} benign pictures "
        f"(wanted at most {benign['wanted']:g})"
    )
    if tuning:
        click.echo(f"open on {tuning['opened']} of {tuning['pictures']} of the tuning prompts")
        if not tuning["opened"]:
            log.warning(
                "the gate stays closed on all tuning prompts, so guidance behind it does nothing; "
                "allow a larger --false-open, or learn from more --examples"
            )
    click.echo(f"wrote {out}")
