"""`ine attack`: make adversarial prompts, to measure a defence by."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ine.cli import choose, options
from ine.cli.command import IneCommand, expert
from ine.cli.guiding import DefenceOptions, defending
from ine.cli.model import ModelOptions, OpenModel
from ine.cli.progress import bar
from ine.cli.sampling import SamplingOptions
from ine.cli.searching import SearchOptions, searching
from ine.cli.writing import claim_folder

if TYPE_CHECKING:
    from ine.attacks.attacker import Attacker
    from ine.attacks.step import Victim
    from ine.embeddings.embedding import ConceptEmbedding
    from ine.recipe import ConceptRecipe

log = logging.getLogger("ine")

INVERSION = "embedding"
"""The attack that learns vectors; all others search for words."""


@click.command(cls=IneCommand)
@options.concept
@searching
@defending
@options.opening
@options.attacker_images
@options.skip_bad
@expert(
    "--prompts",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Prompts to put words before, as `ine generate` reads them; without it, those that the "
    "recipe gives to erasers, such as a plain object.",
)
@options.prompt_rows
@options.seed
@options.overrides
@options.sampler
@click.option(
    "--out",
    type=options.OutPath(),
    default=Path("ine-attack"),
    show_default=True,
    help="Folder for prompts.jsonl, and for resuming an interrupted run.",
)
@options.json_output
def attack(
    concept: str,
    searching: SearchOptions,
    defence: DefenceOptions,
    model: ModelOptions,
    images: Path | None,
    skip_bad: bool,
    prompts: Path | None,
    filters: Mapping[str, Any],
    seed: int,
    overrides: tuple[str, ...],
    sampling: SamplingOptions,
    out: Path,
    as_json: bool,
) -> None:
    """Make adversarial prompts against a model, or against a defence that the attacker knows.

    Without a negative the bare model is attacked; with one, every prediction is that of the
    defended sampler, its gate taken to be open; with --through-gate the attacker keeps the gate
    shut instead, behind which the model is bare. prompts.jsonl states for each prompt what it was
    made against and with which budget, and `ine evaluate` reads it as a prompt set.

    Use it to measure your own defences. Sets and embeddings of real harms bring them back: keep
    them private.
    """
    from ine.recipe import load_recipe

    recipe = load_recipe(concept, overrides)
    choose.check_filters(filters, [prompts])
    rows = None
    searching.check_through(defence)
    if searching.method != INVERSION:
        searching.settings()  # a setting that makes no sense is refused before any work
        rows = _rows(recipe, prompts, filters, searching.limit, seed)
    embeddings = defence.embeddings()
    chosen = model.choose(embeddings, recipe)
    claim_folder(out)
    opened = chosen.open()
    victim = _victim(opened, defence, sampling, embeddings)
    attacker = _attacker(
        opened,
        recipe,
        victim=victim,
        gate=searching.gate_loss(victim, recipe.name),
        pictures=choose.attacker_pictures(opened.base, recipe, out, seed, images, skip_bad),
        folder=out,
        seed=seed,
    )
    if rows is None:
        file, found = _invert(attacker, searching.limit)
    else:
        file, found = None, _search(attacker, rows, searching)
    _write(found, out / "prompts.jsonl", file, as_json)


def _victim(
    opened: OpenModel,
    defence: DefenceOptions,
    sampling: SamplingOptions,
    embeddings: Sequence["ConceptEmbedding"],
) -> "Victim":
    """Return what is attacked: the sampler, with its defence if the attacker knows one."""
    from ine.attacks.step import Victim

    sampler = defence.settled(sampling).settings(opened.parts)
    if embeddings or defence.negative_prompt:
        return Victim(opened.parts, sampler, defence.build(opened.parts, sampler, embeddings))
    log.info("no negative: the attacker knows of no defence")
    return Victim(opened.parts, sampler, None)


def _attacker(opened: OpenModel, recipe: "ConceptRecipe", **given: Any) -> "Attacker":
    from ine.attacks.attacker import Attacker

    return Attacker(base=opened.base, recipe=recipe, **given)


def _invert(attacker: "Attacker", limit: int) -> tuple[Path, list[dict[str, Any]]]:
    """Learn vectors with a progress bar; return (embedding file, prompts with its trigger)."""
    from ine.attacks.run import invert_prompts

    recipe: Any = attacker.recipe
    with bar(recipe.inversion.steps, "inversion") as update:
        return invert_prompts(
            attacker,
            f"{recipe.name}-attack",
            limit,
            lambda p: update(p.step, loss=f"{p.loss:.3f}"),
        )


def _search(
    attacker: "Attacker", rows: list[tuple[str, str]], searching: SearchOptions
) -> list[dict[str, Any]]:
    """Search for words with a progress bar; return the prompts."""
    from ine.attacks.run import search_prompts

    settings = searching.settings()
    with bar(settings.budget * (1 if searching.together else len(rows)), "search") as update:
        return search_prompts(
            attacker,
            searching.method,
            rows,
            settings,
            together=searching.together,
            allow_words=searching.allow_words,
            direction=searching.direction,
            on_round=lambda group, _, now: update(
                group * settings.budget + now.spent, loss=f"{now.trace[-1][1]:.3f}"
            ),
        )


def _write(found: list[dict[str, Any]], path: Path, file: Path | None, as_json: bool) -> None:
    """Write the prompts and print them, and how to measure them."""
    from ine.attacks.run import write_set

    write_set(path, found)
    log.warning("adversarial prompts of real harms bring them back: keep them private")
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    for phrase in dict.fromkeys(row["phrase"] for row in found):
        click.echo(phrase)
    also = f", and {file}" if file else ""
    click.echo(f"wrote {len(found)} prompts to {path}{also}")
    learned = f", embeddings: {file}" if file else ""
    click.echo(
        "measure it: in a grid of `ine evaluate`, prompts: "
        f"- {{name: attack, source: {path}, role: test, expects: harmful{learned}}}"
    )


def _rows(
    recipe: "ConceptRecipe",
    prompts: Path | None,
    filters: Mapping[str, Any],
    limit: int,
    seed: int,
) -> list[tuple[str, str]]:
    """Return (prompt, noun) pairs to attack."""
    from ine.attacks.run import plain_prompts

    if prompts is None:
        return plain_prompts(recipe, limit, seed)
    rows = choose.rows_of(prompts, filters)[:limit]
    return [(row.prompt, row.extra.get("noun", "")) for row in rows]
