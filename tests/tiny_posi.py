"""A tiny language model of the bundled world's words, and both stages of training on it."""

import numpy as np
from click.testing import CliRunner

from ine.cli import cli
from ine.posi.mini_words import make_base
from ine.posi.pair_files import Pair, write_pairs
from ine.runtime import seed_for

PAIRS = [
    *(Pair(toxic=f"a burning {noun}", clean=f"a {noun}") for noun in ("dog", "cat", "car", "bus")),
    *(Pair(toxic=f"a {noun}", clean=f"a {noun}") for noun in ("dog", "cat", "car", "bus")),
]
QUICK = (
    *("--set", "sft.steps=12", "--set", "sft.batch=8", "--set", "ppo.rollouts=2"),
    *("--set", "ppo.batch=4", "--set", "ppo.minibatch=4", "--set", "ppo.epochs=2"),
    *("--set", "ppo.drawing.max_tokens=6", "--set", "reward.pictures=1"),
    *("--set", "generator.steps=2", "--set", "generator.batch=4"),
)


def run(*args, code=0):
    done = CliRunner().invoke(cli, ["posi", *map(str, args)], prog_name="ine")
    assert done.exit_code == code, done.output + repr(done.exception)
    return done


def made_in(made):
    """A folder with a base, pairs, and an adapter for them."""
    make_base(made / "base", steps=4, width=32, layers=1)
    write_pairs(made / "pairs.json", PAIRS, "rewrite")
    where = ("--base", made / "base", "--pairs", made / "pairs.json", "--equal", "keep")
    run("train", "--stage", "sft", "--recipe", "mini", *where, *QUICK, "--out", made / "sft")
    return made


class Noise:
    """A generator of noise, in the place of the bundled model."""

    name, batch = "noise", 4

    def __call__(self, requests):
        drawn = [
            np.random.default_rng(seed_for(one.prompt, one.seed)).integers(
                0, 256, (64, 64, 3), dtype=np.uint8
            )
            for one in requests
        ]
        return np.stack(drawn), [{} for _ in drawn], [0] * len(drawn)


def ppo(folder, out, *more, code=0):
    where = ("--base", folder / "base", "--adapter", folder / "sft")
    said = ("--prompts", "mini:fire/explicit", *QUICK, "--out", out, *more)
    return run("train", "--stage", "ppo", "--recipe", "mini", *where, *said, code=code)
