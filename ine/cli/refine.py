"""`ine refine`: refine prompts by what is seen in their pictures.

Its other commands are files of their own.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ine.cli import choose, options
from ine.cli.command import DefaultingGroup, IneCommand, expert
from ine.cli.guiding import DefenceOptions, defending_beside_observer
from ine.cli.model import ModelOptions
from ine.cli.printing import echo_report
from ine.cli.progress import bar
from ine.cli.refine_dataset import dataset
from ine.cli.refine_generator import GeneratorOptions, generating, generator_of
from ine.cli.refine_plan import plan_of_generator, plan_of_refining, print_refining
from ine.cli.refine_train import train
from ine.cli.refining_options import RefiningOptions, refining
from ine.cli.rewriting_options import RewritingOptions, rewriting
from ine.cli.sampling import SamplingOptions
from ine.cli.writing import claim_folder

if TYPE_CHECKING:
    from ine.embeddings.embedding import ConceptEmbedding
    from ine.prompts.rows import PromptRow
    from ine.refining.folder import OnUnusable, Row
    from ine.refining.run import Refined
    from ine.sampling import PictureRequest
    from ine.store.pictures import Store

log = logging.getLogger("ine")

REWRITES = "rewrites.jsonl"
"""File of what became of the prompts before round 0, with --rewrite."""


class RefinesByDefault(DefaultingGroup):
    """A group in which `ine refine --prompts FILE` is `ine refine run --prompts FILE`."""

    default = "run"


@click.group(cls=RefinesByDefault)
def refine() -> None:
    """Refine prompts: look at prompt and picture, keep or rewrite, generate again.

    `ine refine --prompts FILE ...` is short for `ine refine run --prompts FILE ...`.
    """


@dataclass(frozen=True, kw_only=True)
class LookingOptions:
    """What the options about the figures and the page say."""

    rules: tuple[str, ...] = ()
    clip_score: str | None = None
    on_unusable: "OnUnusable" = "withhold"
    blur: str | None = None

    def shown(self, embeddings: Sequence["ConceptEmbedding"]) -> str:
        """Return what happens to flagged pictures; those of concepts about people are hidden."""
        recipe = choose.recipe_of(None, embeddings)
        return self.blur or ("hide" if recipe and recipe.people else "click")


looking = options.packed(
    "looking",
    LookingOptions,
    expert(
        "--rule",
        "rules",
        multiple=True,
        metavar="NAME",
        help="Rule that every round is scored by, see `ine judge list`; may be repeated. Without "
        "any, the page takes every picture that was not kept for flagged.",
    ),
    expert(
        "--clip-score",
        metavar="CLIP",
        help="Similarity to the original prompt by mini-judge, clip or clip[FOLDER].",
    ),
    expert(
        "--unusable",
        "on_unusable",
        type=click.Choice(["withhold", "last"]),
        default="withhold",
        show_default=True,
        help="Last picture where an answer was neither keep nor a prompt: a mosaic in its place, "
        "or the picture.",
    ),
    expert(
        "--flagged",
        "blur",
        type=click.Choice(["click", "hide", "show"]),
        help="Flagged pictures on the page: click blurs them until clicked, hide leaves them out "
        "of the file, show shows them (click; hide with embeddings about people).",
    ),
)


@refine.command(cls=IneCommand)
@click.option(
    "--prompts",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Prompts: a text file with one per line, a csv, jsonl or json file, or a set such as "
    "mini:fire/implying-test (see `ine prompts`).",
)
@options.prompt_rows
@refining
@defending_beside_observer
@options.opening
@options.sampler
@rewriting
@generating
@looking
@options.seed
@expert(
    "--limit", type=click.IntRange(1), metavar="N", help="Only the first N prompts of the file."
)
@click.option(
    "--out",
    type=options.OutPath(),
    default=Path("refined"),
    show_default=True,
    help="Folder for index.jsonl, the last pictures (final/), those of all rounds, and the page.",
)
@expert("--force", is_flag=True, help="Replace what other settings left in the folder.")
@options.dry_run
@options.json_output
def run(
    prompts: Path,
    filters: Mapping[str, Any],
    refining: RefiningOptions,
    defence: DefenceOptions,
    model: ModelOptions,
    sampling: SamplingOptions,
    rewriting: RewritingOptions,
    generating: GeneratorOptions,
    looking: LookingOptions,
    seed: int,
    limit: int | None,
    out: Path,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Refine every prompt of a file for at most T rounds, with any generator.

    Each picture is looked at together with its prompt. If both are safe it is kept, else the
    prompt is rewritten and a picture of it generated. Every round is kept: give an interrupted
    command again to resume it. A last picture is kept, or was generated after the last look, or its
    answer could not be used; the index says which, and only the first is one that was called safe.
    """
    from ine.detectors.rules import find_rule
    from ine.refining.folder import enter, write_folder
    from ine.refining.run import Refiner
    from ine.store.pictures import Store

    rows = choose.rows_of(prompts, filters)[:limit]
    settings = refining.settings()
    rules = [find_rule(name) for name in dict.fromkeys(looking.rules)]
    requests = _requests(rows, seed)
    if dry_run:
        made = plan_of_generator(generating, defence, model, sampling, settings)
        asked = (made, str(refining.observer), settings, requests)
        print_refining(plan_of_refining(*asked, looking.rules, out), as_json)
        return
    claim_folder(out)
    generator = generator_of(generating, defence, model, sampling, settings)
    rewriter = refining.load(model.device, out)
    requests, used, by = _rewritten(rewriting, requests, rows, model.device, out)
    about: dict[str, Any] = {
        **by,
        "generator": generator.name,
        "observer": rewriter.name,
        "settings": {**settings.deciding, "rounds": settings.rounds},
        "prompts": [
            [row.id, one.prompt, one.seed] for row, one in zip(used, requests, strict=True)
        ],
        "unusable": looking.on_unusable,
    }
    enter(out, about, force)
    store = Store(out)
    refiner = Refiner(generator=generator, rewriter=rewriter, settings=settings, store=store)
    with bar(len(requests), "prompts") as update:
        batches = refiner(requests, update)
    written = write_folder(out, store, batches, [row.id for row in used], looking.on_unusable)
    shown = replace(looking, blur=looking.shown(defence.embeddings()))
    _report(out, store, batches, written, rules, shown, about, as_json)


