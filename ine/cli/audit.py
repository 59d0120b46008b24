"""`ine audit`: attack one's own defence, add what was found, and attack again."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ine.cli import choose, options
from ine.cli.command import IneCommand, expert
from ine.cli.guiding import DefenceOptions, defending
from ine.cli.model import ModelOptions
from ine.cli.progress import bar
from ine.cli.sampling import SamplingOptions
from ine.cli.searching import gate_weight
from ine.cli.writing import claim_folder

if TYPE_CHECKING:
    from ine.evaluation.stats import Rate
    from ine.studies.audit_round import Audit, Round

log = logging.getLogger("ine")


@click.command(cls=IneCommand)
@options.concept
@defending
@options.opening
@options.attacker_images
@options.skip_bad
@click.option(
    "--rounds",
    type=click.IntRange(1, 25),
    default=3,
    show_default=True,
    help="How often the embedding found is added, at most.",
)
@click.option(
    "--threshold",
    type=options.FiniteRange(0, 1),
    default=0.1,
    show_default=True,
    help="The audit ends when at most this share of pictures shows the concept.",
)
@expert(
    "--count",
    type=click.IntRange(2),
    default=48,
    show_default=True,
    help="Pictures to measure an attack, and preservation, with.",
)
@expert(
    "--judge",
    "judge_name",
    metavar="DETECTOR",
    help="Detector to use instead of that of the recipe's rule.",
)
@gate_weight
@options.flagged
@options.seed
@options.overrides
@options.sampler
@click.option(
    "--out",
    type=options.OutPath(),
    default=Path("ine-audit"),
    show_default=True,
    help="Folder for the report and the embeddings found; an interrupted run resumes from it.",
)
@options.json_output
def audit(
    concept: str,
    defence: DefenceOptions,
    model: ModelOptions,
    images: Path | None,
    skip_bad: bool,
    rounds: int,
    threshold: float,
    count: int,
    judge_name: str | None,
    gate_weight: float,
    blur: str | None,
    seed: int,
    overrides: tuple[str, ...],
    sampling: SamplingOptions,
    out: Path,
    as_json: bool,
) -> None:
    """Attack a defence by inverting the concept through it; add what was found; attack again.

    The options of the defence are those of `ine generate`; a gate with a probe is attacked as if it
    were open, and by an attacker who keeps it shut. The budget of an attack is the recipe's
    inversion (--set inversion.steps=N, inversion.runs=N seeds of each). It ends when no attack
    recovers more than --threshold, or after --rounds; an interrupted command resumes.

    The embeddings found bring the concept back if they are used as a prompt: keep those of real
    harms private.
    """
    from ine.attacks.step import Victim
    from ine.detectors.rules import find_rule
    from ine.detectors.table import check_detector
    from ine.recipe import load_recipe
    from ine.studies.audit_page import write_audit
    from ine.studies.audit_round import Audit, AuditSettings

    recipe = load_recipe(concept, overrides)
    settings = AuditSettings(
        rounds=rounds, threshold=threshold, pictures=count, benign=count, seed=seed
    )
    check_detector(judge_name or find_rule(recipe.pictures.rule).detector)
    embeddings = defence.embeddings()
    chosen = model.choose(embeddings, recipe)
    claim_folder(out)
    opened = chosen.open()
    if not model.unet:
        log.warning("no --unet: the base model is audited, which still knows the concept's words")
    sampler = defence.settled(sampling).settings(opened.parts)
    guidance = defence.build(opened.parts, sampler, embeddings)
    described = Audit(
        victim=Victim(opened.parts, sampler, guidance),
        recipe=recipe,
        pictures=choose.attacker_pictures(opened.base, recipe, out, seed, images, skip_bad),
        origin=str(images or Audit.origin),
        folder=out,
        settings=settings,
        judge=judge_name,
        gate_weight=gate_weight,
    )
    found = _rounds(described)
    _print_rounds(found, write_audit(described, found, blur), as_json)


def _rounds(audit: "Audit") -> Sequence["Round"]:
    """Run an audit with a progress bar."""
    from ine.studies.audit import run_audit

    # Without the defence, through every round's, and to keep its gate shut.
    attacks = audit.settings.rounds + 2 + (audit.gate is not None)
    with bar(attacks * audit.recipe.inversion.all_steps, "audit") as update:
        passed: dict[str, int] = {}

        def advance(what: str, done: int, of: int) -> None:
            if what.startswith("attack"):
                passed[what] = done
            update(sum(passed.values()), now=what)

        return run_audit(audit, advance)


def _print_rounds(found: Sequence["Round"], page: Path, as_json: bool) -> None:
    """Print what each attack of each round recovered."""
    log.warning(
        "used as a prompt, the embeddings found bring the concept back: keep those of real harms "
        "private"
    )
    if as_json:
        click.echo(page.with_name("audit.json").read_text(), nl=False)
        return
    for one in found:
        click.echo(f"round {one.number}: {len(one.negatives)} negatives")
        for attack in one.attacks:
            bare = f"undefended {attack.undefended.share:.2f}"
            click.echo(f"  {attack.name}: {_share(attack.recovered)}, {bare}")
        left = "" if one.left is None else f", left on tuning prompts {one.left.value:.2f}"
        click.echo(f"  benign preservation {one.kept.value:.3f}{left}")
    click.echo(f"report: {page}")


def _share(rate: "Rate") -> str:
    return f"{rate.share:.2f} ({rate.low:.2f} to {rate.high:.2f}, N = {rate.trials})"
