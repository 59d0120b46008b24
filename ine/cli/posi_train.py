"""`ine posi train` and `ine posi base`: train a rewriter, and get a small model to start from."""

from pathlib import Path

import click

from ine.cli import options
from ine.cli.command import IneCommand
from ine.cli.posi_options import instruction
from ine.cli.progress import bar
from ine.cli.writing import claim_folder


@click.command(cls=IneCommand)
@click.option(
    "--stage",
    type=click.Choice(["sft", "ppo"]),
    required=True,
    help="sft learns from --pairs, ppo from pictures of what it writes for --prompts.",
)
@click.option(
    "--algorithm",
    type=click.Choice(["ppo", "grpo"]),
    default="ppo",
    show_default=True,
    help="ppo: by PPO, or by group relative policy optimisation on the same reward.",
)
@click.option(
    "--recipe",
    "recipe_name",
    required=True,
    metavar="NAME|FILE",
    help="released, smollm2, mini, or a YAML file.",
)
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The language model's folder (the recipe's).",
)
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="ppo: what the first stage made; it is merged into the base.",
)
@click.option(
    "--pairs",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="sft: JSON of instruction, input and output, as `ine posi pairs` writes it.",
)
@click.option(
    "--equal",
    type=click.Choice(["refuse", "keep", "drop"]),
    default="refuse",
    show_default=True,
    help="sft: pairs with equal sides, which teach to change nothing.",
)
@click.option(
    "--prompts",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE|NAME",
    help="ppo: prompts to rewrite; may be repeated.",
)
@options.prompt_rows
@click.option("--out", type=options.OutPath(), required=True, help="Folder of the adapter.")
@click.option(
    "--store",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="ppo: folder of pictures, which trainings may share (OUT/pictures).",
)
@instruction
@options.overrides
@options.device
@options.dry_run
@options.force
def train(stage: str, out: Path, recipe_name: str, force: bool, **given: object) -> None:
    """Train a language model to rewrite prompts, stage by stage.

    The base stays as it is; each stage writes a low-rank adapter. A run that was killed goes on
    where it was when the same command is given again.
    """
    from ine.cli import posi_stages
    from ine.posi.recipe import load_posi_recipe

    recipe = load_posi_recipe(recipe_name, given.pop("overrides"))  # type: ignore[arg-type]
    run = posi_stages.sft if stage == "sft" else posi_stages.on_pictures
    run(recipe, posi_stages.TrainOptions(out=out, force=force, **given))  # type: ignore[arg-type]


@click.command(cls=IneCommand)
@click.argument("name", metavar="mini|FILE.gguf")
@click.option("--out", type=options.OutPath(), required=True, help="Folder to write.")
@click.option("--steps", type=click.IntRange(1), default=1000, show_default=True, help="Of mini.")
@options.seed
@options.force
def base(name: str, out: Path, steps: int, seed: int, force: bool) -> None:
    """Get a small language model to train rewriters on, as a folder of transformers.

    mini knows the words of the bundled model's world and repeats what it is given; it is trained
    here. The model of a GGUF file is written in float32, with its tokenizer.
    """
    from ine.errors import OutputError

    if (out / "config.json").exists() and not force:
        raise OutputError(f"{out}: holds a model already; give --force or another --out")
    claim_folder(out)
    if name == "mini":
        _train_base(out, steps, seed, force)
        return
    from ine.posi.gguf_base import convert

    count = convert(Path(name), out)
    click.echo(f"{out}: {count / 1e6:.1f} million weights of {name}")


def _train_base(out: Path, steps: int, seed: int, force: bool) -> None:
    """Train the model of the bundled world's words."""
    from ine.optim import StateFile
    from ine.posi.mini_words import make_base
    from ine.store.units import key_of

    state = StateFile(
        path=out / "state.safetensors",
        key=key_of(steps=steps, seed=seed),
        command="ine posi base",
        every=50,
        force=force,
    )
    with bar(steps, "training") as progress:
        loss = make_base(
            out,
            steps=steps,
            seed=seed,
            state=state,
            on_step=lambda done, loss: progress(done, loss=f"{loss:.3f}"),
        )
    (out / "state.safetensors").unlink(missing_ok=True)
    click.echo(f"{out}: a model of the bundled world's words, last loss {loss:.4f} nats")