def _requests(rows: Sequence["PromptRow"], seed: int) -> tuple["PictureRequest", ...]:
    """Return what round 0 generates: a row's own seed, unless `--seed` was given."""
    from ine.sampling import PictureRequest

    context = click.get_current_context()
    asked = context.get_parameter_source("seed") is not click.core.ParameterSource.DEFAULT
    return tuple(
        PictureRequest(prompt=row.prompt, seed=seed if asked or row.seed is None else row.seed)
        for row in rows
    )


def _rewritten(
    rewriting: RewritingOptions,
    requests: tuple["PictureRequest", ...],
    rows: Sequence["PromptRow"],
    device: str,
    out: Path,
) -> tuple[tuple["PictureRequest", ...], Sequence["PromptRow"], dict[str, str]]:
    """Return what round 0 generates, its rows, and who rewrote; as given if nobody did.

    Prompts without a usable rewrite are left out, which is logged; `REWRITES` has all.
    """
    from ine.files import write_text

    planned = rewriting.planned()
    found = rewriting.rewritten(requests, device, out)
    if planned is None or found is None:
        return requests, rows, {}
    lines = [json.dumps(asdict(row), ensure_ascii=False) for row in found.rows]
    write_text(out / REWRITES, "".join(f"{line}\n" for line in lines))
    usable = found.usable
    left = tuple(found.asked[place] for place in usable)
    return left, [rows[place] for place in usable], {"rewrite": planned.name}


def _report(
    out: Path,
    store: "Store",
    batches: Sequence["Refined"],
    rows: Sequence["Row"],
    rules: Sequence[Any],
    looking: LookingOptions,
    about: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Measure every round, write the page, and print the figures."""
    from ine.refining.folder import counts_of
    from ine.runtime import library_versions
    from ine.studies.refined import measure, write_page

    rounds = about["settings"]["rounds"]
    with bar(rounds + 1, "rounds scored") as update:
        found = measure(store, batches, rounds, rules, looking.clip_score, update)
    provenance: dict[str, str | list[str]] = {
        "generator": about["generator"],
        "observer": about["observer"],
        "settings": json.dumps(about["settings"], ensure_ascii=False),
        "versions": library_versions(),
    }
    page, table = write_page(out, rows, found, rounds, provenance, looking.blur or "click")
    counts = counts_of(rows)
    if counts["withheld"]:
        log.warning(
            "%d of %d last pictures are withheld: no answer says that they are safe",
            *(counts["withheld"], counts["prompts"]),
        )
    echo_report(page, as_json, table, out=str(out), counts=counts, prompts=list(rows))


refine.add_command(dataset)
refine.add_command(train)
