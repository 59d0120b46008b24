"""Options that say how a negative acts; `ine.cli.guiding` makes a `Guidance` of them."""

from pathlib import Path

import click

from ine.cli import options
from ine.cli.choices import OBSERVED, ON_UNKNOWN, PRESETS, STEER
from ine.cli.command import expert
from ine.guidance.table import METHODS

NEGATIVE_OPTIONS = (
    click.option("--negative-prompt", default="", metavar="TEXT", help="Negative text."),
    click.option(
        "--negative-embedding",
        "embedding_files",
        multiple=True,
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Embedding to use as a negative; may be repeated.",
    ),
)
GUIDANCE_OPTIONS = (
    click.option(
        "--guidance",
        type=click.Choice(list(METHODS)),
        help="How the negative acts; without it, as the embedding's file recommends, else cfg.",
    ),
    expert(
        "--preset",
        metavar="NAME",
        help=f"sld: {', '.join(PRESETS[:-1])} or {PRESETS[-1]}; vl-dnp: {', '.join(OBSERVED[:-1])} "
        f"or {OBSERVED[-1]}.",
    ),
    click.option(
        "--negative-strength",
        type=options.FiniteRange(min=0),
        metavar="S",
        help="Strength of the negative; without it, the one that the embedding's file recommends "
        "or states, else W - 1.",
    ),
    expert(
        "--guidance-set",
        "settings",
        multiple=True,
        metavar="SETTING=VALUE",
        help="Another setting of the method, such as warmup=5; may be repeated.",
    ),
    click.option(
        "--gate",
        "gate_file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Act only on pictures for which this gate of `ine calibrate` opens, a look-ahead "
        "before the first step; without it, the one that the embedding's file recommends.",
    ),
    expert(
        "--no-gate",
        is_flag=True,
        help="Act on every picture, although the embedding's file recommends a gate.",
    ),
    expert(
        "--no-look-ahead",
        "late",
        is_flag=True,
        help="Ask the gate at half the run instead of before it.",
    ),
    expert(
        "--gate-window",
        metavar="FROM:TO",
        help="Act only in this part of the run, such as 0:0.6.",
    ),
    click.option(
        "--restart",
        is_flag=False,
        flag_value="1,1,1",
        metavar="LADDER",
        help="Restart a picture, guided from its first step, if the concept shows at half the run; "
        "again from other noise if it still shows, at these multiples of the strength (default "
        "1,1,1); without it, as the embedding's file recommends.",
    ),
    expert(
        "--no-restart",
        is_flag=True,
        help="Restart no picture, although the embedding's file recommends it.",
    ),
    expert(
        "--steer",
        type=click.Choice(STEER),
        help="vl-dnp: away from the words that were named, from the embeddings of what was found, "
        "or both; without it, as the negative has text and embeddings.",
    ),
    expert(
        "--look",
        metavar="STEP,...",
        help="vl-dnp: steps at which the observer looks, fractions of the run, or ahead for a look "
        "before the first step; without it, those of the publication, fitted to the run.",
    ),
    expert(
        "--look-for",
        multiple=True,
        metavar="NAME|FILE",
        help="vl-dnp: a concept to look for; may be repeated. Without it, those of the embeddings.",
    ),
    expert(
        "--on-unknown",
        type=click.Choice(ON_UNKNOWN),
        help="vl-dnp: where the observer gives no answer, go on as after its last look, steer as "
        "if the concept was found (default), or end.",
    ),
)

OBSERVER_OPTION = expert(
    "--observer",
    "watcher",
    metavar="SPEC",
    help="vl-dnp: what looks at previews, as in `ine observe`: judge:RULE, vlm:FOLDER_OR_ID, "
    "openai:URL#MODEL.",
)
