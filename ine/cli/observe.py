"""`ine observe`: ask a detector, a local model or a server what pictures show."""

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ine.cli import options
from ine.cli.command import IneCommand
from ine.cli.judge_input import left_out_lines, picture_list
from ine.cli.progress import bar
from ine.errors import ObserverError

if TYPE_CHECKING:
    import numpy as np

    from ine.observers.base import Observation

log = logging.getLogger("ine")


@click.command(cls=IneCommand)
@click.argument("pictures", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--observer",
    "spec",
    required=True,
    metavar="SPEC",
    help="judge:RULE, judge:DETECTOR, vlm:FOLDER_OR_ID or openai:URL#MODEL; the key of a server is "
    "read from INE_OBSERVER_KEY.",
)
@click.option(
    "--concept",
    "concepts",
    multiple=True,
    required=True,
    metavar="NAME|FILE",
    help="A shipped recipe's name or a YAML file; may be repeated.",
)
@options.overrides
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Keep a model's replies here, and ask nothing twice.",
)
@click.option(
    "--timeout",
    type=options.FiniteRange(0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds until a request to a server is given up.",
)
@click.option(
    "--parallel",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="Pictures at a time: requests to a server, or a local model's batch.",
)
@click.option("--recursive", is_flag=True, help="Include the folders inside a folder.")
@options.device
def observe(
    pictures: tuple[Path, ...],
    spec: str,
    concepts: tuple[str, ...],
    overrides: tuple[str, ...],
    cache: Path | None,
    timeout: float,
    parallel: int,
    recursive: bool,
    device: str,
) -> None:
    """Say which concepts PICTURES show, one JSON object per picture.

    PICTURES are files or folders. `shows` lists the concepts that are there; `found` holds the
    scores behind it, or yes or no; `unknown` why an observer gave no answer, which never means
    that the concept is absent. Pictures leave this machine if
    the URL of a server names another one.
    """
    from ine.observers.base import unknown_counts
    from ine.observers.question import question_of
    from ine.observers.table import ObserverSettings, load_observer
    from ine.recipe import load_recipe

    files, prompts, left_out = picture_list(pictures, recursive)
    recipes = [load_recipe(name, overrides) for name in dict.fromkeys(concepts)]
    settings = ObserverSettings(
        device=device, batch=parallel, parallel=parallel, timeout=timeout, cache=cache
    )
    observer = load_observer(spec, [question_of(recipe) for recipe in recipes], settings)
    seen: list[Observation] = []
    with bar(len(files), "looking") as progress:
        for some, shown in _batches(files, parallel):
            found = observer(shown, [prompts.get(path, "") for path in some])
            for path, one in zip(some, found, strict=True):
                click.echo(json.dumps(_facts(path, one), ensure_ascii=False))
            seen += found
            progress(len(seen))
    for line in left_out_lines(**left_out):  # type: ignore[arg-type]
        log.warning("%s", line)
    _check(observer.name, seen, unknown_counts(seen))


def _batches(files: Sequence[Path], most: int) -> Iterator[tuple[list[Path], "np.ndarray"]]:
    """Yield neighbouring pictures of one size: their paths, and uint8 (B, H, W, 3)."""
    from itertools import groupby

    import numpy as np

    from ine.pictures import read_whole

    for start in range(0, len(files), most):
        read = [(path, read_whole(path)) for path in files[start : start + most]]
        for _, group in groupby(read, key=lambda one: one[1].shape):
            together = list(group)
            yield [path for path, _ in together], np.stack([picture for _, picture in together])


def _facts(path: Path, one: "Observation") -> dict[str, object]:
    return {
        "picture": str(path),
        "shows": list(one.shows),
        "found": one.found,
        "words": list(one.words),
        "unknown": one.unknown,
        "raw": {name: answer.raw for name, answer in one.answers.items()},
        "why": {name: answer.why for name, answer in one.answers.items() if answer.why},
    }


def _check(name: str, seen: Sequence["Observation"], unknown: dict[str, int]) -> None:
    """Log how many answers are unknown.

    Raises:
        ObserverError: All of them failed.
    """
    if not unknown:
        return
    kinds = ", ".join(f"{count} {why}" for why, count in unknown.items())
    answers = [answer for one in seen for answer in one.answers.values()]
    if all(answer.unknown in ("time-out", "error") for answer in answers):
        raise ObserverError(
            f"observer {name}: none of {len(answers)} questions was answered ({kinds}; the last: "
            f"{answers[-1].why}); repair the observer and run again"
        )
    log.warning("%d of %d answers are unknown: %s", sum(unknown.values()), len(answers), kinds)
