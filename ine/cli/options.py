"""Options that several commands share: one name, one type and one help text each.

@click.command(cls=IneCommand)
@options.opening
@options.seed
def invert(model: ModelOptions, seed: int) -> None: ...
"""

from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Any

import click

from ine.cli.choices import SCHEDULERS
from ine.cli.command import expert
from ine.cli.model import ModelOptions
from ine.cli.param_types import Device, FiniteRange, OutPath, Override, UnetFile
from ine.cli.sampling import SamplingOptions
from ine.weights.stack import as_unet

Decorator = Callable[[Callable], Callable]


def together(*given: Decorator) -> Decorator:
    """Return a decorator that adds several options, in this order."""

    def add(command: Callable) -> Callable:
        for option in reversed(given):
            command = option(command)
        return command

    return add


def packed(argument: str, kind: type, *given: Decorator) -> Decorator:
    """Return a decorator that adds options and passes their values to the command as one value.

    Args:
        argument: The command's argument that takes the value.
        kind: A dataclass with a field for each option.
        given: The options.
    """
    names = {field.name for field in fields(kind)}

    def add(command: Callable) -> Callable:
        @wraps(command)
        def call(*args: Any, **values: Any) -> Any:
            own = {name: values.pop(name) for name in names & set(values)}
            return command(*args, **{argument: kind(**own)}, **values)

        return together(*given)(call)

    return add


seed = click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Seed of all random numbers; the same seed gives the same result.",
)
out = click.option(
    "--out",
    type=OutPath(),
    help="File to write; without it, a name made from the inputs.",
)
skip_bad = expert("--skip-bad", is_flag=True, help="Leave out pictures that cannot be read.")
force = click.option("--force", is_flag=True, help="Replace existing files.")
json_output = expert(
    "--json", "as_json", is_flag=True, help="Print the result to standard output as JSON."
)
dry_run = expert(
    "--dry-run",
    is_flag=True,
    help="Check everything that needs no weights, print the plan, and stop.",
)
concept = click.option(
    "--concept", required=True, metavar="NAME|FILE", help="A shipped recipe's name or a YAML file."
)
overrides = expert(
    "--set",
    "overrides",
    type=Override(),
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a field of the recipe, such as inversion.steps=50; may be repeated.",
)
images = click.option(
    "--images",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Pictures of the concept; without it, the base model makes them from the recipe.",
)
attacker_images = expert(
    "--images",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Pictures of the concept that the attacker has; without it, the base model makes them.",
)
flagged = expert(
    "--flagged",
    "blur",
    type=click.Choice(["click", "hide", "show"]),
    help="Flagged pictures: click blurs them until clicked, hide leaves them out of the file, show "
    "shows them (click; hide for recipes about people).",
)

# --- the model ----------------------------------------------------------------------------------

device = expert(
    "--device",
    type=Device(),
    default="auto",
    show_default=True,
    metavar="auto|cpu|mps|cuda[:N]",
    help="Where to compute; auto takes a GPU if there is one.",
)
dtype = expert(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="Precision of the weights; auto is float16 on CUDA, float32 elsewhere.",
)
model = click.option(
    "--model",
    metavar="ID|DIR|FILE",
    help="Base model: mini (bundled), a pipeline folder, a whole model in one .safetensors or "
    ".ckpt file, or a hub id; without it, the one that the embedding or else the recipe names.",
)
unet = click.option(
    "--unet",
    type=UnetFile(),
    multiple=True,
    callback=lambda ctx, param, layers: as_unet(layers),
    metavar="FILE[:WEIGHT]",
    help="Unlearned weights to apply to the base model: a file, a folder or a hub id (OWNER/NAME "
    "or OWNER/NAME/FILE); may be repeated, applied in order. A weight scales the difference from "
    "the base.",
)
opening = packed("model", ModelOptions, unet, model, device, dtype)
"""The model of a command, as `model: ModelOptions`."""

opening_base = packed("model", ModelOptions, model, device, dtype)
"""The same without unlearned weights."""

# --- the sampler --------------------------------------------------------------------------------

clip_skip = expert(
    "--clip-skip",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="N",
    help="Text encoder layer to use, counted from the last as UIs do: 1 is the last, 2 the one "
    "before it (diffusers calls that 1).",
)
sampling = together(
    expert(
        "--steps",
        type=click.IntRange(1, 1000),
        help="Denoising steps (mini 20, few-step models 4, else 50).",
    ),
    expert(
        "--scheduler",
        type=click.Choice(SCHEDULERS),
        help="Sampler (few-step models their own, else ddim).",
    ),
    expert(
        "--guidance-scale",
        type=FiniteRange(min=1),
        metavar="W",
        help="Strength of the prompt; 1 is no guidance (mini 5, turbo and Lightning models 1, "
        "else 7.5).",
    ),
    expert("--batch", type=click.IntRange(1), help="Pictures per batch (mini 16, SDXL 2, else 4)."),
)
sampler = packed("sampling", SamplingOptions, sampling)
"""The sampler of a command, as `sampling: SamplingOptions`."""

sampler_and_clip_skip = packed("sampling", SamplingOptions, sampling, clip_skip)

# --- rows of prompt files -----------------------------------------------------------------------

choosing_rows = together(
    expert(
        "--column",
        metavar="NAME",
        help="Prompt file: column that holds the prompts, if it is not found by itself.",
    ),
    expert("--category", metavar="LABEL", help="Prompt file: only rows with this label."),
    expert(
        "--where",
        multiple=True,
        metavar="COLUMN=VALUE",
        help="Prompt file: only rows that meet it; also != > < >= <=, and ~ for a regular "
        "expression. May be repeated.",
    ),
)
skip_empty = expert(
    "--skip-empty",
    is_flag=True,
    help="Prompt file: leave out rows without a prompt, instead of refusing the file.",
)
ROW_OPTIONS = ("column", "category", "where", "skip_empty")


def prompt_rows(command: Callable) -> Callable:
    """Add the options that choose rows of prompt files.

    The command gets them as one argument `filters`, keyword arguments of
    `ine.prompts.reading.find_prompt_set`.
    """

    @wraps(command)
    def call(*args: Any, **given: Any) -> Any:
        filters = {name: given.pop(name) for name in ROW_OPTIONS}
        return command(*args, filters=filters, **given)

    return together(choosing_rows, skip_empty)(call)
