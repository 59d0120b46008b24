"""Options that several commands share: one name, one type and one help text each.

@click.command()
@options.model
@options.seed
def generate(model, seed): ...
"""

import os
import re
from pathlib import Path

import click

from ine.errors import CheckpointError
from ine.files import user_path
from ine.models.stack import as_unet, parse_layer

DEVICES = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


class Device(click.ParamType):
    """The name of a torch device; whether there is one is checked when it is used."""

    name = "device"

    def convert(self, value, param, ctx):
        """Return the name as given, or fail."""
        if not DEVICES.fullmatch(value):
            self.fail(f"{value!r} is none of auto, cpu, mps, cuda, cuda:N", param, ctx)
        return value


class Override(click.ParamType):
    """A recipe override, "section.key=value"; the recipe itself checks key and value."""

    name = "key=value"

    def convert(self, value, param, ctx):
        """Return the text as given, or fail."""
        key, sign, _ = value.partition("=")
        if not sign or not re.fullmatch(r"[A-Za-z_][\w.]*", key):
            self.fail(f"{value!r} is not of the form section.key=value", param, ctx)
        return value


class UnetFile(click.ParamType):
    """A file or folder of unlearned weights, with ":WEIGHT" behind it where it has one."""

    name = "file"

    def convert(self, value, param, ctx):
        """Return the `Layer`, or fail."""
        try:
            return parse_layer(value)
        except CheckpointError as error:
            self.fail(str(error), param, ctx)

    def split_envvar_value(self, rv):
        """Return the files that an environment variable names; a path that exists is one."""
        return [rv] if os.path.exists(user_path(rv)) else super().split_envvar_value(rv)


device = click.option(
    "--device",
    type=Device(),
    default="auto",
    show_default=True,
    metavar="auto|cpu|mps|cuda[:N]",
    help="Where to compute; auto takes a GPU if there is one.",
)
dtype = click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="Precision of the weights; auto is float16 on CUDA, float32 elsewhere.",
)
seed = click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Where all randomness comes from; the same seed gives the same result.",
)
out = click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Where to write; without it, a name made from the inputs.",
)
force = click.option("--force", is_flag=True, help="Replace what is there already.")
json_output = click.option(
    "--json", "as_json", is_flag=True, help="Print the result to stdout as JSON."
)
dry_run = click.option(
    "--dry-run",
    is_flag=True,
    help="Resolve and check all that needs no weights, print it, and stop.",
)
overrides = click.option(
    "--set",
    "overrides",
    type=Override(),
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a field of the recipe, such as inversion.steps=50; may be repeated.",
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
    help="Unlearned weights to lay over the base model; may be repeated, laid in order. A weight "
    "scales the difference from the base.",
)
clip_skip = click.option(
    "--clip-skip",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="N",
    help="Layer of the text encoder that speaks, counted from the last as UIs do: 1 is the last, "
    "2 the one before it (diffusers calls that 1).",
)
several = click.option(
    "--several",
    type=click.Choice(["join", "match"]),
    default="join",
    show_default=True,
    help="Several embeddings: all in one string, or the one that fits each picture.",
)


def together(*given):
    """Return a decorator that adds several options, in this order."""

    def add(command):
        for option in reversed(given):
            command = option(command)
        return command

    return add


sampling = together(
    click.option(
        "--steps",
        type=click.IntRange(1, 1000),
        help="Denoising steps (mini 20, models of few steps 4, else 50).",
    ),
    click.option(
        "--scheduler",
        type=click.Choice(["ddim", "dpm++", "euler", "pndm", "euler-a", "lcm"]),
        help="Sampler (models of few steps their own, else ddim).",
    ),
    click.option(
        "--guidance-scale",
        type=click.FloatRange(min=1),
        metavar="W",
        help="Strength of the prompt; 1 is no guidance (mini 5, turbo and Lightning models 1, "
        "else 7.5).",
    ),
    click.option(
        "--batch", type=click.IntRange(1), help="Pictures made together (mini 16, SDXL 2, else 4)."
    ),
)
"""What `choose.sampler` takes."""
