"""Options that commands of `ine posi` share."""

from pathlib import Path

import click

from ine.cli import options
from ine.cli.command import expert

asking_server = options.together(
    expert(
        "--cache",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="DIR",
        help="Keep a server's replies here, and ask nothing twice.",
    ),
    expert(
        "--timeout",
        type=options.FiniteRange(0, min_open=True),
        default=60.0,
        show_default=True,
        help="Seconds until a request to a server is given up.",
    ),
    expert(
        "--parallel",
        type=click.IntRange(1, 64),
        default=4,
        show_default=True,
        help="Requests to a server at a time.",
    ),
)
instruction = click.option(
    "--instruction",
    metavar="TEXT",
    help="What the model is asked, before each prompt (a sentence of ine's own).",
)
