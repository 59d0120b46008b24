"""`ine posi`: train a language model that rewrites prompts, and use it."""

import click

from ine.cli.command import IneSubgroup
from ine.cli.posi_pairs import pairs
from ine.cli.posi_rewrite import rewrite
from ine.cli.posi_train import base, train


@click.group(cls=IneSubgroup)
def posi() -> None:
    """Rewrite prompts before a text-to-image model reads them, by a language model.

    The model learns from pairs of prompts (`pairs`, then `train --stage sft`), then from pictures
    of what it writes (`train --stage ppo`). docs/posi.md goes through it.
    """


for _command in (pairs, base, train, rewrite):
    posi.add_command(_command)
