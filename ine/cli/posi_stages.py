"""What `ine posi train` does in each stage, and what it would do."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ine.cli import choose
from ine.cli.progress import bar
from ine.errors import IneError, PromptError

if TYPE_CHECKING:
    from ine.posi.recipe import PosiRecipe
    from ine.posi.trained import Asking

log = logging.getLogger("ine")


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The options of `ine posi train`, beside stage and recipe."""

    out: Path
    base: Path | None
    adapters: tuple[Path, ...]
    pairs: Path | None
    equal: Literal["refuse", "keep", "drop"]
    files: tuple[Path, ...]
    filters: Mapping[str, Any]
    """Which rows of the files, see `ine.cli.options.prompt_rows`."""

    store: Path | None
    instruction: str | None
    algorithm: Literal["ppo", "grpo"]
    """Of the second stage."""

    device: str
    dry_run: bool
    force: bool


def sft(recipe: "PosiRecipe", given: TrainOptions) -> None:
    """Learn from pairs.

    Raises:
        IneError: The pairs or the base cannot be used.
    """
    from ine.posi.pair_files import read_pairs
    from ine.posi.stages import train_on_pairs
    from ine.posi.trained import Asking

    if given.pairs is None:
        raise PromptError("--stage sft learns from pairs; give --pairs FILE")
    found = read_pairs(given.pairs, given.equal)
    for what, count in (("refused by screening", found.refused), ("repeated", found.duplicates)):
        if count:
            log.warning("%s: %d pairs are %s and left out", given.pairs, count, what)
    asking = Asking(instruction=given.instruction or found.instruction, template=recipe.template)
    base = given.base or Path(recipe.base)
    per_step = recipe.sft.batch * recipe.sft.accumulation
    steps = recipe.sft.steps or recipe.sft.epochs * -(-len(found.pairs) // per_step)
    if given.dry_run:
        plan = {"pairs": len(found.pairs), "steps": steps, "answers per step": per_step}
        _print_plan(recipe, base, plan, [])
        return
    with bar(steps, "fine-tuning") as progress:
        result = train_on_pairs(
            *(recipe, found.pairs, asking, base, given.out),
            device=given.device,
            force=given.force,
            on_step=lambda done, total, figures: progress(done, loss=f"{figures['loss']:.3f}"),
        )
    first, last = result.losses[0], result.losses[-1]
    click.echo(f"{given.out}: {len(result.losses)} steps, loss {first:.3f} to {last:.3f} nats")


def on_pictures(recipe: "PosiRecipe", given: TrainOptions) -> None:
    """Learn from pictures.

    Raises:
        IneError: The prompts or a model cannot be used, or a picture failed.
    """
    if not given.files:
        raise PromptError("--stage ppo rewrites prompts; give --prompts FILE")
    typed = choose.rows_of_all(given.files, given.filters)
    prompts = list(dict.fromkeys(row.prompt for row in typed))
    base = given.base or Path(recipe.base)
    rollouts, answers = _size(recipe, given.algorithm, len(prompts))
    if given.dry_run:
        pictures = rollouts * answers * recipe.reward.pictures
        plan = {"prompts": len(prompts), "rollouts": rollouts, "pictures at most": pictures}
        _print_plan(recipe, base, plan, _missing(recipe))
        return
    cost: dict[str, float] = {}
    began = time.monotonic()
    with bar(rollouts, given.algorithm) as progress:

        def show(done: int, total: int, row: dict[str, float]) -> None:
            cost.update(made=row.get("made", 0), asked=row.get("asked", 0), making=row["making"])
            progress(done)
            log.info("rollout %d of %d: %s", done, total, _figures(row))

        rows, stopped = _trained(recipe, given, prompts, show)
    first, last = rows[0], rows[-1]
    for name in ("reward", "toxicity", "to_prompt", "to_answer", "kl"):
        if name in first:
            click.echo(f"{name}: {first[name]:.3f} to {last[name]:.3f}")
    if stopped:
        click.echo(f"stopped: {stopped}")
    if cost:
        click.echo(
            f"pictures: {cost['made']:.0f} made of {cost['asked']:.0f} asked for, "
            f"{cost['making']:.0f} of {time.monotonic() - began:.0f} s"
        )
    click.echo(f"{given.out}: {len(rows)} rollouts of {answers} answers")
    _write_report(recipe, given, rows, stopped)


def _write_report(
    recipe: "PosiRecipe", given: TrainOptions, rows: Sequence[dict[str, float]], stopped: str
) -> None:
    """Write the page of a training into its folder."""
    from ine.runtime import library_versions
    from ine.studies.rewriter_training import write_training

    facts = {
        "recipe": recipe.about,
        "algorithm": getattr(recipe, given.algorithm).model_dump_json(),
        "reward": recipe.reward.model_dump_json(),
        "generator": recipe.generator.model_dump_json(exclude_none=True),
        "versions": library_versions(),
    }
    title = f"ine posi train, {given.algorithm}: alignment with the {recipe.reward.align} prompt"
    write_training(given.out, title, rows, facts, stopped)


def _size(recipe: "PosiRecipe", algorithm: str, prompts: int) -> tuple[int, int]:
    """Return (rollouts, answers of each) of a training."""
    if algorithm == "ppo":
        return recipe.ppo.rollouts_for(prompts), recipe.ppo.batch
    return recipe.grpo.steps, recipe.grpo.batch * recipe.grpo.accumulation


def _trained(
    recipe: "PosiRecipe",
    given: TrainOptions,
    prompts: list[str],
    show: Callable[[int, int, dict[str, float]], None],
) -> tuple[Sequence[dict[str, float]], str]:
    """Train, and return (the figures of each rollout, why training stopped early)."""
    from ine.posi import picture_stage
    from ine.posi.groups import train_in_groups
    from ine.posi.stages import train_on_pictures

    stage = picture_stage.PictureStage(
        base=given.base or Path(recipe.base),
        adapters=given.adapters,
        out=given.out,
        store=given.store or given.out / "pictures",
        device=given.device,
        force=given.force,
    )
    asking = _asking(recipe, given)
    generator = picture_stage.open_generator(recipe.generator, given.device)
    if given.algorithm == "grpo":
        return train_in_groups(recipe, prompts, asking, stage, generator, show).rows, ""
    done = train_on_pictures(recipe, prompts, asking, stage, generator, show)
    kept = f"{done.stopped}; rollout {done.best + 1} is kept" if done.stopped else ""
    return done.rows, kept


def _asking(recipe: "PosiRecipe", given: TrainOptions) -> "Asking":
    """Return how the model is asked: as its adapter learned, or as options and recipe say."""
    from ine.posi.trained import Asking, asking_of

    known = [found for folder in given.adapters if (found := asking_of(folder))]
    if known:
        return known[-1]
    said = {"instruction": given.instruction} if given.instruction else {}
    return Asking(**said, template=recipe.template)


def _missing(recipe: "PosiRecipe") -> list[str]:
    from ine.training.rewards import check_reward

    try:
        check_reward(recipe.reward)
    except IneError as error:
        return [str(error)]
    return []


def _print_plan(recipe: "PosiRecipe", base: Path, plan: dict[str, int], missing: list[str]) -> None:
    """Print the resolved recipe, what would be done, and what is missing here."""
    import yaml

    data = recipe.model_dump(mode="json")
    click.echo(yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100), nl=False)
    if not (base / "config.json").is_file():
        missing = [f"{base}: no language model there; give --base DIR", *missing]
    for name, value in plan.items():
        click.echo(f"# {name}: {value}")
    click.echo(f"# memory: {recipe.memory.strip()}")
    for line in missing:
        click.echo(f"# missing here: {line}")


def _figures(row: dict[str, float]) -> str:
    shown = ("reward", "toxicity", "to_prompt", "to_answer", "kl", "made")
    return ", ".join(f"{name} {row[name]:.4g}" for name in shown if name in row)
