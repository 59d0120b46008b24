"""Options about who makes the pictures of `ine refine`, and the generator that they stand for."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from ine.cli import options
from ine.cli.command import expert
from ine.cli.generate import DEFAULT_MODEL
from ine.cli.guiding import DefenceOptions
from ine.cli.model import ModelOptions
from ine.cli.refining_options import check_negative
from ine.cli.sampling import SamplingOptions

if TYPE_CHECKING:
    from ine.refining.generators import Generator
    from ine.refining.settings import RefineSettings


@dataclass(frozen=True, kw_only=True)
class GeneratorOptions:
    """What the options about the generator say."""

    generator: str | None = None
    size: str | None = None
    parallel: int = 4


generating = options.packed(
    "generating",
    GeneratorOptions,
    expert(
        "--generator",
        metavar="SPEC",
        help="Who makes the pictures instead of a model of ours: openai:URL#MODEL, an images "
        "endpoint, or 'command:WORDS', a command with {prompts} (JSON lines) and {out} (a folder).",
    ),
    expert("--size", metavar="WxH", help="With an endpoint: width and height, such as 512x512."),
    expert(
        "--parallel",
        type=click.IntRange(1, 64),
        default=4,
        show_default=True,
        help="With an endpoint: requests at once.",
    ),
)


def generator_of(
    generating: GeneratorOptions,
    defence: DefenceOptions,
    model: ModelOptions,
    sampling: SamplingOptions,
    settings: "RefineSettings",
) -> "Generator":
    """Return who makes the pictures: a model of ours, or `--generator`."""
    from ine.refining.endpoint import load_generator
    from ine.refining.generators import sampler_generator

    if generating.generator:
        check_alone(defence, model)
        check_negative(settings, "")
        return load_generator(
            generating.generator, size=generating.size, parallel=generating.parallel
        )
    embeddings = defence.embeddings()
    chosen = model.choose(embeddings, default=DEFAULT_MODEL)
    parts = chosen.open(keep_base=False).parts
    sampler = sampling.settings(parts)
    method = defence.build(parts, sampler, embeddings)
    check_negative(settings, method.negative.prompt())
    return sampler_generator(parts, method, sampler)


def check_alone(defence: DefenceOptions, model: ModelOptions) -> None:
    """Raise where `--generator` stands beside what is of models of ours.

    Raises:
        click.UsageError: It does.
    """
    if any([defence.embedding_files, defence.negative_prompt, model.unet, model.model]):
        raise click.UsageError(
            "--generator makes its pictures by itself; --model, --unet and negatives are of models "
            "of ours"
        )
