"""`ine refine train`: train the model that looks at pictures and rewrites prompts."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ine.cli import choose, options
from ine.cli.command import IneCommand, expert
from ine.cli.guiding import DefenceOptions, defending_beside_observer
from ine.cli.model import ModelOptions
from ine.cli.progress import bar
from ine.cli.refine_generator import GeneratorOptions, generating, generator_of
from ine.cli.sampling import SamplingOptions

if TYPE_CHECKING:
    from ine.training.refiner import TrainingRecipe


@click.command(cls=IneCommand)
@click.option(
    "--stage",
    required=True,
    type=click.Choice(["sft", "grpo"]),
    help="sft learns the answers of --data. grpo draws answers to --prompts and learns from the "
    "reward of their pictures.",
)
@expert(
    "--recipe",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Settings, such as recipes/refine/qwen2.5-vl-3b.yaml; by default those of IPR.",
)
@expert("--base", metavar="FOLDER_OR_ID", help="Vision-language model; by default the recipe's.")
@click.option(
    "--adapter",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Adapter to go on from; for grpo the one of sft.",
)
@click.option(
    "--data",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="SET",
    help="sft: a set, see `ine refine dataset`; may be repeated.",
)
@click.option(
    "--prompts",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="grpo: prompts, screened; a file or a set such as mini:fire/implying-tuning; may be "
    "repeated.",
)
@options.prompt_rows
@expert(
    "--limit",
    type=click.IntRange(1),
    metavar="N",
    help="grpo: only the first N prompts of each file.",
)
@defending_beside_observer
@options.opening
@options.sampler
@generating
@expert(
    "--store",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="grpo: folder that keeps pictures by prompt and seed; by default beside --out.",
)
@options.overrides
@click.option(
    "--out",
    type=options.OutPath(),
    required=True,
    metavar="DIR",
    help="Folder for the adapter, in PEFT's layout.",
)
@expert("--force", is_flag=True, help="Replace a training with other settings.")
@options.dry_run
@options.json_output
def train(
    stage: str,
    recipe: Path | None,
    base: str | None,
    adapter: Path | None,
    data: tuple[Path, ...],
    prompts: tuple[Path, ...],
    filters: Mapping[str, Any],
    limit: int | None,
    defence: DefenceOptions,
    model: ModelOptions,
    sampling: SamplingOptions,
    generating: GeneratorOptions,
    store: Path | None,
    overrides: tuple[str, ...],
    out: Path,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train an adapter for a vision-language model: supervised, then by the reward of pictures.

    Give an interrupted command again to go on; losses and rewards are those of a run that was not
    interrupted. The adapter loads with transformers and peft.
    """
    from ine.training.refiner import load_training

    plan = load_training(recipe, overrides)
    place = base or plan.base
    needed: dict[str, Any] = {"--base (or base in the recipe)": place}
    needed |= _needed(stage, data, prompts)
    if missing := [name for name, value in needed.items() if not value]:
        raise click.UsageError(f"--stage {stage} needs {' and '.join(missing)}")
    if dry_run:
        _print_plan(stage, plan, place, out)
        return
    if stage == "sft":
        figures = _sft(plan, place, data, out, adapter, model.device, force)
    else:
        reading = plan.asked.reading()
        generator = generator_of(generating, defence, model, sampling, reading)
        kept = store or out.with_name(f"{out.name}.store")
        texts = [row.prompt for row in choose.rows_of_all(prompts, filters, limit)]
        figures = _grpo(plan, place, texts, generator, kept, out, adapter, model.device, force)
    if as_json:
        click.echo(json.dumps({"out": str(out), **figures}, indent=2))
        return
    click.echo(f"wrote {out}")
    click.echo(f"use it: ine refine --observer vlm:{out} ...")


def _needed(
    stage: str, data: tuple[Path, ...], prompts: tuple[Path, ...]
) -> dict[str, tuple[Path, ...]]:
    return {"--data": data} if stage == "sft" else {"--prompts": prompts}


def _print_plan(stage: str, plan: "TrainingRecipe", base: str, out: Path) -> None:
    """Print what would be done."""
    said: dict[str, Any] = {"stage": stage, "base": base, "out": str(out)}
    used = {"sft": ("sft", "asked"), "grpo": ("grpo", "reward", "asked")}[stage]
    resolved = plan.model_dump(mode="json")
    click.echo(json.dumps({**said, **{name: resolved[name] for name in used}}, indent=2))


def _sft(
    plan: "TrainingRecipe",
    base: str,
    data: tuple[Path, ...],
    out: Path,
    adapter: Path | None,
    device: str,
    force: bool,
) -> dict[str, Any]:
    """Run the supervised stage; return its figures."""
    from ine.observers.vlm_loading import find_vlm
    from ine.refining.dataset_files import read_set
    from ine.refining.trained import asked_of
    from ine.training.refiner import SetExamples
    from ine.training.sft import fine_tune

    reading = plan.asked.reading()
    rows = SetExamples([row for place in data for row in read_set(place).rows], reading)
    with bar(1, "sft") as update:
        done = fine_tune(
            find_vlm(base),
            rows,
            plan.sft,
            out,
            adapter=adapter,
            device=device,
            force=force,
            on_step=lambda step, total, one: update(step / total, loss=f"{one['loss']:.4f}"),
            asked=asked_of(reading),
        )
    return {"rows": done.rows, "losses": list(done.losses)}


def _grpo(
    plan: "TrainingRecipe",
    base: str,
    prompts: list[str],
    generator: Any,
    store: Path,
    out: Path,
    adapter: Path | None,
    device: str,
    force: bool,
) -> dict[str, Any]:
    """Run the stage of rewards; return its figures."""
    from ine.observers.vlm_loading import find_vlm
    from ine.store.pictures import Store
    from ine.training.grpo import reinforce
    from ine.training.kept_pictures import KeptPictures
    from ine.training.refining_reward import RefiningReward
    from ine.training.rewards import load_judges

    reward = RefiningReward(
        settings=plan.reward,
        pictures=KeptPictures(generator, Store(store)),
        judges=load_judges(plan.reward),
        reading=plan.asked.reading(max_tokens=plan.grpo.max_tokens),
        keep=plan.grpo.keep,
        unusable=plan.grpo.unusable,
    )
    with bar(1, "grpo") as update:
        done = reinforce(
            find_vlm(base),
            prompts,
            reward,
            plan.grpo,
            out,
            adapter=adapter,
            device=device,
            force=force,
            on_step=lambda step, total, one: update(step / total, reward=f"{one['reward']:.3f}"),
        )
    return {"rewards": list(done.rewards), "answers": done.answers}
